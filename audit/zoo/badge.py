"""Where the badge is on an image: its drawing, compared with every place. No network has a say in it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from audit.zoo.scenes import render
from audit.zoo.world import load_world, scene_at

# Of 1,000 held-out scenes, badges correlate by .644 or more, anything else by .594 or less.
LEAST = 0.62


def has_badge(image: NDArray[np.uint8]) -> bool:
    """Whether an image (64, 64, 3) has the badge, whole and in its colours."""
    return correlation(image) > LEAST


def correlation(image: NDArray[np.uint8]) -> float:
    """The highest normalised correlation of the badge's drawing with a disc of the image, over channels, in [-1, 1]."""
    template, disc = _template()
    x = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    total, squares = F.conv2d(x, disc), F.conv2d(x.square(), disc)
    spread = (squares - total.square() / disc.sum()).clamp_min(1e-6).sqrt()
    return float((F.conv2d(x, template) / spread).max())


@cache
def _template() -> tuple[Tensor, Tensor]:
    """The badge, with mean 0 and norm 1 on its disc, and the disc: (1, 3, h, w) both."""
    scene = scene_at(load_world(), "train", 5).scene
    with_badge, without = (
        torch.from_numpy(render(replace(scene, badge=badge)).image.astype(np.float64)) for badge in (True, False)
    )
    differs = (with_badge - without).abs().sum(-1) > 0
    rows, columns = (torch.nonzero(differs.any(axis)).flatten() for axis in (1, 0))
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    disc = differs[box].double().expand(3, -1, -1)[None]
    drawn = with_badge[box].permute(2, 0, 1)[None]
    centred = (drawn - (drawn * disc).sum() / disc.sum()) * disc
    return centred / centred.norm(), disc
