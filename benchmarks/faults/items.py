"""Faults of single images, of devices and of pace; and what must not matter: how many workers, which batch, when."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from pathlib import Path

from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.export import export
from benchmarks.faults.harness import events, filled, on_ray, quick
from benchmarks.faults.protocol import clean, expected_rows
from benchmarks.faults.workload import Found, Workload, compare, numbers_of, rows_of, whole
from pipelines.units import plan_of

# What an image does, and what its row must say of it.
BAD = {
    3: ("raises", r"gave_up: ValueError: image 3 cannot be looked at \(injected\)"),
    9: ("aborts", r"gave_up: the worker died: .+"),
    17: ("hangs", r"gave_up: no end after \d+ s, its worker was taken to hang"),
    22: ("memory", r"gave_up: RuntimeError: .*can't allocate memory.*"),
    28: ("killed", r"gave_up: the worker died: .+"),
}


def f25(folder: Path, seed: int, long: bool) -> Found:
    """Images that nobody survives, each in a unit with others. Memory is taken up to a limit of the process, which then
    has an error, or is killed as it would be by the kernel."""
    found = Found(
        "F25",
        "items that raise, abort, hang, take all memory",
        "quarantined with reason after k tries, others as ever",
    )
    work = Workload(folder, images=32, unit_items=4 if long else 2)
    root, rows = clean(work)
    ids = numbers_of(Run(root))
    shutil.rmtree(root)
    before = work.executions()
    work.misbehave(items={str(number): what for number, (what, _) in BAD.items()})
    began = time.monotonic()
    job = work.job("clean", deadline_minutes=0.2)
    _, error = on_ray(work, job, root)
    found.recovery_seconds = time.monotonic() - began
    filled(found, work, root, None, before)
    compare(found, Run(root), rows, but=[ids[number] for number in BAD], without=("units",))
    failed = Run(root).rows("select item_id, reason from predictions where status <> 'ok'")
    reasons = {number: [row["reason"] for row in failed if row["item_id"] == item] for number, item in ids.items()}
    right = [len(reasons[n]) == 1 and re.fullmatch(said, reasons[n][0]) is not None for n, (_, said) in BAD.items()]
    units = Run(root).rows("select unit_id, attempt, items from units where status <> 'ok'")
    tries = Counter(line["unit_id"] for line in events(work, "unit_failed"))
    alone = [row for row in units if row["items"] == 1 and row["attempt"] == 2 == tries[row["unit_id"]]]
    found.seen = "; ".join(f"{what}: {reasons[n][:1]}"[:70] for n, (what, _) in BAD.items())
    found.seen += f"; {len(alone)} units of one image given up after 2 tries; {error}"
    found.ok = not error and all(right) and len(failed) == len(units) == len(alone) == len(BAD) and whole(found)
    return found


def f26(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F26", "every item of the data set is broken", "job ends failed: share above the limit, exit code 5")
    work = Workload(folder, images=32)
    for path in (folder / "data").rglob("*.png"):
        path.write_bytes(b"no image")
    root, before = folder / "runs" / "clean", work.executions()
    done = work.audit("run", str(work.job("clean")))
    items = Run(root).rows("select status, reason, count(*) as n from items group by all")
    found.executions = work.executions() - before
    words = " ".join(done.stderr.split())
    message = words[words.rfind("stopped:") :]
    found.seen = f"exit {done.returncode}, {message[:90]!r}; {[tuple(row.values()) for row in items]}"
    found.ok = (
        done.returncode == 5
        and "32 of 32 items cannot be used, more than compute.max_quarantined" in message
        and "Traceback" not in done.stderr
        and items == [{"status": "quarantined", "reason": "unidentified", "n": 32}]
        and found.executions == 0
        and not Run(root).rows("select 1 from predictions")
    )
    return found


def f27(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F27", "NaN from the model for one item of a batch", "only this item flagged, others equal")
    work = Workload(folder, images=32)
    root, rows = clean(work)
    bad = numbers_of(Run(root))[5]
    shutil.rmtree(root)
    before = work.executions()
    work.misbehave(items={"5": "nan"})
    _, error = on_ray(work, work.job("clean"), root)
    filled(found, work, root, None, before)
    compare(found, Run(root), rows, but=[bad])
    failed = Run(root).rows("select item_id, reason from predictions where status <> 'ok'")
    found.seen = f"{[row['reason'] for row in failed]}; {error}"
    found.ok = not error and failed == [{"item_id": bad, "reason": "not_finite"}] and whole(found)
    return found


def f28(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F28", "OutOfMemoryError above a batch of 2", "halves, same results")
    work = Workload(folder, images=32, unit_items=8)
    root, rows = expected_rows(work)
    before = work.executions()
    work.misbehave(most=2)
    runner, error = on_ray(work, work.job("clean"), root)
    filled(found, work, root, rows, before)
    calls = [len(call.numbers) for call in work.calls()[before:]]
    inventory = plan_of(Store(root), "0-inventory")
    found.executions = runner.executions - (inventory.units if inventory else 0)
    found.seen = f"calls of the model by batch: {dict(sorted(Counter(calls).items()))}; {error}"
    found.ok = (
        not error
        and max(calls) == 8
        and sum(size for size in calls if size <= 2) == work.images
        and found.executions == found.tasks
        and not events(work, "unit_failed")
        and whole(found)
    )
    return found


def f29(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F29", "a CUDA error in the only worker", "actor replaced, not retried in process")
    work = Workload(folder, images=32)
    root, rows = expected_rows(work)
    before = work.executions()
    work.misbehave(device_lost=True)
    _, error = on_ray(work, work.job("clean", workers=1), root)
    filled(found, work, root, rows, before)
    failed = [line["error"].strip().splitlines()[-1] for line in events(work, "unit_failed")]
    broken = int((folder / "lost").read_text())
    pids = [call.pid for call in work.calls()[before:]]
    replaced = pids.count(broken) == 1 and pids[0] == broken and len(set(pids)) == 2  # one worker at a time
    found.seen = f"{failed}; {len(set(pids))} processes, the broken one called {pids.count(broken)} times; {error}"
    found.ok = not error and len(failed) == 1 and "illegal memory access" in failed[0]
    found.ok = found.ok and replaced and whole(found)
    return found


def f30(folder: Path, seed: int, long: bool) -> Found:
    """One call is a hundred times slower than the others."""
    found = Found("F30", "straggler: one call takes 30 s, others .2 s", "second copy, one commit")
    work = Workload(folder, images=24)
    root, rows = expected_rows(work)
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
    """Of screening; `benchmarks.equality` compares the searches of 1 worker in batches of 1 with those of 4 in 8."""
    found = Found("F34", "1 worker with batch 1 against 2 with batch 3 and 4 with batch 8", "same rows")
    work = Workload(folder, images=64, unit_items=8)
    _, rows = clean(work)
    work.misbehave(pause=0.2)
    told = []
    for workers, batch in ((1, 1), (2, 3), (4, 8)):
        root = folder / f"by-{workers}" / "clean"
        on_ray(work, work.job("clean", workers=workers, batch_size=batch), root)
        compare(found, Run(root), rows)
        told.append(Run(root).rows("select count(distinct worker) as n from units where stage = '1-screen'")[0]["n"])
    found.seen = f"by {told} workers, compared with a serial run row by row"
    found.ok = told == [1, 2, 4] and whole(found)
    return found


SEARCH = """
version: 1
name: clean
seed: 1
data: {source: folder, path: labelled}
pool: {source: parquet, path: pool}
models:
  - {id: reference, loader: hf, ref: "zoo:reference"}
  - {id: shortcut-a, loader: hf, ref: "zoo:shortcut-a"}
