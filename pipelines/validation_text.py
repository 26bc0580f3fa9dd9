"""The results of `audit validate` as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.validation import ModelCheck, SourceCheck, Validation

SHOWN = 8  # classes and outputs that are all named; of more, the first ones and the last two


def lines(checked: Validation) -> Iterator[str]:
    """Lines for every source, model and part."""
    for source in checked.sources:
        yield from _source(source)
    for model in checked.models:
        yield from _model(model)
    for part in checked.parts:
        yield f"{part.part}: {part.loader} {part.ref}, loaded and used in {part.seconds:.1f} s"
        yield f"  made      {part.made}"


def mapping(outputs: Sequence[str]) -> str:
    """'0 cat, 1 dog': the first outputs and the last ones.

    >>> mapping(["cat", "dog"])
    '0 cat, 1 dog'
    """
    return _few([f"{position} {name}" for position, name in enumerate(outputs)])


def _few(words: Sequence[str]) -> str:
    if len(words) <= SHOWN:
        return ", ".join(words)
    return ", ".join([*words[: SHOWN - 2], "...", *words[-2:]])


def _source(source: SourceCheck) -> Iterator[str]:
    count = f"{source.images:,} images" if source.images is not None else "images"
    labelled = f" of {len(source.classes):,} classes" if source.classes else ", none of them with a label"
    without = f", {source.unlabelled:,} without a label" if source.classes and source.unlabelled else ""
    yield f"{source.role}: {count}{labelled}{without}"
    if source.classes:
        yield "  images    " + _few([f"{number:,} {name}" for name, number in sorted(source.classes.items())])
    least, most = min(source.sides), max(source.sides)
    sides = f"{least}" if least == most else f"{least} to {most}"
    usable = len(source.sides)
    yield f"  read      {usable} of {source.read} tested images can be used; shorter side {sides} pixels"


def _model(model: ModelCheck) -> Iterator[str]:
    yield f"{model.model_id}: {model.loader} {model.ref}, loaded and used in {model.seconds:.1f} s"
    whose = "named after the data's classes" if model.named_by_data else "its own names"
    yield f"  outputs   {mapping(model.outputs)} ({whose})"
    if model.renamed:
        yield "  labels    " + _few([f"{label} is its {own!r} ({rule})" for label, own, rule in model.renamed])
    entered = model.entered
    label = f", of class {model.label}" if model.label is not None else ""
    yield f"  shown     {model.image}{label}"
    yield (
        f"  enters as {entered.width} x {entered.height} pixels, mean {entered.mean:.3g}, "
        f"from {entered.least:.3g} to {entered.most:.3g}"
    )
    yield "  answers   " + ", ".join(f"{name} {share:.1%}" for name, share in model.top)
