"""Test the order of the outputs' names: classes at chance level, and the best permutation of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest, hypergeom

from audit.class_names import beginning
from audit.results.sql import Run
from audit.results.warnings import RunWarning

LEVEL = 0.01
FEWEST = 10  # labelled images that a class needs to be tested
DRAWS = 2000  # of a permutation test
Counts = NDArray[np.int64]

# Images are split into halves by hashes of their ids: one half proposes a permutation, the other half tests it.
_CONFUSIONS = (
    "select model_id, label, predicted, ('0x' || left(md5(item_id), 8))::bigint % 2 as half, count(*) as images "
    "from predictions where role = 'data' and correct is not null group by all order by all"
)


@dataclass(frozen=True)
class Confusion:
    """Labelled images of one model by half of the images, label and prediction: counts (2, labels, predictions). The
    first predictions are the labels, in their order."""

    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    counts: Counts


def confusions(run: Run) -> dict[str, Confusion]:
    """The confusion matrix of each model of a run that has labelled images."""
    rows = run.rows(_CONFUSIONS)
    found = {}
    for model_id in dict.fromkeys(row["model_id"] for row in rows):
        own = [row for row in rows if row["model_id"] == model_id]
        labels = tuple(dict.fromkeys(row["label"] for row in own))
        predicted = tuple(dict.fromkeys([*labels, *(row["predicted"] for row in own)]))
        counts = np.zeros((2, len(labels), len(predicted)), np.int64)
        for row in own:
            counts[row["half"], labels.index(row["label"]), predicted.index(row["predicted"])] += row["images"]
        found[model_id] = Confusion(labels, predicted, counts)
    return found


def warnings_of_order(run: Run) -> list[RunWarning]:
    """Warnings from the confusion matrices about the names of outputs."""
    found: list[RunWarning] = []
    for model_id, confusion in confusions(run).items():
        permuted = _permuted(model_id, confusion)
        found += [permuted] if permuted else []
        found += _at_chance(model_id, confusion)
    return found


def assigned(counts: Counts) -> NDArray[np.int64]:
    """The assignment of distinct predictions to labels that makes the most images right (assignment problem).

    counts: (labels, predictions), with at least as many predictions as labels. Ties go to the label's own prediction.
    """
    tie = np.zeros(counts.shape)
    np.fill_diagonal(tie, 0.5 / max(1, len(counts)))
    _, columns = linear_sum_assignment(-(counts + tie))
    return np.asarray(columns)


def _gains(proposing: Counts, testing: Counts) -> tuple[int, int]:
    """Images of the second half that are right only with the permutation of the first half, and only with the names."""
    columns, own = assigned(proposing), np.arange(len(proposing))
    moved = columns != own
    right = testing[own[moved], columns[moved]].sum()
    return int(right), int(testing[own[moved], own[moved]].sum())


def _permuted(model_id: str, confusion: Confusion) -> RunWarning | None:
    """A permutation is found on one half of the images and tested on the other (McNemar's exact test); then vice
    versa."""
    halves = confusion.counts
    p_values = []
    for proposing, testing in ((halves[0], halves[1]), (halves[1], halves[0])):
        gained, lost = _gains(proposing, testing)
        p_values.append(binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0)
    if 2 * min(p_values) >= LEVEL:  # Bonferroni: two tests
        return None
    total = halves.sum(0)
    columns, own = assigned(total), np.arange(len(total))
    pairs = [
        f"{confusion.predicted[column]!r} should be {confusion.labels[row]!r}"
        for row, column in zip(own, columns, strict=True)
        if row != column
    ]
    accuracy, better = total[own, own].sum() / total.sum(), total[own, columns].sum() / total.sum()
    words = (
        f"accuracy is {accuracy:.1%} with the present names of the outputs, and would be {better:.1%} if {len(pairs)} "
        f"of them had other names ({', '.join(pairs[:3])}{', ...' if len(pairs) > 3 else ''}): class_names are "
        "probably not in the order of the outputs"
    )
    return RunWarning("outputs_permuted", words, model_id=model_id, role="data", items=int(total.sum()))


def _at_chance(model_id: str, confusion: Confusion) -> list[RunWarning]:
    """Classes that the model does not predict more often for their own images than for all others, beyond chance.

    One-sided Fisher's exact test for each class. Comparing rates alone would pass half of the classes of a guessing
    model.
    """
    total = confusion.counts.sum(0)
    images, said = total.sum(1), total[:, : len(total)].sum(0)
    if images.max() < FEWEST:
        return _all_at_chance(model_id, total)
    hits = np.diagonal(total)
    others = total.sum() - images
    p_values = hypergeom.sf(hits - 1, total.sum(), said, images)
    recall = np.divide(hits, images, out=np.zeros(len(total)), where=images > 0)
    low = [i for i in range(len(total)) if images[i] >= FEWEST and others[i] > 0 and p_values[i] >= LEVEL]
    if not low:
        return []
    names: Sequence[str] = [f"{confusion.labels[i]} ({recall[i]:.0%})" for i in low]
    every = len(low) == sum(images >= FEWEST)
    words = (
        f"{len(low)} of {len(total)} classes are predicted no better than by chance (recall in brackets): "
        f"{beginning(names)}; check class_names, preprocessing and labels"
    )
    return [
        RunWarning("at_chance", words, model_id=model_id, role="data", items=int(images[low].sum()), blocks_gate=every)
    ]


def _all_at_chance(model_id: str, total: Counts) -> list[RunWarning]:
    """The same for all classes together, where each has too few images for a test of its own.

    Permutation test of the number of right predictions: if labels and predictions are independent, all orders of the
    predictions are equally likely. The orders are drawn with a fixed seed, so that a run has the same warnings whenever
    they are computed.
    """
    rows, columns = total.nonzero()
    labels, predictions = np.repeat(rows, total[rows, columns]), np.repeat(columns, total[rows, columns])
    hits, images = int(np.trace(total)), len(labels)
    if images < FEWEST or len(total) < 2:
        return []
    rng = np.random.default_rng(0)
    as_many = sum(int((labels == rng.permutation(predictions)).sum()) >= hits for _ in range(DRAWS))
    if (1 + as_many) / (1 + DRAWS) < LEVEL:
        return []
    words = (
        f"accuracy is {hits / images:.1%}, no better than by chance (no class has {FEWEST} images, so all {images:,} "
        "were tested together); check class_names, preprocessing and labels"
    )
    return [RunWarning("at_chance", words, model_id=model_id, role="data", items=images)]
