"""Files of a run that were damaged where they lay, and what `verify` and `repair` make of them."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from audit.config import load_job
from audit.results.compaction import compact
from audit.results.integrity import Repair, collect, repair, verify
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.protocol import clean, refused
from benchmarks.faults.workload import Found, Workload, compare, whole
from pipelines.serial import run_serially
from pipelines.units import plan_of

HOW = ("cut", "flip", "delete")


def f15(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F15", "stray, truncated and empty files in data/", "invisible")
    root, rows = clean(Workload(folder))
    data = next((root / "data" / "predictions").glob("*.parquet")).read_bytes()
    (root / "data" / "predictions" / "stray-0.parquet").write_bytes(data)
    (root / "data" / "predictions" / "cut-0.parquet").write_bytes(data[: len(data) // 2])
    (root / "data" / "predictions" / "empty-0.parquet").touch()
    compare(found, Run(root), rows)
    found.orphans, found.bad_snapshots = len(collect(Store(root), -10.0)), len(verify(Store(root)))
    found.seen = f"{found.orphans} orphans named, tables unchanged"
    found.ok = found.orphans == 3 and whole(found)
    return found


def f16(folder: Path, seed: int, long: bool) -> Found:
    """Files are cut short, flipped by a bit and deleted: of single units; merged ones, with what they were merged from
    still there; and merged ones alone."""
    found = Found(
        "F16",
        "committed files cut, flipped, deleted; merged ones; merged ones with no older copy",
        "verify names exactly their units, repair redoes exactly them",
        seed=seed,
    )
    work = Workload(folder)
    root, rows = clean(work)
    store, job = Store(root), work.job("clean")
    before, told, fine = work.executions(), [], []

    def mended(hurt: dict[str, str], older: bool) -> int:
        """Damage files, by path and how; the units that were restored or done again, which must be theirs."""
        commits = store.commits()
        theirs = {unit for unit, commit in commits.items() if any(f.path in hurt for f in commit.files.values())}
        for path, how in hurt.items():
            _damage(root / path, how)
        damages = verify(store)
        named = {unit for damage in damages for unit in damage.units} == theirs
        fine.append(named and {damage.where for damage in damages} == {str(root / path) for path in hurt})
        repaired = repair(store)
        done = {summary.unit_id for summary in run_serially(load_job(job), root, 8)}
        expected = Repair(tuple(sorted(theirs)), ()) if older else Repair((), tuple(sorted(theirs)))
        fine.append(repaired == expected and done == set(expected.withdrawn))
        compare(found, Run(root), rows)
        found.add(bad_snapshots=len(verify(store)))
        return len(theirs)

    def files() -> list[str]:
        return sorted(file.path for file in store.files("predictions", store.commits().values()))

    single = files()
    told.append(mended({single[(seed + i) % len(single)]: how for i, how in enumerate(HOW)}, older=False))
    for how in HOW:
        compact(store, least=2)
        told.append(mended({files()[seed % len(files())]: how}, older=True))
    for how in HOW:
        compact(store, least=2)
        collect(store, -10.0, delete=True)
        told.append(mended({files()[seed % len(files())]: how}, older=False))
    found.tasks = told[0] + sum(told[4:])
    found.executions = work.executions() - before
    found.seen = (
        f"units of damaged files: {told}, named, restored and done again exactly: {fine.count(True)} of {len(fine)}"
    )
    found.ok = all(fine) and min(told) > 0 and min(told[1:]) > 3 and found.executions == found.tasks and whole(found)
    return found


def _damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flip":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])


def f17(folder: Path, seed: int, long: bool) -> Found:
    """Each kind of record is cut short: the next run says so and does nothing; after a repair it goes on."""
    found = Found(
        "F17", "half-written commit record, snapshot, plan, part of a plan", "error names it, no silence; repair mends"
    )
    work = Workload(folder)
    root, rows = clean(work)
    store, job = Store(root), work.job("clean")
    before, said, fine = work.executions(), [], []
    single = next(unit for unit, commit in sorted(store.commits().items()) if commit.stage == "1-screen")
    plan = plan_of(store, "1-screen")
    assert plan is not None
    for key in (f"commits/{single}.json", "plan/1-screen.json", plan.parts[0]["path"], "snapshot"):
        if key == "snapshot":
            store.snapshot()
            key = f"snapshots/{store.names('snapshots')[-1]}"
        path = root / key
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        named = [damage.where for damage in verify(store)]
        said.append(refused(partial(run_serially, load_job(job), root, 8)))
        repair(store)
        after = refused(partial(run_serially, load_job(job), root, 8))
        fine.append((key in said[-1], any(key in where for where in named) or key[:5] == "snaps", not after))
        if after:  # else all that follows fails of it too
            shutil.rmtree(root)
            clean(work)
    compare(found, Run(root), rows)
    found.executions, found.bad_snapshots = work.executions() - before, len(verify(store))
    words = ("commit", "plan", "part", "snapshot")
    found.seen = "; ".join(
        f"{word}: named {names}, verified {verified}, mended {mended}"
        for word, (names, verified, mended) in zip(words, fine, strict=True)
    )
    found.ok = all(all(one) for one in fine) and found.executions == 1 and whole(found)
    return found


FAULTS = {"F15": f15, "F16": f16, "F17": f17}
