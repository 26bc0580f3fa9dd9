"""Findings by rank, name and the beginning of an id; what is ambiguous or unknown is refused with a list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from audit.errors import ConfigError
from audit.results.sql import Run
from audit.review.findings import explanation_id, mode_id, subject_id
from pipelines.cli import app
from pipelines.run_end import commands
from tests.audited import audited, mode, said


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three modes, by impact: crab on sand, boat on sand, car in fog; a search for the last; a neuron."""
    modes = [
        mode("crab", "on sand", impact=0.3, failure_mode_id="aaaa1111", evidence="ab"),
        mode("boat", "on sand", impact=0.2, failure_mode_id="aaaa2222"),
        mode("car", "in fog", impact=0.1, failure_mode_id="bbbb3333", exemplars=["eeee5555"]),
        mode("tree", "hidden", impact=0.9, failure_mode_id="dddd4444", listed=False),
    ]
    made = audited(tmp_path / "run", modes, said("data", "v", {"a": "crab", "b": "boat"}, "crab"))
    explanations = [{"explanation_id": "eeee5555", "status": "ok"}, {"explanation_id": "ffff6666", "status": "ok"}]
    made.store.commit("more", "1-x", {"explanations": explanations, "neurons": [{"neuron_id": "9999aaaa"}]})
    return Run(made.location)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1", "aaaa1111"),
        ("3", "bbbb3333"),
        ("in fog", "bbbb3333"),
        ("In FOG", "bbbb3333"),
        ("in f", "bbbb3333"),
        ("aaaa2222", "aaaa2222"),
        ("aaaa2", "aaaa2222"),
        ("v says “crab” for what is on sand", "aaaa1111"),
        ("v says “boat”", "aaaa2222"),
        ("dddd4444", "dddd4444"),
    ],
)
def test_a_failure_mode_is_known_by_what_people_call_it(run: Run, text: str, found: str) -> None:
    assert mode_id(run, text) == found
    assert subject_id(run, text) == found


@pytest.mark.parametrize("text", ["on sand", "on", "aaaa"])
def test_what_several_are_called_is_refused_with_their_ranks_and_ids(run: Run, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mode_id(run, text)
    lines = str(refused.value).splitlines()
    assert "several" in lines[0]
    assert re.findall(r"^ +(\d) +(\w+) ", "\n".join(lines[1:]), re.MULTILINE) == [("1", "aaaa1111"), ("2", "aaaa2222")]


@pytest.mark.parametrize("text", ["4", "0", "under water", "cccc", ""])
def test_what_none_is_called_is_refused_with_what_there_is(run: Run, text: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)rank or a name.*3  bbbb3333  v says .car. for what is in fog"):
        mode_id(run, text)


def test_explanations_and_neurons_are_known_by_beginnings_of_their_ids(run: Run) -> None:
    assert subject_id(run, "ffff") == "ffff6666"
    assert subject_id(run, "9999aaaa") == "9999aaaa"
    assert explanation_id(run, "ffff") == "ffff6666"
    assert explanation_id(run, "in fog") == explanation_id(run, "3") == "eeee5555"
    with pytest.raises(ConfigError, match="is based on no search"):
        explanation_id(run, "1")


def test_commands_take_them(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["review", str(run.location), "in fog", "bug", "--json"])
    assert done.exit_code == 0, done.stderr
    run.refresh()
    assert run.rows("select subject_id, verdict from verdicts") == [{"subject_id": "bbbb3333", "verdict": "bug"}]
    refused = CliRunner().invoke(app, ["slice", str(run.location), "on sand", str(tmp_path / "slice")])
    assert refused.exit_code == 2
    assert "aaaa1111" in refused.stderr
    assert not (tmp_path / "slice").exists()
    empty = CliRunner().invoke(app, ["slice", str(run.location), "3", str(tmp_path / "slice")])
    assert (empty.exit_code, "without real images" in empty.stderr) == (2, True)


def words(run: Run) -> dict[str, str]:
    """Of each command that a run's end names, what follows the program."""
    found = commands(run, "runs/x", run.failure_modes())
    return {what: command[command.index(f" {what_of(what)} ") + 1 :] for what, command in found}


def what_of(what: str) -> str:
    return {
        "open the report": "dashboard",
        "ask questions": "sql",
        "write its images": "slice",
        "record a verdict": "review",
        "reproduce one": "reproduce",
    }[what]


def test_the_end_of_a_run_names_commands_that_work_on_it(run: Run, tmp_path: Path) -> None:
    assert words(run) == {
        "open the report": "dashboard runs/x",
        "ask questions": 'sql runs/x "select * from failure_modes"',
        "write its images": "slice runs/x 1 slice-1",
        "record a verdict": "review runs/x 1 bug",
        "reproduce one": "reproduce runs/x eeee5555",
    }
    screened = audited(tmp_path / "plain", [], said("data", "v", {"a": "crab"}, "crab"))
    assert words(screened)["ask questions"] == 'sql runs/x "select * from accuracy"'
    assert set(words(screened)) == {"open the report", "ask questions"}
    unlabelled = audited(tmp_path / "unlabelled", [], said("data", "v", {"a": "crab"}))
    question = words(unlabelled)["ask questions"].partition('"')[2].rstrip('"')
    assert unlabelled.rows(question) == [{"model_id": "v", "predicted": "crab", "images": 1}]
