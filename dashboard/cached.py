"""What the report remembers between pages and sessions: answers that take a scan of a large table."""

from __future__ import annotations

from audit.locations import absolute
from audit.results.sql import Run
from audit.reviews import STAGE

Snapshot = tuple[str, int]

FRESH = 2.0  # seconds for which what sessions saw last of a run is new enough


def snapshot(run: Run) -> Snapshot:
    """What an answer is of, as a key: the run, and how much of it is committed, people's verdicts aside."""
    return absolute(run.location), sum(commit.stage != STAGE for commit in (run.commits or {}).values())
