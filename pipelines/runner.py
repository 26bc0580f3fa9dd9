"""The driver's loop: units of ready stages to idle workers, one each; what fails is tried again, halved, given up.

    while there are stages:
        plan the stages whose reads are committed
        give idle workers units
        take what has ended: done, or again, or in halves, or quarantined
        look after what hangs, what is slow, and who is gone

Nothing here decides results: each unit is committed once, whoever runs it and however often.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from audit.config import Job
from audit.datasets import printable
from audit.errors import ConfigError
from audit.locations import Location
from audit.methods import Context, Unit, module_of
from audit.models import Models
from audit.results.compaction import compact, due
from audit.results.schema import Rows
from audit.results.store import Store
from audit.worker import Summary
from pipelines import unusable
from pipelines.errors import HeadLost, InfrastructureError, LimitReached
from pipelines.pace import Pace
from pipelines.progress import Progress
from pipelines.stages import Stages
from pipelines.workers import Handle, Workers, answers, summaries_of

TICK = 1.0  # seconds that the loop waits for a unit to end before it looks around
# With more workers than this, the driver's time is spared. Stages are planned and closed in another process, and units
# that end within a hundredth of the last one's time are taken together: what Ray asks for each grows with the workers.
MANY, TOGETHER, TOGETHER_MOST = 32, 0.01, 0.1  # workers, of the seconds that a unit is out, seconds
AT_ONCE = 1.0  # seconds of short units that one of so many workers is given in one call
# How often a unit may fail for no fault of its own before it counts as one: with its node, with its worker's device,
# or because the data cannot be read, which ends the run instead. Each kind is counted by itself.
EXCUSED = {"node": 20, "device": 3, "data": 8}
PAUSE = 60.0  # seconds at most until such a unit is tried again; the first time two, each further time twice as many
ALL_FAILED = 200  # items of a stage that are the first, and all unusable, after which it is not gone on with
COMPACTING = 600.0  # seconds that the end of a run waits for a compaction
IN_PROCESS = 1000  # units of a run up to which the last compaction needs no process of its own


@dataclass(eq=False)
class Task:
    """A unit out with a worker. `tries` counts attempts that were the unit's own fault, this one too; `excused` those
    that were not, by what failed instead, a key of `EXCUSED`."""

    unit: Unit
    tries: int
    excused: Counter[str]
    worker: Handle
    began: float


@dataclass
class Retry:
    """A unit to be tried again, by another worker than `avoid`, and not before a moment of the monotonic clock."""

    unit: Unit
    tries: int = 0
    excused: Counter[str] = field(default_factory=Counter)
    avoid: Handle | None = None
    not_before: float = 0.0


@dataclass
class Runner:
    """Runs what is not committed of a job. `found`: the digests of its models."""

    job: Job
    root: Location
    found: dict[str, str]
    workers: Workers
    progress: Progress
    running: dict[Any, list[Task]] = field(default_factory=dict)  # by call: units that one worker is at, in this order
    retries: deque[Retry] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.store = Store(self.root)
        self.pace = Pace(self.job.compute.deadline_minutes)
        self.stages = Stages(self.job, self.root, self.found, self.progress)
        self.copies: dict[str, int] = {}  # of units that are out: how often
        self.ended: set[str] = set()  # units that ended while a copy of them is still out
        self.compacting: Any = None
        self.compactions: list[float] = []  # seconds of each
        self.units_seen = self.units_covered = 0
        self.executions = 0
        self.watched = self.last_took = 0.0

    def run(self) -> None:
        """Until every stage is committed. Raises ConfigError, InfrastructureError or LimitReached where it cannot."""
        covered, _ = self.store.covered()
        committed = self.store.beyond(covered)
        self.units_seen, self.units_covered = len(committed), len(covered)
        try:
            while not self.stages.finished():
                self.stages.advance(committed, apart=self.workers.wanted > MANY)
                self.workers.grow()
                self._hand_out()
                self._stop_at_limits()
                self._take()
                self._watch()
                self._compact()
                self.progress.beat(self)
            self._compact_the_rest()
        except HeadLost:
            self.workers.forget()
            raise
        finally:
            self.stages.close()
            self.workers.close()

    # --- units ----------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """A unit to every idle worker, while there are any and the budget lasts."""
        if not self.retries and not self.stages.may_have_more():
            return
        for worker in list(reversed(self.workers.idle)):
            if not self._affordable():
                return
            again = self._next(worker)
            if again is not None:
                self._start([again, *self._more(again)], worker)

    def _next(self, worker: Handle) -> Retry | None:
        """What this worker should do: a unit that failed elsewhere before a fresh one; where the worker's device is
        suspected, the other way round, to see whether it is the device or the unit."""
        if self.workers.suspected(worker):
            return self._fresh() or self._again(worker)
        return self._again(worker) or self._fresh()

    def _again(self, worker: Handle) -> Retry | None:
        if not self.retries:
            return None
        now, others = time.monotonic(), [*self.workers.idle, *(tasks[0].worker for tasks in self.running.values())]
        for again in self.retries:
            if again.not_before <= now and _suits(worker, again.avoid, others):
                self.retries.remove(again)
                return again
        return None

    def _fresh(self) -> Retry | None:
        unit = self.stages.take()
        return None if unit is None else Retry(unit)

    def _more(self, first: Retry) -> list[Retry]:
        """Fresh units to go with a fresh one where there are many workers, and many such units for each of them."""
        seconds = self.pace.expected(first.unit.stage, first.unit.items)
        if self.workers.wanted <= MANY or first.tries or first.excused or first.avoid or not seconds:
            return []
        share = self.stages.of(first.unit.stage).left // (2 * self.workers.wanted)
        units = (self.stages.take(first.unit.stage) for _ in range(min(share, int(AT_ONCE / seconds)) - 1))
        return [Retry(unit) for unit in units if unit is not None]

    def _start(self, again: list[Retry], worker: Handle) -> None:
        self.workers.take(worker)
        if worker.classes != self.stages.classes:
            worker.actor.use_classes.remote(self.stages.classes)  # is done before what is asked after it
            worker.classes = self.stages.classes
        reference = worker.start([(one.unit, one.tries + 1) for one in again])
        now = time.monotonic()
        self.running[reference] = [Task(one.unit, one.tries + 1, Counter(one.excused), worker, now) for one in again]
        for one in again:
            self.copies[one.unit.unit_id] = self.copies.get(one.unit.unit_id, 0) + 1
        self.executions += len(again)

    def _take(self) -> None:
        """Wait for something to end, and take all that has."""
        waited = [*self.running, *self.workers.starting, *([self.compacting] if self.compacting else [])]
        thinking = self.stages.think()
        if not waited:
            time.sleep(0.02 if thinking or self.retries else TICK)
            return
        if len(waited) > MANY:
            time.sleep(min(TOGETHER_MOST, TOGETHER * self.last_took))
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        if not ready:
            ready, _ = ray.wait(waited, num_returns=1, timeout=0.05 if thinking else TICK)
        for reference in ready:
            if reference in self.running:
                self._end(reference)
            elif reference in self.workers.starting:
                self.workers.welcome(reference)
            else:
                self._compacted(reference)

    def _take_back(self, reference: Any) -> list[Task]:
        """The units of a call that has ended, or is given up. Their time is accounted."""
        tasks = self.running.pop(reference)
        self.last_took = time.monotonic() - tasks[0].began
        self.progress.gpu_hours += self.last_took * self.workers.share / 3600
        return tasks

    def _end(self, reference: Any) -> None:
        tasks = self._take_back(reference)
        try:
            summaries = summaries_of(reference)
        except RayError as error:
            self._died(tasks, error)
            return
        if summaries[-1].excuse == "device":
            self.workers.drop(tasks[0].worker)
        else:
            self.workers.give_back(tasks[0].worker)
        for task, summary in zip(tasks, summaries, strict=False):
            self._hear(task, summary)
        self._alone(tasks[len(summaries) :])

    def _hear(self, task: Task, summary: Summary) -> None:
        """What became of one unit."""
        if summary.fatal and not self._here_alone(task, summary):
            raise FATAL[summary.fatal](f"stage {task.unit.stage}: {summary.error}")
        if summary.error is None:
            self.pace.add(summary.stage, summary.items, summary.seconds)
            self.workers.works(task.worker, summary.stage)
            self._done(task, summary)
        else:
            self._failed(task, summary.error, summary.excuse)

    def _here_alone(self, task: Task, summary: Summary) -> bool:
        """Whether another node may have what this one lacks: a model, the place of the results."""
        if summary.excuse != "device":
            return False
        everywhere = self.workers.all_lack(task.worker, task.unit.stage)
        worked = summary.fatal == "config" and self.pace.expected(task.unit.stage, 1) is not None
        return worked or not everywhere

    def _died(self, tasks: list[Task], error: RayError) -> None:
        """The worker is gone with its units: by the fault of one of them, unless the whole node is gone."""
        first = tasks[0]
        self.workers.drop(first.worker)
        node_lost = isinstance(error, RayActorError) and not answers(first.worker.node)
        self.progress.event("worker_lost", first.unit, worker=first.worker.number, node=first.worker.node)
        lines = str(error).strip().splitlines()
        why = f"the worker died: {lines[0] if lines else type(error).__name__}"
        self._lose(tasks, why, "node" if node_lost else None)

    def _lose(self, tasks: list[Task], error: str, excuse: str | None = None) -> None:
        """Units are lost with their worker: which of them was at fault shows once each is alone."""
        if len(tasks) == 1:
            self._failed(tasks[0], error, excuse)
        else:
            self._alone(tasks)

    def _alone(self, tasks: list[Task]) -> None:
        """Units that may not have been begun are tried again, one by one, and it costs them nothing."""
        for task in tasks:
            if self._has_copy(task.unit):
                self._settle(task.unit.unit_id, over=False)
            else:
                self.copies.pop(task.unit.unit_id)
                self.retries.append(Retry(task.unit, task.tries - 1, task.excused))

    def _has_copy(self, unit: Unit) -> bool:
        """Whether a copy of a unit that has come back is still at work, or has done it."""
        return unit.unit_id in self.ended or self.copies[unit.unit_id] > 1

    def _done(self, task: Task, summary: Summary) -> None:
        if self._settle(task.unit.unit_id):
            if summary.split:
                self._halve(task.unit)
                return
            self._count(summary, task)

    def _count(self, summary: Summary, task: Task | None = None) -> None:
        """A unit is committed."""
        stage = self.stages.of(summary.stage)
        stage.open -= 1
        stage.items += summary.items
        stage.failed += summary.failed
        self.units_seen += 1
        self.progress.advance(summary, task)

    def _failed(self, task: Task, error: str, excuse: str | None = None) -> None:
        """Again, in halves, or given up; unless a copy of it is still at work, or has done it.

        `excuse`: what failed instead of the unit, a key of `EXCUSED`.
        """
        unit = task.unit
        if excuse == "device" and self.workers.device_failed(task.worker, unit):
            self.progress.event("node_left_out", unit, node=task.worker.node, error=error.strip().splitlines()[-1])
        if self._has_copy(unit):
            self._settle(unit.unit_id, over=False)
            return
        self.copies.pop(unit.unit_id)
        pause = self._excuse(task, excuse, error) if excuse else 0.0
        self.progress.event("unit_failed", unit, attempt=task.tries, error=error)
        stage = self.stages.of(unit.stage)
        if task.tries <= self.job.compute.retries:
            self.retries.append(Retry(unit, task.tries, task.excused, task.worker, time.monotonic() + pause))
        elif stage.items_key and unit.items > 1:
            self._split(unit)
        else:
            self._quarantine(unit, task.tries, error)

    def _excuse(self, task: Task, what: str, error: str) -> float:
        """Take a failure off a unit's account, so many times. Returns the seconds after which to try it again."""
        task.excused[what] += 1
        if task.excused[what] <= EXCUSED[what]:
            task.tries -= 1
        elif what == "data":
            raise InfrastructureError(f"stage {task.unit.stage}: {error}")
        return 0.0 if what == "node" else min(PAUSE, 2.0 ** task.excused[what])

    def _settle(self, unit_id: str, over: bool = True) -> bool:
        """Count one copy of a unit as back; True if the unit ended with it just now."""
        left = self.copies[unit_id] - 1
        was_over = unit_id in self.ended
        if left:
            self.copies[unit_id] = left
            if over:
                self.ended.add(unit_id)
        else:
            self.copies.pop(unit_id)
            self.ended.discard(unit_id)
        return over and not was_over

    def _split(self, unit: Unit) -> None:
        """Its halves become units of their own, with two tries each: one of them holds what makes it fail."""
        if self.store.commit(unit.unit_id, unit.stage, {}, status="split"):
            self._halve(unit)
        else:
            self._late(unit)

    def _halve(self, unit: Unit) -> None:
        """Go on with the halves of a unit that is committed as split."""
        stage = self.stages.of(unit.stage)
        assert stage.items_key is not None
        halves = unit.halves(stage.items_key)
        self.retries.extend(Retry(half, max(0, self.job.compute.retries - 1)) for half in halves)
        stage.open += len(halves) - 1
        self.units_seen += 1
        self.progress.split(unit, halves)

    def _quarantine(self, unit: Unit, attempt: int, error: str) -> None:
        """Give a unit up: rows of its items with the reason, and its error."""
        error = printable(error).replace("\\x0a", "\n")  # what a model raises may hold anything
        rows = self._lost(unit, error)
        row = {"unit_id": unit.unit_id, "stage": unit.stage, "attempt": attempt, "status": "quarantined"}
        rows["units"] = [{**row, "error": error, "items": unit.items}]
        facts: dict[str, Any] = {"items": unit.items, "failed": unit.items, "error": error}
        if not self.store.commit(unit.unit_id, unit.stage, rows, status="quarantined", **facts):
            self._late(unit)
            return
        self._count(Summary(unit.unit_id, unit.stage, unit.items, 0.0, failed=unit.items, error=error))

    def _lost(self, unit: Unit, error: str) -> Rows:
        plugin, module = module_of(self.job, unit.stage)
        if not hasattr(module, "lost"):
            return {}
        context = Context(self.job, unit.stage, self.root, Models(self.job, self.stages.classes, device="cpu"), 1)
        reason = f"gave_up: {error.strip().splitlines()[-1][:200]}"
        rows: Rows = module.lost(plugin.options, unit.payload, reason, context)
        return rows

    def _late(self, unit: Unit) -> None:
        """A worker that was thought dead has committed the unit after all, or another driver has, or has split it."""
        record = self.store.record(f"commits/{unit.unit_id}.json")
        if record is not None and record.status == "split":
            self._halve(unit)
            return
        failed = record.failed if record is not None else 0
        self._count(Summary(unit.unit_id, unit.stage, unit.items, 0.0, failed=failed))

    # --- limits ---------------------------------------------------------------------------------------------

    def _affordable(self) -> bool:
        """Whether the GPU-hours done, and those that the units under way will take, leave any for another."""
        if self.job.compute.max_gpu_hours is None:
            return True
        now = time.monotonic()
        coming = sum(
            max(now - tasks[0].began, self.pace.expected(tasks[0].unit.stage, items_of(tasks)) or 0.0)
            for tasks in self.running.values()
        )
        return self.progress.gpu_hours + coming * self.workers.share / 3600 < self.job.compute.max_gpu_hours

    def _stop_at_limits(self) -> None:
        """Raises LimitReached where too much cannot be used, or where the budget is spent and nothing is under way.

        The share is of all items of the stage, so that their order does not matter; only where the first are all
        unusable is the rest not waited for.
        """
        share = self.job.compute.max_quarantined
        for stage in self.stages.all:
            items = stage.plan.items if stage.plan else 0
            if stage.failed > share * items:
                raise LimitReached(
                    f"stage {stage.name}: {stage.failed} of {items} items cannot be used, more than "
                    f"compute.max_quarantined of {share:.0%} allows{unusable.told(self.job, self.root, stage.name)}"
                )
            if share < 1 and stage.failed == stage.items >= ALL_FAILED:
                raise LimitReached(
                    f"stage {stage.name}: not one of the first {stage.items} items, of {items}, can be "
                    f"used{unusable.told(self.job, self.root, stage.name)}"
                )
        if not self.running and not self._affordable() and (self.retries or self.stages.have_more()):
            raise LimitReached(
                f"{self.progress.gpu_hours:.2f} GPU-hours of work are done, as many as compute.max_gpu_hours of "
                f"{self.job.compute.max_gpu_hours:g} allows; raise it to go on"
            )

    # --- what goes wrong quietly ----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Kill what hangs; give what is slow to a second worker, where nothing else waits for one."""
        now = time.monotonic()
        if now - self.watched < TICK / 2:
            return
        self.watched = now
        for reference, tasks in list(self.running.items()):
            stage, worker, took = tasks[0].unit.stage, tasks[0].worker, now - tasks[0].began
            if took < self.pace.soonest:
                break  # all others began later
            deadline = self.pace.deadline(stage, items_of(tasks), loads=stage not in worker.stages)
            slow = self.pace.slow(stage, items_of(tasks))
            if slow is not None and took > slow and all(task.unit.unit_id in self.ended for task in tasks):
                self.workers.drop(worker)  # a copy of it was quicker
                for task in self._take_back(reference):
                    self._settle(task.unit.unit_id, over=False)
            elif took > deadline:
                self.workers.drop(worker)
                self._lose(self._take_back(reference), f"no end after {deadline:.0f} s, its worker was taken to hang")
        if self.retries or not self.workers.idle or self.stages.may_have_more():
            return
        for tasks in sorted(self.running.values(), key=lambda tasks: tasks[0].began):
            slow = self.pace.slow(tasks[0].unit.stage, items_of(tasks))
            late = slow is not None and now - tasks[0].began > slow
            alone = all(self.copies[one.unit.unit_id] == 1 and one.unit.unit_id not in self.ended for one in tasks)
            if late and alone and self.workers.idle and self._affordable():
                for task in tasks:
                    self.progress.event("second_copy", task.unit, seconds=round(now - task.began, 1))
                copies = [Retry(task.unit, task.tries - 1, task.excused) for task in tasks]
                self._start(copies, self.workers.idle[-1])

    def _compact(self) -> None:
        """Merge small files in a process of its own, now and then, so that readers of a long run stay quick."""
        if self.compacting is None and due(self.units_covered, self.units_seen - self.units_covered):
            self.compacting = self._start_compaction()

    def _compact_the_rest(self) -> None:
        """What is left at the end, of long runs in a process of its own too: it takes time, and memory."""
        if self.units_seen < IN_PROCESS and self.compacting is None:
            compact(self.store)
            return
        if self.compacting is not None:
            self._wait_for(self.compacting)
        self._wait_for(self._start_compaction())

    def _wait_for(self, compaction: Any) -> None:
        ray.wait([compaction], timeout=COMPACTING)
        self._compacted(compaction)

    def _start_compaction(self) -> Any:
        return ray.remote(num_cpus=0, max_retries=0)(_compact).remote(self.root)

    def _compacted(self, reference: Any) -> None:
        """Take the end of a compaction, or give one up that is still at work: readers need none."""
        self.compacting = None
        self.units_covered = self.units_seen
        try:
            self.compactions.append(ray.get(reference, timeout=1))
        except RayError as error:
            self.progress.event("not_compacted", error=str(error).strip().splitlines()[-1])


def items_of(tasks: list[Task]) -> int:
    """Items of units that are out together; a unit without any counts as one."""
    return sum(max(task.unit.items, 1) for task in tasks)


def _suits(worker: Handle, avoid: Handle | None, others: list[Handle]) -> bool:
    """Not the worker that has failed already, and not its node, as long as there is another."""
    if avoid is None:
        return True
    if any(other.node != avoid.node for other in others):
        return worker.node != avoid.node
    return worker is not avoid or all(other is avoid for other in others)


def _compact(root: Location) -> float:
    began = time.monotonic()
    compact(Store(root))
    return time.monotonic() - began


# What ends the job: it would befall every unit. None of it is recorded, so the same command resumes.
FATAL = {"config": ConfigError, "store": InfrastructureError}
