"""The evaluation transforms of torchvision and timm as differentiable steps: resize, crop the centre, normalise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from audit.classifiers._preprocessing import Normalise, Preprocess, Resize, Size
from audit.errors import ModelError

Fit = Literal["shorter", "exact", "cover", "contain"]

# By the names that torchvision and timm use; Pillow's resampling, which both apply to Pillow's images.
MODES = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Fitted:
    """Target of a resize to `scale` = (height, width), by one of four rules (`fit`).

    'shorter': the shorter side becomes the height, the longer one is rounded down; 'exact': both sides, whatever the
    aspect ratio; 'cover': the smallest size of the image's aspect ratio, rounded, that holds `scale`; 'contain': the
    largest one that fits into it.
    """

    scale: Size
    fit: Fit

    def __call__(self, size: Size) -> Size:
        return resized_size(*size, self.scale, self.fit)


@dataclass(frozen=True)
class FilledCrop:
    """Centre crop. A smaller image is padded with `fill` (per channel, in [0, 1])."""

    height: int
    width: int
    fill: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        wanted = self.height, self.width
        (top, bottom), (left, right) = (_padding(x.shape[i - 2], wanted[i]) for i in (0, 1))
        if top or bottom or left or right:
            fill = x.new_tensor(self.fill)[:, None, None]
            x = F.pad(x - fill, (left, right, top, bottom)) + fill
        # Python's round, as torchvision: of two middles the one with the even number.
        y, z = (round((x.shape[i - 2] - wanted[i]) / 2) for i in (0, 1))
        return x[..., y : y + self.height, z : z + self.width]

    def output_size(self, _: Size) -> Size:
        return self.height, self.width


def eval_transform(
    target: Fitted,
    crop: FilledCrop,
    *,
    mode: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Preprocess:
    """Resize, crop the centre, normalise, as an evaluation transform of torchvision or timm does."""
    steps = (Resize(target, mode), crop, Normalise(mean, std))
    return Preprocess((crop.height, crop.width), steps=steps)


def _padding(own: int, wanted: int) -> tuple[int, int]:
    lacking = max(wanted - own, 0)
    return lacking // 2, (lacking + 1) // 2


def resized_size(height: int, width: int, scale: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """The size that an image is resized to.

    >>> resized_size(90, 60, (48, 48), "shorter"), resized_size(90, 60, (48, 40), "contain")
    ((72, 48), (48, 32))
    """
    if fit == "exact":
        return scale
    if fit == "shorter":
        long = int(scale[0] * max(height, width) / min(height, width))
        return (scale[0], long) if height <= width else (long, scale[0])
    ratios = (height / scale[0], width / scale[1])
    ratio = max(ratios) if fit == "contain" else min(ratios)
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


def mode_of(interpolation: str, where: str) -> str:
    """The name that `Resize` uses for a resampling filter of the library. Raises ModelError. where: for the message."""
    if interpolation not in MODES:
        raise ModelError(f"{where}: interpolation {interpolation!r} is not supported; known: {', '.join(MODES)}")
    return interpolation
