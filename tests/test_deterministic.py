"""With `deterministic`, results depend on neither batch size nor threads; a unit says how it was computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from audit.config import parse_job
from audit.models.determinism import Conditions, exact
from audit.results.sql import Run
from audit.zoo.export import export
from pipelines.reproduce import reproduce
from tests.in_process import done

SEARCH: dict[str, Any] = {"kind": "disagreement", "maximise": "a", "minimise": "r", "classes": ["crab"], "seeds": 6}
SEARCH |= {"preset": "embedded", "steps": 3, "cutouts": 2, "unit_seeds": 6, "start": "others"}
NEURON: dict[str, Any] = {"kind": "neuron", "model": "a", "classes": ["crab"], "neurons": [42], "seeds": 2}
NEURON |= {"class_seeds": 1, "preset": "embedded", "steps": 2, "cutouts": 2, "top_images": 4, "attack_steps": 2}
MADE = "select method, arm, seed, prompt, image_id, score_before, score_after, loss_after, best_step from explanations "
ORDER = "order by method, arm, seed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("deterministic")
    export("labelled", made / "data", "folder", 24)
    return made


def run(folder: Path, name: str, batch: int, threads: int = 1, **compute: Any) -> Run:
    job = {"version": 1, "name": "exact", "data": {"source": "folder", "path": "data"}}
    job |= {"models": [{"id": "a", "loader": "hf", "ref": "zoo:shortcut-a"}]}
    job["models"] += [{"id": "r", "loader": "hf", "ref": "zoo:reference"}]
    job |= {"embedder": {"loader": "clip", "ref": "zoo:clip"}}
    job |= {"generator": {"loader": "diffusers", "ref": "zoo:diffusion", "steps": 2, "guidance_scale": 2.0}}
    screen = {"kind": "screen", "activations": ["a"]}
    stages = [screen, {"kind": "adequacy", "samples": 3, "threshold": 0.0}, SEARCH, NEURON]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return done(parse_job({**job, "stages": stages, "compute": compute}, folder), folder / name, batch)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one(folder: Path) -> Run:
    return run(folder, "one", 1, deterministic=True)


def test_pictures_and_scores_are_the_same_in_any_batch_and_on_any_threads(folder: Path, one: Run) -> None:
    """Byte for byte, of searches, drawn samples and screened images."""
    six = run(folder, "six", 6, threads=2, deterministic=True)
    searches = one.rows(MADE + ORDER)
    assert len({row["image_id"] for row in searches if row["method"] == "disagreement"}) == 6
    assert six.rows(MADE + ORDER) == searches
    for query in (
        "select item_id, role, model_id, confidence, top_confidences from predictions order by all",
        "select subject_id, role, name, model_id, values from arrays order by all",
        "select explanation_id, step, loss, augmented_loss, score from traces order by all",
        "select subject_id, name, value from measurements order by all",
    ):
        assert six.rows(query) == one.rows(query)
    for made in (one, six):
        conditions = made.rows("select distinct batch_size, threads, deterministic, device from units")
        assert [(row["batch_size"], row["threads"], row["deterministic"]) for row in conditions] == [(1, 1, True)]
        assert conditions[0]["device"].startswith("cpu (")


def test_a_process_has_its_own_settings_back(one: Run) -> None:
    assert one.rows("select count(*) as n from units where deterministic")[0]["n"] >= 5
    assert not torch.are_deterministic_algorithms_enabled()
    before = torch.get_num_threads()
    with exact(True):
        now = Conditions.now(3, "cpu")
        assert (now.batch_size, now.threads, now.deterministic) == (3, 1, True)
    assert not torch.are_deterministic_algorithms_enabled()
    with exact(False, 2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_an_explanation_is_made_again_in_the_batch_that_it_was_made_in(folder: Path) -> None:
    """The job names a batch size of its own, which other runs than the first may have had."""
    made = run(folder, "four", 4, threads=2, batch_size=1)
    assert made.rows("select distinct batch_size, threads, deterministic from units where stage like '%disag%'") == [
        {"batch_size": 4, "threads": 2, "deterministic": False}
    ]
    stored = made.rows(MADE.replace("select", "select explanation_id,") + "where method = 'disagreement' " + ORDER)
    again = reproduce(made.location, stored[-1]["explanation_id"])
    assert again.outcome == "equal"
    assert again.conditions[0] == again.conditions[1]
    assert again.as_dict()["batch_size"] == {"stored": 4, "now": 4}
    assert again.as_dict()["threads"] == {"stored": 2, "now": 2}


def test_a_deterministic_run_is_made_again_so(folder: Path, one: Run) -> None:
    stored = one.rows("select explanation_id from explanations where method = 'disagreement' order by seed")
    again = reproduce(one.location, stored[-1]["explanation_id"])
    assert again.outcome == "equal"
    assert again.as_dict()["deterministic"] == {"stored": True, "now": True}
