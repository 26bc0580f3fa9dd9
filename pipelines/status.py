"""A run's state, read from its files alone: what is planned and committed, and what its driver said last."""

from __future__ import annotations

from typing import Any

from audit.results.sql import Run
from audit.results.store import Store
from audit.runs import stages
from pipelines.lock import live


def stages_of(run: Run) -> list[dict[str, Any]]:
    """What `audit.runs.stages` tells of each stage, and the seconds of work that went into it."""
    seconds = {
        row["stage"]: row["seconds"]
        for row in run.rows("select stage, coalesce(sum(seconds), 0) as seconds from units group by stage")
    }
    return [{**stage, "seconds": seconds.get(stage["stage"], 0.0)} for stage in stages(run)]


def driver_of(store: Store) -> dict[str, Any] | None:
    """What the run's newest driver said last: when, from where, what is running, how it ended; None where none has."""
    return live(store)
