"""From optimised images to failure modes: group, name by shift, confirm on real images, rank by impact.

Everything here works on arrays. Embeddings have norm 1; `concepts` are unit directions in the same space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Names = NDArray[np.object_]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """How often something happens to images that show a feature, and to others of the same strata.

    images, control_images: of the strata that hold both. rate: over the former.
    control_rate: what it would be if the images that show the feature did as the others of their strata do. low, high:
    95 % interval of the excess, rate - control_rate. p_value: one-sided, that it is above 0.
    """

    rate: float
    control_rate: float
    images: int
    control_images: int
    low: float
    high: float
    p_value: float


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
    from sklearn.cluster import AgglomerativeClustering

    clustering = AgglomerativeClustering(
        n_clusters=None, distance_threshold=threshold, metric="cosine", linkage="average"
    ).fit(embeddings)
    found = [np.flatnonzero(clustering.labels_ == label) for label in range(clustering.n_clusters_)]
    return sorted((g for g in found if len(g) >= smallest), key=lambda g: (-len(g), g[0]))


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


def matched(happens: Bools, shows: Bools, strata: Names) -> Evidence:
    """Compare images (p,) that show a feature with others of the same strata (p,).

    The test is exact: given how many images of each stratum show the feature, and to how many it happens, the number
    of those with both is hypergeometric, and the strata are independent of each other (Birch's test; with one stratum,
    Fisher's). The interval: Wilson's of each rate, put together by MOVER (Zou and Donner 2008, eq. 6), which is
    Newcombe's for one stratum. Strata in which all images show the feature, or none, tell nothing.
    """
    seen, tail, parts = 0, np.ones(1), []
    for name in sorted(set(strata[shows])):
        inside, outside = happens[(strata == name) & shows], happens[(strata == name) & ~shows]
        if not len(outside):
            continue
        hits, size, total = int(inside.sum()), len(inside), len(inside) + len(outside)
        among = hits + int(outside.sum())
        lowest = max(0, size + among - total)
        seen += hits - lowest
        tail = np.convolve(tail, stats.hypergeom.pmf(range(lowest, min(size, among) + 1), total, among, size))
        parts.append((hits, size, among - hits, len(outside)))
    if not parts:
        return Evidence(0.0, 0.0, 0, 0, 0.0, 0.0, 1.0)
    images = sum(size for _, size, _, _ in parts)
    rate = sum(hits for hits, _, _, _ in parts) / images
    control_rate = sum(size / images * hits / others for _, size, hits, others in parts)
    down = up = 0.0
    for hits, size, control_hits, others in parts:
        (low, high), (control_low, control_high) = _wilson(hits, size), _wilson(control_hits, others)
        p, q, weight = hits / size, control_hits / others, size / images
        down += weight**2 * ((p - low) ** 2 + (control_high - q) ** 2)
        up += weight**2 * ((high - p) ** 2 + (q - control_low) ** 2)
    excess = rate - control_rate
    return Evidence(
        rate,
        control_rate,
        images,
        sum(others for _, _, _, others in parts),
        float(excess - np.sqrt(down)),
        float(excess + np.sqrt(up)),
        min(1.0, float(tail[seen:].sum())),
    )


def auc(inside: Floats, outside: Floats, fewest: int = 5) -> Floats | None:
    """For each concept, the chance that one image inside (n, c) is further along it than one outside (m, c); None with
    under `fewest` on either side.
    """
    if min(len(inside), len(outside)) < fewest:
        return None
    u = stats.mannwhitneyu(inside, outside, axis=0).statistic
    return np.asarray(u / (len(inside) * len(outside)))


def separation(along: Floats, inside: Bools, outside: Bools, strata: Names, fewest: int = 5) -> Floats | None:
    """For each concept, AUC of telling images inside from images outside (p,) by how far they are along it (p, c).

    The chance that one inside is further along than one outside of the same stratum (p,); strata count as the harmonic
    mean of their two sides (van Elteren 1960). None with under `fewest` comparable images on either side.
    """
    total, weights, sides = np.zeros(along.shape[1]), 0.0, np.zeros(2)
    for name in sorted(set(strata[inside])):
        one, other = (along[side & (strata == name)] for side in (inside, outside))
        if not len(other):
            continue
        n, m = len(one), len(other)
        weight = n * m / (n + m)
        total += weight * stats.mannwhitneyu(one, other, axis=0).statistic / (n * m)
        weights += weight
        sides += n, m
    return total / weights if sides.min() >= fewest else None


def halves(along: Floats) -> Floats:
    """For each concept, where the values (p, c) fall into two parts with the least variance within (Otsu 1979).

    p >= 2.
    """
    ordered = np.sort(along, axis=0).astype(np.float64)
    count = np.arange(1, len(ordered))[:, None]
    below = ordered.cumsum(0)[:-1]
    above = ordered.sum(0) - below
    between = (below / count - above / (len(ordered) - count)) ** 2 * count * (len(ordered) - count)
    best = between.argmax(0)
    columns = np.arange(along.shape[1])
    return np.asarray((ordered[best, columns] + ordered[best + 1, columns]) / 2)


def cut(inside: Floats, outside: Floats) -> float:
    """Where (n,) and (m,) part best: the value of `inside` at and above which the share of `inside` exceeds that of
    `outside` the most (Youden's index)."""
    values = np.unique(inside)
    above = [1 - np.searchsorted(np.sort(x), values, side="left") / len(x) for x in (inside, outside)]
    return float(values[int((above[0] - above[1]).argmax())])


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


def images_needed(rate: float, control_rate: float, level: float, power: float = 0.8) -> int:
    """Images that show a feature, for a one-sided test at `level` to find `rate` above `control_rate` with `power`.

    The normal approximation for one rate against a known one, as the controls are many.
    """
    z, z_power = stats.norm.isf(level), stats.norm.ppf(power)
    spread = z * np.sqrt(control_rate * (1 - control_rate)) + z_power * np.sqrt(rate * (1 - rate))
    return int(np.ceil((spread / (rate - control_rate)) ** 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false rejection stays under the level."""
    order = np.argsort(p_values, kind="stable")
    corrected, running = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _wilson(hits: int, total: int) -> tuple[float, float]:
    interval = stats.binomtest(hits, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
