"""A run that came to nothing gives its name to a changed job; one with results does not. A stopped run says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audit.config import Job, parse_job
from audit.errors import ConfigError
from audit.models import digests
from audit.results.store import Store
from audit.results.warnings import RunWarning, warning_rows
from pipelines import plan
from pipelines.cli import app
from pipelines.plan import may_start_again, open_or_create, start_again, why_not_resumed
from tests.audited import audited, said

RAW: dict[str, Any] = {
    "version": 1,
    "name": "made",
    "data": {"source": "folder", "path": "."},
    "models": [{"id": "m", "loader": "hf", "ref": "zoo:reference"}],
    "stages": [{"kind": "screen"}],
}


def job(folder: Path, **changed: Any) -> Job:
    return parse_job({**RAW, **changed}, folder)


def committed(store: Store, unit: str, stage: str) -> None:
    store.commit(unit, stage, {"items": [{"item_id": unit, "role": "data", "status": "ok"}]})


def test_a_changed_job_takes_the_name_of_a_run_without_results(tmp_path: Path) -> None:
    root, before, now = tmp_path / "made", job(tmp_path), job(tmp_path, seed=7)
    found = digests(before)
    open_or_create(before, root, found)
    with pytest.raises(ConfigError, match="seed"):
        open_or_create(now, root, found)
    assert why_not_resumed(now, root, found) == []
    assert start_again(before, root, found) == []  # the same job resumes
    committed(Store(root), "u", "0-inventory")
    (root / "plan").mkdir()
    (root / "plan" / "1-screen.json").write_text("{}")
    assert start_again(now, root, found) == ["job.seed: 0 -> 7"]
    assert not [path for path in root.rglob("*") if path.is_file()]
    open_or_create(now, root, found)
    assert json.loads((root / "job.json").read_text())["job"]["seed"] == 7
    assert set(Store(root).commits()) == {"run"}


def test_nothing_of_anybodys_work_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, now = tmp_path / "made", job(tmp_path, seed=7)
    found = digests(now)
    open_or_create(job(tmp_path), root, found)
    store = Store(root)
    committed(store, "u", "0-inventory")
    monkeypatch.setattr(plan, "CHEAP", 0)
    assert not may_start_again(store)
    monkeypatch.setattr(plan, "CHEAP", 1)
    assert may_start_again(store)
    monkeypatch.setattr(plan, "CHEAP", 10)
    for stage in ("1-screen", "reviews"):
        committed(store, f"u-{stage}", stage)
        assert not may_start_again(store)
        assert start_again(now, root, found) == []
        store.objects.delete(f"commits/u-{stage}.json")
    committed(store, "v", "1-screen")
    before = sorted(path for path in root.rglob("*") if path.is_file())
    assert start_again(now, root, found) == []
    assert sorted(path for path in root.rglob("*") if path.is_file()) == before
    (why,) = why_not_resumed(now, root, found)
    assert "job.seed: 0 -> 7" in why
    assert "--new-run" in why
    assert why_not_resumed(job(tmp_path), root, found) == []


def test_sql_on_a_run_that_stopped_says_so(tmp_path: Path) -> None:
    predictions = said("data", "v", {"a": "crab"}, "crab")
    stopped = audited(tmp_path / "stopped", [], predictions, done=("0-inventory", "1-screen"))
    done = CliRunner().invoke(app, ["sql", str(stopped.location), "select count(*) as n from predictions", "--json"])
    assert json.loads(done.stdout) == [{"n": 1}]
    assert "not finished: stage 2-discover has done 0 of 1 units" in done.stderr
    whole = audited(tmp_path / "whole", [], predictions)
    done = CliRunner().invoke(app, ["sql", str(whole.location), "select count(*) as n from predictions", "--json"])
    assert (json.loads(done.stdout), done.stderr) == ([{"n": 1}], "")


def test_status_shows_warnings(tmp_path: Path) -> None:
    run = audited(tmp_path / "run", [], said("data", "v", {"a": "crab"}, "crab"))
    warnings = [
        RunWarning("odd_order", "v: [red] order of classes", "v"),
        RunWarning("small", "tiny", blocks_gate=False),
        RunWarning("even", "every one", "v", blocks_gate=False),  # whose id is a part of the message
    ]
    run.store.commit("w", "1-screen", {"warnings": warning_rows(warnings)})
    done = CliRunner().invoke(app, ["status", str(run.location)])
    assert "blocking warning: v: [red] order of classes (odd_order)" in done.stderr
    assert "warning: tiny (small)" in done.stderr
    assert "warning: v: every one (even)" in done.stderr
    told = json.loads(CliRunner().invoke(app, ["status", str(run.location), "--json"]).stdout)
    found = {one["code"]: one["blocks_gate"] for one in told["warnings"]}
    assert found == {"odd_order": True, "even": False, "small": False}
    assert told["warnings"][0]["code"] == "odd_order"
