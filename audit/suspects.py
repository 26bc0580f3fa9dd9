"""Which units of a model are suspect for a class, and what searches and real images make of the suspicion.

Everything here works on arrays and plain numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import discovery as d

Floats = d.Floats
FEWEST = 5  # images on either side that a comparison of real images needs


@dataclass(frozen=True)
class Ranking:
    """One number a unit (u,), and the units in the order of suspicion. `trigger_auc` is None where it has no sides."""

    mean_activation: d.Floats
    importance: d.Floats
    trigger_auc: d.Floats | None
    order: d.Ints

    @classmethod
    def of(cls, mean: d.Floats, weights: d.Floats, auc: d.Floats | None) -> Ranking:
        """From the mean activations, the weights to the class and the AUCs of all units, as `rank` says."""
        importance = weights * mean
        score = importance if auc is None else importance * np.maximum(0, 2 * auc - 1)
        return cls(mean, importance, auc, np.argsort(-score, kind="stable"))


def rank(activations: d.Floats, weights: d.Floats, labelled: d.Bools, says: d.Bools, sees: d.Bools) -> Ranking:
    """Rank units by importance times how well they tell the images that trigger the model without the object.

    activations (n, u) of real images; weights (u,) from unit to class; labelled (n,): the data set calls the image
    the class; says (n,): the explained model does; sees (n,): the independent check does.

    importance = weight x mean activation over the labelled images. Score = importance x max(0, 2 AUC - 1), where
    AUC is over the images on which the check does not see the class, between those that the model calls the class
    and the others. With fewer than `FEWEST` images on a side, the score is the importance alone.
    """
    mean = activations[labelled].mean(0) if labelled.any() else np.zeros(activations.shape[1])
    return Ranking.of(mean, weights, d.auc(activations[says & ~sees], activations[~says & ~sees], FEWEST))


def top(activations: NDArray[Any], count: int) -> d.Ints:
    """The images with the highest of activations (n,), highest first."""
    return np.argsort(-activations, kind="stable")[:count]


@dataclass(frozen=True)
class Evidence:
    """What is known of a unit. `triggered`, `triggered_before`, `seen_after`: one a search from another class, (s,).

    triggered: the model calls the image the class and the check does not see it. top_seen (k,): whether the check
    sees the class on the real images with the highest activations; empty where there are none.
    """

    triggered_before: d.Bools
    triggered: d.Bools
    seen_after: d.Bools
    top_seen: d.Bools


@dataclass(frozen=True)
class Verdict:
    """core, spurious or harmful, or None without evidence; what it rests on; p that triggering did not become more."""

    name: str | None
    reason: str
    p_value: float | None


def judge(evidence: Evidence, level: float = 0.05) -> Verdict:
    """The verdict on a unit (DiG-IN section 5, Figs. 7 and 8).

    harmful: maximised from images of other classes, the unit makes the model call them the class without the object,
    surely more often than it did at the starts (one-sided Fisher test under `level`). Else core: the check sees the
    class on at least half of the unit's top real images, or of the images maximised from other classes. Else
    spurious, or None where there are neither searches nor real images.
    """
    e, searches = evidence, len(evidence.triggered)
    real = float(e.top_seen.mean()) if len(e.top_seen) else None
    made = float(e.seen_after.mean()) if searches else None
    p = d.fisher(e.triggered, e.triggered_before) if searches else None
    parts = []
    if searches:
        parts.append(
            f"maximised from other classes, {int(e.triggered.sum())} of {searches} are called the class without the "
            f"object, {int(e.triggered_before.sum())} of the starts; the check sees the class on {made:.0%} of them"
        )
    if real is not None:
        parts.append(f"it sees the class on {real:.0%} of the top real images")
    name: str | None = "harmful"
    if p is not None and p < level:
        against = real is not None and real >= 0.5
    else:
        votes = [share >= 0.5 for share in (real, made) if share is not None]
        name = ("core" if any(votes) else "spurious") if votes else None
        against = len(set(votes)) > 1
    if against:
        parts.append("real images and searches contradict each other")
    if searches and p is not None and p >= level and _smallest_p(searches) >= level:
        parts.append(f"{searches} searches are too few to find it harmful")
    return Verdict(name, "; ".join(parts) or "no search ended and no real images are ranked", p)


def _smallest_p(searches: int) -> float:
    """The p-value of all results triggered and no start."""
    return 1 / math.comb(2 * searches, searches)
