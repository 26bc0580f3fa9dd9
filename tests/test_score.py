"""The audit's own score on hand-made failure modes, of which it is known what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.errors import ConfigError
from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.score import score

MODELS = {"a": {"ref": "zoo:shortcut-a"}, "b": {"ref": "zoo:shortcut-b"}, "reference": {"ref": "zoo:reference"}}


def run_with(root: Path, searched: list[tuple[str, str]], modes: list[dict[str, Any]], models: Any = MODELS) -> Run:
    store = Store(root)
    store.create("job.json", json.dumps({"job": {"models": models}}).encode())
    explanations = [
        {"explanation_id": f"{m}{c}", "method": "disagreement", "model_id": m, "target_class": c} for m, c in searched
    ]
    rows = [{"failure_mode_id": str(i), "name": mode["concept"], **mode} for i, mode in enumerate(modes)]
    store.commit("u", "1-x", {"explanations": explanations, "failure_modes": rows})
    return Run(root)


def mode(model: str, name: str, concept: str, verdict: str = "confirmed", source: str = "search") -> dict[str, Any]:
    return {"model_id": model, "class_name": name, "concept": concept, "verdict": verdict, "source": source}


def test_every_figure_of_the_score(tmp_path: Path) -> None:
    searched = [("a", name) for name in ("crab", "boat", "fish", "car")] + [("b", "tree")]
    modes = [
        mode("a", "crab", "{} on sand"),  # planted
        mode("a", "crab", "{} on water"),  # false: another class's feature
        mode("b", "tree", "{} on sand"),  # false: another model's feature
        mode("a", "car", "red {}"),  # false, and on a control
        mode("a", "fish", "purple {}", "hypothesis"),  # planted, absent from the pool: found as a hypothesis
        mode("a", "boat", "{} on water", "hypothesis"),  # planted, no more than a hypothesis: missed
        mode("b", "bird", "{} on sky"),  # planted, but the class was not searched: does not count
        mode("a", "boat", "{} on water", source="screen"),  # the baseline's, planted
    ]
    found = score(run_with(tmp_path, searched, modes))
    search = found.search
    assert (search.confirmed, search.true, search.on_controls) == (4, 1, 1)
    assert search.found == ("crab-on-sand", "purple-fish")
    assert search.missed == ("boat-on-water", "green-tree")
    assert search.hypotheses == ("boat-on-water", "purple-fish")
    assert len(search.false) == 3
    assert (search.precision, search.recall) == (0.25, 0.5)
    assert (found.screen.confirmed, found.screen.found, found.screen.precision) == (1, ("boat-on-water",), 1.0)
    assert found.screen.recall == pytest.approx(1 / 4)


def test_nothing_confirmed_has_no_precision(tmp_path: Path) -> None:
    found = score(run_with(tmp_path, [("a", "crab")], []))
    assert (found.search.precision, found.search.recall) == (None, 0.0)


def test_a_run_of_other_models_has_no_score(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the world's classifiers"):
        score(run_with(tmp_path, [], [], {"m": {"ref": "zoo:reference"}}))
