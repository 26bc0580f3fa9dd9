"""The actors of a run on Ray: as many as the job asks for and the cluster has room for, replaced when they die."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from audit.config import Job
from audit.errors import ConfigError
from audit.labels.matching import DataClasses
from audit.locations import Location, name_of
from audit.methods import Unit
from audit.worker import Summary, Worker
from pipelines.errors import HeadLost, InfrastructureError
from pipelines.metrics import WorkerMetrics

LOOK = 5.0  # seconds between two looks at what the cluster has
ANSWER = 20.0  # seconds that the head of the cluster may take to answer
# Failed starts in a row after which a run without any worker ends: where none has ever started, and where some have, so
# that starting them is possible.
STARTS, RESTARTS = 3, 10
DEVICES = 5  # units in a row that lose their device on a node, or find no models there: it gets no more workers
PAUSE = 60.0  # seconds at most between starts that fail; the first waits one, each further one twice as long


class Cluster:
    """A Ray cluster: the one at `address`, or one of its own inside this process's lifetime."""

    def __init__(self, address: str | None, resources: Mapping[str, int] | None = None) -> None:
        """`resources`: what one of its own shall say that it has, such as `num_gpus`; default: what is there."""
        self.address = address
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="error",
                include_dashboard=False if address is None else None,
                configure_logging=False,
                **(resources or {}),
            )
        except Exception as error:  # Ray raises a bare one where its own processes start too slowly
            where = address or "an embedded cluster"
            hint = "'audit doctor' checks Ray."
            if address and os.environ.get("RAY_AUTH_MODE") != "token":
                hint = "If the cluster asks for a token, set RAY_AUTH_MODE=token and give it in RAY_AUTH_TOKEN."
            raise InfrastructureError(f"cannot reach Ray at {where}: {error}. {hint}") from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, HeadLost):
            ray.shutdown()


class Actor:
    """A `Worker` in a process of its own."""

    def __init__(self, job: Job, root: Location, share: float, wanted: int, sharing: int) -> None:
        import torch

        torch.set_num_threads(threads_of(_own_node(), share, wanted))
        self.worker = Worker(job, root, DataClasses(), job.compute.batch_size, sharing)
        self.metrics = WorkerMetrics(name_of(root))

    def started(self) -> str:
        """The node that this runs on, once it runs."""
        return str(ray.get_runtime_context().get_node_id())

    def use_classes(self, classes: DataClasses) -> None:
        self.worker.use_classes(classes)

    def do(self, tasks: bytes) -> bytes:
        """Units and the numbers of their attempts, pickled; so are their `Summary`s, which end with the first that says
        that this worker, or the run, cannot go on. Ray takes three times as long to send anything but bytes."""
        summaries = []
        for unit, attempt in pickle.loads(tasks):  # noqa: S301 - from this run's driver
            summaries.append(self.worker.run(unit, attempt))
            self.metrics.unit()
            if summaries[-1].fatal or summaries[-1].excuse:
                break
        return pickle.dumps(summaries)


@dataclass(eq=False)
class Handle:
    """An actor, the node it is on once it has started, the data set's classes that it knows of, and the stages of which
    it has done units, so that their models are loaded."""

    number: int
    actor: Any
    node: str = ""
    classes: DataClasses = field(default_factory=DataClasses)
    stages: set[str] = field(default_factory=set)

    def start(self, tasks: list[tuple[Unit, int]]) -> Any:
        """A reference to what the actor will say of units, each with the number of its attempt; see `summaries_of`."""
        return self.actor.do.remote(pickle.dumps(tasks))


