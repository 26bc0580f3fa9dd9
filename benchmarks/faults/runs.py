"""Faults of whole runs on Ray: killed drivers, workers and nodes, items that nobody survives, workers that hang."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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
from benchmarks.faults.protocol import clean
from benchmarks.faults.workload import Found, Workload, compare, kill_group, picks, wait_for_commits
from pipelines import pace
from pipelines.errors import LimitReached
from pipelines.plan import open_or_create
from pipelines.progress import Progress
from pipelines.runner import Runner
from pipelines.units import plan_of
from pipelines.workers import Cluster, Workers


@contextlib.contextmanager
def shared_ray() -> Iterator[None]:
    """One embedded cluster for all runs of this process."""
    if not ray.is_initialized():
        os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
        Cluster(None, {"num_cpus": 4})
    yield


def on_ray(work: Workload, job_file: Path, root: Path) -> tuple[Runner, str]:
    """Run a job on the shared cluster; returns its runner and the kind of error that it ended with, '' for none."""
    job = load_job(job_file)
    found = digests(job)
    open_or_create(job, root, found)
    with (
        shared_ray(),
        open(work.folder / "driver.log", "a", encoding="utf-8") as log,
        contextlib.redirect_stderr(log),
    ):
        try:
            with Progress(job.name, Store(root), True) as progress:
                runner = Runner(job, root, found, Workers(job, root, grows=False), progress)
                runner.run()
        except AuditError as error:
            return runner, f"{type(error).__name__}: {error}"
    return runner, ""


def events(work: Workload, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind that drivers wrote."""
    lines = (work.folder / "driver.log").read_text("utf-8", "replace").splitlines()
    parsed = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in parsed if line["event"] == kind]


def tasks_of(root: Path) -> int:
    plan = plan_of(Store(root), "1-screen")
    return plan.units if plan else 0


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


def filled(found: Found, work: Workload, root: Path, rows: Counter[str] | None, before: int = 0) -> None:
    """What a finished run tells for its line of the table."""
    found.executions, found.tasks = work.executions() - before, tasks_of(root)
    found.bad_snapshots += len(verify(Store(root)))
    if rows is not None:
        compare(found, Run(root), rows)


def whole(found: Found) -> bool:
    return found.lost == found.duplicates == found.bad_snapshots == 0


def f02(folder: Path, seed: int, long: bool) -> Found:
    """Random workers are killed while readers open the run again and again."""
    found = Found("F02", "random SIGKILLs of workers while readers query", "0 bad snapshots", seed=seed)
    work, choose = Workload(folder, images=60), picks(seed)
    _, rows = clean(work)
    before = work.executions()
    work.misbehave(pause=0.3)
    root, reads = folder / "runs" / "killed", 0
    job = work.job("killed", retries=50)
    driver = work.start("run", str(job))
    store = Store(root)
    wait_for_commits(store, 3, driver)
    next_kill = time.monotonic()
    while driver.poll() is None:
        if time.monotonic() >= next_kill and found.kills < (40 if long else 4):
            workers = workers_of(driver.pid)
            if workers:
                kill(choose.choice(workers))
                found.kills += 1
            next_kill = time.monotonic() + choose.uniform(0.5, 2.0)
        counts = Run(root).rows("select count(*) as n, count(distinct item_id) as d from predictions")[0]
        found.bad_snapshots += counts["n"] != counts["d"]
        reads += 1
    filled(found, work, root, None, before)
    compare_named(found, root, rows)
    found.seen = f"{reads} reads meanwhile, exit {driver.returncode}"
    found.ok = driver.returncode == 0 and found.kills > 0 and whole(found)
    return found


