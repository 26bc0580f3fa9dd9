"""What is measured of a counterfactual and of the images it is compared with, as rows of `measurements`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from audit.counterfactual import Original
from audit.decisions import Decision
from audit.metrics import proximity

Features = Callable[[Tensor], Tensor]
Measured = dict[str, list[float | None]]
_UNITS = {"psnr": "dB", "mask_area": "share of the image", "flipped": "0 or 1"}
_REASONS = {
    "background_rmse": "the mask covers the whole image",
    "source_background_rmse": "the source's mask covers the whole image",
    "perceptual_distance": "no network: name one with 'perceptual', or add an embedder to the job",
}


@torch.no_grad()
def measured(
    variants: Mapping[str, Tensor], original: Original, mask: Tensor, decision: Decision, features: Features | None
) -> dict[str, Measured]:
    """Everything that is measured of each variant (b, 3, H, W) of the originals: name to b values.

    `background_rmse` is outside `mask`, `source_background_rmse` outside the source's alone; None where such a mask
    leaves no background. `features`: of the network of the perceptual distance, which is None without one.
    """
    originals, found = original.image, {}
    for name, images in variants.items():
        scores = decision.scores(images)
        values: Measured = {"p_source": scores[:, 0].tolist(), "p_target": scores[:, 1].tolist()}
        values["flipped"] = scores[:, 2].tolist()
        if name != "original":
            for distance in (proximity.l1, proximity.l2, proximity.ssim, proximity.psnr):
                values[distance.__name__] = distance(images, originals).tolist()
            values["background_rmse"] = _outside(images, originals, mask)
            values["source_background_rmse"] = _outside(images, originals, original.mask)
            values["perceptual_distance"] = [None] * len(images)
            if features is not None:
                values["perceptual_distance"] = proximity.perceptual_distance(images, originals, features).tolist()
        found[name] = values
    return found


def _outside(images: Tensor, originals: Tensor, mask: Tensor) -> list[float | None]:
    everything = proximity.mask_area(mask) == 1
    distances = proximity.background_rmse(images, originals, mask)
    return [None if whole else value for whole, value in zip(everything.tolist(), distances.tolist(), strict=True)]


def row(subject_id: str, stage: str, name: str, key: str | None, value: float | None) -> dict[str, Any]:
    """A row of `measurements`. `key`: of which image; no value comes with the reason."""
    base: dict[str, Any] = {"subject_id": subject_id, "stage": stage, "name": name, "key": key}
    base |= {"value": value, "unit": _UNITS.get(name, "1")}
    if value is None:
        base["reason"] = _REASONS[name]
    elif not math.isfinite(value):
        base |= {"value": None, "reason": "not_finite"}
    return base
