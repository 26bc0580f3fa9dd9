"""The benchmark of discovery: null runs keep what they should, and lose what they should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from audit import discovery as d
from audit.failure_modes.claims import EMBEDDER, Claim, Real
from audit.methods import discover
from audit.results.sql import Run
from audit.zoo.scenes import LABELS
from benchmarks.discovery import anchor_of, false_alarms, material_of, measured, null_run, overlap, permuted
from tests.planted import SEEDS, Planted


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which f says crab on all sand, and searches show it."""
    made = Planted(tmp_path_factory.mktemp("planted"))
    made.search("crab", {"background": "sand"})
    for control in ("car", "boat"):
        made.search(control, {})
    made.rows["items"] += [{"item_id": name, "role": "data", "label": name, "status": "ok"} for name in LABELS]
    root = tmp_path_factory.mktemp("run")
    made.discovered(root)
    return root


def test_discovery_again_is_the_run_s_own(place: Path) -> None:
    made = material_of(place)
    again = {m["failure_mode_id"]: (m["verdict"], m.get("p_value")) for m in discover.found_in(made)[1]}
    rows = Run(place).rows("select failure_mode_id, verdict, p_value from failure_modes")
    assert again.keys() == {row["failure_mode_id"] for row in rows}
    for row in rows:
        verdict, p_value = again[row["failure_mode_id"]]
        assert (row["verdict"], row["p_value"]) == (verdict, p_value and pytest.approx(p_value, rel=1e-6))


def test_the_anchor_is_the_model_of_most_searches(place: Path, tmp_path: Path) -> None:
    made = material_of(place)
    assert len(made.run.rows("select * from explanations")) == 3 * SEEDS
    assert anchor_of(made) in ("f", "g")
    pairs = [{"model_id": "f", "other_model_id": "g"}, {"model_id": "h", "other_model_id": "g"}]

    class Asked:
        def rows(self, query: str) -> list[dict[str, str]]:
            return pairs

    object.__setattr__(made, "run", Asked())
    assert anchor_of(made) == "g"


def test_a_null_run_confirms_nothing_of_what_its_run_does(place: Path) -> None:
    made = material_of(place)
    confirmed = {m["class_name"] for m in discover.found_in(made)[1] if m["verdict"] == "confirmed"}
    assert "crab" in confirmed
    alarms = [mode["class_name"] for seed in range(10) for mode in null_run(made, "g", seed)]
    assert len(alarms) <= 1  # each with a chance of a hundredth at most


def test_all_figures_of_a_run(place: Path) -> None:
    found = measured([place], 3, twin=place, fair=place)
    (world,) = found["worlds"]
    assert world["search"]["found"] == ("crab-on-sand",)
    assert world["search"]["precision"] == 1.0
    assert {name: own["share"] for name, own in found["stability"].items()} == {"search": 1.0, "report": 1.0}
    assert found["stability"]["search"]["both"] == world["search"]["confirmed"]
    assert {row["null_runs"] for row in found["calibration"].values()} == {3}
    assert "f: crab on sand" in found["fair"]["confirmed"]
    assert found["fair"]["calibration"].keys() == {"report", "search", "labels", "screen"}
    assert measured([place], 0)["calibration"] is None