def compare_named(found: Found, root: Path, rows: Counter[str]) -> None:
    """Add what a run lost and doubled against a clean run of the same job under another name."""
    mine = Found("", "", "")
    compare(mine, Run(root), rows)
    runs = sum(1 for row in rows if row.startswith("runs "))
    found.lost += mine.lost - runs
    found.duplicates += mine.duplicates - runs


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of a driver's actors."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if _title(process).startswith("ray::Actor")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def f03(folder: Path, seed: int, long: bool) -> Found:
    """The driver alone is killed; its cluster goes with it; the same command resumes."""
    found = Found(
        "F03",
        "SIGKILL of the driver at 10, 50, 90 %" if long else "SIGKILL of the driver at 50 %",
        "finished units not recomputed",
    )
    work = Workload(folder, images=48)
    root, rows = clean(work)
    shutil.move(root, folder / "clean")
    before, job, store = work.executions(), work.job("clean"), Store(root)
    work.misbehave(pause=0.3)
    total = len(Store(folder / "clean").names("commits"))
    kept: dict[str, int] = {}
    began = time.monotonic()
    for share in (0.1, 0.5, 0.9) if long else (0.5,):
        driver = work.start("run", str(job))
        wait_for_commits(store, max(2, round(share * total)), driver)
        driver.kill()
        driver.wait()
        began = time.monotonic()
        found.kills += 1
        time.sleep(1.0)
        kept |= {name: _changed(root, name) for name in store.names("commits")}
        kill_group(driver)
    wait = len(store.names("commits"))
    last = work.start("run", str(job))
    wait_for_commits(store, wait + 1, last)
    found.recovery_seconds = time.monotonic() - began
    code = last.wait()
    filled(found, work, root, rows, before)
    again = sum(_changed(root, name) != at for name, at in kept.items())
    found.seen = f"{len(kept)} units were done when the last kill came, {again} of them done again; exit {code}"
    found.ok = code == 0 and again == 0 and whole(found)
    return found


def _changed(root: Path, name: str) -> int:
    return (root / "commits" / name).stat().st_mtime_ns


def f05(folder: Path, seed: int, long: bool) -> Found:
    """Ray's control process and raylet of the run are killed together, the driver is left."""
    found = Found("F05", "SIGKILL of the raylet; then of gcs_server and raylet", "clear error, resume works")
    work = Workload(folder, images=200)
    root, rows = clean(work)
    shutil.rmtree(root)
    before, job = work.executions(), work.job("clean")
    work.misbehave(pause=2.0)
    codes: list[int] = []
    began = time.monotonic()
    for names in (("raylet",), ("gcs_server", "raylet")):
        driver = work.start("run", str(job))
        wait_for_commits(Store(root), len(Store(root).names("commits")) + 3, driver)
        for process in psutil.Process(driver.pid).children(recursive=True):
            if process.name() in names:
                kill(process)
                found.kills += 1
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            codes.append(driver.wait(timeout=150))
        kill_group(driver)
    found.recovery_seconds = time.monotonic() - began
    work.misbehave()
    again = work.audit("run", str(job))
    filled(found, work, root, rows, before)
    said = "the Ray node that this driver is on has died" in (folder / "driver.log").read_text("utf-8", "replace")
    found.seen = f"driver ended with {codes}, node named: {said}; then exit {again.returncode}"
    found.ok = found.kills == 3 and len(codes) == 2 and 0 not in codes and said
    found.ok = found.ok and again.returncode == 0 and whole(found)
    return found


def f06(folder: Path, seed: int, long: bool) -> Found:
    """Ray loses replies of what it asks its workers: some units are done more than once."""
    found = Found("F06", "RPC loss: replies of PushTask are dropped", "same rows though executions >= tasks")
    work = Workload(folder, images=60)
    root, rows = clean(work)
    shutil.rmtree(root)
    before, job = work.executions(), work.job("clean")
    loss = json.dumps(
        {
            "CoreWorkerService.grpc_client.PushTask": {
                "num_failures": 10,
                "req_failure_prob": 10,
                "resp_failure_prob": 25,
            }
        }
    )
    done = work.audit("run", str(job), RAY_testing_rpc_failure=loss)
    filled(found, work, root, rows, before)
    found.seen = f"exit {done.returncode}"
    found.ok = done.returncode == 0 and whole(found) and found.executions >= found.tasks
    return found


