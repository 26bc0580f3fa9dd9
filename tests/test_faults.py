"""A short seeded set of the fault table; `make faults` does all of it. Each fault is injected into real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.table import markdown
from benchmarks.faults.workload import Found, whole

pytestmark = pytest.mark.timeout(3600)  # the first test waits for all rows
ROOT = Path(__file__).resolve().parent.parent
# Not those of F02, F04-F06, F09-F12 and F39, and not the long mixture, which take most of a minute or more each. Not
# those of F03, F34 and F35: test_run asserts the same of a job with more stages.
SHORT = [f"F{number:02}" for number in (1, 7, 8, *range(13, 31), 40)]
HALVES = SHORT[::2], SHORT[1::2]  # side by side: most of their time they wait
NOT_COMPARED = {"F26"}  # no clean run has its rows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The script in processes of its own, as a person runs it."""
    folder = tmp_path_factory.mktemp("faults")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults", "--only", *half, "--output", str(folder / f"{half[0]}.json")],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{half[0]}.log").open("w"),
        )
        for half in HALVES
    ]
    try:
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.kill()
    rows = {}
    for half in HALVES:
        output = folder / f"{half[0]}.json"
        assert output.exists(), (folder / f"{half[0]}.log").read_text()[-3000:]
        rows |= {row["id"]: row for row in json.loads(output.read_text())}
    return rows


@pytest.mark.parametrize("fault", SHORT)
def test_nothing_is_lost_or_doubled(table: dict[str, dict[str, Any]], fault: str) -> None:
    row = table[fault]
    assert row["ok"], row
    measured = None if fault in NOT_COMPARED else 0
    assert (row["lost"], row["duplicates"]) == (measured, measured), row
    assert row["bad_snapshots"] in (0, None), row


def test_what_was_not_measured_is_no_zero() -> None:
    found = Found("F00", "a | fault", "nothing", seen="something", ok=True)
    assert not whole(found)
    assert markdown([found]).splitlines()[2] == "| F00 | a / fault | nothing | something |  |  |  |  |  |  |"
    found.add(lost=0, duplicates=0)
    assert whole(found)
    found.kills, found.executions, found.tasks, found.seed, found.recovery_seconds = 3, 9, 7, 1, 0.25
    assert markdown([found]).splitlines()[2].endswith("| 1 | 3 | 9/7 | 0 | 0 | 0.2 |")
    found.add(lost=2)
    assert not whole(found)
