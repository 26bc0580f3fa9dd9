"""Discovery on planted embeddings, and its statistics against slow literal versions."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import stats

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


def literal_p_value(happens: np.ndarray, shows: np.ndarray, strata: np.ndarray) -> float:
    """Share of all ways to say which images of each stratum show the feature with at least as many hits among them."""
    ways: Counter[int] = Counter({0: 1})
    for name in set(strata):
        inside = strata == name
        more: Counter[int] = Counter()
        for chosen in combinations(np.flatnonzero(inside), int(shows[inside].sum())):
            for hits, count in ways.items():
                more[hits + int(happens[list(chosen)].sum())] += count
        ways = more
    seen = int(happens[shows].sum())
    return sum(count for hits, count in ways.items() if hits >= seen) / sum(ways.values())


def test_matched_evidence_is_the_exact_test_within_strata() -> None:
    rng = np.random.default_rng(5)
    strata = np.array(["car"] * 5 + ["tree"] * 6 + ["fish"] * 4, object)
    for _ in range(10):
        happens, shows = rng.random(15) < 0.4, rng.random(15) < 0.4
        found = d.matched(happens, shows, strata)
        assert found.p_value == pytest.approx(literal_p_value(happens, shows, strata))


def test_one_stratum_is_fisher_s_test_with_newcombe_s_interval() -> None:
    happens, shows = np.zeros(1000, bool), np.zeros(1000, bool)
    shows[:100] = True
    happens[:80] = happens[100:145] = True
    found = d.matched(happens, shows, np.full(1000, "car", object))
    assert (found.rate, found.control_rate, found.images, found.control_images) == (0.8, 0.05, 100, 900)
    tail = sum(comb(100, k) * comb(900, 125 - k) for k in range(80, 101)) / comb(1000, 125)
    assert found.p_value == pytest.approx(tail, rel=1e-6)
    p, q = wilson(80, 100), wilson(45, 900)
    low = 0.75 - math.hypot(0.8 - p[0], q[1] - 0.05)
    high = 0.75 + math.hypot(p[1] - 0.8, 0.05 - q[0])
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


def test_a_feature_of_a_class_that_is_often_wrong_is_no_evidence() -> None:
    """Cars are wrong in 60 %, trees in 10 %; most of what shows the feature are cars, which are as wrong without it."""
    rng = np.random.default_rng(6)
    strata = np.array(["car"] * 400 + ["tree"] * 1600 + ["fish"] * 9, object)
    shows = rng.random(2009) < np.where(strata == "car", 0.5, 0.02)
    shows[-9:] = True  # no fish without it: they tell nothing
    happens = np.where(np.arange(2009) % 10 < np.where(strata == "car", 6, 1), True, False)
    happens[-9:] = True
    found = d.matched(happens, shows, strata)
    assert found.images == shows[:2000].sum()
    expected = sum(
        shows[strata == name].sum() / found.images * happens[(strata == name) & ~shows].mean()
        for name in ("car", "tree")
    )
    assert found.control_rate == pytest.approx(expected)
    assert found.p_value > 0.05
    assert found.low < 0 < found.high
    assert d.fisher(happens[shows], happens[~shows]) < 1e-6  # what it would look like without the classes


def test_matched_evidence_keeps_its_level_and_its_interval_covers() -> None:
    rng = np.random.default_rng(7)
    strata = np.array(["car"] * 150 + ["tree"] * 350, object)
    chance = np.where(strata == "car", 0.5, 0.1)
    p_values, covered = [], []
    for _ in range(400):
        shows = rng.random(500) < np.where(strata == "car", 0.3, 0.05)
        p_values.append(d.matched(rng.random(500) < chance, shows, strata).p_value)
        found = d.matched(rng.random(500) < chance + 0.2 * shows, shows, strata)
        covered.append(found.low <= 0.2 <= found.high)
    assert np.mean(np.array(p_values) < 0.05) <= 0.07
    assert np.mean(covered) >= 0.93


def test_rates_are_of_all_strata_also_of_those_in_which_it_happens_to_none() -> None:
    """500 classes with one image that shows it, wrong with a chance of 3 %, and five that do not and are right."""
    rng, covered, rates = np.random.default_rng(4), 0, []
    for _ in range(20):
        strata = np.repeat([f"{i:03d}" for i in range(500)], 6).astype(object)
        shows = np.tile([True] + [False] * 5, 500)
        found = d.matched(shows & (rng.random(3000) < 0.03), shows, strata)
        assert (found.images, found.control_images) == (500, 2500)
        covered += found.low <= 0.03 <= found.high
        rates.append(found.rate)
    assert np.mean(rates) == pytest.approx(0.03, abs=0.005)
    assert covered >= 18


def test_nothing_to_compare_is_no_evidence() -> None:
    nobody = d.matched(np.ones(4, bool), np.ones(4, bool), np.full(4, "car", object))
    assert (nobody.images, nobody.p_value, nobody.rate) == (0, 1.0, 0.0)
    assert d.matched(np.ones(0, bool), np.ones(0, bool), np.zeros(0, object)).images == 0


def test_separation_is_the_share_of_pairs_in_the_right_order_within_a_class() -> None:
    rng = np.random.default_rng(9)
    along = rng.integers(0, 6, size=(60, 3)).astype(float)
    inside, strata = rng.random(60) < 0.4, np.array(["car", "tree", "fish"], object)[rng.integers(0, 3, 60)]
    expected = np.zeros(3)
    weights = 0.0
    for name in ("car", "tree", "fish"):
        one, other = (along[side & (strata == name)] for side in (inside, ~inside))
        weight = 1 / (1 / len(one) + 1 / len(other))
        weights += weight
        for c in range(3):
            pairs = [(a, b) for a in one[:, c] for b in other[:, c]]
            expected[c] += weight * np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    found = d.separation(along, inside, ~inside, strata)
    assert found is not None
    assert found.tolist() == pytest.approx((expected / weights).tolist())
    few = np.arange(60) < 4
    assert d.separation(along, few, ~few, strata) is None
    assert d.separation(along, ~few, few, strata) is None
    apart = np.where(inside, "car", "tree").astype(object)
    assert d.separation(along, inside, ~inside, apart) is None  # nothing of one class to compare


def test_two_heaps_part_halfway() -> None:
    rng = np.random.default_rng(10)
    along = np.stack([np.concatenate([rng.normal(0, 0.1, 80), rng.normal(1, 0.1, 20)]), rng.random(100)], 1)
    found = d.halves(along)
    assert ((along[:, 0] >= found[0]) == (np.arange(100) >= 80)).all()
    variance = {
        t: sum(len(x) * x.var() for x in (along[along[:, 1] < t, 1], along[along[:, 1] >= t, 1]) if len(x))
        for t in along[:, 1]
    }
    assert variance[min(along[along[:, 1] >= found[1], 1])] == pytest.approx(min(variance.values()))


def test_the_cut_is_where_the_shares_differ_most() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        inside, outside = rng.normal(1, 1, 15).round(1), rng.normal(0, 1, 40).round(1)
        differences = {float(t): (inside >= t).mean() - (outside >= t).mean() for t in inside}
        found = d.cut(inside, outside)
        assert differences[found] == pytest.approx(max(differences.values()))
    assert d.cut(np.array([3.0, 4.0]), np.array([0.0, 1.0, 2.0])) == 3.0


def test_the_images_needed_give_the_test_its_power() -> None:
    """.4 against .1 at .01 with a power of .8: the binomial test's power at that number, and at half of it."""
    needed = d.images_needed(0.4, 0.1, 0.01)

    def power(n: int) -> float:
        smallest = next(k for k in range(n + 2) if stats.binom.sf(k - 1, n, 0.1) <= 0.01)
        return float(stats.binom.sf(smallest - 1, n, 0.4))

    assert 0.7 < power(needed) < 0.92
    assert power(needed // 2) < 0.6


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
