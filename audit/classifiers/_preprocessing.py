"""Preprocessing of images as a pipeline of differentiable steps.

A step maps (b, c, h, w) to (b, c, h', w'). Its `output_size` computes (h', w') from (h, w) alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from audit.classifiers._resampling import resample

# Part of each model's digest: raised whenever steps of one name give other numbers than before.
VERSION = 2
Size = tuple[int, int]
# Pillow's weights of red, green and blue in a grey value (ITU-R 601-2).
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


class Step(Protocol):
    """One step: a frozen value that is called with images."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def output_size(self, size: Size, /) -> Size: ...


class _KeepsSize:
    def output_size(self, size: Size) -> Size:
        return size


@dataclass(frozen=True)
class Exact:
    """Target of a resize: exactly this height and width, whatever the image's aspect ratio."""

    height: int
    width: int

    def __call__(self, _: Size) -> Size:
        return self.height, self.width


@dataclass(frozen=True)
class ShortestEdge:
    """Target of a resize: the shorter side becomes `edge`, the longer one keeps the aspect ratio.

    `longest`: limit of the longer side, which overrides `edge`. `rounding`: of the longer side. Both sides are then
    rounded up to a multiple of `divisor`.
    """

    edge: int
    longest: int | None = None
    rounding: Callable[[float], int] = int
    divisor: int = 1

    def __call__(self, size: Size) -> Size:
        short, long = min(size), max(size)
        edge, exact = self.edge, float(self.edge)
        if self.longest is not None and long / short * edge > self.longest:
            exact = self.longest * short / long
            edge = round(exact)
        sides = edge, long if edge == short else self.rounding(exact * long / short)
        height, width = sides if size[0] <= size[1] else sides[::-1]
        return _multiple(height, self.divisor), _multiple(width, self.divisor)


def _multiple(side: int, divisor: int) -> int:
    return math.ceil(side / divisor) * divisor


@dataclass(frozen=True)
class Within:
    """Target of a resize: the largest size of the image's aspect ratio within this height and width."""

    height: int
    width: int

    def __call__(self, size: Size) -> Size:
        scale = min(self.height / size[0], self.width / size[1])
        return int(size[0] * scale), int(size[1] * scale)


@dataclass(frozen=True)
class Thumbnail:
    """Target of a resize: like `Within`, but never larger than the image."""

    height: int
    width: int

    def __call__(self, size: Size) -> Size:
        height, width = min(size[0], self.height), min(size[1], self.width)
        if (height, width) == size:
            return size
        if size[0] > size[1]:
            width = int(size[1] * height / size[0])
        elif size[1] > size[0]:
            height = int(size[0] * width / size[1])
        return height, width


Target = Callable[[Size], Size]  # from the size of an image to that it is resized to


@dataclass(frozen=True)
class Resize:
    """Resample to the size that the target gives. `mode`: nearest, bilinear, bicubic, lanczos, box or hamming."""

    target: Target
    mode: str = "bicubic"

    def __call__(self, x: Tensor) -> Tensor:
        return resample(x, self.target((x.shape[-2], x.shape[-1])), self.mode)

    def output_size(self, size: Size) -> Size:
        return self.target(size)


