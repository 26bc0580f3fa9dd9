"""Rows of the fault table, computed by the script in a process of its own, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 3600  # limit of a test that computes many rows
NOT_COMPARED = {"F26"}  # no clean run has its rows


def rows_of(faults: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """The row of each fault."""
    output = folder / "table.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--only", *faults, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.exists(), done.stderr[-3000:]
    return {row["id"]: row for row in json.loads(output.read_text())}


def nothing_is_lost_or_doubled(row: dict[str, Any]) -> None:
    assert row["ok"], row
    measured = None if row["id"] in NOT_COMPARED else 0
    assert (row["lost"], row["duplicates"]) == (measured, measured), row
    assert row["bad_snapshots"] in (0, None), row
