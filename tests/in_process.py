"""A job run in this process, without Ray: what a worker does, unit by unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audit.methods import stage_names
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import Worker
from pipelines.plan import data_classes, open_or_create, units_of


def done(job: Any, root: Path, batch: int) -> Run:
    """Every unit of every stage that is not committed, in this process."""
    found = open_or_create(job, root)
    classes: tuple[str, ...] = ()
    for stage in stage_names(job):
        worker, committed = Worker(job, root, classes, batch), Store(root).commits()
        for unit in units_of(job, stage, root, found, classes):
            summary = worker.run(unit) if unit.unit_id not in committed else None
            assert summary is None or summary.error is None, summary
        if stage == "0-inventory":
            classes = data_classes(root)
    return Run(root)
