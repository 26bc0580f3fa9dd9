"""What a run tells Ray's metrics: there each name has `ray_` before it, and a cluster's Prometheus may collect them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

from audit.worker import Summary

if TYPE_CHECKING:
    from pipelines.runner import Runner

SECONDS = [0.1, 1.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0]


class Metrics:
    """Of the driver. Tags: the run's name and, where it makes a difference, the stage."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.units = Counter("audit_units", "Units committed, by outcome", ("run", "stage", "status"))
        self.items = Counter("audit_items", "Items of committed units, by outcome", ("run", "stage", "status"))
        self.events = Counter("audit_events", "Units that failed, were split or copied; workers lost", ("run", "event"))
        self.seconds = Histogram("audit_unit_seconds", "Seconds of work on a unit", SECONDS, ("run", "stage"))
        self.running = Gauge("audit_units_running", "Units that workers are at", ("run",))
        self.queue = Gauge("audit_units_waiting", "Planned units that wait for a worker", ("run",))
        self.workers = Gauge("audit_workers", "Workers that have started", ("run",))
        self.gpu_hours = Gauge("audit_gpu_hours", "GPU-hours of work, of this run", ("run",))

    def unit(self, summary: Summary) -> None:
        """A unit is committed."""
        tags = {"run": self.run, "stage": summary.stage}
        self.units.inc(1, {**tags, "status": "quarantined" if summary.error else "ok"})
        for status, count in (("ok", summary.items - summary.failed), ("failed", summary.failed)):
            if count:
                self.items.inc(count, {**tags, "status": status})
        if not summary.error:
            self.seconds.observe(summary.seconds, tags)

    def event(self, event: str) -> None:
        self.events.inc(1, {"run": self.run, "event": event})

    def beat(self, runner: Runner) -> None:
        """The state of the driver, now and then."""
        tags = {"run": self.run}
        self.running.set(sum(map(len, runner.running.values())), tags)
        self.queue.set(waiting(runner), tags)
        self.workers.set(runner.workers.count, tags)
        self.gpu_hours.set(runner.progress.gpu_hours, tags)


def waiting(runner: Runner) -> int:
    """Units of the planned stages that are neither done nor with a worker; those to be tried again are among them."""
    left = sum(stage.units - stage.done_units for stage in runner.progress.stages.values())
    return left - len(runner.copies.keys() - runner.ended)


class WorkerMetrics:
    """Of an actor."""

    def __init__(self, run: str) -> None:
        self.tags = {"run": run}
        self.gpu_memory = Gauge("audit_gpu_memory_bytes", "Most memory of the GPU that a unit took", ("run",))

    def unit(self) -> None:
        import torch

        if torch.cuda.is_available():
            self.gpu_memory.set(torch.cuda.max_memory_allocated(), self.tags)
            torch.cuda.reset_peak_memory_stats()
