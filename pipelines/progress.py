"""How far a run is: bars on a terminal, JSON lines anywhere else."""

from __future__ import annotations

import json
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from audit.worker import Summary


class Progress:
    """One bar a stage: units and items done, rate, time left; findings as they come."""

    def __init__(self, name: str, stages: list[str], as_json: bool | None) -> None:
        self.name, self.stages = name, stages
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
        self.task: TaskID | None = None
        self.stage, self.units, self.done_units, self.items, self.done, self.resumed, self.began = (
            "",
            0,
            0,
            0,
            0,
            0,
            0.0,
        )

    def __enter__(self) -> Progress:
        if not self.json:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.json:
            self.bars.stop()

    def begin(self, stage: str, units: int, items: int, done_units: int, done_items: int) -> None:
        self.stage, self.units, self.done_units = stage, units, done_units
        self.items, self.done, self.resumed = items, done_items, done_items
        self.began = time.monotonic()
        if self.json:
            self._line("stage", units=units, items=items, already_done=done_items)
        else:
            done = f"{done_units}/{units} units"
            completed = done_items if items else 1
            self.task = self.bars.add_task(stage, total=max(items, 1), completed=completed, units=done, rate="")

    def advance(self, summary: Summary) -> None:
        """A unit ended."""
        self.done_units += 1
        self.done += summary.items
        seconds = time.monotonic() - self.began
        rate = (self.done - self.resumed) / seconds if seconds > 0 else 0.0
        left = (self.items - self.done) / rate if rate > 0 else None
        if self.json:
            self._line(
                "unit",
                units=f"{self.done_units}/{self.units}",
                items=f"{self.done}/{self.items}",
                items_per_second=round(rate, 2),
                seconds_left=None if left is None else round(left),
                error=summary.error and summary.error.strip().splitlines()[-1],
            )
        elif self.task is not None:
            done = f"{self.done_units}/{self.units} units"
            self.bars.update(self.task, completed=self.done, units=done, rate=f"{rate:.1f}/s")
            if summary.error:
                last = summary.error.strip().splitlines()[-1]
                self.bars.console.print(f"[red]unit {summary.unit_id[:8]} quarantined:[/red] {escape(last)}")
        for finding in summary.findings:
            if self.json:
                self._line("finding", text=finding)
            else:
                self.bars.console.print(f"  {escape(finding)}")

    def _line(self, event: str, **values: object) -> None:
        print(
            json.dumps({"event": event, "run": self.name, "stage": self.stage, **values}), file=sys.stderr, flush=True
        )
