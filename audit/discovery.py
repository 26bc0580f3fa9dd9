"""From optimised images to failure modes: group, name by shift, confirm on real images, rank by impact.

Everything here works on arrays. Embeddings have norm 1; `concepts` are unit directions in the same space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.cluster import AgglomerativeClustering

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """How often the models disagree on the real images nearest to a group, and on those nearest to its starts.

    `control` holds the pool indices of the latter, `found` those of the former on which the models do disagree,
    nearest first.
    """

    rate: float
    control_rate: float
    images: int
    control_images: int
    p_value: float
    found: Ints
    control: Ints


def concept_directions(with_concept: Floats, without: Floats) -> Floats:
    """Unit directions (c, d) from text embeddings (c, classes, d) of prompts with and (classes, d) without a concept.

    Averaging the difference over class names leaves what the concept adds to any of them.
    """
    difference = (with_concept - without[None]).mean(1)
    return np.asarray(difference / np.linalg.norm(difference, axis=1, keepdims=True))


def shifts(starts: Floats, results: Floats, concepts: Floats) -> Floats:
    """How far each search moved along each concept from its own start: (n, d), (n, d), (c, d) to (n, c)."""
    return np.asarray((results - starts) @ concepts.T)


def against_controls(own: Floats, controls: Floats) -> Floats:
    """Shifts (n, c) in standard deviations of the control searches' shifts (m, c), m >= 2."""
    spread = controls.std(0, ddof=1)
    return np.asarray((own - controls.mean(0)) / np.maximum(spread, 1e-6))


def groups(embeddings: Floats, threshold: float, smallest: int) -> list[Ints]:
    """Clusters of (n, d) by average cosine distance under `threshold`, of at least `smallest`, largest first."""
    if len(embeddings) < max(2, smallest):
        return []
    clustering = AgglomerativeClustering(
        n_clusters=None, distance_threshold=threshold, metric="cosine", linkage="average"
    ).fit(embeddings)
    found = [np.flatnonzero(clustering.labels_ == label) for label in range(clustering.n_clusters_)]
    return sorted((g for g in found if len(g) >= smallest), key=lambda g: (-len(g), g[0]))


def typical_first(embeddings: Floats) -> Ints:
    """Order of (n, d) by cosine to their mean."""
    centre = embeddings.mean(0)
    return np.argsort(-(embeddings @ centre), kind="stable")


def difference(group: Floats, controls: Floats) -> Interval:
    """Mean of (n,) minus mean of (m,) with Welch's 95 % t interval; both n, m >= 2."""
    result = stats.ttest_ind(group, controls, equal_var=False)
    interval = result.confidence_interval(0.95)
    return Interval(float(group.mean() - controls.mean()), float(interval.low), float(interval.high))


def shift_p_values(group: Floats, controls: Floats) -> Floats:
    """For each concept, p that the shifts of the group (n, c) are not above those of the controls (m, c).

    Student's t with pooled variance: unlike Welch's it keeps its level far out in the tail for groups of three.
    """
    result = stats.ttest_ind(group, controls, axis=0, alternative="greater")
    return np.where(np.isnan(result.pvalue), 1.0, result.pvalue)


def evidence(pool: Floats, disagrees: Bools, results: Floats, starts: Floats, neighbours: int) -> Evidence:
    """Compare real images near the results with real images near the starts.

    pool (p, d); disagrees (p,): the models disagree on that image; results and starts (n, d). Each arm is the union
    of every search's nearest `neighbours` images, an image near both counts for neither. One-sided Fisher test.
    """
    near, near_start = nearest(pool, results, neighbours), nearest(pool, starts, neighbours)
    both = np.intersect1d(near, near_start)
    arm, control = np.setdiff1d(near, both), np.setdiff1d(near_start, both)
    hits, control_hits = int(disagrees[arm].sum()), int(disagrees[control].sum())
    centre = results.mean(0)
    found = arm[disagrees[arm]]
    order = np.argsort(-(pool[found] @ centre), kind="stable")
    return Evidence(
        hits / len(arm) if len(arm) else 0.0,
        control_hits / len(control) if len(control) else 0.0,
        len(arm),
        len(control),
        fisher(disagrees[arm], disagrees[control]),
        found[order],
        control,
    )


def separation(inside: Floats, outside: Floats, fewest: int = 5) -> Floats | None:
    """For each concept, AUC of telling images inside (n, c) from images outside (m, c) by how far they are along it.

    The chance that one inside is further along than one outside; None with under `fewest` on either side.
    """
    if min(len(inside), len(outside)) < fewest:
        return None
    u = stats.mannwhitneyu(inside, outside, axis=0).statistic
    return np.asarray(u / (len(inside) * len(outside)))


def fisher(arm: Bools, control: Bools) -> float:
    """One-sided Fisher test that the rate in `arm` is above that in `control`; 1 where either is empty."""
    if not len(arm) or not len(control):
        return 1.0
    table = [[int(a.sum()), int(len(a) - a.sum())] for a in (arm, control)]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def nearest(pool: Floats, queries: Floats, count: int) -> Ints:
    """Indices of the union of each query's `count` nearest by cosine."""
    similarity = queries @ pool.T
    count = min(count, pool.shape[0])
    return np.unique(np.argpartition(-similarity, count - 1, axis=1)[:, :count])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false rejection stays under the level."""
    order = np.argsort(p_values, kind="stable")
    corrected, running = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def impact(shows: Bools, disagrees: Bools) -> tuple[float, Interval]:
    """Prevalence of what `shows` (p,) marks, and prevalence times excess disagreement over the rest of the pool.

    The interval is that of the excess (Newcombe's, from Wilson intervals of the two rates) times the prevalence.
    """
    inside, outside = disagrees[shows], disagrees[~shows]
    prevalence = float(shows.mean())
    if not len(inside) or not len(outside):
        return prevalence, Interval(0.0, 0.0, 0.0)
    p, q = float(inside.mean()), float(outside.mean())
    (p_low, p_high), (q_low, q_high) = (_wilson(int(a.sum()), len(a)) for a in (inside, outside))
    low = (p - q) - np.hypot(p - p_low, q_high - q)
    high = (p - q) + np.hypot(p_high - p, q - q_low)
    return prevalence, Interval(prevalence * (p - q), prevalence * float(low), prevalence * float(high))


def _wilson(hits: int, total: int) -> tuple[float, float]:
    interval = stats.binomtest(hits, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
