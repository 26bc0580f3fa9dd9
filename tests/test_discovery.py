"""Discovery on planted embeddings, and its statistics against slow literal versions."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest

from audit import discovery as d
from audit.metrics.realism import kid


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


RNG = np.random.default_rng(0)
AXES = np.eye(16)


def test_concept_directions_are_what_a_phrase_adds_to_any_class() -> None:
    classes = RNG.normal(size=(5, 16))
    found = d.concept_directions(np.stack([classes + 2 * AXES[0], classes - 0.5 * AXES[3]]), classes)
    assert np.allclose(found, [AXES[0], -AXES[3]])


def test_shifts_are_against_each_search_s_own_start() -> None:
    starts = RNG.normal(size=(4, 16))
    moved = starts + np.array([0.0, 1.0, 2.0, 3.0])[:, None] * AXES[2]
    assert np.allclose(d.shifts(starts, moved, AXES[2:3])[:, 0], [0, 1, 2, 3])


def test_a_shift_that_the_controls_share_is_no_effect() -> None:
    controls = RNG.normal(5.0, 0.1, size=(200, 1))
    assert abs(d.against_controls(np.array([[5.0]]), controls).item()) < 0.5
    assert d.against_controls(np.array([[5.5]]), controls).item() == pytest.approx(5, rel=0.15)


def test_groups_are_the_planted_clusters_largest_first() -> None:
    a = unit(AXES[0] + 0.05 * RNG.normal(size=(5, 16)))
    b = unit(AXES[1] + 0.05 * RNG.normal(size=(8, 16)))
    lone = AXES[2][None]
    found = d.groups(np.concatenate([a, b, lone]), 0.5, 3)
    assert [sorted(g.tolist()) for g in found] == [list(range(5, 13)), list(range(5))]
    assert d.groups(a[:2], 0.5, 3) == []


def test_evidence_counts_an_image_near_both_arms_for_neither() -> None:
    """Pool: 30 images near the results (27 disagree), 30 near the starts (3 disagree), 10 between them."""
    near = unit(AXES[0] + 0.02 * RNG.normal(size=(30, 16)))
    starts = unit(AXES[1] + 0.02 * RNG.normal(size=(30, 16)))
    between = unit(AXES[0] + AXES[1] + 0.02 * RNG.normal(size=(10, 16)))
    pool = np.concatenate([near, starts, between])
    disagrees = np.zeros(70, bool)
    disagrees[:27] = disagrees[30:33] = disagrees[60:] = True
    found = d.evidence(pool, disagrees, AXES[:1], AXES[1:2], 40)
    assert (found.images, found.control_images) == (30, 30)
    assert (found.rate, found.control_rate) == (0.9, 0.1)
    assert set(found.found) == set(range(27))
    # Fisher's exact test is the upper tail of the hypergeometric distribution
    tail = sum(comb(30, k) * comb(30, 30 - k) for k in range(27, 31)) / comb(60, 30)
    assert found.p_value == pytest.approx(tail, rel=1e-6)


def test_evidence_without_any_difference_is_not_significant() -> None:
    pool = unit(RNG.normal(size=(500, 16)))
    p_values = []
    for _ in range(60):
        disagrees = RNG.random(500) < 0.3
        queries = unit(RNG.normal(size=(2, 5, 16)))
        p_values.append(d.evidence(pool, disagrees, queries[0], queries[1], 10).p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.1


def test_separation_is_the_share_of_pairs_in_the_right_order() -> None:
    along = RNG.integers(0, 6, size=(40, 3)).astype(float)
    disagrees = RNG.random(40) < 0.4
    expected = []
    for concept in along.T:
        pairs = [(a, b) for a in concept[disagrees] for b in concept[~disagrees]]
        expected.append(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    found = d.separation(along[disagrees], along[~disagrees])
    assert found is not None
    assert found.tolist() == pytest.approx(expected)
    assert d.separation(along[:4], along) is None
    assert d.separation(along, along[:4]) is None


def test_holm_is_the_step_down_procedure() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, then running maxima
    assert d.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert d.holm([0.9, 0.8]) == [1.0, 1.0]
    assert d.holm([]) == []


def test_the_interval_of_a_difference_covers_it() -> None:
    """Also for groups of three, of another spread than the controls."""
    rng = np.random.default_rng(1)
    intervals = [d.difference(rng.normal(2.0, 1.0, 3), rng.normal(0.5, 0.3, 12)) for _ in range(400)]
    covered = np.mean([interval.low <= 1.5 <= interval.high for interval in intervals])
    assert 0.92 <= covered <= 0.98


def test_names_are_not_found_in_noise() -> None:
    """47 phrases, groups of three, no shift: a name at 0.05 in about 5 % of groups, not in most."""
    rng = np.random.default_rng(2)
    p_values = [d.shift_p_values(rng.normal(size=(3, 47)), rng.normal(size=(12, 47))) for _ in range(300)]
    assert np.mean([min(d.holm(p.tolist())) < 0.05 for p in p_values]) <= 0.09
    assert np.mean(np.array(p_values)[:, 7] < 0.05) == pytest.approx(0.05, abs=0.04)
    group, controls = rng.normal(size=(6, 47)), rng.normal(size=(12, 47))
    group[:, 5] += 8
    assert d.shift_p_values(group, controls).argmin() == 5


def test_impact_is_prevalence_times_excess() -> None:
    shows, disagrees = np.zeros(1000, bool), np.zeros(1000, bool)
    shows[:100] = True
    disagrees[:80] = disagrees[100:145] = True
    prevalence, interval = d.impact(shows, disagrees)
    assert prevalence == pytest.approx(0.1)
    assert interval.value == pytest.approx(0.1 * (0.8 - 45 / 900))
    p, q = wilson(80, 100), wilson(45, 900)  # Newcombe's interval of a difference, from Wilson's of two rates
    low = 0.75 - math.hypot(0.8 - p[0], q[1] - 0.05)
    high = 0.75 + math.hypot(p[1] - 0.8, 0.05 - q[0])
    assert (interval.low, interval.high) == pytest.approx((0.1 * low, 0.1 * high), rel=1e-9)
    everywhere = d.impact(np.ones(4, bool), np.array([True, False, True, True]))
    assert everywhere == (1.0, d.Interval(0.0, 0.0, 0.0))


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, from its formula."""
    z, p = 1.959963984540054, hits / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_a_group_below_the_controls_has_no_name_and_a_constant_concept_neither() -> None:
    rng = np.random.default_rng(3)
    group, controls = rng.normal(size=(5, 3)), rng.normal(size=(20, 3))
    group[:, 0] -= 9
    group[:, 2] = controls[:, 2] = 1.0
    p_values = d.shift_p_values(group, controls)
    assert p_values[0] > 0.99
    assert p_values[2] == 1.0


