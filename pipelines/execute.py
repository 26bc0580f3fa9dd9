"""A job from start to end: what is not committed of its stages is run on a Ray cluster."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from audit.config import Job, load_job
from audit.errors import ConfigError
from audit.locations import Location, name_of
from audit.methods import INVENTORY, check_order, stage_names
from audit.models import digests
from audit.results.integrity import Repair, repair
from audit.results.progress import live
from audit.results.sql import Run
from audit.results.store import Store
from pipelines.errors import Terminated
from pipelines.lock import only_driver
from pipelines.metrics import Metrics
from pipelines.plan import (
    changes_since,
    free_place,
    job_of,
    newest_of,
    open_or_create,
    other_versions,
    run_place,
    start_again,
)
from pipelines.progress import Progress
from pipelines.runner import Runner
from pipelines.units import plan_of
from pipelines.workers import Cluster, Workers


@dataclass(frozen=True)
class Outcome:
    """A run that reached its end. `failed`: items, explanations or units that could not be done."""

    root: Location
    failed: int
    seconds: float


def execute(
    job_file: Path, *, address: str | None = None, new_run: bool = False, as_json: bool | None = None
) -> Outcome:
    """Run or resume a job. Units that are committed are not done again.

    Raises ConfigError for a job that cannot run as it is, InfrastructureError where the cluster cannot be used,
    LimitReached where one of the job's limits is.
    """
    job = load_job(job_file)
    check_order(job)
    root, found = run_place(job, Path.cwd()), digests(job)
    root = free_place(root) if new_run else newest_of(job, root, found)
    return _run(job, root, found, address, as_json, again=True)


def mend(location: Location, *, address: str | None = None, as_json: bool | None = None) -> tuple[Repair, Outcome]:
    """Publish a run's files without damage, and do again what nothing whole is left of."""
    store = Store(location)
    if store.read("job.json") is None:
        raise ConfigError(f"{location} is not a run: it has no job.json")
    job = job_of(store)
    found = digests(job)
    open_or_create(job, location, found)  # with other weights or code nothing could be done again
    with only_driver(store):
        repaired = repair(store)
    return repaired, _run(job, location, found, address, as_json)


def _run(
    job: Job, root: Location, found: dict[str, str], address: str | None, as_json: bool | None, *, again: bool = False
) -> Outcome:
    """`again`: whether another job under this name, of which nothing was done, gives way."""
    began = time.monotonic()
    store = Store(root)
    with only_driver(store), _terminable():
        changes = start_again(job, root, found) if again else []
        open_or_create(job, root, found)
        if _is_complete(job, store):  # no cluster needs to start to find that nothing is left to do
            return Outcome(root, failed_in(Run(root)), time.monotonic() - began)
        with Progress(name_of(root), store, as_json) as progress, Cluster(address), _terminable():
            for change in changes:
                progress.event("started_again", error=change)
            for change in other_versions(store):
                progress.event("version_changed", error=change)
            if plan_of(store, INVENTORY) is not None:
                for change in changes_since(job, store):
                    progress.event("data_changed_since_inventory", error=change)
            progress.metrics = Metrics(name_of(root))
            runner = Runner(job, root, found, Workers(job, root, grows=address is not None), progress)
            progress.gpu_hours = _gpu_hours(root, runner.workers.share)
            runner.run()
    return Outcome(root, failed_in(Run(root)), time.monotonic() - began)


def _is_complete(job: Job, store: Store) -> bool:
    """Whether nothing that reads the data is left to do: the last stages' plans are made, and every unit is there."""
    plans = [plan_of(store, name) for name in stage_names(job)]
    commits = store.commits().values()
    done = sum(1 for commit in commits if commit.status != "split" for unit in commit.units if unit != "run")
    return all(plans) and done >= sum(plan.units for plan in plans if plan)


def _gpu_hours(root: Location, share: float) -> float:
    """What the run has used of GPUs: what its committed units took or, with those that failed, what its last driver
    said. `share`: of a GPU, that each worker has."""
    if not share:
        return 0.0
    seconds = float(Run(root).rows("select coalesce(sum(seconds), 0) as s from units")[0]["s"])
    return max(share * seconds / 3600, float((live(Store(root)) or {}).get("gpu_hours") or 0.0))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: cleanly, to be resumed.

    Where it comes while Ray's compiled code waits, that wraps what the handler raises in a SystemError.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, Terminated):
            raise error.__cause__ from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def failed_in(run: Run) -> int:
    """Quarantined items and units, and failed explanations and predictions."""
    counts = run.rows(
        "select (select count(*) from items where status <> 'ok') "
        "+ (select count(*) from units where status <> 'ok') "
        "+ (select count(*) from explanations where status <> 'ok') "
        "+ (select count(*) from predictions where status <> 'ok') as failed"
    )
    return int(counts[0]["failed"])
