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

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from audit.config import load_job
from audit.errors import RowError, StoreError
from audit.results.compaction import compact
from audit.results.integrity import collect, repair, verify
from audit.results.schema import to_table
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.workload import ROOT, Found, Workload, compare, rows_of
from pipelines.serial import run_serially

SERIAL = "import sys; from pathlib import Path; from audit.config import load_job; from pipelines.serial import \
run_serially; run_serially(load_job(Path(sys.argv[1])), Path(sys.argv[2]), 8)"


INJECTED = f"{ROOT / 'benchmarks' / 'faults' / 'injected'}{os.pathsep}{ROOT}"


def clean(work: Workload, name: str = "clean") -> tuple[Path, Counter[str]]:
    """A run without faults: its folder and rows."""
    job = work.job(name)
    root = work.folder / "runs" / name
    run_serially(load_job(job), root, 8)
    return root, rows_of(Run(root))


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


def f01(folder: Path, seed: int, long: bool) -> Found:
    """One process after the other is killed at its 1st, 2nd, ... step of writing, all on one run, until one ends."""
    found = Found("F01", "SIGKILL before every step of the protocol", "rows = clean run", seed=seed)
    work = Workload(folder, images=12 if long else 8, unit_items=4)
    _, rows = clean(work)
    job, root = work.job("clean"), folder / "runs" / "killed"
    steps = folder / "steps.log"
    whole = folder / "runs" / "counted"
    serially(work, job, whole, AUDIT_STEPS=str(steps))
    count = int(steps.read_text().split()[-1])
    jump = 1 if long else 9
    for at in range(1 + seed % jump, count + 1, jump):  # each on a run of its own, then resumed on it
        shutil.rmtree(root, ignore_errors=True)
        done = serially(work, job, root, AUDIT_CRASH_AT=str(at))
        found.kills += done.returncode == -signal.SIGKILL
        run_serially(load_job(job), root, 8)
        mine = Found("", "", "")
        compare(mine, Run(root), rows)
        found.lost += mine.lost
        found.duplicates += mine.duplicates
        found.bad_snapshots += len(verify(Store(root)))
        found.orphans += len(collect(Store(root), -10.0))
    found.seen = f"{found.kills} crash points of {count}, {found.orphans} orphans left, all collectable"
    found.ok = found.kills >= (count // jump) - 1 and found.lost == found.duplicates == found.bad_snapshots == 0
    return found


def f07(folder: Path, seed: int, long: bool) -> Found:
    """A worker is stopped with all of a unit written but its record; another does the unit; then the first goes on."""
    found = Found(
        "F07", "SIGSTOP of a worker before it creates a record, SIGCONT after a second commit", "0 duplicates"
    )
    work = Workload(folder)
    _, rows = clean(work)
    job, late = work.job("clean"), folder / "runs" / "late"
    command = [sys.executable, "-c", SERIAL, str(job), str(late)]
    environment = work.environment(AUDIT_STOP_AT_COMMIT="5", PYTHONPATH=INJECTED)
    zombie = subprocess.Popen(command, cwd=folder, env=environment)
    while psutil.Process(zombie.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    before = set(Store(late).names("commits"))
    run_serially(load_job(job), late, 8)
    orphan = collect(Store(late), -10.0)
    os.kill(zombie.pid, signal.SIGCONT)
    code = zombie.wait()
    compare(found, Run(late), rows)
    found.kills, found.bad_snapshots = 1, len(verify(Store(late)))
    found.orphans = len(collect(Store(late), -10.0))
    found.seen = f"{len(before)} commits when it stopped with {len(orphan)} files of its own; {found.orphans} after"
    found.ok = code == 0 and len(before) == 4 and len(orphan) >= 2 and found.orphans == 0
    found.ok = found.ok and found.lost == found.duplicates == found.bad_snapshots == 0
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


def _rows(count: int, size: int = 1) -> dict[str, list[dict[str, object]]]:
    return {
        "measurements": [{"subject_id": os.urandom(size).hex(), "name": "n", "value": float(i)} for i in range(count)]
    }


def f13(folder: Path, seed: int, long: bool) -> Found:
    """A file-size limit stands for a full disk: the same write fails half-way, in data and in record."""
    found = Found("F13", "disk full while data or record are written", "nothing partial visible, resume after space")
    store = Store(folder / "run")
    store.create("job.json", b"{}")
    said = []
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit, error in ((2000, ""), (4000, "x" * 5000)):  # the data; then a record with a long error
        with limited(resource.RLIMIT_FSIZE, limit):
            said.append(refused(partial(store.commit, "u", "1-x", _rows(1 if error else 200, 32), error=error)))
    hit = "/data/" in said[0] and "/commits/" in said[1]
    visible = Run(store.location).rows("select count(*) as n from measurements")[0]["n"]
    committed = store.commit("u", "1-x", _rows(200))
    after = Run(store.location).rows("select count(*) as n from measurements")[0]["n"]
    found.lost, found.duplicates = 200 - min(after, 200), visible
    found.seen = f"{sum('cannot write' in message for message in said)} of 2 writes refused by name, then {after} rows"
    found.ok = hit and all("cannot write" in m for m in said) and visible == 0 and committed and after == 200
    return found


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


def f14(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F14", "EIO twice, EIO for ever, EROFS", "bounded retry, clear error")
    outcomes = {}
    for name, number, times in (
        ("passing", errno.EIO, 2),
        ("lasting", errno.EIO, 10**6),
        ("read-only", errno.EROFS, 10**6),
    ):
        store, failing = Store(folder / name), Failing(number, times)
        os.fsync = failing  # type: ignore[assignment]
        try:
            message = refused(partial(store.commit, "u", "1-x", _rows(3)))
        finally:
            os.fsync = failing.real
        outcomes[name] = (message, failing.seen, len(store.names("commits")))
    found.seen = "; ".join(f"{name}: {seen} tries, {m[:60] or 'committed'}" for name, (m, seen, _) in outcomes.items())
    found.ok = (
        outcomes["passing"][0] == ""
        and outcomes["passing"][2] == 1
        and "Input/output error" in outcomes["lasting"][0]
        and outcomes["lasting"][1] == 4
        and "Read-only file system" in outcomes["read-only"][0]
        and outcomes["read-only"][1] == 1
        and not outcomes["lasting"][2] + outcomes["read-only"][2]
    )
    return found


def f15(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F15", "stray, truncated and empty files in data/", "invisible")
    root, rows = clean(Workload(folder))
    data = next((root / "data" / "predictions").glob("*.parquet")).read_bytes()
    (root / "data" / "predictions" / "stray-0.parquet").write_bytes(data)
    (root / "data" / "predictions" / "cut-0.parquet").write_bytes(data[: len(data) // 2])
    (root / "data" / "predictions" / "empty-0.parquet").touch()
    compare(found, Run(root), rows)
    found.orphans = len(collect(Store(root), -10.0))
    found.seen = f"{found.orphans} orphans named, tables unchanged"
    found.ok = found.orphans == 3 and found.lost == found.duplicates == 0 and verify(Store(root)) == []
    return found


def f16(folder: Path, seed: int, long: bool) -> Found:
    """Three files are cut short, flipped by a bit and deleted, before and after a compaction."""
    found = Found(
        "F16", "committed files cut, flipped, deleted; also merged ones", "verify names the units, repair redoes them"
    )
    work = Workload(folder)
    root, rows = clean(work)
    store, job = Store(root), work.job("clean")
    named, restored = [], []
    for merged in (False, True):
        if merged:
            compact(store, least=4)
        files = sorted(file.path for file in store.files("predictions", store.commits().values()))
        hurt = [files[(seed + i) % len(files)] for i in range(min(3, len(files)))]
        for path, how in zip(hurt, ("cut", "flip", "delete"), strict=False):
            _damage(root / path, how)
        damages = verify(store)
        named.append({damage.where for damage in damages} == {str(root / path) for path in hurt})
        repaired = repair(store)
        restored.append(len(repaired.restored))
        run_serially(load_job(job), root, 8)
        mine = Found("", "", "")
        compare(mine, Run(root), rows)
        found.lost, found.duplicates = found.lost + mine.lost, found.duplicates + mine.duplicates
        found.bad_snapshots += len(verify(store))
    found.seen = f"named exactly: {named}; restored from files before the merge: {restored[1]} units"
    found.ok = all(named) and restored[1] > 0 and found.lost == found.duplicates == found.bad_snapshots == 0
    return found


def _damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flip":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])


def f17(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F17", "half-written commit record and snapshot", "error names it, no silence; repair mends")
    work = Workload(folder)
    root, rows = clean(work)
    store, job = Store(root), work.job("clean")
    record = root / "commits" / sorted(store.names("commits"))[0]
    record.write_bytes(record.read_bytes()[:40])
    said = [refused(lambda: Run(root))]
    repair(store)
    run_serially(load_job(job), root, 8)
    store.snapshot()
    snapshot = root / "snapshots" / store.names("snapshots")[-1]
    snapshot.write_bytes(snapshot.read_bytes()[:40])
    said.append(refused(lambda: Run(root)))
    repair(store)
    run_serially(load_job(job), root, 8)
    compare(found, Run(root), rows)
    found.bad_snapshots = len(verify(store))
    found.seen = "; ".join(message.rpartition("/")[2][:60] for message in said)
    found.ok = (
        record.name in said[0]
        and snapshot.name in said[1]
        and found.lost == found.duplicates == found.bad_snapshots == 0
    )
    return found


def f22(folder: Path, seed: int, long: bool) -> Found:
    """The clock of the machine that collects is wrong; the store's is not."""
    found = Found("F22", "clock one day ahead, one day behind", "no live file collected, age by the store's clock")
    root, rows = clean(Workload(folder))
    store = Store(root)
    stray = root / "data" / "items" / "stray-0.parquet"
    stray.write_bytes(b"x")
    counts, real = [], time.time
    for skew in (86400.0, -86400.0):
        time.time = partial(_skewed, real, skew)
        try:
            counts.append((len(collect(store, 3600, delete=True)), len(collect(store, -10.0))))
        finally:
            time.time = real
    compare(found, Run(root), rows)
    found.orphans = 1
    found.seen = f"(older than an hour, of any age): {counts}"
    found.ok = counts == [(0, 1), (0, 1)] and found.lost == found.duplicates == 0 and stray.exists()
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
            mine = Found("", "", "")
            found.bad_snapshots += not compare(mine, run, rows)
        if done.returncode != -signal.SIGKILL:
            break
        found.kills += 1
    compare(found, Run(root), rows)
    merged = len(Store(root).files("predictions", Store(root).commits().values()))
    found.orphans = len(collect(Store(root), -10.0))
    found.seen = f"{found.kills} crash points, predictions in {merged} files afterwards, {found.orphans} collectable"
    found.ok = found.kills > 2 and not found.bad_snapshots and found.lost == found.duplicates == 0
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
    said = refused(lambda: to_table("predictions", [{"item_id": "a", "confidence": "high"}]))
    foreign = refused(lambda: store.write("x", "predictions", to_table("predictions", [{"item_id": 7}])))
    found.seen = f"{old['n']} rows, {old['n'] - old['c']} NULL; type refused: {said[:60]}"
    found.lost = count - old["n"]
    found.ok = old["n"] == count and old["n"] - old["c"] == table.num_rows and bool(said) and bool(foreign)
    assert isinstance(table, pa.Table)
    return found


def f40(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F40", "128 file descriptors, all taken", "clear error, no loss")
    store = Store(folder / "run")
    store.create("job.json", b"{}")
    taken = []
    with limited(resource.RLIMIT_NOFILE, 128):
        try:
            while True:
                taken.append(open(os.devnull))
        except OSError:
            pass
        said = refused(lambda: store.commit("u", "1-x", _rows(3)))
        for file in taken:
            file.close()
    committed = store.commit("u", "1-x", _rows(3))
    after = Run(store.location).rows("select count(*) as n from measurements")[0]["n"]
    found.seen = f"{said[-60:]}; then {after} rows"
    found.lost = 3 - after
    found.ok = "Too many open files" in said and committed and after == 3
    return found


FAULTS = {
    "F01": f01,
    "F07": f07,
    "F13": f13,
    "F14": f14,
    "F15": f15,
    "F16": f16,
    "F17": f17,
    "F22": f22,
    "F23": f23,
    "F24": f24,
}
FAULTS["F40"] = f40
