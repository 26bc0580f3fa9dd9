"""A job from start to end: stages one after the other, each planned when what it reads is committed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from audit.config import Job, load_job
from audit.methods import check_classes, check_order, stage_names
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import items_in
from pipelines.plan import data_classes, newest_of, open_or_create, run_folder, units_of
from pipelines.progress import Progress
from pipelines.runner import Cluster, Runner


@dataclass(frozen=True)
class Outcome:
    """A run that reached its end. `failed`: items, explanations or units that could not be done."""

    root: Path
    failed: int
    seconds: float


def execute(
    job_file: Path, *, address: str | None = None, new_run: bool = False, as_json: bool | None = None
) -> Outcome:
    """Run or resume a job. Units that are committed are not done again.

    Raises ConfigError for a job that cannot run as it is, InfrastructureError where the cluster cannot be used.
    """
    began = time.monotonic()
    job = load_job(job_file)
    check_order(job)
    root = run_folder(job, Path.cwd())
    root = _beside(root) if new_run else newest_of(job, root)
    found = open_or_create(job, root)
    store = Store(root)
    with Progress(job.name, stage_names(job), as_json) as progress, Cluster(address):
        runner = Runner(job, root)
        classes: tuple[str, ...] = ()
        for stage in stage_names(job):
            units = units_of(job, stage, root, found, classes)
            committed = store.commits()
            pending = [unit for unit in units if unit.unit_id not in committed]
            done = [unit for unit in units if unit.unit_id in committed]
            progress.begin(stage, len(units), sum(map(items_in, units)), len(done), sum(map(items_in, done)))
            for summary in runner.run(pending, classes):
                progress.advance(summary)
            store.snapshot()
            if stage == "0-inventory":
                classes = data_classes(root)
                check_classes(job, classes)
        runner.close()
    return Outcome(root, failed_in(Run(root)), time.monotonic() - began)


def validate(job_file: Path) -> Job:
    """Check a job file as far as possible without running it: options, models, and that the data can be listed."""
    from audit.models import digests, open_source

    job = load_job(job_file)
    check_order(job)
    digests(job)
    labels = {entry.label for entry in open_source(job, "data").entries() if entry.label is not None}
    check_classes(job, tuple(sorted(labels)))
    if job.pool:
        next(iter(open_source(job, "pool").entries()))
    return job


def failed_in(run: Run) -> int:
    """Quarantined items and units, and failed explanations and predictions."""
    counts = run.rows(
        "select (select count(*) from items where status <> 'ok') "
        "+ (select count(*) from units where status <> 'ok') "
        "+ (select count(*) from explanations where status <> 'ok') "
        "+ (select count(*) from predictions where status <> 'ok') as failed"
    )
    return int(counts[0]["failed"])


def _beside(root: Path) -> Path:
    """The first free name: <name>-2, <name>-3, ..."""
    number = 2
    while (beside := root.with_name(f"{root.name}-{number}")).exists():
        number += 1
    return beside if root.exists() else root
