"""`--json`: every command has it, and prints one JSON value on stdout, whatever else is printed by the work."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
from typer.testing import CliRunner

from audit.zoo import measure as audit_measure
from audit.zoo.export import export
from pipelines.cli import app
from tests.ray_cluster import free_port, until

LOUD = """
import os, torch
class Loud(torch.nn.Module):
    def forward(self, x):
        print("asked")
        os.write(1, b"asked, past Python\\n")
        return x.mean((2, 3))
def load():
    print("loaded")
    return Loud()
"""
JOB = """
version: 1
name: loud
data: {source: folder, path: data}
models: [{id: m, loader: python, ref: 'model.py:load', class_names: data}]
stages: [{kind: screen}]
compute: {workers: 1}
output: {uri: runs}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a job whose model prints."""
    made = tmp_path_factory.mktemp("json")
    (made / "model.py").write_text(LOUD)
    (made / "job.yaml").write_text(JOB)
    export("labelled", made / "data", "folder", 6)
    return made


@pytest.fixture(scope="module")
def ran(folder: Path) -> Any:
    """What `audit run` prints of that job."""
    return told(folder, "run", "job.yaml")


def audit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *arguments, "--json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def told(folder: Path, *arguments: str) -> Any:
    """All that a command writes to stdout, which is one JSON value."""
    done = audit(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def commands(group: typer.core.TyperGroup, path: str = "audit") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_has_it() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    found = dict(commands(root))
    assert {"audit init", "audit run", "audit submit", "audit zoo export"} < found.keys()
    assert [name for name, each in found.items() if not any("--json" in one.opts for one in each.params)] == []


def test_a_model_that_prints_does_not_print_into_the_json(folder: Path, ran: Any) -> None:
    checked = told(folder, "validate", "job.yaml")
    assert (checked["job"], checked["models"], checked["stages"]) == ("loud", ["m"], ["0-inventory", "1-screen"])
    planned = audit(folder, "plan", "job.yaml")
    assert [stage["items"] for stage in json.loads(planned.stdout)] == [6, 6]
    for line in ("loaded", "asked", "asked, past Python"):  # it was at work
        assert line in planned.stderr.splitlines()
    assert (ran["run"], ran["failed"], ran["failure_modes"]) == (str(folder / "runs" / "loud"), 0, [])
    assert told(folder, "repair", "runs/loud")["withdrawn"] == []


def test_init_says_what_it_wrote(folder: Path) -> None:
    assert told(folder, "init", "--model", "model.py:load", "--data", "data", "--job", "new.yaml")["job"] == "new.yaml"
    assert told(folder, "validate", "new.yaml")["job"] == "my-audit"
    again = audit(folder, "init", "--model", "model.py:load", "--data", "data", "--job", "new.yaml")
    assert (again.returncode, again.stdout) == (2, "")


def test_sql_is_json_by_either_word(folder: Path, ran: Any) -> None:
    query = "select count(*) as n from predictions"
    assert told(folder, "sql", "runs/loud", query) == [{"n": 6}]
    two = audit(folder, "sql", "runs/loud", query, "--format", "csv")
    assert (two.returncode, two.stdout) == (2, "")
    assert "two formats" in two.stderr


def test_export_counts_its_scenes(folder: Path) -> None:
    wanted = {"world": 2, "scenes": 3, "folder": "some", "split": "pool", "layout": "parquet"}
    asked = ("--world", "2", "--split", "pool", "--layout", "parquet", "--limit", "3")
    assert told(folder, "zoo", "export", "some", *asked) == wanted


def test_training_that_is_cut_short_says_so(folder: Path) -> None:
    arguments = ("zoo", "train", "reference", "--short", "--work", "work", "--minutes", "1e-9")
    cut = told(folder, *arguments)
    assert (cut["model"], cut["finished"]) == ("reference", False)
    assert re.search("stopped at step 0 of [0-9]+", cut["message"])


def test_measuring_prints_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The figures of a measurement of a quarter of an hour, which rewrites what is in the package, are made up."""

    def measured(work: Path, number: int) -> dict[str, Any]:
        print("on the way")
        return {"accuracy": {"reference": 0.5}, "work": str(work), "world": number}

    monkeypatch.setattr(audit_measure, "measure_all", measured)
    done = CliRunner().invoke(app, ["zoo", "measure", "--work", str(tmp_path), "--world", "3", "--json"])
    assert json.loads(done.stdout) == {"accuracy": {"reference": 0.5}, "work": str(tmp_path), "world": 3}
    assert "on the way" in done.stderr


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_report_names_its_address_and_serves_until_it_is_ended(
    folder: Path, ran: Any, end: signal.Signals, code: int
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "dashboard", "runs/loud", "--port", str(port), "--json"]
    serving = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/_stcore/health"), "the report is served")
    finally:
        serving.send_signal(end)
        said, words = serving.communicate(timeout=60)
    assert serving.returncode == code
    assert not answers(f"http://127.0.0.1:{port}/_stcore/health")
    assert f"report of loud: http://127.0.0.1:{port}" in words
    assert json.loads(said) == {"run": str(folder / "runs" / "loud"), "url": f"http://127.0.0.1:{port}"}
