"""The 1,000 classes of ILSVRC 2012: WordNet ids, words, and the order of the outputs of models trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from audit.class_names import folded

_AGREE = 0.9  # share of a model's names that must be ImageNet's own before its outputs count as ImageNet's


@cache
def imagenet_1k() -> dict[str, str]:
    """Map the WordNet id of each class to its words, separated by commas, in the order of the ids."""
    lines = (Path(__file__).parent / "imagenet_1k.tsv").read_text("utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def in_imagenet_order(outputs: Sequence[str]) -> bool:
    """Whether outputs may be the 1,000 classes in the usual order: by their names, or by numbers from 0."""
    table = imagenet_1k()
    if len(outputs) != len(table):
        return False
    if list(outputs) == [str(i) for i in range(len(outputs))]:
        return True
    agree = sum(
        name == wordnet_id or not alternatives(name).isdisjoint(alternatives(words))
        for name, (wordnet_id, words) in zip(outputs, table.items(), strict=True)
    )
    return agree >= _AGREE * len(outputs)


@cache
def alternatives(name: str) -> frozenset[str]:
    """The parts of a name that are separated by commas, and the whole name, all folded.

    >>> sorted(alternatives("tench, Tinca tinca"))
    ['tench', 'tench,tincatinca', 'tincatinca']
    """
    return frozenset(folded(part) for part in (*name.split(","), name) if folded(part))
