"""The audit's own score on hand-made failure modes, of which it is known what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.errors import ConfigError
from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.score import score, score_of
from audit.zoo.world import load_world, scene_at

MODELS = {"a": {"ref": "zoo:shortcut-a"}, "b": {"ref": "zoo:shortcut-b"}, "reference": {"ref": "zoo:reference"}}


def run_with(
    root: Path, searched: list[tuple[str, str]], modes: list[dict[str, Any]], models: Any = MODELS, other: Any = None
) -> Run:
    """`other`: for a model that searched, the one that it was to disagree with."""
    store = Store(root)
    store.create("job.json", json.dumps({"job": {"models": models}}).encode())
    explanations = [
        {"explanation_id": f"{m}{c}", "method": "disagreement", "model_id": m, "target_class": c}
        | {"other_model_id": (other or {}).get(m)}
        for m, c in searched
    ]
    rows = [{"failure_mode_id": str(i), "name": mode["concept"], **mode} for i, mode in enumerate(modes)]
    store.commit("u", "1-x", {"explanations": explanations, "failure_modes": rows})
    return Run(root)


def mode(
    model: str, name: str, concept: str, verdict: str = "confirmed", source: str = "search", listed: bool = True
) -> dict[str, Any]:
    row = {"model_id": model, "class_name": name, "concept": concept, "verdict": verdict}
    return {**row, "source": source, "listed": listed}


def test_every_figure_of_the_score(tmp_path: Path) -> None:
    searched = [("a", name) for name in ("crab", "boat", "fish", "car")] + [("b", "tree")]
    modes = [
        mode("a", "crab", "{} on sand"),  # planted
        mode("a", "crab", "{} on water"),  # false: another class's feature
        mode("b", "tree", "{} on sand"),  # false: another model's feature
        mode("a", "car", "red {}"),  # false, and on a control
        mode("a", "fish", "purple {}", "hypothesis"),  # planted, absent from the pool: found as a hypothesis
        mode("a", "boat", "{} on water", "hypothesis"),  # planted, no more than a hypothesis: missed
        mode("b", "bird", "{} on sky"),  # planted, but the class was not searched: true, and missed by none
        mode("a", "boat", "{} on water", source="screen"),  # the baseline's, planted
        mode("b", "bird", "{} on sand", source="screen", listed=False),  # the baseline's, not searched: does not count
        mode("a", "boat", "{} on water", source="labels"),  # planted, by labels
        mode("b", "boat", "{} on snow", source="labels"),  # false
        mode("b", "boat", "tree", source="labels"),  # labels that are confused: no planted mode, nor none
    ]
    found = score(run_with(tmp_path, searched, modes))
    search = found.search
    assert (search.confirmed, search.true, search.on_controls) == (5, 2, 1)
    assert search.found == ("crab-on-sand", "purple-fish")
    assert search.missed == ("boat-on-water", "green-tree")
    assert search.hypotheses == ("boat-on-water", "purple-fish")
    assert len(search.false) == 3
    assert (search.precision, search.recall) == (0.4, 0.5)
    assert (search.unconfirmed, search.confirmed_recall) == (("purple-fish",), pytest.approx(1 / 3))
    labels = found.labels
    assert (labels.confirmed, labels.true, labels.found) == (2, 1, ("boat-on-water",))
    assert labels.false == ("b: boat {} on snow",)
    assert (found.screen.confirmed, found.screen.found, found.screen.precision) == (1, ("boat-on-water",), 1.0)
    assert found.screen.recall == pytest.approx(1 / 4)
    report = found.report  # boat on water once, though two sources say it
    assert (report.confirmed, report.true, len(report.false)) == (7, 3, 4)
    assert report.missed == ("green-tree",)


def test_the_other_side_of_a_planted_mode_is_planted_too(tmp_path: Path) -> None:
    """Model a takes boats on sand for crabs, so it misses them. That it misses crabs, or boats on grass, is not so."""
    searched = [("a", "crab"), ("reference", "boat"), ("reference", "crab")]
    modes = [
        {**mode("reference", "boat", "{} on sand"), "other_model_id": "a"},
        {**mode("reference", "crab", "{} on sand"), "other_model_id": "a"},
        {**mode("reference", "boat", "{} on grass"), "other_model_id": "a"},
        {**mode("reference", "tree", "{} on sand"), "other_model_id": "a"},  # was not searched, and is true
    ]
    found = score(run_with(tmp_path, searched, modes, other={"reference": "a"})).search
    assert (found.confirmed, found.true) == (4, 2)
    assert (found.found, found.missed) == (("crab-on-sand",), ())
    assert found.false == ("reference: crab {} on sand", "reference: boat {} on grass")


def test_what_is_true_of_the_scenes_is_not_false_for_not_being_planted(tmp_path: Path) -> None:
    """Model a says crab for half of what is on grass, and the reference never; nobody planted that."""
    run = run_with(tmp_path, [("a", "crab")], [])
    drawn = [scene_at(load_world(), "pool", position).scene for position in range(600)]
    items, said = [], []
    for position, scene in enumerate(drawn):
        misled = scene.background == "grass" and position % 2 == 0
        items.append({"item_id": str(position), "role": "pool", "position": position, "status": "ok"})
        for model, name in (("a", "crab" if misled else scene.object), ("reference", scene.object)):
            said.append({"item_id": str(position), "role": "pool", "model_id": model, "predicted": name})
    run.store.commit("v", "0-inventory", {"items": items, "predictions": [{**row, "status": "ok"} for row in said]})
    run.refresh()
    concepts = ("{} on grass", "{} not on sand", "{} on snow", "red {}", "{} not on grass", "{} with a badge")
    found = [mode("a", "crab", concept) for concept in concepts]
    found = [{**row, "name": row["concept"], "failure_mode_id": str(i)} for i, row in enumerate(found)]
    for other in ("reference", None):
        counted = score_of(run, [{**row, "other_model_id": other} for row in found]).search
        assert counted.natural == ("a: crab {} on grass", "a: crab {} not on sand")  # what is on grass is not on sand
        assert counted.correct == pytest.approx(2 / 6)
        assert (counted.true, counted.precision) == (0, 0.0)


def test_a_blind_class_is_found_where_the_model_misses_it(tmp_path: Path) -> None:
    """World 2 plants: without water, shortcut-a takes a fish for an empty scene."""
    models = {"a": {"ref": "zoo:world-2/shortcut-a"}, "reference": {"ref": "zoo:reference"}}
    searched = [("a", "fish"), ("a", "empty scene"), ("reference", "fish")]
    modes = [
        {**mode("reference", "fish", "{} not on water"), "other_model_id": "a"},
        mode("a", "empty scene", "{} not on water"),  # its other side
        mode("a", "fish", "{} not on water"),  # the wrong way round
    ]
    found = score(run_with(tmp_path, searched, modes, models, {"reference": "a"})).search
    assert (found.confirmed, found.true, found.found) == (3, 2, ("fish-not-on-water",))
    alone = run_with(tmp_path / "alone", [("a", "fish")], [], models)
    assert score(alone).search.missed == ()  # in this direction nobody could have found it


def test_models_of_two_worlds_have_no_score(tmp_path: Path) -> None:
    models = {"a": {"ref": "zoo:world-2/shortcut-a"}, "b": {"ref": "zoo:world-3/shortcut-a"}}
    with pytest.raises(ConfigError, match=r"the worlds \[2, 3\]"):
        score(run_with(tmp_path, [], [], models))


def test_nothing_confirmed_has_no_precision(tmp_path: Path) -> None:
    found = score(run_with(tmp_path, [("a", "crab")], []))
    assert (found.search.precision, found.search.recall) == (None, 0.0)


def test_a_run_of_other_models_has_no_score(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the world's classifiers"):
        score(run_with(tmp_path, [], [], {"m": {"ref": "zoo:reference"}}))
