"""The graph of a job's stages: each is planned when what it reads is finished, worked on, closed, and finished."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from audit.config import Job
from audit.labels.matching import DataClasses
from audit.locations import Location
from audit.methods import INVENTORY, Unit, check_classes, module_of, reads, stage_names
from audit.results.store import Commit, Store
from pipelines.errors import InfrastructureError
from pipelines.plan import data_classes
from pipelines.progress import Progress
from pipelines.units import Plan, closed, outstanding, planned, units_in

T = TypeVar("T")


@dataclass
class Stage:
    """A stage under way. `units`: what is still to be handed out, about `left` of them; `open`: what is handed out or
    waits to be again."""

    name: str
    reads: list[str]
    items_key: str | None
    planning: Future[Plan] | None = None
    closing: Future[None] | None = None
    plan: Plan | None = None
    units: Iterator[Unit] | None = None
    left: int = 0
    open: int = 0
    items: int = 0
    failed: int = 0
    finished: bool = False

    def thinks(self) -> bool:
        """Whether it is being planned or closed."""
        return (self.planning is not None and self.plan is None) or (self.closing is not None and not self.finished)


class Stages:
    """All stages of a job, in their order. They are planned and closed beside the work on others: in a thread, or in a
    process on the cluster."""

    def __init__(self, job: Job, root: Location, found: dict[str, str], progress: Progress) -> None:
        """`found`: the digests of the job's models."""
        self.job, self.root, self.found, self.progress = job, root, found, progress
        self.store = Store(root)
        self.classes = DataClasses()
        self.all = [
            Stage(name, reads(job, name), getattr(module_of(job, name)[1], "ITEMS", None)) for name in stage_names(job)
        ]
        self._thread, self._stopping = ThreadPoolExecutor(1, thread_name_prefix="planner"), threading.Event()

    def advance(self, committed: dict[str, Commit], apart: bool = False) -> None:
        """Plan the stages that can be; close those that have nothing left.

        `committed`: before this driver began. `apart`: in another process, as this one has enough to do.
        """
        done = {stage.name for stage in self.all if stage.finished}
        for stage in self.all:
            if stage.plan is None and done.issuperset(stage.reads):
                if stage.planning is None:
                    arguments = (self.job, stage.name, self.root, self.found, self.classes, set(_of(stage, committed)))
                    if apart:
                        stage.planning = _apart(planned, *arguments)
                    else:
                        stage.planning = self._thread.submit(planned, *arguments, self._stopping)
                elif stage.planning.done():
                    self._open(stage, _result(stage.planning), committed)
        for stage in self.all:
            if stage.units is None and stage.plan is not None and not stage.open and not stage.finished:
                if stage.closing is None:
                    to_close = (self.root, stage.plan, stage.items_key)
                    stage.closing = _apart(_closed, *to_close) if apart else self._thread.submit(_closed, *to_close)
                elif stage.closing.done():
                    _result(stage.closing)
                    self._finish(stage)

    def _open(self, stage: Stage, plan: Plan, committed: dict[str, Commit]) -> None:
        before = _of(stage, committed)
        leaves = {id(commit): commit for commit in before.values() if commit.status != "split"}.values()
        stage.plan = plan
        stage.units = outstanding(units_in(self.store, plan), before, stage.items_key)
        stage.items, stage.failed = sum(c.items for c in leaves), sum(c.failed for c in leaves)
        stage.left = plan.units - sum("." not in unit_id for unit_id in before)
        splits = sum(commit.status == "split" for commit in before.values())
        self.progress.begin(stage.name, plan.units + splits, plan.items, len(before) - splits, stage.items)

    def _finish(self, stage: Stage) -> None:
        stage.finished = True
        self.progress.end(stage.name)
        if stage.name == INVENTORY:
            self.classes = data_classes(self.root)
            check_classes(self.job, self.classes.labels)

    def finished(self) -> bool:
        return all(stage.finished for stage in self.all)

    def think(self) -> bool:
        """Whether any is being planned or closed."""
        return any(stage.thinks() for stage in self.all)

    def of(self, name: str) -> Stage:
        return next(stage for stage in self.all if stage.name == name)

    def may_have_more(self) -> bool:
        """Whether there may be units that were not handed out yet."""
        return any(stage.units is not None for stage in self.all)

    def take(self, name: str | None = None) -> Unit | None:
        """The next unit of a stage, or of the first one that has any."""
        for stage in self.all:
            if stage.units is not None and name in (None, stage.name):
                unit = next(stage.units, None)
                if unit is not None:
                    stage.open += 1
                    stage.left -= 1
                    return unit
                stage.units = None
        return None

    def have_more(self) -> bool:
        """Whether there are units that were not handed out yet."""
        unit = self.take()
        if unit is None:
            return False
        stage = self.of(unit.stage)
        stage.open -= 1
        stage.left += 1
        stage.units = chain([unit], stage.units or ())
        return True

    def close(self) -> None:
        """Stop planning."""
        self._stopping.set()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _closed(root: Location, plan: Plan, items_key: str | None) -> None:
    closed(Store(root), plan, items_key)


def _apart(work: Callable[..., T], *arguments: Any) -> Future[T]:
    """Work that a process on the cluster does. What dies on the way is tried again there."""
    future: Future[T] = ray.remote(num_cpus=0)(work).remote(*arguments).future()
    return future


def _result(future: Future[T]) -> T:
    """Of work on a stage. Raises what it did, and InfrastructureError where the process that did it died."""
    try:
        return future.result()
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InfrastructureError(f"a stage could not be planned or closed: {lines[0]}") from error


def _of(stage: Stage, committed: dict[str, Commit]) -> dict[str, Commit]:
    return {unit: commit for unit, commit in committed.items() if commit.stage == stage.name}
