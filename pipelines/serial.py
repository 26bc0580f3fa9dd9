"""A job in this process, without Ray: what a worker does, unit by unit. For calibration and tests."""

from __future__ import annotations

from typing import Literal

from audit.config import Job
from audit.labels.matching import DataClasses
from audit.locations import Location
from audit.methods import INVENTORY, module_of, stage_names
from audit.results.store import Store
from audit.worker import Summary, Worker
from pipelines.plan import data_classes, open_or_create
from pipelines.units import outstanding, planned, units_in


def run_serially(job: Job, root: Location, batch_size: int | Literal["auto"] = "auto") -> list[Summary]:
    """Do every unit of every stage that is not committed; a summary for each that was done now."""
    found = open_or_create(job, root)
    store, summaries = Store(root), []
    classes = DataClasses()
    for stage in stage_names(job):
        worker, plan = Worker(job, root, classes, batch_size), planned(job, stage, root, found, classes)
        key = getattr(module_of(job, stage)[1], "ITEMS", None)
        summaries += [worker.run(unit) for unit in outstanding(units_in(store, plan), store.commits(), key)]
        if stage == INVENTORY:
            classes = data_classes(root)
    return summaries
