"""Faults of the store, met by a worker without Ray: at each step of its protocol, and lying in wait in its files."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import psutil
import pyarrow.parquet as pq

from audit.config import load_job
from audit.errors import RowError, StoreError
from audit.results.integrity import collect, verify
from audit.results.objects import LocalObjects
from audit.results.progress import LIVE
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.workload import ROOT, Found, Workload, compare, rows_of, whole
from pipelines.serial import run_serially

SERIAL = (
    "import sys; from pathlib import Path; from audit.config import load_job; from audit.locations import located; \
from pipelines.serial import run_serially; run_serially(load_job(Path(sys.argv[1])), located(sys.argv[2]), 8)"
)


NOBODY = 65534
INJECTED = f"{ROOT / 'benchmarks' / 'faults' / 'injected'}{os.pathsep}{ROOT}"


def clean(work: Workload, name: str = "clean") -> tuple[Path, Counter[str]]:
    """A run without faults: its folder and rows."""
    job = work.job(name)
    root = work.folder / "runs" / name
    run_serially(load_job(job), root, 8)
    return root, rows_of(Run(root))


def expected_rows(work: Workload) -> tuple[Path, Counter[str]]:
    """The same, and the folder is free again for a run that meets faults."""
    root, rows = clean(work)
    shutil.rmtree(root)
    return root, rows


def serially(work: Workload, job: Path, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a process that may be killed."""
    return subprocess.run(
        [sys.executable, "-c", SERIAL, str(job), str(root)],
        cwd=work.folder,
        env={**work.environment(**environment), "PYTHONPATH": INJECTED},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def begun(work: Workload, job: Path, root: Path | str, **environment: str) -> subprocess.Popen[bytes]:
    """A run without Ray in a process beside this one, which may be stopped."""
    command = [sys.executable, "-c", SERIAL, str(job), str(root)]
    variables = {**work.environment(**environment), "PYTHONPATH": INJECTED}
    return subprocess.Popen(command, cwd=work.folder, env=variables)


def f01(folder: Path, seed: int, long: bool) -> Found:
    """One process after the other is killed at its 1st, 2nd, ... step of writing, all on one run, until one ends."""
    found = Found("F01", "SIGKILL before every step of the protocol", "rows = clean run", seed=seed)
    work = Workload(folder, images=12 if long else 8, unit_items=4)
    _, rows = clean(work)
    job, root = work.job("clean"), folder / "runs" / "killed"
    steps = folder / "steps.log"
    serially(work, job, folder / "runs" / "counted", AUDIT_STEPS=str(steps))
    count = int(steps.read_text().split()[-1])
    jump = 1 if long else 13
    crashed = 0
    for at in range(1 + seed % jump, count + 1, jump):  # each on a run of its own, then resumed on it
        shutil.rmtree(root, ignore_errors=True)
        done = serially(work, job, root, AUDIT_CRASH_AT=str(at))
        crashed += 1
        found.add(kills=done.returncode == -signal.SIGKILL)
        run_serially(load_job(job), root, 8)
        compare(found, Run(root), rows)
        found.add(bad_snapshots=len(verify(Store(root))), orphans=len(collect(Store(root), -10.0)))
    found.seen = f"{found.kills} crash points of {count}, {found.orphans} orphans left, all collectable"
    found.ok = crashed > 5 and found.kills == crashed and whole(found)
    return found


def f07(folder: Path, seed: int, long: bool) -> Found:
    """A worker is stopped with all of a unit written but its record; another does the unit; then the first goes on."""
    found = Found(
        "F07", "SIGSTOP of a worker before it creates a record, SIGCONT after a second commit", "0 duplicates"
    )
    work = Workload(folder)
    _, rows = clean(work)
    job, late = work.job("clean"), folder / "runs" / "late"
    zombie = begun(work, job, late, AUDIT_STOP_AT_COMMIT="5")
    while psutil.Process(zombie.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    before = set(Store(late).names("commits"))
    run_serially(load_job(job), late, 8)
    orphan = collect(Store(late), -10.0)
    os.kill(zombie.pid, signal.SIGCONT)
    code = zombie.wait()
    compare(found, Run(late), rows)
    found.bad_snapshots = len(verify(Store(late)))
    found.orphans = len(collect(Store(late), -10.0))
    found.seen = f"{len(before)} commits when it stopped with {len(orphan)} files of its own; {found.orphans} after"
    found.ok = code == 0 and len(before) == 4 and len(orphan) >= 2 and found.orphans == 0
    found.ok = found.ok and whole(found)
    return found


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """A resource limit of this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def refused(action: Callable[[], object]) -> str:
    """The message of the StoreError or RowError that an action ends with, '' where it does not."""
    try:
        action()
    except (StoreError, RowError) as error:
        return str(error)
    return ""


def some_rows(count: int, size: int = 1) -> dict[str, list[dict[str, object]]]:
    return {
        "measurements": [{"subject_id": os.urandom(size).hex(), "name": "n", "value": float(i)} for i in range(count)]
    }


def f13(folder: Path, seed: int, long: bool) -> Found:
    """A file-size limit stands for a full disk: the same write fails half-way, in data, in a record, in the log."""
    found = Found(
        "F13", "disk full while data, record or log are written", "nothing partial visible, resume after space"
    )
    store = Store(folder / "run")
    store.create("job.json", b"{}")
    store.objects.replace(LIVE, b"the log before")
    said = []
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit, error in ((2000, ""), (4000, "x" * 5000)):  # the data; then a record with a long error
        with limited(resource.RLIMIT_FSIZE, limit):
            said.append(refused(partial(store.commit, "u", "1-x", some_rows(1 if error else 200, 32), error=error)))
    with limited(resource.RLIMIT_FSIZE, 4000):
        said.append(refused(partial(store.objects.replace, LIVE, b"x" * 5000)))
    hit = "/data/" in said[0] and "/commits/" in said[1] and LIVE in said[2]
    left = sorted(path.name for path in (folder / "run").rglob(".*"))
    visible, log = _measurements(store), store.read(LIVE)
    committed = store.commit("u", "1-x", some_rows(200))
    after = _measurements(store)
    found.lost, found.duplicates = max(200 - after, 0), visible + max(after - 200, 0)
    found.bad_snapshots = len(verify(store))
    found.seen = f"{sum('cannot write' in message for message in said)} of 3 writes refused by name, then {after} rows"
    found.ok = hit and all("cannot write" in m for m in said) and not left and log == b"the log before"
    found.ok = found.ok and visible == 0 and committed and whole(found)
    return found


def _measurements(store: Store) -> int:
    return int(Run(store.location).rows("select count(*) as n from measurements")[0]["n"])


class Failing:
    """Stands before the objects of a store and fails: `times` calls in a row with `number`, then no more."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times, self.seen = number, times, 0
        self.real = os.fsync

    def __call__(self, handle: int) -> None:
        self.seen += 1
        if self.times > 0:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number))
        self.real(handle)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, where this process has them: to root, no folder is closed."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def f14(folder: Path, seed: int, long: bool) -> Found:
    """The disk's answers are those of a wrapper around fsync; the closed folder and file are real."""
    found = Found("F14", "EIO twice, EIO for ever, EROFS; chmod of the run, of a record", "bounded retry, clear error")
    outcomes = {}
    for name, number, times in (
        ("passing", errno.EIO, 2),
        ("lasting", errno.EIO, 10**6),
        ("read-only", errno.EROFS, 10**6),
    ):
        store, failing = Store(folder / name), Failing(number, times)
        os.fsync = failing  # type: ignore[assignment]
        try:
            message = refused(partial(store.commit, "u", "1-x", some_rows(3)))
        finally:
            os.fsync = failing.real
        outcomes[name] = (message, failing.seen, len(store.names("commits")))
    closed, others = _closed(found, folder)
    found.seen = "; ".join(f"{name}: {seen} tries, {m[:60] or 'committed'}" for name, (m, seen, _) in outcomes.items())
    found.seen += "; " + "; ".join(f"{name}: {message.rpartition('/')[2]}" for name, message in closed.items())
    found.ok = (
        outcomes["passing"][0] == ""
        and outcomes["passing"][2] == 1
        and "Input/output error" in outcomes["lasting"][0]
        and outcomes["lasting"][1] == 4
        and "Read-only file system" in outcomes["read-only"][0]
        and outcomes["read-only"][1] == 1
        and not outcomes["lasting"][2] + outcomes["read-only"][2]
        and all("cannot " in message and "Permission denied" in message for message in closed.values())
        and others
        and whole(found)
    )
    return found