def f08(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F08", "a second driver for the same job", "second refused, or both end with the same rows")
    work = Workload(folder)
    root, rows = clean(work)
    shutil.rmtree(root)
    before, job = work.executions(), work.job("clean")
    work.misbehave(pause=0.5)
    first = work.start("run", str(job))
    wait_for_commits(Store(root), 2, first)
    second = work.audit("run", str(job))
    code = first.wait()
    filled(found, work, root, rows, before)
    said = " ".join(second.stderr.split())
    found.seen = f"first exit {code}; second exit {second.returncode}: {said[-90:]}"
    found.ok = (code, second.returncode) == (0, 2) and str(first.pid) in said and whole(found)
    return found


def f09(folder: Path, seed: int, long: bool) -> Found:
    """The holder of the lock is stopped: still refused. Then it is killed: free at once."""
    found = Found("F09", "lock holder SIGSTOPped, then killed", "lock free < 1 s after death")
    work = Workload(folder)
    job = work.job("clean")
    hold = (
        "import sys, time; from pathlib import Path; from audit.results.store import Store; from pipelines.lock import \
only_driver\nwith only_driver(Store(Path(sys.argv[1]))): print('held', flush=True); time.sleep(600)"
    )
    root = folder / "runs" / "clean"
    holder = subprocess.Popen(
        [work.command()[0], "-c", hold, str(root)],
        env=work.environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    os.kill(holder.pid, signal.SIGSTOP)
    stopped = _held(root)
    began = time.monotonic()
    holder.kill()
    holder.wait()
    while _held(root) and time.monotonic() - began < 5:
        time.sleep(0.01)
    found.recovery_seconds = time.monotonic() - began
    done = work.audit("run", str(job))
    found.kills = 1
    free = f"free {found.recovery_seconds:.2f} s after death"
    found.seen = f"refused while stopped: {stopped}; {free}, then exit {done.returncode}"
    found.ok = stopped and found.recovery_seconds < 1 and done.returncode == 0
    return found


def _held(root: Path) -> bool:
    from audit.errors import ConfigError
    from pipelines.lock import only_driver

    try:
        with only_driver(Store(root)):
            return False
    except ConfigError:
        return True


def f10(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F10", "job file edited between two runs", "refused, field-by-field difference")
    work = Workload(folder)
    root, rows = clean(work)
    job = work.job("clean")
    job.write_text(job.read_text().replace("input_size: 8", "input_size: 6").replace("unit_items: 4", "unit_items: 5"))
    done = work.audit("run", str(job))
    said = " ".join(done.stderr.split())
    compare(found, Run(root), rows)
    fields = ("job.models.m.input_size: 8 -> 6", "unit_items: 4 -> 5", "--new-run")
    found.seen = f"exit {done.returncode}, names {sum(field in said for field in fields)} of {len(fields)}"
    found.ok = done.returncode == 2 and all(field in said for field in fields) and whole(found)
    return found


def f11(folder: Path, seed: int, long: bool) -> Found:
    """The model's file changes by a byte; then a method's version is raised."""
    found = Found("F11", "a byte of the weights flipped; version of a method raised", "refused, new run offered")
    work = Workload(folder)
    root, rows = clean(work)
    job = work.job("clean")
    model = folder / "model.py"
    model.write_bytes(model.read_bytes().replace(b"Calls an", b"calls an"))
    flipped = work.audit("run", str(job))
    model.write_bytes(model.read_bytes().replace(b"calls an", b"Calls an"))
    from audit.methods import screen

    screen.VERSION += 1
    try:
        raised = ""
        open_or_create(load_job(job), root)
    except AuditError as error:
        raised = str(error)
    finally:
        screen.VERSION -= 1
    new = work.audit("run", str(job), "--new-run")
    compare(found, Run(root.with_name("clean-2")), rows)
    found.seen = (
        f"exit {flipped.returncode} for the byte; {raised.splitlines()[-2].strip()[:50]}; new run exit {new.returncode}"
    )
    found.ok = (
        flipped.returncode == 2
        and "digests.model m" in flipped.stderr
        and "--new-run" in flipped.stderr
        and "code.methods.screen" in raised
        and new.returncode == 0
        and whole(found)
    )
    return found


def f12(folder: Path, seed: int, long: bool) -> Found:
    """After the inventory one file is replaced, one added and one removed."""
    found = Found("F12", "files replaced, added, removed after the inventory", "named; changed item quarantined")
    work = Workload(folder, images=24)
    root, rows = clean(work)
    shutil.rmtree(root)
    job = work.job("clean")
    work.misbehave(pause=0.5)
    driver = work.start("run", str(job))
    store = Store(root)
    wait_for_commits(store, 3, driver)
    driver.terminate()
    code = driver.wait()
    data = folder / "data" / "bright"
    names = sorted(data.iterdir())
    names[-1].write_bytes(names[0].read_bytes())
    shutil.copy(names[0], data / "added.png")
    names[-2].unlink()
    work.misbehave()
    again = work.audit("run", str(job))
    failed = Run(root).rows("select reason, count(*) as n from predictions where status = 'failed' group by reason")
    said = again.stderr
    found.tasks = tasks_of(root)
    mine = Found("", "", "")
    compare(mine, Run(root), rows)
    found.lost, found.duplicates = mine.lost - 2, mine.duplicates - 2
    found.seen = f"stopped with {code}; {failed}; exit {again.returncode}"
    found.ok = (
        code == 143
        and "added.png added" in said
        and f"{names[-2].name} gone" in said
        and failed == [{"reason": "changed_since_inventory", "n": 2}]
        and again.returncode == 3
        and found.lost == found.duplicates == 0
    )
    return found


def f25(folder: Path, seed: int, long: bool) -> Found:
    """Four images that nobody survives, each in a unit with others."""
    found = Found("F25", "items that raise, abort, hang, take all memory", "quarantined with reason, others unaffected")
    work = Workload(folder, images=32)
    root, rows = clean(work)
    shutil.rmtree(root)
    before = work.executions()
    bad = {"3": "raises", "9": "aborts", "17": "hangs", "22": "memory"}
    work.misbehave(items=bad)
    began = time.monotonic()
    _, error = on_ray(work, work.job("clean", deadline_minutes=0.07), root)
    found.recovery_seconds = time.monotonic() - began
    failed = Run(root).rows(
        "select display_name, p.reason from predictions p join items i using (item_id) "
        "where p.status = 'failed' order by 1"
    )
    filled(found, work, root, None, before)
    mine = Found("", "", "")
    compare(mine, Run(root), _only(rows, "predictions"))
    found.lost = mine.lost - len(failed)
    numbers = {str(int(Path(row["display_name"]).stem)): row["reason"] for row in failed}
    good = Run(root).rows("select count(*) as n, count(distinct item_id) as d from predictions where status = 'ok'")[0]
    found.duplicates = good["n"] - good["d"]
    found.seen = f"quarantined {sorted(numbers, key=int)}: {[reason[9:40] for reason in numbers.values()]}"
    found.ok = (
        not error
        and set(numbers) == set(bad)
        and all(r.startswith("gave_up") for r in numbers.values())
        and whole(found)
    )
    return found


def _only(rows: Counter[str], table: str) -> Counter[str]:
    return Counter({row: count for row, count in rows.items() if row.startswith(f"{table} ")})


def f26(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F26", "every item of the data set is broken", "job ends failed: share above the limit")
    work = Workload(folder, images=32)
    for path in (folder / "data").rglob("*.png"):
        path.write_bytes(b"no image")
    root = folder / "runs" / "clean"
    runner, error = on_ray(work, work.job("clean"), root)
    items = Run(root).rows("select status, count(*) as n from items group by status")
    found.seen = f"{error[:90]}; {items}"
    found.ok = (
        error.startswith(LimitReached.__name__)
        and items == [{"status": "quarantined", "n": 32}]
        and runner.executions == 1
    )
    return found


def f27(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F27", "NaN from the model for one item of a batch", "only this item flagged, others equal")
    work = Workload(folder, images=32)
    root, rows = clean(work)
    shutil.rmtree(root)
    work.misbehave(items={"5": "nan"})
    _, error = on_ray(work, work.job("clean"), root)
    failed = Run(root).rows("select reason from predictions where status <> 'ok'")
    mine = Found("", "", "")
    compare(mine, Run(root), rows)
    found.lost, found.duplicates = mine.lost - 1, mine.duplicates - 1
    found.seen = f"{failed}"
    found.ok = not error and failed == [{"reason": "not_finite"}] and whole(found)
    return found


def f28(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F28", "OutOfMemoryError above a batch of 2", "halves, same results")
    work = Workload(folder, images=32, unit_items=8)
    root, rows = clean(work)
    shutil.rmtree(root)
    before = work.executions()
    work.misbehave(most=2)
    runner, error = on_ray(work, work.job("clean"), root)
    filled(found, work, root, rows, before)
    found.seen = (
        f"{found.executions} calls of the model for {found.tasks} units, {len(runner.retries)} retries; {error}"
    )
    found.ok = not error and found.executions > 2 * found.tasks and not events(work, "unit_failed") and whole(found)
    return found


def f29(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F29", "a CUDA error in one worker", "actor replaced, not retried in process")
    work = Workload(folder, images=32)
    root, rows = clean(work)
    shutil.rmtree(root)
    before = work.executions()
    work.misbehave(device_lost=True, pause=0.1)
    _, error = on_ray(work, work.job("clean"), root)
    filled(found, work, root, rows, before)
    failed = [line["error"].strip().splitlines()[-1] for line in events(work, "unit_failed")]
    found.seen = f"{failed}, then done elsewhere; {error}"
    found.ok = not error and len(failed) == 1 and "illegal memory access" in failed[0] and whole(found)
    return found


def f30(folder: Path, seed: int, long: bool) -> Found:
    """One call is a hundred times slower than the others."""
    found = Found("F30", "straggler: one call takes 30 s, others .2 s", "second copy, one commit")
    work = Workload(folder, images=24)
    root, rows = clean(work)
    shutil.rmtree(root)
    before = work.executions()
    work.misbehave(pause=0.2, slow_first=30.0)
    began = time.monotonic()
    with quick(SLOW_LEAST=1.0):
        _, error = on_ray(work, work.job("clean"), root)
    found.recovery_seconds = time.monotonic() - began
    filled(found, work, root, rows, before)
    copies = len(events(work, "second_copy"))
    found.seen = f"{copies} second copies, whole run {found.recovery_seconds:.1f} s; {error}"
    found.ok = not error and copies >= 1 and found.recovery_seconds < 25 and whole(found)
    return found


def f34(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F34", "1 worker with batch 1 against 2 with batch 3 and 4 with batch 8", "same rows")
    work = Workload(folder, images=64, unit_items=8)
    _, rows = clean(work)
    work.misbehave(pause=0.2)
    told = []
    for workers, batch in ((1, 1), (2, 3), (4, 8)):
        root = folder / f"by-{workers}" / "clean"
        on_ray(work, work.job("clean", workers=workers, batch_size=batch), root)
        mine = Found("", "", "")
        compare(mine, Run(root), rows)
        found.lost, found.duplicates = found.lost + mine.lost, found.duplicates + mine.duplicates
        told.append(Run(root).rows("select count(distinct worker) as n from units where stage = '1-screen'")[0]["n"])
    found.seen = f"by {told} workers, compared with a serial run row by row"
    found.ok = told == [1, 2, 4] and whole(found)
    return found


def f35(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F35", "the same job twice", "equal")
    work = Workload(folder)
    _, rows = clean(work)
    again = Workload(folder, output=str(folder / "again"))
    root = folder / "again" / "clean"
    on_ray(again, again.job("clean"), root)
    compare(found, Run(root), rows)
    found.seen = f"{sum(rows.values())} rows compared"
    found.ok = whole(found)
    return found


def f39(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F39", "SIGTERM, then Ctrl-C", "exit 143 and 130, resumable")
    work = Workload(folder, images=60)
    root, rows = clean(work)
    shutil.rmtree(root)
    before, job, codes = work.executions(), work.job("clean"), []
    work.misbehave(pause=0.3)
    for number in (signal.SIGTERM, signal.SIGINT):
        store = Store(root)
        there = len(store.names("commits"))
        driver = work.start("run", str(job))
        wait_for_commits(store, there + 3, driver)
        os.kill(driver.pid, number)
        codes.append(driver.wait(timeout=60))
    work.misbehave()
    done = work.audit("run", str(job))
    filled(found, work, root, rows, before)
    found.seen = f"exit {codes}, then {done.returncode}"
    found.ok = codes == [143, 130] and done.returncode == 0 and whole(found)
    return found


FAULTS = {
    "F02": f02, "F03": f03, "F05": f05, "F06": f06, "F08": f08, "F09": f09, "F10": f10, "F11": f11,
    "F12": f12,
    "F25": f25, "F26": f26, "F27": f27, "F28": f28, "F29": f29, "F30": f30, "F34": f34, "F35": f35, "F39": f39,
}  # fmt: skip
