"""Adequacy with the real generator: a class that it can draw, and one that it has never seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.config import Job, parse_job
from audit.methods import Context, adequacy, disagreement
from audit.models import Models
from audit.results.store import Store

CLASSES = ("boat", "elephant", "tree")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    raw = {
        "version": 1,
        "name": "x",
        "data": {"source": "folder", "path": "images"},
        "models": [
            {"id": name, "loader": "hf", "ref": f"zoo:{name}", "labels": {"elephant": None}}
            for name in ("shortcut-a", "reference")
        ],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "generator": {"loader": "diffusers", "ref": "zoo:diffusion", "steps": 8, "guidance_scale": 4.0},
        "stages": [
            {"kind": "screen"},
            {"kind": "adequacy", "samples": 4},
            {"kind": "disagreement", "maximise": "shortcut-a", "minimise": "reference", "seeds": 4, "start": "others"},
        ],
    }
    return parse_job(raw, tmp_path_factory.mktemp("job"))


def test_a_class_that_cannot_be_drawn_gets_a_reason_and_no_search(job: Job, tmp_path: Path) -> None:
    store, models = Store(tmp_path), Models(job, CLASSES)
    store.create("job.json", b"{}")
    context = Context(job, "2-adequacy", tmp_path, models, 4)
    options = job.stages[1].options
    units = adequacy.plan(options, context)
    assert [unit["class"] for unit in units] == list(CLASSES)
    for unit in units:
        store.commit(f"u-{unit['class']}", "2-adequacy", adequacy.run(options, unit, context))

    searching = Context(job, "3-disagreement", tmp_path, models, 4)
    measured = searching.run.rows("select subject_id, name, value, reason from measurements")
    found = {(row["subject_id"], row["name"]): row for row in measured}
    assert [found[name, "auditable"]["value"] for name in CLASSES] == [1, 0, 1]
    assert found["boat", "agreement"]["value"] >= 0.75
    assert found["elephant", "agreement"]["value"] == 0
    assert "not auditable with this generator: of 4 images" in found["elephant", "auditable"]["reason"]

    planned = disagreement.plan(job.stages[2].options, searching)
    assert {unit["class"] for unit in planned} == {"boat", "tree"}
    assert {source for unit in planned for _, source in unit["seeds"]} == {"boat", "tree"}  # none starts from it


def test_a_class_whose_unit_is_given_up_is_not_searched(job: Job, tmp_path: Path) -> None:
    store, models = Store(tmp_path), Models(job, CLASSES)
    store.create("job.json", b"{}")
    context = Context(job, "2-adequacy", tmp_path, models, 4)
    for unit in adequacy.plan(job.stages[1].options, context):
        if unit["class"] != "boat":
            continue
        store.commit("u", "2-adequacy", adequacy.lost(job.stages[1].options, unit, "gave_up: it hangs", context))
    searching = Context(job, "3-disagreement", tmp_path, models, 4)
    assert adequacy.not_auditable(searching) == {"boat": "not auditable: gave_up: it hangs"}
    planned = disagreement.plan(job.stages[2].options, searching)
    assert {unit["class"] for unit in planned} == {"tree"}  # that the models know no elephant is another matter


def test_agreement_counts_images_on_which_half_of_the_models_see_the_class() -> None:
    """Of three images both models see it in the first, neither in the others."""
    said = ["water bottle", "car", "car", "water bottle", "car", None]
    rows = {"predictions": [{"predicted": name} for name in said]}
    assert adequacy._agreement(rows, "water bottle", 3) == pytest.approx(1 / 3)
