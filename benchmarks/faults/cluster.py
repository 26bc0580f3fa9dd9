"""Faults of a cluster of several nodes, all of them on this machine: nodes that die, and a long random mixture."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from audit.results.integrity import verify
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.protocol import clean
from benchmarks.faults.runs import compare_named, events, filled, kill, whole, workers_of
from benchmarks.faults.workload import Found, Workload, kill_group, wait_for_commits


class Nodes:
    """A Ray head without work of its own, and nodes of one CPU each."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        os.environ["OMP_NUM_THREADS"] = "1"
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(count)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def lose(self, index: int = 0) -> None:
        """SIGKILL to a node's raylet, and with it to all that runs there."""
        node = self.nodes.pop(index)
        self.cluster.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    started = Nodes(count)
    try:
        yield started
    finally:
        started.cluster.shutdown()
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/tmp/ray/ray_current_cluster")  # else a later ray.init may look for this one


def f04(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F04", "a node of three is killed in the middle, another joins", "job ends, same rows")
    work = Workload(folder, images=72, workers=4)
    root, rows = clean(work)
    shutil.rmtree(root)
    before, job = work.executions(), work.job("clean", workers="auto")
    work.misbehave(pause=1.0)
    with nodes(3) as cluster:
        driver = work.start("run", str(job), "--address", cluster.address)
        wait_for_commits(Store(root), 6, driver)
        killed = time.time()
        cluster.lose()
        found.kills = 1
        cluster.add()
        code = driver.wait(timeout=300)
    filled(found, work, root, rows, before)
    lost = events(work, "worker_lost")
    again = [(root / "commits" / f"{line['unit_id']}.json").stat().st_mtime - killed for line in lost]
    noticed = [datetime.fromisoformat(line["at"]).timestamp() - killed for line in lost]
    found.recovery_seconds = max(again, default=None) if again else None
    told = ", ".join(f"{seconds:.1f} s" for seconds in noticed)
    hosts = Run(root).rows("select count(distinct worker) as n from units")[0]["n"]
    found.seen = f"exit {code}; loss noticed after {told}; {hosts} workers committed"
    found.ok = code == 0 and len(lost) >= 1 and hosts >= 4 and whole(found)
    return found


def chaos(folder: Path, seed: int, long: bool) -> Found:
    """Drivers, workers and raylets of runs are killed at random, until so many kills are done; then one run ends."""
    goal = int(os.environ.get("AUDIT_CHAOS_KILLS", "500" if long else "12"))
    found = Found(
        "chaos", f"{goal} SIGKILLs: workers, drivers, raylets", "final tables equal to a clean run's", seed=seed
    )
    work = Workload(folder, images=60 if goal < 50 else 230, unit_items=2)
    _, rows = clean(work)
    before, choose = work.executions(), random.Random(seed)
    root = folder / "runs" / "chaos"
    job = work.job("chaos", retries=1000)
    work.misbehave(pause=0.25)
    kinds: Counter[str] = Counter()
    finished = 0
    driver = _again(work, job)
    waits: list[float] = []
    while sum(kinds.values()) < goal:
        time.sleep(choose.uniform(0.2, 1.2))
        if driver.poll() is not None:
            finished += driver.returncode == 0
            if driver.returncode == 0:  # it got through: check it, and begin another on an empty folder
                compare_named(found, root, rows)
                found.bad_snapshots += len(verify(Store(root)))
                shutil.rmtree(root)
            driver = _again(work, job)
        began, count = time.monotonic(), len(Store(root).names("commits"))
        kind = _strike(driver, choose)
        if kind is None:
            continue
        kinds[kind] += 1
        if kind != "worker":
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=60)
            kill_group(driver)
            driver = _again(work, job)
        if sum(kinds.values()) % 10 == 0 and root.exists():
            found.bad_snapshots += len(verify(Store(root)))
            with contextlib.suppress(TimeoutError):
                wait_for_commits(Store(root), count + 1, driver, 120)
                waits.append(time.monotonic() - began)
            print(f"{sum(kinds.values())} kills, {len(Store(root).names('commits'))} commits", flush=True)
    driver.wait(timeout=900)
    while driver.returncode != 0:
        driver = _again(work, job)
        driver.wait(timeout=900)
    found.kills = sum(kinds.values())
    filled(found, work, root, None, before)
    compare_named(found, root, rows)
    found.recovery_seconds = max(waits, default=None) if waits else None
    found.seen = f"{dict(kinds)}; {finished} runs got through meanwhile, the last one too"
    found.ok = found.kills == goal and whole(found)
    return found


def _again(work: Workload, job: Path) -> subprocess.Popen[bytes]:
    return work.start("run", str(job))


def _strike(driver: subprocess.Popen[bytes], choose: random.Random) -> str | None:
    """Kill something of a run: mostly a worker, at times its driver or its raylet. None where it has none yet."""
    workers = workers_of(driver.pid)
    if not workers:
        return None
    kind = choose.choices(("worker", "driver", "raylet"), (18, 1, 1))[0]
    if kind == "worker":
        kill(choose.choice(workers))
    elif kind == "driver":
        os.kill(driver.pid, signal.SIGKILL)
    else:
        for process in psutil.Process(driver.pid).children(recursive=True):
            if process.name() == "raylet":
                kill(process)
    return kind


FAULTS: dict[str, Any] = {"F04": f04, "chaos": chaos}
