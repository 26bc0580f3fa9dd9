"""Faults of a run's processes: drivers, workers, and what Ray consists of, on one machine."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from audit.errors import AuditError, ConfigError
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.harness import below, filled, kill, kill_driver, named, said, tasks_of, workers_of
from benchmarks.faults.protocol import clean, expected_rows
from benchmarks.faults.workload import (
    Found,
    Workload,
    kill_group,
    numbers_of,
    rows_of,
    wait_for_commits,
    whole,
)
from pipelines.lock import only_driver


@dataclass
class Reader:
    """Opens a run again and again in a thread of its own. A view is bad where it cannot be read, has a row that a clean
    run has not, has fewer units than the one before, or reads otherwise the second time."""

    root: Path
    rows: Counter[str]
    views: int = 0
    partial: int = 0
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Reader:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _read(self) -> None:
        before: set[str] = set()
        older: tuple[Run, Counter[str]] | None = None
        while not self.over.is_set():
            try:
                run = Run(self.root)
                seen, units = rows_of(run), set(run.commits or {})
                if seen - self.rows or before - units:
                    self.bad.append(f"{len(seen - self.rows)} wrong rows, {len(before - units)} units gone")
                if older is not None and rows_of(older[0]) != older[1]:
                    self.bad.append("an older view has changed")
            except AuditError as error:
                self.bad.append(str(error))
                continue
            before, older = units, (run, seen)
            self.views += 1
            self.partial += seen != self.rows


def f02(folder: Path, seed: int, long: bool) -> Found:
    """Random workers are killed while a reader opens the run again and again."""
    goal = 40 if long else 4
    found = Found("F02", f"{goal} random SIGKILLs of workers while readers query", "0 bad snapshots", seed=seed)
    work = Workload(folder, images=230 if long else 60, unit_items=1 if long else 4)
    root, rows = expected_rows(work)
    choose, before, job = random.Random(seed), work.executions(), work.job("clean", retries=50)
    work.misbehave(pause=1.0)
    driver = work.start("run", str(job))
    wait_for_commits(Store(root), 3, driver)
    found.kills = 0
    with Reader(root, rows) as reader:
        while driver.poll() is None and found.kills < goal:
            workers, called = workers_of(driver.pid), {call.pid for call in work.calls()}
            if called.intersection(worker.pid for worker in workers):  # else the kills would leave no work between them
                found.kills += kill(choose.choice(workers))
            time.sleep(choose.uniform(0.3, 1.5))
        driver.wait(timeout=600)
    filled(found, work, root, rows, before)
    found.add(bad_snapshots=len(reader.bad))
    found.seen = f"{reader.views} views meanwhile, {reader.partial} of a part of the run; exit {driver.returncode}"
    found.seen += f"; {reader.bad[0][:100]}" if reader.bad else ""
    found.ok = driver.returncode == 0 and found.kills == goal and reader.partial >= 5 and whole(found)
    return found


def f03(folder: Path, seed: int, long: bool) -> Found:
    """The driver is killed, soon after it what is left of its cluster; the same command resumes. The model's own log
    tells which images were looked at again: only those of units that were under way."""
    found = Found(
        "F03",
        "SIGKILL of the driver at 10, 50, 90 %" if long else "SIGKILL of the driver at 50 %",
        "finished units not recomputed",
    )
    work = Workload(folder, images=96 if long else 48)  # so that some are left after the last kill
    root, rows = clean(work)
    total = tasks_of(root)
    shutil.rmtree(root)
    before, job, store = work.executions(), work.job("clean"), Store(root)
    work.misbehave(pause=1.0)
    found.kills, under_way, began = 0, [], 0.0
    done: dict[int, str] = {}
    again: set[int] = set()
    for share in (0.1, 0.5, 0.9) if long else (0.5,):
        calls = work.executions()
        driver = work.start("run", str(job))
        wait_for_commits(store, 2 + round(share * total), driver)  # beside the inventory's and the run's own
        cluster = below(driver.pid)
        found.kills += kill_driver(driver)
        time.sleep(0.3)
        for process in cluster:  # what is still there of it would go within a minute
            kill(process)
        began = time.monotonic()
        again |= _images(work, calls) & done.keys()
        done = numbers_of(Run(root))
        under_way.append(sum(not done.keys() >= set(call.numbers) for call in work.calls()[calls:]))
    calls, there = work.executions(), len(store.names("commits"))
    last = work.start("run", str(job))
    wait_for_commits(store, there + 1, last)
    found.recovery_seconds = time.monotonic() - began
    code = last.wait()
    again |= _images(work, calls) & done.keys()
    filled(found, work, root, rows, before)
    assert found.executions is not None
    found.seen = (
        f"{len(done)} images were done when the last kill came, {len(again)} of them looked at again; "
        f"{under_way} calls were under way; exit {code}"
    )
    bounded = total <= found.executions <= total + sum(under_way) and max(under_way) <= work.workers
    some = 0 < len(done) < work.images
    found.ok = code == 0 and found.kills == len(under_way) and not again and bounded and some and whole(found)
    return found


def _images(work: Workload, since: int) -> set[int]:
    """Images that the model looked at after so many calls."""
    return {number for call in work.calls()[since:] for number in call.numbers}


def f05(folder: Path, seed: int, long: bool) -> Found:
    """Parts of the run's own Ray are killed and the driver is left; each time on a run of its own."""
    found = Found("F05", "SIGKILL of the raylet; of gcs_server; of both", "clear error, resume works", kills=0)
    told, fine, waits = [], [], []
    for names in (("raylet",), ("gcs_server",), ("raylet", "gcs_server")):
        place = folder / "-".join(names)
        work = Workload(place, images=200)
        root, rows = expected_rows(work)
        before, job, store = work.executions(), work.job("clean"), Store(root)
        work.misbehave(pause=2.0)
        driver = work.start("run", str(job))
        wait_for_commits(store, 4, driver)
        struck = [kill(process) for process in named(driver.pid, *names)]
        found.add(kills=sum(struck))
        began = time.monotonic()
        try:
            code = driver.wait(timeout=150)
        except Exception as error:  # noqa: BLE001 - what does not end is the finding
            code = None
            told.append(str(error)[-40:])
        ended = time.monotonic() - began
        kill_group(driver)
        partial = len(store.names("commits")) < len(rows)
        message = next((line for line in said(work).splitlines() if line.startswith("error:")), "")
        clear = "Ray" in message and "the same command resumes" in message and "Traceback" not in said(work)
        work.misbehave()
        again = work.audit("run", str(job))
        waits.append(time.monotonic() - began)
        one = Found("", "", "")
        filled(one, work, root, rows, before)
        found.add(lost=one.lost or 0, duplicates=one.duplicates or 0, bad_snapshots=one.bad_snapshots or 0)
        found.add(executions=one.executions or 0, tasks=one.tasks or 0)
        told.append(f"{'+'.join(names)}: exit {code} after {ended:.0f} s, {message[7:60]!r}, then {again.returncode}")
        fine.append(all(struck) and len(struck) == len(names) and code == 4 and clear and partial)
        fine.append(again.returncode == 0 and whole(one))
    found.recovery_seconds = max(waits)
    found.seen = "; ".join(told)
    found.ok = all(fine) and whole(found)
    return found


