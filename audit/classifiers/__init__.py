"""Classifier sources: one file each. All give a `Classifier`: RGB in [0, 1] of any size in, logits out.

A source defines `Options`, `load(options, data_classes)` and `digest(options)`, which changes whenever the
model's numbers may change and is found without loading the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from audit.class_names import are_integers, beginning, resolved
from audit.classifiers._preprocessing import Preprocess
from audit.errors import ModelError
from audit.labels.imagenet import imagenet_1k
from audit.results.warnings import RunWarning

Forward = Callable[[Tensor], Tensor]
__all__ = [
    "Classifier",
    "Embedder",
    "Forward",
    "Preprocess",
    "check_network",
    "check_whole",
    "names_for",
]


@dataclass(frozen=True)
class Classifier:
    """A classifier under audit.

    `forward` maps preprocessed images (b, channels, *preprocess.size) to logits (b, classes). `warnings`: those of its
    loader. `default_size`: whether `preprocess.size` was not given and the model accepts other sizes too.
    """

    class_names: tuple[str, ...]
    preprocess: Preprocess
    forward: Forward
    network: nn.Module
    warnings: tuple[RunWarning, ...] = field(default=(), kw_only=True)
    default_size: bool = field(default=False, kw_only=True)

    def logits(self, x: Tensor) -> Tensor:
        """RGB (b, 3, h, w) in [0, 1] to logits (b, classes), float32; differentiable in x."""
        return self.forward(self.preprocess(x)).float()

    def index_of(self, class_name: str) -> int:
        """Position of a class: by equal text, else by folding if only one class fits."""
        return self.class_names.index(resolved(class_name, self.class_names, ModelError))


@dataclass(frozen=True)
class Embedder(Classifier):
    """A zero-shot classifier whose two towers are of use by themselves; outputs have norm 1.

    Embeddings of texts are on the CPU, those of images where the images were. `scale`: what its logits multiply the
    cosine of an image and a text by. `embed_preprocessed`: `embed_images` without the preprocessing, if the model
    separates the two.
    """

    embed_images: Forward
    embed_texts: Callable[[Sequence[str]], Tensor]
    scale: float
    embed_preprocessed: Forward | None = field(default=None, kw_only=True)


def names_for(
    given: Sequence[str] | str | None, own: Sequence[str], data: Sequence[str], count: int
) -> tuple[str, ...]:
    """The names of a model's outputs: those of the job, else the model's own. `given` = 'data' selects the data set's
    classes in their order. data: these classes.

    A model without names of its own gets the numbers of its outputs if the labels are numbers too, or WordNet ids of
    ImageNet's 1,000 classes. Raises ModelError if the names do not fit the outputs, or if there are no names.
    """
    if given == "data":
        chosen = numbered(data, count) if len(data) != count else tuple(data)
    elif given:
        chosen = tuple(given)
    else:
        chosen = tuple(own) if not _says_nothing(own, data) else numbered(data, count)
        if chosen is None:
            raise ModelError(_no_names(own, data, count))
    if chosen is None or len(chosen) != count:
        source = "the data set's classes give" if given == "data" else "class_names gives"
        raise ModelError(
            f"the model has {count} outputs, but {source} {len(chosen or data)} names: {beginning(chosen or data)}. "
            "Set class_names to one name per output, in the order of the outputs."
        )
    return chosen


_NO_NAME = re.compile(r"LABEL_\d+")


def _says_nothing(own: Sequence[str], data: Sequence[str]) -> bool:
    """Whether a model has no names, or only names such as LABEL_0 from its library that are no labels of the data
    set."""
    return not own or (all(_NO_NAME.fullmatch(name) for name in own) and not set(own) & set(data))


def numbered(data: Sequence[str], count: int) -> tuple[str, ...] | None:
    """The numbers of the outputs as names, if all labels are such numbers or ids of ImageNet's classes; else None."""
    numbers = are_integers(data) and all(0 <= int(name) < count for name in data)
    imagenet = count == len(imagenet_1k()) and all(name in imagenet_1k() for name in data)
    return tuple(map(str, range(count))) if numbers or imagenet or not data else None


def _no_names(own: Sequence[str], data: Sequence[str], count: int) -> str:
    called = f"names its {count} outputs {beginning(own)}" if own else f"does not name its {count} outputs"
    return (
        f"the model {called}, so it is unknown which output stands for which label. Labels: {beginning(data)}. "
        "Set class_names to one name per output, in the order of the outputs; or set class_names: data if the outputs "
        "are in the order of the data set's classes, and check that order with 'audit validate'"
    )


def check_whole(ref: str, missing: Iterable[str]) -> None:
    """Refuse weights that lack a part of the model: the library fills it with random numbers. Raises ModelError."""
    lacking = sorted(missing)
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ModelError(
            f"the weights of {ref} lack {', '.join(lacking[:3])}{more}, which the model has: they are "
            "those of another architecture, or of the model without its head"
        )


def check_network(logits: Tensor, count: int) -> None:
    """Refuse a network whose trial output is not (b, count) finite numbers."""
    if logits.ndim != 2 or logits.shape[1] != count:
        raise ModelError(f"the model returns shape {tuple(logits.shape)}, expected (b, {count})")
    if not torch.isfinite(logits).all():
        raise ModelError("the model returns NaN or infinity for a trial image: its weights are broken")
