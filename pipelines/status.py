"""A run's state, read from its files."""

from __future__ import annotations

import json
from typing import Any

from audit.results.sql import Run


def stages_of(run: Run) -> list[dict[str, Any]]:
    """For each stage: units planned (None: not yet), done, quarantined, seconds of work."""
    config = json.loads(run.store.read("job.json") or b"{}")["job"]
    names = ["0-inventory", *(f"{i}-{stage['plugin']}" for i, stage in enumerate(config["stages"], 1))]
    done = {
        row["stage"]: row
        for row in run.rows(
            "select stage, count(*) as done, count(*) filter (status <> 'ok') as quarantined, "
            "coalesce(sum(seconds), 0) as seconds from units group by stage"
        )
    }
    nothing = {"done": 0, "quarantined": 0, "seconds": 0.0}
    stages = []
    for name in names:
        plan = run.store.read(f"plan/{name}.json")
        planned = None if plan is None else len(json.loads(plan))
        counts = {key: done.get(name, nothing)[key] for key in nothing}
        stages.append({"stage": name, "units": planned, **counts})
    return stages
