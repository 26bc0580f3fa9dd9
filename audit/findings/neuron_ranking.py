"""The neurons of a layer ranked for many classes at once, from the activations that a screening pass stored.

The numbers are those of `audit.screened.Screened.ranking`, which holds all activations and ranks them anew for every
class. Here they are read once, into a scratch file with one line a neuron, and a block of neurons is in memory at a
time. Of each neuron all images are sorted once; what a class needs beyond that are the ranks of its own few images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from audit import suspects
from audit.check import Check
from audit.neurons import stored_as
from audit.results.sql import Run
from audit.screened import Names, matrix, naming_half

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_ROWS = 2048  # images that are read at a time
_NUMBERS = 4_000_000  # activations of a block; sorting takes about 60 bytes of each
_Key = tuple[str, str]  # item and role


@dataclass(frozen=True)
class Activations:
    """Stored activations of a layer. Images are in the order of their ids, each once.

    `labels` are '' where there is none. `scratch`: float32, one line of all images a neuron, in the order in which they
    were read; `places` (images,) says where in a line each image is.
    """

    ids: Names
    labels: Names
    says: Names
    checks: Names
    neurons: int
    places: Ints
    scratch: IO[bytes]

    def of(self, first: int, count: int = 1) -> NDArray[np.float32]:
        """Of `count` neurons from `first`, (count, images)."""
        self.scratch.seek(4 * first * len(self.places))
        lines = np.frombuffer(self.scratch.read(4 * count * len(self.places)), np.float32)
        return lines.reshape(count, -1)[:, self.places]


@contextmanager
def stored_activations(run: Run, model_id: str, check: Check, layer: str | None) -> Iterator[Activations | None]:
    """The images with activations of a model's layer, by default the input of its last linear one, of which both the
    model's answer and the check's are stored; None where there are none. The scratch file lasts as long as the block.
    """
    which = "from arrays where name = ? and model_id = ? and values is not null and role in ('data', 'pool')"
    names = [stored_as(layer), model_id]
    keys = run.sql(f"select subject_id, role {which} order by role", names)
    says, checks = (_predictions(run, model_id), _checks(run, check)) if len(keys) else ({}, {})
    kept: dict[str, str] = {}
    for key in zip(keys["subject_id"].to_pylist(), keys["role"].to_pylist(), strict=True):
        if key in says and key in checks:
            kept.setdefault(*key)
    if not kept:
        yield None
        return
    ids = sorted(kept)
    with tempfile.TemporaryFile(prefix="audit-") as scratch:
        rows = run.batches(f"select subject_id, role, values {which}", _ROWS, names)
        neurons, places = _write_lines(scratch, rows, kept, {item_id: i for i, item_id in enumerate(ids)})
        facts = [says[item_id, kept[item_id]] for item_id in ids]
        checked = [checks[item_id, kept[item_id]][1] for item_id in ids]
        labels = np.array([label for label, _ in facts], object)
        said = np.array([name for _, name in facts], object)
        yield Activations(np.array(ids, object), labels, said, np.array(checked, object), neurons, places, scratch)


def _predictions(run: Run, model_id: str) -> dict[_Key, tuple[str, str]]:
    """Label and answer of a model, by image."""
    query = (
        "select item_id, role, coalesce(label, '') as label, predicted from predictions "
        "where model_id = ? and status = 'ok' and role in ('data', 'pool')"
    )
    found: dict[_Key, tuple[str, str]] = {}
    for batch in run.batches(query, parameters=[model_id]):
        columns = (batch.column(i).to_pylist() for i in range(4))
        found.update(((item_id, role), (label, said)) for item_id, role, label, said in zip(*columns, strict=True))
    return found


def _checks(run: Run, check: Check) -> Mapping[_Key, tuple[str, str]]:
    """What the check sees, as the second of two names, by image."""
    if not callable(check.of_real):
        return _predictions(run, check.of_real)
    query = "select subject_id, role, values from arrays where name = 'embedding' and values is not null"
    found: dict[_Key, tuple[str, str]] = {}
    for batch in run.batches(query, _ROWS):
        seen = check.of_real(matrix(batch.column(2)))
        keys = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        found.update((key, ("", name)) for key, name in zip(keys, seen, strict=True))
    return found


def _write_lines(
    scratch: IO[bytes], rows: Iterator[Any], kept: Mapping[str, str], index: Mapping[str, int]
) -> tuple[int, Ints]:
    """Fill the scratch file; returns the number of neurons, and where in a line each image is."""
    neurons, done = 0, 0
    places = np.empty(len(kept), np.int64)
    for batch in rows:
        keys = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        mine = [(i, item_id) for i, (item_id, role) in enumerate(keys) if kept.get(item_id) == role]
        if not mine:
            continue
        values = matrix(batch.column(2))[[i for i, _ in mine]]
        neurons = values.shape[1]
        places[[index[item_id] for _, item_id in mine]] = np.arange(done, done + len(mine))
        for neuron, line in enumerate(np.ascontiguousarray(values.T)):
            scratch.seek(4 * (neuron * len(kept) + done))
            scratch.write(line.tobytes())
        done += len(mine)
    scratch.flush()
    return neurons, places


@dataclass(frozen=True)
class _Class:
    """Which images speak of a class. Those of `triggered` and `either` are numbered among the images of the naming
    half: what the model calls the class and the check does not, and what either of the two calls so. `others`: how
    many are neither."""

    labelled: Ints
    triggered: Ints
    either: Ints
    others: int

    @property
    def comparable(self) -> bool:
        return min(len(self.triggered), self.others) >= suspects.FEWEST


def rankings(stored: Activations, weights: Mapping[str, Floats]) -> dict[str, suspects.Ranking]:
    """For each class the order of suspicion of all neurons; weights (neurons,) are those from neuron to class."""
    if not weights:
        return {}
    half = np.flatnonzero(naming_half(stored.ids))
    classes = {name: _images_of(stored, half, name) for name in weights}
    means = {name: np.zeros(stored.neurons) for name in weights}
    aucs = {name: np.zeros(stored.neurons) for name in weights if classes[name].comparable}
    size = max(1, _NUMBERS // len(stored.ids))
    for first in range(0, stored.neurons, size):
        block = stored.of(first, min(size, stored.neurons - first))
        here = slice(first, first + len(block))
        for name, images in classes.items():
            if len(images.labelled):
                means[name][here] = np.ascontiguousarray(block[:, images.labelled].T, np.float64).mean(0)
        for name, values in _aucs(block[:, half], {name: classes[name] for name in aucs}):
            aucs[name][here] = values
    return {name: suspects.Ranking.of(means[name], weights[name], aucs.get(name)) for name in weights}


def _images_of(stored: Activations, half: Ints, name: str) -> _Class:
    says, sees = stored.says[half] == name, stored.checks[half] == name
    either = np.flatnonzero(says | sees)
    labelled = np.flatnonzero(stored.labels == name)
    return _Class(labelled, np.flatnonzero(says & ~sees), either, len(half) - len(either))


def _aucs(block: NDArray[np.float32], classes: Mapping[str, _Class]) -> Iterator[tuple[str, Floats]]:
    """Of each class the AUC of every neuron of a block (neurons, images): how often an image of `triggered` has a
    higher activation than one of the others.

    How many of the others are below an image, those that are equal counted half, is its rank among all images less its
    rank among those of `either`. Ranks are multiples of a half, so that no sum of them is rounded.
    """
    if not classes:
        return
    ranks = rankdata(block, axis=1)
    for name, images in classes.items():
        own = rankdata(block[:, images.either], axis=1)[:, np.searchsorted(images.either, images.triggered)]
        below = (ranks[:, images.triggered] - own).sum(1)
        yield name, below / (len(images.triggered) * images.others)


@dataclass(frozen=True)
class Top:
    """The images with a neuron's highest activations, highest first, and what the check sees on them."""

    ids: Names
    activations: NDArray[np.float32]
    checks: Names


def tops(stored: Activations, neurons: Iterable[int], count: int) -> dict[int, Top]:
    """Of each of these neurons that the layer has, the `count` images with the highest activations."""
    found = {}
    for neuron in sorted({neuron for neuron in neurons if neuron < stored.neurons}):
        values = stored.of(neuron)[0]
        chosen = suspects.top(values, count)
        found[neuron] = Top(stored.ids[chosen], values[chosen], stored.checks[chosen])
    return found
