"""A job run in this process, in which no unit may fail."""

from __future__ import annotations

from typing import Any

from audit.methods import Unit
from audit.results.sql import Run
from audit.results.store import Store
from pipelines.serial import run_serially
from pipelines.units import planned, units_in


def done(job: Any, root: Any, batch: int) -> Run:
    """Every unit of every stage that is not committed."""
    for summary in run_serially(job, root, batch):
        assert summary.error is None, summary.error
    return Run(root)


def units_of(job: Any, stage: str, root: Any, found: dict[str, str], classes: tuple[str, ...]) -> list[Unit]:
    """The units of a stage, planned now unless they are already."""
    return list(units_in(Store(root), planned(job, stage, root, found, classes)))