def test_the_typical_ones_come_first() -> None:
    embeddings = unit(np.array([[1.0, 1.0], [1.0, 0.1], [1.0, 0.0], [-1.0, 0.2]]))
    order = d.typical_first(embeddings)
    centre = embeddings.mean(0)
    along = embeddings @ centre
    assert list(along[order]) == sorted(along, reverse=True)
    assert order[-1] == 3


def test_an_empty_arm_proves_nothing() -> None:
    assert d.fisher(np.zeros(0, bool), np.ones(4, bool)) == 1.0
    assert d.fisher(np.ones(4, bool), np.zeros(0, bool)) == 1.0


def test_shifts_in_standard_deviations_of_the_controls() -> None:
    controls = np.array([[1.0, 2.0], [3.0, 2.0]])
    standard = d.against_controls(np.array([[5.0, 3.0]]), controls)
    assert standard[0, 0] == pytest.approx(3 / math.sqrt(2))  # two controls: n - 1 = 1
    assert standard[0, 1] == pytest.approx(1e6)  # controls that do not differ: no division by zero


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    x, y = RNG.normal(size=(5, 3)), RNG.normal(1.0, 1.0, size=(4, 3))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b + 1) ** 3)

    expected = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    expected += sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    expected -= 2 * sum(k(a, b) for a in x for b in y) / 20
    assert kid(x, y) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        kid(x[:1], y)


def test_kid_sees_a_generator_that_draws_two_images_only() -> None:
    real = unit(RNG.normal(size=(200, 64)))
    collapsed = np.repeat(unit(RNG.normal(size=(2, 64))), 100, axis=0)
    assert kid(collapsed, real) > 20 * abs(kid(unit(RNG.normal(size=(200, 64))), real))