def _closed(found: Found, folder: Path) -> tuple[dict[str, str], bool]:
    """What is said of a run whose folder, and of one whose record, is closed to its owner; whether nothing of the first
    attempt stayed, and nothing was tried again."""
    root = folder / "closed"
    store, said = Store(root), {}
    store.create("job.json", b"{}")
    folder.chmod(0o755)
    for path in (root, root / "job.json"):
        os.chown(path, NOBODY, -1) if os.geteuid() == 0 else None
    with unprivileged(), patch.object(time, "sleep") as pauses:
        root.chmod(0o555)
        said["folder"] = refused(partial(store.commit, "u", "1-x", some_rows(3)))
        root.chmod(0o755)
        nothing = sorted(path.name for path in root.rglob("*")) == ["job.json"]
        committed = store.commit("u", "1-x", some_rows(3))
        record = root / "commits" / "u.json"
        record.chmod(0)
        said["record"] = refused(partial(Run, root))
        said["record, verified"] = " ".join(damage.what for damage in verify(store)) or "nothing found"
        record.chmod(0o644)
    after = _measurements(store)
    found.lost, found.duplicates = max(3 - after, 0), max(after - 3, 0)
    return said, nothing and committed and not pauses.called


class Dated(LocalObjects):
    """A file system whose own clock is wrong by so many seconds: it dates what it is given then."""

    def __init__(self, root: Path, skew: float) -> None:
        super().__init__(root)
        self.skew = skew

    def create(self, key: str, data: bytes) -> bool:
        made = super().create(key, data)
        if made:
            redate(self.root / key, self.skew)
        return made


