"""The benchmark of discovery: null runs keep what they should, and lose what they should."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from audit import discovery as d
from audit.failure_modes.claims import EMBEDDER, Claim, Real
from benchmarks.discovery import false_alarms, overlap, permuted


def test_a_null_run_keeps_how_often_each_class_is_called_what_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    truth = np.array(["car", "tree"], object)[rng.integers(0, 2, 2000)]
    sand = rng.random(2000) < 0.3
    f = np.where(sand, "crab", truth).astype(object)
    along = sand[:, None] + 0.1 * rng.normal(size=(2000, 1))
    ids = np.array([f"{i:08x}" for i in range(2000)], object)
    real = Real(ids, along, along, d.halves(along), {"f": f, "g": truth, EMBEDDER: truth})
    null = permuted(real, "g", 1)
    assert null is not None
    assert (null.said["g"] == truth).all()
    assert Counter(zip(truth, null.said["f"], strict=True)) == Counter(zip(truth, f, strict=True))
    claim = Claim("disagreement", "search", "f", "g", "crab")
    assert d.matched(real.wrong(claim), sand, real.seen).p_value < 1e-100
    p_values = []
    for seed in range(60):
        empty = permuted(real, "g", seed)
        assert empty is not None
        p_values.append(d.matched(empty.wrong(claim), sand, empty.seen).p_value)
    assert np.mean(np.array(p_values) < 0.1) < 0.25
    assert permuted(None, "g", 0) is None


def test_the_bound_is_the_one_that_so_few_alarms_would_still_be_likely_under() -> None:
    assert false_alarms(0, 60)["upper_bound"] == pytest.approx(1 - 0.05 ** (1 / 60))
    found = false_alarms(2, 60)
    p = found["upper_bound"]
    at_most_two = (1 - p) ** 60 + 60 * p * (1 - p) ** 59 + 1770 * p**2 * (1 - p) ** 58
    assert (found["share"], at_most_two) == (pytest.approx(2 / 60), pytest.approx(0.05))
    assert false_alarms(3, 3)["upper_bound"] == 1.0


def test_the_overlap_of_two_runs_is_what_both_confirmed() -> None:
    def mode(name: str, verdict: str = "confirmed", model: str = "f") -> dict[str, object]:
        return {"model_id": model, "other_model_id": "g", "class_name": "crab", "concept": name, "verdict": verdict}

    first = [mode("a"), mode("b"), mode("c", "hypothesis")]
    second = [mode("b"), mode("c"), mode("a", model="h")]
    assert overlap(first, second) == {"first": 2, "second": 3, "both": 1, "share": 0.25}
    assert overlap([], [])["share"] is None
