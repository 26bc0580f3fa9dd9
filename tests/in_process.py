"""A job run in this process, without Ray: what a worker does, unit by unit."""

from __future__ import annotations

from typing import Any

from audit.methods import INVENTORY, module_of, stage_names
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import Worker
from pipelines.plan import data_classes, open_or_create
from pipelines.units import outstanding, planned, units_in


def done(job: Any, root: Any, batch: int) -> Run:
    """Every unit of every stage that is not committed, in this process."""
    found = open_or_create(job, root)
    classes: tuple[str, ...] = ()
    store = Store(root)
    for stage in stage_names(job):
        worker, plan = Worker(job, root, classes, batch), planned(job, stage, root, found, classes)
        key = getattr(module_of(job, stage)[1], "ITEMS", None)
        for unit in outstanding(units_in(store, plan), store.commits(), key):
            summary = worker.run(unit)
            assert summary.error is None, summary.error
        if stage == INVENTORY:
            classes = data_classes(root)
    return Run(root)
