"""How far a run is, read from its files alone: what is planned and committed, and what its driver said last."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from audit.errors import ConfigError, StoreError
from audit.results.sql import Run
from audit.results.store import Store, unique

Row = dict[str, Any]

LIVE = "live.json"
SILENT = timedelta(minutes=2)  # after which a driver that said no end is taken for dead


def stages_of(run: Run) -> list[Row]:
    """For each stage: units planned (None: not yet), done and quarantined; items done and failed; seconds of work.

    Raises ConfigError where the run's job, StoreError where a plan is not whole.
    """
    seconds = {
        row["stage"]: row["seconds"]
        for row in run.rows("select stage, coalesce(sum(seconds), 0) as seconds from units group by stage")
    }
    commits = unique((run.commits or {}).values())
    stages = []
    for name in _names(run.store):
        plan, own = _planned(run.store, name), [commit for commit in commits if commit.stage == name]
        count = {
            status: sum(len(commit.units) for commit in own if commit.status == status)
            for status in ("ok", "quarantined", "split")
        }
        stages.append(
            {
                "stage": name,
                "units": None if plan is None else plan["units"] + count["split"],
                "done": count["ok"] + count["quarantined"],
                "quarantined": count["quarantined"],
                "items": None if plan is None else plan["items"],
                "items_done": sum(commit.items for commit in own if commit.status != "split"),
                "items_failed": sum(commit.failed for commit in own),
                "seconds": seconds.get(name, 0.0),
            }
        )
    return stages


def live(store: Store) -> Row | None:
    """What the run's newest driver said last: when, from where, what is running, how it ended; None where none has."""
    data = store.read(LIVE)
    try:
        return None if data is None else dict(json.loads(data))
    except (ValueError, TypeError):
        return None


def silent_for(said: Row) -> timedelta:
    """How long ago the driver said this."""
    return datetime.now(UTC) - datetime.fromisoformat(said["at"])


def going(said: Row | None) -> bool:
    """Whether the driver that said this is at work, as far as one can tell."""
    return said is not None and not said.get("ended") and silent_for(said) < SILENT


def _names(store: Store) -> list[str]:
    """The job's stages in their order, after the inventory. Raises ConfigError for a job that is not whole."""
    try:
        kinds = [stage["plugin"] for stage in json.loads(store.read("job.json") or b"")["job"]["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{store.where('job.json')} is not whole: {error}") from error
    return [f"{place}-{kind}" for place, kind in enumerate(["inventory", *kinds])]


def _planned(store: Store, stage: str) -> Row | None:
    """Counts of a stage's frozen plan. Raises StoreError for a plan that is not whole."""
    key = f"plan/{stage}.json"
    data = store.read(key)
    try:
        raw = None if data is None else json.loads(data)
        return None if raw is None else {"units": raw["units"], "items": raw["items"]}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store.where(key)} is not whole: {error}; 'audit repair' mends it") from error
