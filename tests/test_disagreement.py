"""Several pairs of models in one stage, on the embedded world's real models: short searches, compared row by row."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from audit.config import parse_job
from audit.errors import ConfigError
from audit.methods import Context, disagreement
from audit.models import Models
from audit.results.schema import Rows
from audit.results.store import Store

MODELS = {"a": "zoo:shortcut-a", "b": "zoo:shortcut-b", "r": "zoo:reference", "again": "zoo:reference"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    Store(root).create("job.json", b"{}")
    return root


@cache
def loaded() -> Models:
    return Models(job({}), ("boat", "crab"))


def job(options: dict[str, Any]) -> Any:
    stage = {"kind": "disagreement", "maximise": "a", "minimise": "r", "classes": ["crab"], "seeds": 2}
    stage |= {"preset": "embedded", "steps": 2, "cutouts": 2}
    raw = {
        "version": 1,
        "name": "pairs",
        "data": {"source": "folder", "path": "unused"},
        "models": [{"id": model_id, "loader": "hf", "ref": ref} for model_id, ref in MODELS.items()],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "generator": {"loader": "diffusers", "ref": "zoo:diffusion", "steps": 2, "guidance_scale": 2.0},
        "stages": [{**stage, **options}],
    }
    return parse_job(raw, Path())


def searched(root: Path, **options: Any) -> Rows:
    """The rows of all units of a job, in the order of its plan."""
    made = job(options)
    context = Context(made, "1-disagreement", root, loaded(), batch_size=2)
    chosen = made.stages[0].options
    rows: Rows = {}
    for payload in json.loads(json.dumps(disagreement.plan(chosen, context))):
        for table, found in disagreement.run(chosen, payload, context).items():
            rows.setdefault(table, []).extend(found)
    for row in rows["explanations"]:
        del row["seconds"]
    return rows


def by_seed(rows: Rows, f: str, g: str) -> list[dict[str, Any]]:
    found = [row for row in rows["explanations"] if (row["model_id"], row["other_model_id"]) == (f, g)]
    return sorted(found, key=lambda row: row["seed"])


def first_augmented(rows: Rows, explanation_id: str) -> float:
    (row,) = [r for r in rows["traces"] if r["explanation_id"] == explanation_id and r["step"] == 0]
    return float(row["augmented_loss"])


@pytest.mark.parametrize(
    ("maximise", "minimise", "directions", "pairs"),
    [
        ("a", "r", "forward", [("a", "r")]),
        (["a"], "r", "both", [("a", "r"), ("r", "a")]),
        (["a", "b"], ["r", "again"], "forward", [("a", "r"), ("a", "again"), ("b", "r"), ("b", "again")]),
        (["a", "b"], ["a", "b"], "both", [("a", "b"), ("b", "a")]),
        (["a", "a"], ["r"], "forward", [("a", "r")]),
        ("a", ["a"], "both", []),
    ],
)
def test_pairs(maximise: Any, minimise: Any, directions: str, pairs: list[tuple[str, str]]) -> None:
    options = {"maximise": maximise, "minimise": minimise, "directions": directions}
    assert disagreement.Options.model_validate(options).pairs() == pairs


def test_labels_that_a_model_lacks_are_left_out_unless_named(store: Path) -> None:
    """'reference' does not know whales: 'auto' searches the rest, 'whale' by name is refused with what it knows."""
    plain = job({})
    excused = {name: model.model_copy(update={"labels": {"whale": None}}) for name, model in plain.models.items()}
    models = Models(plain.model_copy(update={"models": excused}), ("boat", "crab", "whale"))

    def classes(asked: Any) -> list[str]:
        made = job({"classes": asked})
        context = Context(made, "1-disagreement", store, models, batch_size=2)
        return [unit["class"] for unit in disagreement.plan(made.stages[0].options, context)]

    assert classes("auto") == ["boat", "crab"]
    assert classes(["crab"]) == ["crab"]
    with pytest.raises(ConfigError, match="the model 'a': unknown class 'whale'"):
        classes(["crab", "whale"])


def test_one_job_of_two_pairs_is_two_jobs_of_one_pair(store: Path) -> None:
    both = searched(store, maximise=["a", "b"], minimise="r")
    parts = [searched(store, maximise=f, minimise=["r"], classes="crab") for f in ("a", "b")]
    for table, rows in both.items():
        assert rows
        assert rows == [row for part in parts for row in part[table]], table
    assert len({row["explanation_id"] for row in both["explanations"]}) == 4
    assert len(both["traces"]) == 4 * 3


def test_the_other_direction_swaps_the_roles_from_the_same_start_and_cutouts(store: Path) -> None:
    """p_f - p_g becomes p_g - p_f: at the start, and on its augmented cutouts, the very negative."""
    rows = searched(store, directions="both")
    forward, backward = by_seed(rows, "a", "r"), by_seed(rows, "r", "a")
    assert len(forward) == len(backward) == 2
    for one, other in zip(forward, backward, strict=True):
        assert (one["seed"], one["start_image_id"]) == (other["seed"], other["start_image_id"])
        assert one["score_before"] == other["other_before"]
        assert one["other_before"] == other["score_before"]
        assert one["score_before"] != one["other_before"]
        assert other["loss_before"] == -one["loss_before"] == one["score_before"] - one["other_before"]
        assert first_augmented(rows, other["explanation_id"]) == -first_augmented(rows, one["explanation_id"])
        assert one["image_id"] != other["image_id"]


def test_results_of_two_minimised_models_compare_seed_by_seed(store: Path) -> None:
    """The same weights under two ids give the same searches; other weights share the starts."""
    rows = searched(store, minimise=["r", "again", "b"])
    one, same, other = (by_seed(rows, "a", g) for g in ("r", "again", "b"))
    named = ("explanation_id", "other_model_id")
    for left, right in zip(one, same, strict=True):
        assert {k: v for k, v in left.items() if k not in named} == {k: v for k, v in right.items() if k not in named}
        assert left["explanation_id"] != right["explanation_id"]
    assert [row["start_image_id"] for row in one] == [row["start_image_id"] for row in other]
    assert [row["image_id"] for row in one] != [row["image_id"] for row in other]
