"""What scenarios with whole runs share: runs on Ray, what their drivers said, and processes to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray

from audit.config import load_job
from audit.errors import AuditError
from audit.models import digests
from audit.results.integrity import verify
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.workload import Found, Workload, compare
from pipelines import pace
from pipelines.plan import open_or_create
from pipelines.progress import Progress
from pipelines.runner import Runner
from pipelines.units import plan_of
from pipelines.workers import Cluster, Workers


def on_ray(work: Workload, job_file: Path, root: Path) -> tuple[Runner, str]:
    """Run a job on one cluster that all runs of this process share; returns its runner and the error that it ended
    with, '' for none."""
    job = load_job(job_file)
    found = digests(job)
    open_or_create(job, root, found)
    if not ray.is_initialized():
        os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
        Cluster(None, {"num_cpus": 4})
    with open(work.folder / "driver.log", "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            with Progress(job.name, Store(root), True) as progress:
                runner = Runner(job, root, found, Workers(job, root, grows=False), progress)
                runner.run()
        except AuditError as error:
            return runner, f"{type(error).__name__}: {error}"
    return runner, ""


@contextlib.contextmanager
def quick(**numbers: float) -> Iterator[None]:
    """Other patience than a real run has."""
    before = {name: getattr(pace, name) for name in numbers}
    for name, value in numbers.items():
        setattr(pace, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(pace, name, value)


def said(work: Workload) -> str:
    """All that drivers wrote."""
    log = work.folder / "driver.log"
    return log.read_text("utf-8", "replace") if log.exists() else ""


def events(work: Workload, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind that drivers wrote."""
    parsed = []
    for line in said(work).splitlines():
        with contextlib.suppress(ValueError):  # a driver that is killed may stop within a line
            parsed.append(json.loads(line))
    return [line for line in parsed if isinstance(line, dict) and line.get("event") == kind]


def tasks_of(root: Path) -> int:
    plan = plan_of(Store(root), "1-screen")
    return plan.units if plan else 0


def filled(found: Found, work: Workload, root: Path, rows: Counter[str] | None, before: int = 0) -> None:
    """What a finished run tells for its line of the table; rows are compared with those of a clean one."""
    found.executions, found.tasks = work.executions() - before, tasks_of(root)
    found.add(bad_snapshots=len(verify(Store(root))))
    if rows is not None:
        compare(found, Run(root), rows)


def below(pid: int) -> list[psutil.Process]:
    """What a process has started, and what that has."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of a driver's actors."""
    return [process for process in below(pid) if _title(process).startswith("ray::Actor")]


def named(pid: int, *names: str) -> list[psutil.Process]:
    """Processes below a driver that have one of these names."""
    return [process for process in below(pid) if _name(process) in names]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def kill(process: psutil.Process) -> bool:
    """SIGKILL; True only where the process was alive when it was sent, and is gone afterwards."""
    if not alive(process):
        return False
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return gone([process], 10.0)


def gone(processes: list[psutil.Process], limit: float = 60.0) -> bool:
    """Wait until processes have ended; False where the time is over first."""
    deadline = time.monotonic() + limit
    while any(alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def kill_driver(driver: subprocess.Popen[bytes]) -> bool:
    """SIGKILL to a driver alone; True only where that is what ended it."""
    if driver.poll() is not None:
        return False
    driver.kill()
    return driver.wait() == -signal.SIGKILL
