"""A run's state, read from its files alone: what is planned and committed, and what its driver said last."""

from __future__ import annotations

from typing import Any

from audit.results.sql import Run
from audit.results.store import Store, unique
from pipelines.lock import live
from pipelines.plan import job_of
from pipelines.units import plan_of


def stages_of(run: Run) -> list[dict[str, Any]]:
    """For each stage: units planned (None: not yet), done and quarantined; items done and failed; seconds of work."""
    from audit.methods import stage_names

    seconds = {
        row["stage"]: row["seconds"]
        for row in run.rows("select stage, coalesce(sum(seconds), 0) as seconds from units group by stage")
    }
    commits = unique((run.commits or {}).values())
    stages = []
    for name in stage_names(job_of(run.store)):
        plan, own = plan_of(run.store, name), [commit for commit in commits if commit.stage == name]
        count = {
            status: sum(len(commit.units) for commit in own if commit.status == status)
            for status in ("ok", "quarantined", "split")
        }
        stages.append(
            {
                "stage": name,
                "units": None if plan is None else plan.units + count["split"],
                "done": count["ok"] + count["quarantined"],
                "quarantined": count["quarantined"],
                "items": None if plan is None else plan.items,
                "items_done": sum(commit.items for commit in own if commit.status != "split"),
                "items_failed": sum(commit.failed for commit in own),
                "seconds": seconds.get(name, 0.0),
            }
        )
    return stages


def driver_of(store: Store) -> dict[str, Any] | None:
    """What the run's newest driver said last: when, from where, what is running, how it ended; None where none has."""
    return live(store)