@dataclass(frozen=True)
class CentreCrop:
    """Centre crop. A smaller image is padded with zeros."""

    height: int
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        high, wide = max(self.height - x.shape[-2], 0), max(self.width - x.shape[-1], 0)
        if high or wide:
            x = F.pad(x, ((wide + 1) // 2, wide // 2, (high + 1) // 2, high // 2))
        top, left = (x.shape[-2] - self.height) // 2, (x.shape[-1] - self.width) // 2
        return x[..., top : top + self.height, left : left + self.width]

    def output_size(self, _: Size) -> Size:
        return self.height, self.width


@dataclass(frozen=True)
class CropShare:
    """A centre crop whose height and width are these shares of the image's shorter side."""

    height: float
    width: float

    def __call__(self, x: Tensor) -> Tensor:
        return CentreCrop(*self.output_size((x.shape[-2], x.shape[-1])))(x)

    def output_size(self, size: Size) -> Size:
        return int(self.height * min(size)), int(self.width * min(size))


@dataclass(frozen=True)
class Pad:
    """Zeros around an image up to this size: on all sides where `centred`, else at the bottom and on the right."""

    height: int
    width: int
    centred: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        high, wide = self.height - x.shape[-2], self.width - x.shape[-1]
        top, left = (high // 2, wide // 2) if self.centred else (0, 0)
        return F.pad(x, (left, wide - left, top, high - top))

    def output_size(self, _: Size) -> Size:
        return self.height, self.width


@dataclass(frozen=True)
class Grey(_KeepsSize):
    """RGB to one channel, its luma."""

    def __call__(self, x: Tensor) -> Tensor:
        return (x * x.new_tensor(_LUMA)[:, None, None]).sum(-3, keepdim=True)


@dataclass(frozen=True)
class Scale(_KeepsSize):
    """`factor` x + `offset`."""

    factor: float
    offset: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor + self.offset


@dataclass(frozen=True)
class FlipChannels(_KeepsSize):
    """RGB to BGR."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(-3)


@dataclass(frozen=True)
class Normalise(_KeepsSize):
    """Subtract `mean` and divide by `std`: one number a channel, or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]


@dataclass(frozen=True)
class Preprocess:
    """Differentiable preprocessing of RGB in [0, 1]: `steps`, one after another.

    `size`: (height, width) of the result. If no steps are given: resize so that the shorter side is `resize`
    (or to exactly `size` where it is None), crop the centre to `size`, subtract `mean` and divide by `std` per channel.
    Every image goes through all steps, whatever its size.
    """

    size: Size
    resize: InitVar[int | None] = None
    mean: InitVar[tuple[float, ...]] = (0.0, 0.0, 0.0)
    std: InitVar[tuple[float, ...]] = (1.0, 1.0, 1.0)
    mode: InitVar[str] = "bicubic"
    steps: tuple[Step, ...] = ()

    def __post_init__(self, resize: int | None, mean: tuple[float, ...], std: tuple[float, ...], mode: str) -> None:
        if not self.steps:
            object.__setattr__(self, "steps", _common(self.size, resize, mode, mean=mean, std=std))

    def __call__(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to (b, channels, *size)."""
        for step in self.steps:
            x = step(x)
        return x

    @cached_property
    def side(self) -> int:
        """Side of a square image that no step resamples, if there is one: the resolution of the network's input.

        Cutouts of a generated image have this side, so that what a search changes reaches the network unblurred.
        """
        side = max(self.size)
        nearest = (*range(side, 2 * side + 1), *range(side - 1, 0, -1))
        return next((s for s in nearest if not _resampled(self.steps, s)), side)


def _common(
    size: Size, resize: int | None, mode: str, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = (Resize(Exact(*size), mode),)
    if resize is not None:
        steps = (Resize(ShortestEdge(resize), mode), CentreCrop(*size))
    plain = all(m == 0 for m in mean) and all(s == 1 for s in std)
    return steps if plain else (*steps, Normalise(mean, std))


def _resampled(steps: Iterable[Step], side: int) -> bool:
    size = side, side
    for step in steps:
        before, size = size, step.output_size(size)
        if isinstance(step, Resize) and size != before:
            return True
    return False


def digest_with_steps(digest: str) -> str:
    """Combine the digest of a model's weights with the version of these steps."""
    return hashlib.sha256(f"{digest}\0{VERSION}".encode()).hexdigest()


def output_sizes(steps: Iterable[Step], sizes: Iterable[Size]) -> set[Size]:
    """The sizes that images of these sizes have after all steps."""
    steps = tuple(steps)
    found = set()
    for size in sizes:
        for step in steps:
            size = step.output_size(size)
        found.add(size)
    return found
