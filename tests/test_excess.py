"""The excess of two models and its change: against the literal formulas, discovery's own figures and planted truths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from audit import discovery as d
from audit.metrics.excess import PairedExcess, paired_excess

Z = 1.959963984540054


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The roots in r of (p - r)^2 = z^2 r (1 - r) / n, which is how the interval is defined."""
    p = hits / n
    a, b, c = 1 + Z**2 / n, -(2 * p + Z**2 / n), p**2
    root = math.sqrt(b**2 - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def paired(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Newcombe 1998, method 10, from the table of pairs: after minus before, and its interval."""
    pairs = list(zip(after, before, strict=True))
    e, f, g, h = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    n = len(pairs)
    p1, p2, difference = (e + f) / n, (e + g) / n, (f - g) / n
    (l1, u1), (l2, u2) = wilson(e + f, n), wilson(e + g, n)
    product = (e + f) * (g + h) * (e + g) * (f + h)
    phi = 0.0
    if product:
        top = e * h - f * g
        phi = (max(top - n / 2, 0) if top > 0 else top) / math.sqrt(product)
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    return difference, difference - math.sqrt(below), difference + math.sqrt(above)


def literal(
    before: Sequence[bool], after: Sequence[bool], shows: Sequence[bool], strata: Sequence[str]
) -> tuple[float, float, float]:
    """The change of the excess: per stratum the paired difference with the feature minus that without, put together."""
    value, down, up, rows = 0.0, 0.0, 0.0, list(zip(before, after, shows, strata, strict=True))
    classes = [name for name in set(strata) if {row[2] for row in rows if row[3] == name} == {True, False}]
    total = sum(row[2] and row[3] in classes for row in rows)
    for name in classes:
        one, other = ([row for row in rows if row[3] == name and row[2] is arm] for arm in (True, False))
        d1, l1, u1 = paired([row[0] for row in one], [row[1] for row in one])
        d0, l0, u0 = paired([row[0] for row in other], [row[1] for row in other])
        weight = len(one) / total
        value += weight * (d1 - d0)
        down += weight**2 * ((d1 - l1) ** 2 + (u0 - d0) ** 2)
        up += weight**2 * ((u1 - d1) ** 2 + (d0 - l0) ** 2)
    return value, value - math.sqrt(down), value + math.sqrt(up)


def drawn(seed: int, n: int = 120) -> tuple[d.Bools, d.Bools, d.Bools, d.Names]:
    """Answers of two models that err together, on images of three classes, one of which has no controls."""
    rng = np.random.default_rng(seed)
    strata = np.array(["cat", "dog", "owl"], object)[rng.choice(3, n, p=[0.6, 0.3, 0.1])]
    shows = (rng.random(n) < 0.4) | (strata == "owl")
    before = rng.random(n) < np.where(shows, 0.5, 0.2)
    after = np.where(rng.random(n) < 0.5, before, rng.random(n) < 0.4)
    return before, after, shows, strata


def test_newcombe_s_example_of_pairs() -> None:
    """Table II of Newcombe 1998, method 10: pairs 36, 12, 2, 0 give 0.2 (0.0569, 0.3404)."""
    before = [True] * 36 + [False] * 12 + [True] * 2
    after = [True] * 36 + [True] * 12 + [False] * 2
    assert paired(before, after) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("seed", range(12))
def test_the_change_is_the_literal_formula(seed: int) -> None:
    before, after, shows, strata = drawn(seed)
    found = paired_excess(before, after, shows, strata)
    assert found is not None
    expected = literal(before.tolist(), after.tolist(), shows.tolist(), strata.tolist())
    assert (found.change.value, found.change.low, found.change.high) == pytest.approx(expected)
    assert found.change.value == pytest.approx(found.after.excess.value - found.before.excess.value)
    kept = strata != "owl"
    assert found.images == int((shows & kept).sum())
    assert found.control_images == int((~shows & kept).sum())
    assert found.errors == (int((before & shows & kept).sum()), int((after & shows & kept).sum()))


@pytest.mark.parametrize("seed", range(6))
def test_each_excess_is_what_discovery_reports(seed: int) -> None:
    before, after, shows, strata = drawn(seed)
    found = paired_excess(before, after, shows, strata)
    assert found is not None
    for wrong, one in ((before, found.before), (after, found.after)):
        facts = d.matched(wrong, shows, strata)
        assert (one.rate, one.control_rate) == pytest.approx((facts.rate, facts.control_rate))
        assert (one.excess.low, one.excess.high) == pytest.approx((facts.low, facts.high))


def test_nothing_is_compared_without_both_kinds_of_images_in_a_stratum() -> None:
    yes, no = np.ones(4, np.bool_), np.zeros(4, np.bool_)
    assert paired_excess(yes, yes, yes, np.array(list("aabb"), object)) is None
    assert paired_excess(yes, yes, no, np.array(list("aabb"), object)) is None
    assert paired_excess(yes, yes, np.array([True, True, False, False]), np.array(list("aabb"), object)) is None


def test_equal_answers_and_the_order_of_images_change_nothing() -> None:
    before, after, shows, strata = drawn(3)
    same = paired_excess(before, before, shows, strata)
    assert same is not None
    assert same.change.value == 0
    assert same.change.low < 0 < same.change.high
    order = np.random.default_rng(0).permutation(len(before))
    one = paired_excess(before, after, shows, strata)
    other = paired_excess(before[order], after[order], shows[order], strata[order])
    assert one is not None
    assert other is not None
    assert (one.change.low, one.change.high) == pytest.approx((other.change.low, other.change.high))
    back = paired_excess(after, before, shows, strata)
    assert back is not None
    assert (back.change.low, back.change.high) == pytest.approx((-one.change.high, -one.change.low))


@pytest.mark.parametrize(
    ("images", "rates", "control_rates", "shared"),
    [
        (10, (0.3, 0.3), (0.05, 0.05), 0.0),
        (25, (0.6, 0.05), (0.05, 0.05), 0.5),
        (25, (0.5, 0.5), (0.3, 0.3), 0.7),
        (100, (0.12, 0.12), (0.05, 0.05), 0.5),
        (100, (0.2, 0.6), (0.2, 0.1), 0.3),
    ],
)
def test_the_interval_covers_a_planted_change(
    images: int, rates: tuple[float, float], control_rates: tuple[float, float], shared: float
) -> None:
    """95 % intervals: of 600 draws at most 5 % miss, up to chance (99.9 % of a binomial)."""
    rng = np.random.default_rng(images)
    shows = np.arange(5 * images) < images
    truth = rates[1] - control_rates[1] - rates[0] + control_rates[0]
    missed = 0
    for _ in range(600):
        found = draw_pair(rng, shows, rates, control_rates, shared)
        missed += not found.change.low <= truth <= found.change.high
    assert missed <= stats.binom.ppf(0.999, 600, 0.05)


def draw_pair(
    rng: np.random.Generator,
    shows: d.Bools,
    rates: tuple[float, float],
    control_rates: tuple[float, float],
    shared: float,
) -> PairedExcess:
    """Two models whose errors have these rates; `shared`: on this share of the images both err by the same draw."""
    u = rng.random(len(shows))
    v = np.where(rng.random(len(shows)) < shared, u, rng.random(len(shows)))
    before, after = (
        draw < np.where(shows, rate, other) for draw, rate, other in zip((u, v), rates, control_rates, strict=True)
    )
    found = paired_excess(before, after, shows, np.full(len(shows), "", object))
    assert found is not None
    return found