def redate(path: Path, skew: float) -> None:
    """Date a file, if it is there, so many seconds from now."""
    if path.exists():
        os.utime(path, (time.time() + skew,) * 2)


DAY = 86400.0


def f22(folder: Path, seed: int, long: bool) -> Found:
    """The clock of the machine that collects is wrong; then the store's; then the dates of some files alone."""
    found = Found(
        "F22", "clock of the machine, of the store, dates of files: a day ahead, a day behind", "no live file collected"
    )
    root, rows = clean(Workload(folder))
    store, live = Store(root), root / "data" / "items" / "alive-0.parquet"
    counts: dict[str, list[int]] = {}
    for skew in (DAY, -DAY):
        live.write_bytes(b"of a unit that is being done")
        real, time.time = time.time, partial(_skewed, time.time, skew)
        try:
            counts[f"machine {skew:+.0f}"] = [len(collect(store, 3600, delete=True)), len(collect(store, -10.0))]
        finally:
            time.time = real
        for path in (live, *(path for path in root.rglob("*") if path.is_file())):
            redate(path, skew)
        store.objects = Dated(root, skew)
        counts[f"store {skew:+.0f}"] = [len(collect(store, 3600, delete=True)), len(collect(store, -10.0))]
        store.objects = LocalObjects(root)
        counts[f"files {skew:+.0f}"] = [len(collect(store, 3600, delete=True)), live.exists()]
        compare(found, Run(root), rows)
    found.bad_snapshots = len(verify(store))
    found.seen = f"(collected if older than an hour, of any age) of an unfinished unit and the run: {counts}"
    still, old = [0, 1], [1, 0]  # a file that its right store says is a day old is nobody's
    found.ok = whole(found) and counts == {
        "machine +86400": still, "store +86400": still, "files +86400": still,
        "machine -86400": still, "store -86400": still, "files -86400": old,
    }  # fmt: skip
    return found


def _skewed(clock: Callable[[], float], skew: float) -> float:
    return clock() + skew


