"""An explanation made again is the one that the run holds, and where it is not, that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audit.config import parse_job
from audit.errors import ConfigError
from audit.results.sql import Run
from audit.zoo.export import export
from pipelines.cli import app
from pipelines.reproduce import SCORES, Reproduced, reproduce, write_images
from tests.in_process import done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four searches of two steps, two in a unit."""
    folder = tmp_path_factory.mktemp("reproduce")
    export("labelled", folder / "data", "folder", 24)
    stage: dict[str, Any] = {"kind": "disagreement", "maximise": "a", "minimise": "r", "classes": ["crab"], "seeds": 4}
    stage |= {"preset": "embedded", "steps": 2, "cutouts": 2, "unit_seeds": 2}
    raw = {
        "version": 1,
        "name": "short",
        "data": {"source": "folder", "path": "data"},
        "models": [
            {"id": "a", "loader": "hf", "ref": "zoo:shortcut-a"},
            {"id": "r", "loader": "hf", "ref": "zoo:reference"},
        ],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "generator": {"loader": "diffusers", "ref": "zoo:diffusion", "steps": 2, "guidance_scale": 2.0},
        "stages": [{"kind": "screen"}, {"kind": "adequacy", "samples": 2, "threshold": 0.0}, stage],
    }
    return done(parse_job(raw, folder), folder / "runs" / "short", 2)


def explanations(run: Run) -> list[dict[str, Any]]:
    return run.rows("select * from explanations order by unit_id, seed")


def test_every_explanation_names_its_unit(run: Run) -> None:
    rows = explanations(run)
    units = {row["unit_id"] for row in run.rows("select unit_id from units where stage like '%-disagreement'")}
    assert len(rows) == 4
    assert {row["unit_id"] for row in rows} == units
    assert len(units) == 2


def test_an_explanation_is_made_again_byte_for_byte(run: Run, tmp_path: Path) -> None:
    stored = explanations(run)[-1]
    before = len(run.store.names("commits"))
    made = reproduce(run.location, stored["explanation_id"])
    assert made.outcome == "equal"
    assert made.now["score_after"] == stored["score_after"]
    assert write_images(made, tmp_path / "images") == 2
    stored_png = run.rows("select png from images where image_id = ?", [stored["image_id"]])[0]["png"]
    assert (tmp_path / "images" / "result.png").read_bytes() == stored_png
    assert (tmp_path / "images" / "start.png").exists()
    assert len(run.store.names("commits")) == before  # the run is as it was


def test_what_differs_is_told_from_what_is_rounded(run: Run) -> None:
    stored = explanations(run)[0]
    assert stored["other_before"] is not None
    other = {**stored, "image_id": "0" * 64}
    assert Reproduced(stored, dict(stored), {}).outcome == "equal"
    assert Reproduced(stored, other, {}).outcome == "equal up to rounding"
    for key in SCORES[:4]:
        assert Reproduced(stored, {**other, key: stored[key] + 0.009}, {}).outcome == "equal up to rounding"
        assert Reproduced(stored, {**other, key: stored[key] - 0.011}, {}).outcome == "different"
        assert Reproduced(stored, {**other, key: None}, {}).outcome == "different"
    assert Reproduced(stored, {**other, "flipped": not stored["flipped"]}, {}).outcome == "different"


def test_what_cannot_be_made_again_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no explanation 'x'"):
        reproduce(run.location, "x")
    digests = {**json.loads(run.store.read("job.json") or b"{}")["digests"], "models.a": "other weights"}
    monkeypatch.setattr("pipelines.reproduce.digests", lambda job: digests)
    with pytest.raises(ConfigError, match=r"models are others now than when the run was made:\n  models\.a: "):
        reproduce(run.location, explanations(run)[0]["explanation_id"])


def test_the_command_exits_with_one_where_it_is_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = explanations(run)[0]
    where, name = str(run.root), stored["explanation_id"]
    shell = CliRunner()
    monkeypatch.setattr("pipelines.reproduce.reproduce", lambda *_: Reproduced(stored, dict(stored), {}))
    told = shell.invoke(app, ["reproduce", where, name, "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["outcome"] == "equal"
    assert "score_after" in shell.invoke(app, ["reproduce", where, name]).stdout
    other = {**stored, "image_id": "0", "score_after": 2.0}
    monkeypatch.setattr("pipelines.reproduce.reproduce", lambda *_: Reproduced(stored, other, {}))
    assert shell.invoke(app, ["reproduce", where, name]).exit_code == 1
