"""A short seeded set of the fault table; `make faults` does all of it. Each fault is injected into real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = [f"F{number:02}" for number in (1, 3, 7, *range(13, 31), 34, 35, 40)]  # the others take a minute or more each


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The script in a process of its own, as a person runs it."""
    output = tmp_path_factory.mktemp("faults") / "table.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--only", *SHORT, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.exists(), done.stderr[-3000:]
    return {row["id"]: row for row in json.loads(output.read_text())}


@pytest.mark.parametrize("fault", SHORT)
def test_nothing_is_lost_or_doubled(table: dict[str, dict[str, Any]], fault: str) -> None:
    row = table[fault]
    assert row["ok"], row
    assert (row["lost"], row["duplicates"], row["bad_snapshots"]) == (0, 0, 0), row
