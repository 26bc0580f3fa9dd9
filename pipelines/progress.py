"""How far a run is: bars on a terminal, JSON lines with run, unit and item ids anywhere else, and its live state."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from audit.errors import StoreError
from audit.methods import Unit
from audit.results.progress import LIVE
from audit.results.store import Store
from audit.worker import Summary
from pipelines.lock import BEAT

if TYPE_CHECKING:
    from pipelines.metrics import Metrics
    from pipelines.runner import Runner, Task

NAMED = 20  # items of a failed unit that are named in a line


@dataclass
class _Stage:
    """Counts of a stage. `resumed`: items that were done before this driver began."""

    units: int
    items: int
    done_units: int
    done_items: int
    resumed: int
    began: float
    failed: int = 0
    ended: bool = False
    bar: TaskID | None = None

    def rate(self) -> float:
        """Items a second."""
        seconds = time.monotonic() - self.began
        return (self.done_items - self.resumed) / seconds if seconds > 0 else 0.0

    def seconds_left(self) -> int | None:
        rate = self.rate()
        return round((self.items - self.done_items) / rate) if rate > 0 else None


class Progress:
    """One bar a stage, several at a time: units and items done, rate, time left; findings as they come."""

    def __init__(self, name: str, store: Store | None, as_json: bool | None) -> None:
        self.name, self.store = name, store
        self.json = not sys.stderr.isatty() if as_json is None else as_json
        self.bars = Bars(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[units]:>11}"),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f} items"),
            TextColumn("{task.fields[rate]:>8}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.metrics: Metrics | None = None
        self.stages: dict[str, _Stage] = {}
        self.last: str | None = None
        self.gpu_hours = 0.0  # of the whole run, former drivers' too: each begins with what the last one wrote
        self._beat = 0.0

    def __enter__(self) -> Progress:
        if not self.json:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not self.json:
            self.bars.stop()
        if self.stages:
            self._live({"ended": "finished" if kind is None else f"{kind.__name__}: {error}"})

    def begin(self, name: str, units: int, items: int, done_units: int, done_items: int) -> None:
        """A stage is planned."""
        stage = _Stage(units, items, done_units, done_items, done_items, time.monotonic())
        self.stages[name] = stage
        if self.json:
            self._line("stage", stage=name, units=units, items=items, already_done=done_items)
        else:
            completed = done_items if items else 1
            done = f"{done_units}/{units} units"
            stage.bar = self.bars.add_task(name, total=max(items, 1), completed=completed, units=done, rate="")

    def end(self, name: str) -> None:
        """Every unit of a stage is committed."""
        self.stages[name].ended = True

    def split(self, unit: Unit, halves: list[Unit]) -> None:
        """A unit goes on in parts."""
        self.stages[unit.stage].units += len(halves) - 1
        self.event("unit_split", unit, into=[half.unit_id for half in halves])

    def advance(self, summary: Summary, task: Task | None = None) -> None:
        """A unit ended."""
        stage = self.stages[summary.stage]
        stage.done_units += 1
        stage.done_items += summary.items
        stage.failed += summary.failed
        if self.metrics:
            self.metrics.unit(summary)
        last = summary.error.strip().splitlines()[-1] if summary.error else None
        if self.json:
            self._line(
                "unit",
                stage=summary.stage,
                unit_id=summary.unit_id,
                units=f"{stage.done_units}/{stage.units}",
                items=f"{stage.done_items}/{stage.items}",
                items_per_second=round(stage.rate(), 2),
                seconds_left=stage.seconds_left(),
                seconds=round(summary.seconds, 3),
                worker=task.worker.number if task else None,
                node=task.worker.node if task else None,
                attempt=task.tries if task else None,
                error=last,
            )
        elif stage.bar is not None:
            done = f"{stage.done_units}/{stage.units} units"
            self.bars.update(stage.bar, completed=stage.done_items, units=done, rate=f"{stage.rate():.1f}/s")
            if last:
                self.bars.console.print(f"[red]unit {summary.unit_id[:8]} quarantined:[/red] {escape(last)}")
        for finding in summary.findings:
            if self.json:
                self._line("finding", stage=summary.stage, unit_id=summary.unit_id, text=finding)
            else:
                self.bars.console.print(f"  {escape(finding)}")

    def event(self, event: str, unit: Unit | None = None, **values: Any) -> None:
        """Something that an operator may have to look into: a line with the unit and its items."""
        self.last = event
        if self.metrics:
            self.metrics.event(event)
        if unit is not None:
            values = {"stage": unit.stage, "unit_id": unit.unit_id, "items": items_of(unit), **values}
        if self.json:
            self._line(event, **values)
        elif event not in ("unit_failed",):
            words = ", ".join(f"{k} {v}" for k, v in values.items() if k in ("stage", "worker", "error", "seconds"))
            self.bars.console.print(f"[yellow]{event.replace('_', ' ')}:[/yellow] {escape(words)}")

    def beat(self, runner: Runner) -> None:
        """Write the live state now and then, so that the run's files alone say what its driver does."""
        if time.monotonic() - self._beat < BEAT or not self.stages:
            return
        self._beat = time.monotonic()
        if self.metrics:
            self.metrics.beat(runner)
        now = time.monotonic()
        running = [
            {
                "unit_id": task.unit.unit_id,
                "stage": task.unit.stage,
                "seconds": round(now - task.began, 1),
                "attempt": task.tries,
                "worker": task.worker.number,
                "node": task.worker.node,
            }
            for task in list(chain.from_iterable(runner.running.values()))[:1000]
        ]
        workers = {"wanted": runner.workers.wanted, "started": runner.workers.count, "busy": len(runner.running)}
        facts = {"retries_waiting": len(runner.retries), "executions": runner.executions}
        self._live({"running": running, "workers": workers, **facts})

    def _live(self, more: dict[str, Any]) -> None:
        if self.store is None:
            return
        stages = {
            name: {
                "units": stage.units,
                "done": stage.done_units,
                "items": stage.items,
                "items_done": stage.done_items,
                "items_failed": stage.failed,
                "items_per_second": round(stage.rate(), 3),
                "seconds_left": stage.seconds_left(),
                "ended": stage.ended,
            }
            for name, stage in self.stages.items()
        }
        who = {"run": self.name, "host": platform.node(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat()}
        body = {**who, "stages": stages, "last_event": self.last, "gpu_hours": self.gpu_hours, "ended": None}
        with contextlib.suppress(StoreError):  # nothing rests on it; a store that is gone shows in the next commit
            self.store.objects.replace(LIVE, json.dumps({**body, **more}).encode())

    def _line(self, event: str, **values: object) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with contextlib.suppress(OSError):  # a log that is full ends no run
            print(json.dumps({"event": event, "at": at, "run": self.name, **values}), file=sys.stderr, flush=True)


def items_of(unit: Unit) -> list[str]:
    """What to call a unit's first items: the ids or names of images, the numbers of seeds."""
    for key in ("items", "entries", "seeds"):
        if key in unit.payload:
            return [str(item[1] if key != "seeds" else item[0]) for item in unit.payload[key][:NAMED]]
    return [str(value) for value in unit.payload.values()][:NAMED]
