"""Cutouts and noise: what keeps an optimised image an explanation and not an adversarial example."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EXPONENT = 0.3


def cutouts(x: Tensor, size: int, count: int, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Random square crops pooled to `size`, plus Gaussian noise: (b, 3, h, w) to (b, count, 3, size, size).

    The side of a crop is u^0.3 (min(h, w) - size) + size with u uniform, its place is uniform; it is pooled by
    adaptive averaging. Each image draws from its own generator. An image of side `size` gives crops that are all the
    whole image, a smaller one is enlarged to it first: then only the noise tells the crops apart.

    Source: DiG-IN section 3.2 and Fig. 14; the exponent is the authors' code's, not the paper's.
    """
    short = min(x.shape[-2:])
    if short < size:
        x = F.interpolate(x, scale_factor=size / short, mode="bilinear", align_corners=False)
        short = min(x.shape[-2:])
    return torch.stack(
        [_cutouts_of(image, short, size, count, sigma, g) for image, g in zip(x, generators, strict=True)]
    )


def _cutouts_of(image: Tensor, short: int, size: int, count: int, sigma: float, generator: torch.Generator) -> Tensor:
    crops = []
    height, width = image.shape[-2:]
    draws = torch.rand((count, 3), generator=generator).tolist()
    for u, v, w in draws:
        side = int(u**EXPONENT * (short - size) + size)
        top, left = int(v * (height - side + 1)), int(w * (width - side + 1))
        crops.append(F.adaptive_avg_pool2d(image[:, top : top + side, left : left + side], size))
    stacked = torch.stack(crops)
    noise = torch.randn(stacked.shape, generator=generator, dtype=stacked.dtype)
    return stacked + sigma * noise.to(stacked.device)
