"""The evaluation transforms of torchvision and timm as differentiable steps: resize, crop the centre, normalise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from audit.classifiers import Preprocess
from audit.errors import ModelError

Fit = Literal["shorter", "exact", "cover", "contain"]

# By the names that torchvision and timm use; Pillow's resampling, which both apply to Pillow's images.
MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos"}


@dataclass(frozen=True)
class EvalTransform(Preprocess):
    """RGB (b, 3, h, w) in [0, 1] to (b, 3, *size).

    fit: how an image is resized to `scale` = (height, width). 'shorter': its shorter side to the height, the longer one
    rounded down; 'exact': both sides, whatever the aspect ratio; 'cover': the smallest size of its aspect ratio,
    rounded, that holds `scale`; 'contain': the largest one that fits into it. The centre is then cropped to `size`;
    where the image is smaller, `fill` (per channel, in [0, 1]) is around it. An image that has the right size already
    goes through the same steps.

    mode: a value of `MODES`; all but 'nearest-exact' are antialiased, and clipped to [0, 1] as 8-bit images are.
    """

    scale: tuple[int, int] = (224, 224)
    fit: Fit = "shorter"
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        x = self._cropped(self._resized(x))
        return (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]

    def _resized(self, x: Tensor) -> Tensor:
        size = resized_size(x.shape[-2], x.shape[-1], self.scale, self.fit)
        if tuple(x.shape[-2:]) == size:
            return x
        if self.mode == "nearest-exact":
            return F.interpolate(x, size, mode=self.mode)
        # Pillow resamples the width first, and clips what is too bright or too dark at an edge before the height.
        for step in ((x.shape[-2], size[1]), size):
            if tuple(x.shape[-2:]) != step:
                x = F.interpolate(x, step, mode=self.mode, antialias=True).clamp(0, 1)
        return x

    def _cropped(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (_padding(x.shape[i - 2], self.size[i]) for i in (0, 1))
        if top or bottom or left or right:
            fill = x.new_tensor(self.fill)[:, None, None]
            x = F.pad(x - fill, (left, right, top, bottom)) + fill
        # Python's round, as torchvision: of two middles the one with the even number.
        y, z = (round((x.shape[i - 2] - self.size[i]) / 2) for i in (0, 1))
        return x[..., y : y + self.size[0], z : z + self.size[1]]


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
    """A mode of `EvalTransform`, by its name in the library. Raises ModelError; `where`: what has it."""
    if interpolation not in MODES:
        raise ModelError(f"{where}: interpolation {interpolation!r} is not supported; known: {', '.join(MODES)}")
    return MODES[interpolation]
