"""Verdicts of people: kept append-only, the last one shown, by several reviewers, and while a run goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

import audit
from audit.errors import ConfigError
from audit.results.compaction import compact
from audit.results.sql import Run
from audit.results.store import Store
from audit.reviews import review
from pipelines.cli import app


@pytest.fixture
def run(tmp_path: Path) -> Run:
    store = Store(tmp_path / "run")
    store.create("job.json", b"{}")
    store.commit(
        "u",
        "1-x",
        {
            "failure_modes": [{"failure_mode_id": "m"}, {"failure_mode_id": "n"}],
            "explanations": [{"explanation_id": "e"}],
            "neurons": [{"neuron_id": "o"}],
        },
    )
    return Run(tmp_path / "run")


def test_the_last_verdict_counts_and_all_stay(run: Run) -> None:
    review(run, "m", "needs review", reviewer="Ada")
    review(run, "m", "bug", "the sand\nalone does it", "Grace")
    review(run, "e", "expected", reviewer="Ada")
    review(run, "o", "not a failure", reviewer="Ada")
    rows = run.rows("select subject_id, verdict, note, reviewer, reviews from verdicts order by subject_id")
    assert [tuple(row.values()) for row in rows] == [
        ("e", "expected", None, "Ada", 1),
        ("m", "bug", "the sand\nalone does it", "Grace", 2),
        ("o", "not a failure", None, "Ada", 1),
    ]
    assert run.rows("select verdict, reviewer from reviews where subject_id = 'm' order by reviewed_at") == [
        {"verdict": "needs review", "reviewer": "Ada"},
        {"verdict": "bug", "reviewer": "Grace"},
    ]


def test_reviewers_at_once_lose_nothing(run: Run) -> None:
    def speak(name: str) -> None:
        own = Run(run.location)
        for _ in range(10):
            review(own, "m", "bug", reviewer=name)

    people = [threading.Thread(target=speak, args=(f"person {i}",)) for i in range(4)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    compact(run.store, least=2)
    run.refresh()
    assert run.rows("select reviewer, count(*) as n from reviews group by 1 order by 1") == [
        {"reviewer": f"person {i}", "n": 10} for i in range(4)
    ]


@pytest.mark.parametrize(
    ("subject", "verdict", "note", "reviewer", "message"),
    [
        ("x", "bug", "", "Ada", "no failure mode, explanation or neuron 'x'"),
        ("m", "bugs", "", "Ada", r"unknown verdict 'bugs'\. Did you mean 'bug'"),
        ("m", "bug", "n" * 10_001, "Ada", "10001 characters, more than 10000"),
        ("m", "bug", "", "  ", "a reviewer's name has 1 to 200 characters"),
        ("m", "bug", "", "A\x1b[31mda", "a reviewer's name"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    run: Run, subject: str, verdict: str, note: str, reviewer: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        review(run, subject, verdict, note, reviewer)
    assert run.rows("select count(*) as n from reviews") == [{"n": 0}]


def test_the_command_keeps_a_verdict(run: Run) -> None:
    shell = CliRunner()
    where = str(run.root)
    said = shell.invoke(app, ["review", where, "m", "not a failure", "--note", "toys", "--reviewer", "Ada", "--json"])
    assert said.exit_code == 0, said.output
    assert {key: json.loads(said.stdout)[key] for key in ("verdict", "reviewer")} == {
        "verdict": "not a failure",
        "reviewer": "Ada",
    }
    assert audit.open(where).rows("select note from verdicts") == [{"note": "toys"}]
    assert shell.invoke(app, ["review", where, "m", "fine"]).exit_code == 2
    assert shell.invoke(app, ["review", where, "o", "bug"]).exit_code == 0  # a neuron
    assert audit.open(where).rows("select verdict from verdicts where subject_id = 'o'") == [{"verdict": "bug"}]
