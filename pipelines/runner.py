"""The driver's loop: units to long-lived Ray actors, one at a time; what fails is tried again, then quarantined."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from audit.config import Job
from audit.errors import AuditError, ConfigError
from audit.methods import Unit
from audit.results.store import Store
from audit.worker import Summary, Worker, items_in


class InfrastructureError(AuditError):
    """The cluster cannot do the work, whatever the job says."""


class Actor:
    """A `Worker` in a process of its own."""

    def __init__(self, job: Job, root: str, classes: tuple[str, ...], threads: int, sharing: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.worker = Worker(job, Path(root), classes, job.compute.batch_size, sharing)

    def run(self, unit: Unit, attempt: int) -> Summary:
        return self.worker.run(unit, attempt)


class Cluster:
    """A Ray cluster: the one at `address`, or one of its own inside this process's lifetime."""

    def __init__(self, address: str | None) -> None:
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="error",
                include_dashboard=False if address is None else None,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = address or "an embedded cluster"
            hint = "'audit doctor' checks Ray."
            if address and os.environ.get("RAY_AUTH_MODE") != "token":
                hint = "If the cluster asks for a token, set RAY_AUTH_MODE=token and give it in RAY_AUTH_TOKEN."
            raise InfrastructureError(f"cannot reach Ray at {where}: {error}. {hint}") from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()


class Runner:
    """Runs the units of one stage at a time. Actors and their models live on between stages."""

    def __init__(self, job: Job, root: Path) -> None:
        self.job, self.root, self.store = job, root, Store(root)
        self.gpus = job.compute.gpus
        cores = int(ray.cluster_resources().get("CPU", 1))
        asked = job.compute.workers
        if self.gpus > ray.cluster_resources().get("GPU", 0):
            raise InfrastructureError(
                f"the job asks for {self.gpus} GPUs, the cluster has {ray.cluster_resources().get('GPU', 0):g}; "
                "set compute.gpus to what is there, or 0 for CPUs"
            )
        self.count = min(asked, cores) if isinstance(asked, int) else self.gpus or cores
        if self.gpus and self.gpus % self.count and self.count % self.gpus:
            raise ConfigError(
                f"compute: {self.gpus} GPUs cannot be shared out to {self.count} workers; "
                f"workers: {self.gpus} gives each one, {2 * self.gpus} gives two workers a GPU"
            )
        self.threads = max(1, cores // self.count)
        self.sharing = -(-self.count // (self.gpus or 1))
        self.classes: tuple[str, ...] = ()
        self._idle: list[Any] = []

    def run(self, units: list[Unit], classes: tuple[str, ...]) -> Iterator[Summary]:
        """Yield a summary for every unit, in the order in which they end. Raises ConfigError on fatal ones."""
        if classes != self.classes:
            self.close()
            self.classes = classes
        waiting = deque((unit, 1) for unit in units)
        running: dict[Any, tuple[Any, Unit, int]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.count:
                    actor = self._idle.pop() if self._idle else self._start()
                    unit, attempt = waiting.popleft()
                    running[actor.run.remote(unit, attempt)] = (actor, unit, attempt)
                done, _ = ray.wait(list(running), num_returns=1)
                actor, unit, attempt = running.pop(done[0])
                summary = self._result(done[0], unit)
                if summary.fatal:
                    raise FATAL[summary.fatal](f"stage {unit.stage}: {summary.error}")
                if summary.error is None or not summary.error.startswith(_LOST):
                    self._idle.append(actor)
                else:
                    ray.kill(actor)
                if summary.error is None:
                    yield summary
                elif attempt <= self.job.compute.retries:
                    waiting.append((unit, attempt + 1))
                else:
                    yield self._quarantine(unit, attempt, summary.error)
        finally:
            for actor, _, _ in running.values():
                ray.kill(actor)

    def close(self) -> None:
        for actor in self._idle:
            ray.kill(actor)
        self._idle = []

    def _start(self) -> Any:
        share = {"num_gpus": self.gpus / self.count} if self.gpus else {"num_cpus": 1}
        actor = ray.remote(max_restarts=0, max_task_retries=0, **share)(Actor)
        return actor.remote(self.job, str(self.root), self.classes, self.threads, self.sharing)

    def _result(self, reference: Any, unit: Unit) -> Summary:
        try:
            summary: Summary = ray.get(reference)
            return summary
        except RayActorError as error:
            return Summary(unit.unit_id, unit.stage, 0, 0.0, error=f"{_LOST}: {error}")
        except RayError as error:
            return Summary(unit.unit_id, unit.stage, 0, 0.0, error=str(error))

    def _quarantine(self, unit: Unit, attempt: int, error: str) -> Summary:
        row = {
            "unit_id": unit.unit_id,
            "stage": unit.stage,
            "attempt": attempt,
            "status": "quarantined",
            "error": error,
        }
        row["items"] = items_in(unit)
        self.store.commit(unit.unit_id, unit.stage, {"units": [row]}, status="quarantined", error=error)
        return Summary(unit.unit_id, unit.stage, 0, 0.0, error=error)


_LOST = "the worker died"

# What ends the job: it would befall every unit. None of it is recorded, so the same command resumes.
FATAL = {"config": ConfigError, "store": InfrastructureError}
