"""Faults of a cluster of several nodes, all of them on this machine: nodes that die, and a long random mixture."""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
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
from benchmarks.faults.harness import alive, events, filled, kill, kill_driver, named, said, workers_of
from benchmarks.faults.protocol import expected_rows
from benchmarks.faults.workload import Found, Workload, compare, kill_group, wait_for_commits, whole


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

    def lose(self, index: int = 0) -> bool:
        """SIGKILL to a node's raylet, and with it to all that runs there; whether that was alive, and is gone."""
        node = self.nodes.pop(index)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        before = alive(raylet)
        self.cluster.remove_node(node, allow_graceful=False)
        return before and not alive(raylet)


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
    found = Found(
        "F04", "a node of three is killed in the middle, another joins", "job ends, same rows, no unit is charged a try"
    )
    work = Workload(folder, images=72, workers=4)
    root, rows = expected_rows(work)
    before, job = work.executions(), work.job("clean", workers="auto")
    work.misbehave(pause=1.0)
    with nodes(3) as cluster:
        driver = work.start("run", str(job), "--address", cluster.address)
        wait_for_commits(Store(root), 6, driver)
        killed = time.time()
        found.kills = int(cluster.lose())
        cluster.add()
        code = driver.wait(timeout=300)
    filled(found, work, root, rows, before)
    lost = events(work, "worker_lost")
    again = [(root / "commits" / f"{line['unit_id']}.json").stat().st_mtime - killed for line in lost]
    noticed = [datetime.fromisoformat(line["at"]).timestamp() - killed for line in lost]
    found.recovery_seconds = max(again, default=None) if again else None
    units = {row["unit_id"]: row for row in Run(root).rows("select unit_id, attempt, status from units")}
    charged = {line["unit_id"]: units[line["unit_id"]]["attempt"] for line in lost}
    failures = [line["attempt"] for line in events(work, "unit_failed")]
    places = {line["node"] for line in events(work, "unit")}
    told = ", ".join(f"{seconds:.1f} s" for seconds in noticed)
    found.seen = f"exit {code}; loss noticed after {told}; {len(places)} nodes committed; "
    found.seen += f"attempts of the units that were lost: {list(charged.values())}, counted when it was: {failures}"
    found.seen += "".join(f"; {line['error'][:60]}" for line in events(work, "unit_failed")[:2])
    free = set(charged.values()) == {1} and set(failures) == {0} and {row["attempt"] for row in units.values()} == {1}
    found.ok = code == 0 and found.kills == 1 and len(lost) >= 1 and len(places) >= 4 and free and whole(found)
    return found


KINDS = ("worker", "driver", "raylet")
SHARE = 0.02  # of all kills, that each kind must have at least


def f_chaos(folder: Path, seed: int, long: bool) -> Found:
    """Drivers, workers and raylets of runs are killed in random order, until so many kills are done; then one run ends.

    A kill counts where its process was alive when it was sent, and gone afterwards. Each run that gets through
    meanwhile is compared too, and another begun on an empty folder.
    """
    goal = int(os.environ.get("AUDIT_CHAOS_KILLS", "500" if long else "12"))
    found = Found(
        "chaos", f"{goal} SIGKILLs: workers, drivers, raylets", "final tables equal to a clean run's", seed=seed
    )
    work = Workload(folder, images=60 if goal < 50 else 230, unit_items=2)
    root, rows = expected_rows(work)
    before, choose = work.executions(), random.Random(seed)
    job = work.job("clean", retries=1000)
    work.misbehave(pause=0.25)
    rare = max(1, round(goal / 20))
    order = ["driver"] * rare + ["raylet"] * rare + ["worker"] * (goal - 2 * rare)
    choose.shuffle(order)
    kinds: Counter[str] = Counter()
    codes: Counter[int] = Counter()  # of drivers that no kill of ours had ended
    waits: list[float] = []
    driver, strikes = work.start("run", str(job)), 0
    while order and strikes < 20 * goal:
        strikes += 1
        time.sleep(choose.uniform(0.2, 1.2))
        if driver.poll() is not None:
            codes[driver.returncode] += 1
            if driver.returncode == 0:
                _through(found, root, rows)
            driver = work.start("run", str(job))
        began, count = time.monotonic(), len(Store(root).names("commits"))
        if not _strike(driver, order[-1], choose):
            continue
        kinds[kind := order.pop()] += 1
        if kind != "worker":
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=90)
            kill_group(driver)
            driver = work.start("run", str(job))
        if sum(kinds.values()) % 10 == 0 and root.exists():
            found.add(bad_snapshots=len(verify(Store(root))))
            with contextlib.suppress(TimeoutError):
                wait_for_commits(Store(root), count + 1, driver, 120)
                waits.append(time.monotonic() - began)
            print(f"{sum(kinds.values())} kills, {len(Store(root).names('commits'))} commits", flush=True)
    for _ in range(5):
        if driver.wait(timeout=900) == 0:
            break
        codes[driver.returncode] += 1
        driver = work.start("run", str(job))
    found.kills = sum(kinds.values())
    filled(found, work, root, rows, before)
    found.tasks = None  # of several runs, all but the last of which are gone
    found.recovery_seconds = max(waits) if waits else None
    found.seen = f"{dict(kinds)}; {codes[0]} runs got through meanwhile, the last ended with {driver.poll()}; "
    found.seen += f"drivers that ended by themselves: {dict(codes)}"
    enough = all(kinds[kind] >= max(1, math.ceil(SHARE * goal)) for kind in KINDS)
    clear = set(codes) <= {0, 4} and "Traceback (most recent call last)" not in _of_drivers(said(work))
    found.ok = found.kills == goal and enough and clear and driver.poll() == 0 and whole(found)
    return found


def _through(found: Found, root: Path, rows: Counter[str]) -> None:
    """A run that got through: check it, and make room for another."""
    compare(found, Run(root), rows)
    found.add(bad_snapshots=len(verify(Store(root))))
    shutil.rmtree(root)


def _of_drivers(log: str) -> str:
    """What drivers said, without the lines of JSON in which they quote their workers."""
    return "\n".join(line for line in log.splitlines() if not line.startswith("{"))


def _strike(driver: subprocess.Popen[bytes], kind: str, choose: random.Random) -> bool:
    """Kill a process of this kind of a run that has workers; False where there was none, or it was not the kill."""
    workers = workers_of(driver.pid)
    if not workers:
        return False
    if kind == "driver":
        return kill_driver(driver)
    there = workers if kind == "worker" else named(driver.pid, "raylet")
    return bool(there) and kill(choose.choice(there))


FAULTS: dict[str, Any] = {"F04": f04, "chaos": f_chaos}