def f06(folder: Path, seed: int, long: bool) -> Found:
    """Ray loses what it asks its workers and what they answer: some units are done more than once."""
    found = Found("F06", "RPC loss: requests, replies of PushTask dropped", "same rows though executions > tasks")
    work = Workload(folder, images=60, unit_items=2)
    root, rows = expected_rows(work)
    before, job = work.executions(), work.job("clean", retries=20)
    chance = {"num_failures": 10, "req_failure_prob": 5, "resp_failure_prob": 20}
    loss = json.dumps({"CoreWorkerService.grpc_client.PushTask": chance})
    began = time.monotonic()
    done = work.audit("run", str(job), RAY_testing_rpc_failure=loss)
    filled(found, work, root, rows, before)
    found.seen = f"exit {done.returncode} in {time.monotonic() - began:.0f} s"
    found.ok = done.returncode == 0 and (found.executions or 0) > (found.tasks or 0) and whole(found)
    return found


def f08(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F08", "a second driver for the same job", "second refused, or both end with the same rows")
    work = Workload(folder)
    root, rows = expected_rows(work)
    before, job = work.executions(), work.job("clean")
    work.misbehave(pause=3.0)  # so long that the second driver meets the first at work on a slow machine, too
    first = work.start("run", str(job))
    wait_for_commits(Store(root), 3, first)
    second = work.audit("run", str(job))
    meanwhile = first.poll() is None
    code = first.wait()
    filled(found, work, root, rows, before)
    words = " ".join(second.stderr.split())
    found.seen = f"first exit {code}; second exit {second.returncode}: {words[-90:]}"
    found.ok = (code, second.returncode) == (0, 2) and f"process {first.pid} " in words and meanwhile and whole(found)
    return found


def f09(folder: Path, seed: int, long: bool) -> Found:
    """A driver is stopped: its run is still refused to others. Then it is killed: free at once, its cluster or not."""
    found = Found("F09", "driver SIGSTOPped, then killed", "held while stopped; free < 1 s after death")
    work = Workload(folder)
    root, rows = expected_rows(work)
    before, job = work.executions(), work.job("clean")
    work.misbehave(pause=1.0)
    holder = work.start("run", str(job))
    wait_for_commits(Store(root), 3, holder)
    cluster = below(holder.pid)
    os.kill(holder.pid, signal.SIGSTOP)
    second = work.audit("run", str(job))
    stopped = psutil.Process(holder.pid).status() == psutil.STATUS_STOPPED
    held = second.returncode == 2 and f"process {holder.pid} " in second.stderr and _held(root)
    found.kills = 0
    began = time.monotonic()
    found.kills += kill(psutil.Process(holder.pid))
    while _held(root) and time.monotonic() - began < 30:
        time.sleep(0.005)
    found.recovery_seconds = time.monotonic() - began
    left = sum(process.is_running() for process in cluster)
    holder.wait()
    for process in cluster:
        kill(process)
    work.misbehave()
    done = work.audit("run", str(job))
    filled(found, work, root, rows, before)
    free = f"free {found.recovery_seconds:.3f} s after death, with {left} processes of its cluster still there"
    found.seen = f"refused while stopped: {held}; {free}; then exit {done.returncode}"
    found.ok = stopped and held and found.kills == 1 and found.recovery_seconds < 1
    found.ok = found.ok and done.returncode == 0 and whole(found)
    return found


def _held(root: Path) -> bool:
    try:
        with only_driver(Store(root)):
            return False
    except ConfigError:
        return True


def f39(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F39", "SIGTERM, then Ctrl-C", "exit 143 and 130, resumable")
    work = Workload(folder, images=60)
    root, rows = expected_rows(work)
    before, job, codes, partial = work.executions(), work.job("clean"), [], []
    work.misbehave(pause=2.0)  # so long that the driver waits in Ray when it is told
    store = Store(root)
    for number in (signal.SIGTERM, signal.SIGINT):
        driver = work.start("run", str(job))
        wait_for_commits(store, len(store.names("commits")) + 3, driver)
        time.sleep(0.5)
        os.kill(driver.pid, number)
        codes.append(driver.wait(timeout=60))
        held = numbers_of(Run(root))
        partial.append(0 < len(held) < work.images)
    clear = "Traceback" not in said(work)
    work.misbehave()
    done = work.audit("run", str(job))
    filled(found, work, root, rows, before)
    found.seen = f"exit {codes}, then {done.returncode}"
    found.ok = codes == [143, 130] and all(partial) and clear and done.returncode == 0 and whole(found)
    return found


FAULTS = {"F02": f02, "F03": f03, "F05": f05, "F06": f06, "F08": f08, "F09": f09, "F39": f39}
