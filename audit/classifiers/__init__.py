"""Classifier sources: one file each. All give a `Classifier`: RGB in [0, 1] of any size in, logits out.

A source defines `Options`, `load(options, data_classes)` and `digest(options)`, which changes whenever the
model's numbers may change and is found without loading the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit.class_names import canonical
from audit.errors import ModelError, unknown
from audit.results.warnings import RunWarning

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Preprocess:
    """What happens to RGB in [0, 1] before the network, differentiably.

    Resize so that the shorter side is `resize` (or to exactly `size` where `resize` is None), crop the centre to
    `size`, then subtract `mean` and divide by `std` per channel. An image that has its size already is not
    resampled.
    """

    size: tuple[int, int]
    resize: int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    mode: str = "bicubic"

    def __call__(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to (b, 3, *size)."""
        x = _centre_crop(_resample(x, self._target(x), self.mode), self.size)
        return (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]

    def _target(self, x: Tensor) -> tuple[int, int]:
        height, width = x.shape[-2:]
        if self.resize is None or (height, width) == self.size:
            return self.size
        short = min(height, width)
        return (int(height * self.resize / short), int(width * self.resize / short))


def _resample(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Antialiased resampling; bicubic overshoot is clipped to [0, 1], as 8-bit pipelines do."""
    if tuple(x.shape[-2:]) == size:
        return x
    if mode == "nearest":
        return F.interpolate(x, size, mode="nearest")
    x = F.interpolate(x, size, mode=mode, antialias=True, align_corners=False)
    return x.clamp(0, 1) if mode == "bicubic" else x


def _centre_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


@dataclass(frozen=True)
class Classifier:
    """A classifier under audit.

    `forward` maps preprocessed images (b, 3, *preprocess.size) to logits (b, classes). `warnings`: what its loader
    could not know.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    forward: Forward
    network: nn.Module
    warnings: tuple[RunWarning, ...] = field(default=(), kw_only=True)

    def logits(self, x: Tensor) -> Tensor:
        """RGB (b, 3, h, w) in [0, 1] to logits (b, classes), float32; differentiable in x."""
        return self.forward(self.preprocess(x)).float()

    def index_of(self, class_name: str) -> int:
        """Position of a class, by name up to case, underscores and spaces."""
        names = [canonical(name) for name in self.class_names]
        if canonical(class_name) not in names:
            raise ModelError(unknown("class", class_name, self.class_names))
        return names.index(canonical(class_name))


@dataclass(frozen=True)
class Embedder(Classifier):
    """A zero-shot classifier whose two towers are of use by themselves; outputs have norm 1.

    Embeddings of texts are on the CPU, those of images where the images were. `scale`: what its logits multiply the
    cosine of an image and a text by. `embed_preprocessed`: `embed_images` without the preprocessing, where it can be
    had apart.
    """

    embed_images: Forward
    embed_texts: Callable[[Sequence[str]], Tensor]
    scale: float
    embed_preprocessed: Forward | None = field(default=None, kw_only=True)


def names_for(
    given: Sequence[str] | str | None, own: Sequence[str], data: Sequence[str], count: int
) -> tuple[str, ...]:
    """The class names of a model: the job's, else its own, else ('data') the data set's in sorted order."""
    chosen = tuple(data) if given == "data" else tuple(given) if given else tuple(own)
    if len(chosen) != count:
        source = "the data set's sorted labels" if given == "data" else "class_names"
        raise ModelError(
            f"the model has {count} outputs, but {source} gives {len(chosen)} names. "
            "Set class_names to one name per output, in the order of the outputs."
        )
    return chosen


def check_whole(ref: str, missing: Iterable[str]) -> None:
    """Refuse weights that lack a part of the model: the library fills it with random numbers. Raises ModelError."""
    lacking = sorted(missing)
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ModelError(
            f"the weights of {ref} lack {', '.join(lacking[:3])}{more}, which its config.json asks for: they are "
            "those of another architecture, or of the model without its head"
        )


def check_network(logits: Tensor, count: int) -> None:
    """Refuse a network whose trial output is not (1, count) finite numbers."""
    if logits.ndim != 2 or logits.shape[1] != count:
        raise ModelError(f"the model returns shape {tuple(logits.shape)} for one image, expected (1, {count})")
    if not torch.isfinite(logits).all():
        raise ModelError("the model returns NaN or infinity for a grey image: its weights are broken")