class Workers:
    """Handles of actors: starting, idle or out with a unit. Those that cannot start yet wait for room."""

    def __init__(
        self,
        job: Job,
        root: Location,
        grows: bool,
        make: Callable[[], Any] | None = None,
        kill: Callable[[Any], None] = ray.kill,
    ) -> None:
        """`grows`: whether the cluster may have more room later. `make` and `kill`: how an actor starts, and ends."""
        self.job, self.root, self.grows = job, root, grows
        self.gpus = job.compute.gpus
        if not grows and self.gpus > ray.cluster_resources().get("GPU", 0):
            raise InfrastructureError(
                f"the job asks for {self.gpus} GPUs, this machine has {ray.cluster_resources().get('GPU', 0):g}; "
                "set compute.gpus to what is there, or 0 for CPUs"
            )
        asked = job.compute.workers
        if self.gpus and isinstance(asked, int) and self.gpus % asked and asked % self.gpus:
            raise ConfigError(
                f"compute: {self.gpus} GPUs cannot be shared out to {asked} workers; "
                f"workers: {self.gpus} gives each one, {2 * self.gpus} gives two workers a GPU"
            )
        self.make, self.kill = make or self._actor, kill
        self.idle: list[Handle] = []
        self.starting: dict[Any, Handle] = {}
        self.out: set[Handle] = set()
        self.left_out: set[str] = set()
        self._suspects: dict[str, set[str]] = {}  # nodes, and the units whose device failed there since one was done
        self._lacking: dict[str, set[str]] = {}  # stages, and the nodes that lack what they need
        self._number = self._failed_starts = 0
        self._has_started = False
        self._began = self._last_look = time.monotonic()
        self._start_at = 0.0
        self._last_failure = ""
        self.wanted = self._wanted()

    def _wanted(self) -> int:
        """Actors that the job asks for; without a number, one for each GPU or each core that the cluster has now."""
        asked = self.job.compute.workers
        cores = int(ray.cluster_resources().get("CPU", 1))
        if self.gpus:
            return asked if isinstance(asked, int) else self.gpus
        if isinstance(asked, int):
            return asked if self.grows else min(asked, cores)
        return max(1, cores)

    @property
    def share(self) -> float:
        """Of a GPU, that each actor has."""
        return self.gpus / self.wanted if self.gpus else 0.0

    @property
    def count(self) -> int:
        """Actors that have started."""
        return len(self.idle) + len(self.out)

    def _actor(self) -> Any:
        share: dict[str, Any] = {"num_gpus": self.share} if self.gpus else {"num_cpus": 1}
        sharing = -(-self.wanted // (self.gpus or 1))
        if self.left_out:
            share["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self.left_out))})"}
        made = ray.remote(max_restarts=0, max_task_retries=0, **share)(Actor)
        return made.remote(self.job, self.root, self.share, self.wanted, sharing)

    def grow(self) -> None:
        """Start actors up to the number wanted, which follows the cluster. Raises InfrastructureError if none can."""
        if time.monotonic() - self._last_look > LOOK:
            own = ray.get_runtime_context().get_node_id()
            if not any(node["NodeID"] == own and node["Alive"] for node in nodes()):
                raise InfrastructureError(
                    "the Ray node that this driver is on has died; what is committed stays, the same command resumes"
                )
            self._last_look, self.wanted = time.monotonic(), self._wanted()
        while self.count + len(self.starting) < self.wanted and time.monotonic() >= self._start_at:
            self._number += 1
            handle = Handle(self._number, self.make())
            self.starting[handle.actor.started.remote()] = handle
        if self.count:
            return
        if self._failed_starts >= (RESTARTS if self._has_started else STARTS):
            raise InfrastructureError(f"no worker can start: {self._last_failure}")
        waited = time.monotonic() - self._began
        if waited > 60 * self.job.compute.start_minutes:
            there = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
            raise InfrastructureError(
                f"no worker could start in {waited / 60:.0f} minutes: each needs {self.share or 1:g} "
                f"{'GPU' if self.gpus else 'CPU'}, the cluster has {there}; add nodes, or ask for less under 'compute'"
            )

    def welcome(self, reference: Any) -> None:
        """Take the answer of an actor that was starting: it is idle now, or it has died instead."""
        handle = self.starting.pop(reference)
        try:
            handle.node = ray.get(reference)
        except RayError as error:
            if time.monotonic() >= self._start_at:  # actors that fail together fail once
                self._failed_starts += 1
                self._start_at = time.monotonic() + min(PAUSE, 2.0 ** (self._failed_starts - 1))
            self._last_failure = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            self.kill(handle.actor)
            return
        self._has_started = True
        self._failed_starts = 0
        self.idle.append(handle)

    def take(self, handle: Handle) -> None:
        self.idle.remove(handle)
        self.out.add(handle)

    def give_back(self, handle: Handle) -> None:
        if handle.node in self.left_out:
            self.drop(handle)
            return
        self.out.discard(handle)
        self.idle.append(handle)

    def works(self, handle: Handle, stage: str) -> None:
        """A unit was done, so whatever failed on its node before may have been the units' own fault."""
        handle.stages.add(stage)
        self._suspects.pop(handle.node, None)
        self._lacking.get(stage, set()).discard(handle.node)

    def suspected(self, handle: Handle) -> bool:
        """Whether a device has failed on its node, and no unit was done there since."""
        return handle.node in self._suspects

    def all_lack(self, handle: Handle, stage: str) -> bool:
        """Note that a worker's node lacks what a stage needs.

        True where every node does that has workers or, while some are starting, may get them.
        """
        lacking = self._lacking.setdefault(stage, set())
        lacking.add(handle.node)
        there = {worker.node for worker in (*self.idle, *self.out)}
        if self.starting:
            there |= self._usable()
        return there <= lacking | self.left_out

    def _usable(self) -> set[str]:
        """Nodes that are alive and have what a worker needs."""
        kind = "GPU" if self.gpus else "CPU"
        return {node["NodeID"] for node in nodes() if node["Alive"] and kind in node["Resources"]}

    def device_failed(self, handle: Handle, unit: Unit) -> bool:
        """Count a device that failed. True if its node gets no more workers from now on: so many units in a row have
        lost their device there. Raises InfrastructureError where no other node is left."""
        failed = self._suspects.setdefault(handle.node, set())
        failed.add(unit.unit_id)
        if len(failed) < DEVICES or handle.node in self.left_out:
            return False
        self.left_out.add(handle.node)
        if self._usable() <= self.left_out:
            raise InfrastructureError(
                f"on every node {DEVICES} units in a row have lost their device, their models or the place of the "
                "results; see 'unit_failed' in the run's log. What is committed stays, the same command resumes once "
                "they are there"
            )
        for idle in [idle for idle in self.idle if idle.node == handle.node]:
            self.idle.remove(idle)
            self.drop(idle)
        return True

    def drop(self, handle: Handle) -> None:
        """Let go of an actor that died, or that must."""
        self.out.discard(handle)
        self._began = time.monotonic()
        self.kill(handle.actor)

    def forget(self) -> None:
        """Let go of all actors without a word to them."""
        self.idle, self.out, self.starting = [], set(), {}

    def close(self) -> None:
        for handle in [*self.idle, *self.out, *self.starting.values()]:
            self.kill(handle.actor)
        self.forget()


def threads_of(resources: Mapping[str, float], share: float, wanted: int) -> int:
    """Threads of one of so many workers, each with a `share` of a GPU (0: of the cores), on a node with `resources`."""
    cores = int(resources.get("CPU", 1))
    there = int(resources.get("GPU", 1) / share) if share else cores
    return max(1, cores // max(1, min(there, wanted)))


def _own_node() -> dict[str, float]:
    """What the node has that this process runs on."""
    own = ray.get_runtime_context().get_node_id()
    return next((dict(node["Resources"]) for node in ray.nodes() if node["NodeID"] == own), {})


def summaries_of(reference: Any) -> list[Summary]:
    """What an actor says of units: of all, or of those up to the one that ended its work. Raises RayError where it
    died."""
    summaries: list[Summary] = pickle.loads(ray.get(reference))  # noqa: S301 - from this run's worker
    return summaries


def nodes() -> list[dict[str, Any]]:
    """What the head knows of the nodes, dead ones too. Raises HeadLost where it does not answer: a minute later, Ray
    would end this process."""
    answer: list[dict[str, Any]] = []

    def ask() -> None:
        with suppress(RayError, RuntimeError, ConnectionError):
            answer.extend(ray.nodes())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    if not answer:
        raise HeadLost(
            f"the head of the Ray cluster has not answered for {ANSWER:.0f} s; what is committed stays, and the same "
            "command resumes on a cluster that answers"
        )
    return answer


def answers(node_id: str) -> bool:
    """Whether a node is there: the head learns of a node's death some ten seconds later than its port tells."""
    for node in nodes():
        if node["NodeID"] == node_id and node["Alive"]:
            with (
                suppress(OSError),
                socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), 2.0),
            ):
                return True
    return False
