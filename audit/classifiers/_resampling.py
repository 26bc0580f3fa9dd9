"""Antialiased resampling of images with the filters of Pillow, differentiably.

Source of the filters and of their support: Pillow's `Resample.c`. Pillow resamples along one axis and then along the
other, and clips to the range of 8 bits after each; so does `resample`, without the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Pillow's numbers, which `resample` of an image processor holds.
MODES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_OVERSHOOTS = ("bicubic", "lanczos")


def resample(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """(..., h, w) in [0, 1] to (..., *size). An image that has this size already stays as it is."""
    if tuple(x.shape[-2:]) == size:
        return x
    # The order that Pillow 13 takes: it matters where clipping does, at hard edges.
    fewer_rows_first = size[0] < x.shape[-2] and size[1] > x.shape[-1]
    for axis in (-2, -1) if fewer_rows_first else (-1, -2):
        if x.shape[axis] != size[axis]:
            x = _nearest(x, axis, size[axis]) if mode == "nearest" else _along(x, axis, size[axis], mode)
    return x


def _nearest(x: Tensor, axis: int, length: int) -> Tensor:
    """The nearest pixel of each centre. Positions are summed like in Pillow, so that ties are rounded the same way."""
    scale = x.shape[axis] / length
    places = np.floor(np.cumsum([scale / 2] + [scale] * (length - 1)))
    return x.index_select(axis, torch.from_numpy(places.clip(0, x.shape[axis] - 1)).long().to(x.device))


def _along(x: Tensor, axis: int, length: int, mode: str) -> Tensor:
    if mode in _KERNELS:
        weights = torch.from_numpy(_weights(mode, x.shape[axis], length)).to(x)
        x = x @ weights.T if axis == -1 else weights @ x
    else:
        size = (x.shape[-2], length) if axis == -1 else (length, x.shape[-1])
        x = F.interpolate(x, size, mode=mode, antialias=True, align_corners=False)
    return x.clamp(0, 1) if mode in _OVERSHOOTS else x


def _lanczos(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0)


def _box(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((t > -0.5) & (t <= 0.5)).astype(np.float64)


def _hamming(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(t) < 1, np.sinc(t) * (0.54 + 0.46 * np.cos(np.pi * t)), 0)


# A filter, and how far it reaches.
_KERNELS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "lanczos": (_lanczos, 3.0),
    "box": (_box, 0.5),
    "hamming": (_hamming, 1.0),
}


@lru_cache(maxsize=64)
def _weights(mode: str, before: int, after: int) -> NDArray[np.float32]:
    """(after, before): the weight of each of the `before` input pixels of a row in each of the `after` output
    pixels."""
    kernel, reach = _KERNELS[mode]
    scale = before / after
    width = max(scale, 1.0)
    centres = (np.arange(after)[:, None] + 0.5) * scale
    places = np.arange(before)[None]
    inside = (places >= np.floor(centres - reach * width + 0.5)) & (places < np.floor(centres + reach * width + 0.5))
    weights = np.where(inside, kernel((places + 0.5 - centres) / width), 0)
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)