def f23(folder: Path, seed: int, long: bool) -> Found:
    """Compactions are killed at every step while a reader with an older view goes on reading."""
    found = Found("F23", "SIGKILL at every step of a compaction, readers at work", "readers unharmed", seed=seed)
    root, rows = clean(Workload(folder))
    script = f"from pathlib import Path; from audit.results.store import Store; from audit.results.compaction import \
compact; compact(Store(Path({str(root)!r})), 4)"
    reader, at = Run(root), 0
    while True:
        at += 1 if long else 2
        environment = {**os.environ, "PYTHONPATH": INJECTED, "AUDIT_CRASH_AT": str(at)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
        for run in (reader, Run(root)):
            found.add(bad_snapshots=not compare(found, run, rows))
        if done.returncode != -signal.SIGKILL:
            break
        found.add(kills=1)
    compare(found, Run(root), rows)
    merged = len(Store(root).files("predictions", Store(root).commits().values()))
    found.orphans = len(collect(Store(root), -10.0))
    found.seen = f"{found.kills} crash points, predictions in {merged} files afterwards, {found.orphans} collectable"
    found.ok = (found.kills or 0) > 2 and merged == 1 and whole(found)
    return found


def f24(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F24", "columns added since, a column of another type", "NULL; refused at commit")
    root, rows = clean(Workload(folder))
    store = Store(root)
    commit = next(commit for commit in store.commits().values() if "predictions" in commit.files)
    path = root / commit.files["predictions"].path
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.drop_columns(["correct", "top_classes"]), path)
    old = Run(root).rows("select count(*) as n, count(correct) as c from predictions")[0]
    count = sum(1 for row in rows.elements() if row.startswith("predictions"))
    bad: list[dict[str, object]] = [{"item_id": "a", "confidence": "high"}, {"item_id": 7}]
    before = sorted(root.rglob("*"))
    said = [refused(partial(store.commit, "u", "1-screen", {"predictions": [row]})) for row in bad]
    nothing = sorted(root.rglob("*")) == before
    found.seen = f"{old['n']} rows, {old['n'] - old['c']} NULL; refused without a trace {nothing}: {said[0][:60]}"
    found.lost, found.duplicates = max(count - old["n"], 0), max(old["n"] - count, 0)
    found.ok = old["n"] - old["c"] == table.num_rows > 0 and all(said) and nothing and whole(found)
    return found


def f40(folder: Path, seed: int, long: bool) -> Found:
    """All descriptors of a process are taken when it commits; then the command itself may have no more than 128."""
    found = Found("F40", "128 file descriptors, all taken; the command under ulimit -n 128", "clear error, no loss")
    store = Store(folder / "run")
    store.create("job.json", b"{}")
    store.commit("before", "1-x", some_rows(3))  # what a process imports at its first commit is there
    taken = []
    with limited(resource.RLIMIT_NOFILE, 128):
        try:
            while True:
                taken.append(open(os.devnull))
        except OSError:
            pass
        said = refused(lambda: store.commit("u", "1-x", some_rows(3)))
        for file in taken:
            file.close()
    committed = store.commit("u", "1-x", some_rows(3))
    after = _measurements(store)
    found.lost, found.duplicates = max(6 - after, 0), max(after - 6, 0)
    told, fine = _under_ulimit(found, Workload(folder / "command"), (128, 32) if long else (128,))
    found.seen = f"{said[-60:]}; then {after} rows; the command: {told}"
    found.ok = "Too many open files" in said and committed and fine and whole(found)
    return found


def _under_ulimit(found: Found, work: Workload, limits: tuple[int, ...]) -> tuple[list[str], bool]:
    """The command with so few descriptors does its work, or says in an error that they are too few; then without."""
    root, rows = clean(work)
    job, told, fine = work.job("clean"), [], True
    for limit in limits:
        shutil.rmtree(root, ignore_errors=True)
        command = ["bash", "-c", f'ulimit -n {limit} && exec "$@"', "bash", *work.command("run", str(job))]
        done = subprocess.run(
            command, cwd=work.folder, env=work.environment(), capture_output=True, text=True, check=False, timeout=300
        )
        words = done.stderr.lower()
        clear = done.returncode == 4 and "error:" in words and "descriptor" in words
        fine = fine and "traceback" not in words and (clear or done.returncode == 0)
        told.append(f"{limit}: exit {done.returncode}")
        if done.returncode:
            again = work.audit("run", str(job))
            told[-1] += f", without the limit {again.returncode}"
        compare(found, Run(root), rows)
    return told, fine


FAULTS = {
    "F01": f01,
    "F07": f07,
    "F13": f13,
    "F14": f14,
    "F22": f22,
    "F23": f23,
    "F24": f24,
    "F40": f40,
}