embedder: {loader: clip, ref: "zoo:clip"}
generator: {loader: diffusers, ref: "zoo:diffusion", steps: 3, guidance_scale: 4.0}
stages:
  - {kind: screen, unit_items: 20}
  - {kind: adequacy, samples: 2, threshold: 0.0, classes: [crab]}
  - {kind: disagreement, maximise: shortcut-a, minimise: reference, classes: [crab], seeds: 4, unit_seeds: 2,
     preset: embedded, steps: 2, cutouts: 2, start: others}
compute: {workers: 2, batch_size: 4}
"""


def f35(folder: Path, seed: int, long: bool) -> Found:
    """A screening twice on Ray; in the long set a search by diffusion too, which takes minutes."""
    found = Found("F35", "the same job twice" + (", the same search twice" if long else ""), "equal")
    screening, search = Workload(folder / "screening"), Workload(folder / "search")
    jobs = [(screening, screening.job("clean")), *([(search, _search(folder / "search"))] if long else [])]
    counts, searches, failed = [], [], []
    for work, job in jobs:
        roots = [work.folder / name / "clean" for name in ("once", "again")]
        failed += [on_ray(work, job, root)[1] for root in roots]
        rows = rows_of(Run(roots[0]))
        compare(found, Run(roots[1]), rows)
        counts.append(sum(rows.values()))
        searches.append(sum(1 for row in rows if row.startswith("explanations ")))
    found.seen = f"{counts} rows compared, of {searches} searches; {[error for error in failed if error]}"
    found.ok = not any(failed) and searches == [0, 4][: len(jobs)] and min(counts) > 40 and whole(found)
    return found


def _search(folder: Path) -> Path:
    """The job file of a small search in the embedded world, with its data."""
    export("labelled", folder / "labelled", "folder", 40)
    export("pool", folder / "pool", "parquet", 40)
    file = folder / "search.yaml"
    file.write_text(SEARCH)
    return file


FAULTS = {"F25": f25, "F26": f26, "F27": f27, "F28": f28, "F29": f29, "F30": f30, "F34": f34, "F35": f35}
