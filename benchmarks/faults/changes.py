"""What is changed between two calls of one job: its file, its weights, its code, its data."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from audit.config import load_job
from audit.errors import ConfigError
from audit.methods import screen
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.harness import filled
from benchmarks.faults.protocol import clean, expected_rows
from benchmarks.faults.workload import Found, Workload, compare, wait_for_commits, whole
from pipelines.plan import open_or_create


def f10(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F10", "job file edited between two runs", "refused, field-by-field difference")
    work = Workload(folder)
    root, rows = clean(work)
    before, job = work.executions(), work.job("clean")
    text = job.read_text()
    job.write_text(text.replace("input_size: 8", "input_size: 6").replace("unit_items: 4", "unit_items: 5"))
    done = work.audit("run", str(job))
    told = [line.strip() for line in done.stderr.splitlines() if " -> " in line]
    offered = "--new-run" in done.stderr
    job.write_text(text)
    same = work.audit("run", str(job))  # the old values resume it
    filled(found, work, root, rows, before)
    found.seen = f"exit {done.returncode}: {told}; with the old values exit {same.returncode}"
    found.ok = (
        done.returncode == 2
        and sorted(told) == ["job.models.m.input_size: 8 -> 6", "job.stages[0].unit_items: 4 -> 5"]
        and offered
        and same.returncode == 0
        and found.executions == 0
        and whole(found)
    )
    return found


def f11(folder: Path, seed: int, long: bool) -> Found:
    """A byte of the weights' file changes; a byte of the model's code; then a method's version is raised."""
    found = Found(
        "F11", "a byte flipped in weights, in a model's code; version of a method raised", "refused, new run offered"
    )
    work = Workload(folder)
    root, rows = clean(work)
    before, job = work.executions(), work.job("clean")
    said = []
    code = folder / "model.py"
    for path, place in ((work.weights, -4), (code, code.read_bytes().index(b"Calls an"))):
        whole_file = path.read_bytes()
        path.write_bytes(_flipped(whole_file, place))
        done = work.audit("run", str(job))
        said.append(done.returncode == 2 and "digests.model m: " in done.stderr and "--new-run" in done.stderr)
        path.write_bytes(whole_file)
    screen.VERSION += 1
    try:
        raised = _refused(partial(open_or_create, load_job(job), root))
    finally:
        screen.VERSION -= 1
    said.append("code.methods.screen: " in raised and "--new-run" in raised)
    compare(found, Run(root), rows)
    touched = work.executions() - before
    work.weights.write_bytes(_flipped(work.weights.read_bytes(), -4))  # the last bit of 255.0: rows stay, rounded
    new = work.audit("run", str(job), "--new-run")
    other = root.with_name("clean-2")
    same = other.exists() and compare(found, Run(other), rows, without=("units",))  # whose ids follow the weights
    found.seen = f"refused: {said}; nothing was done: {not touched}; with --new-run exit {new.returncode}"
    found.ok = all(said) and not touched and new.returncode == 0 and same and whole(found)
    return found


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def _refused(action: partial[dict[str, str]]) -> str:
    try:
        action()
    except ConfigError as error:
        return str(error)
    return ""


def f12(folder: Path, seed: int, long: bool) -> Found:
    """After the inventory one file is replaced, one added and one removed."""
    found = Found("F12", "files replaced, added, removed after the inventory", "named; changed item quarantined")
    work = Workload(folder, images=24)
    root, rows = expected_rows(work)
    before, job = work.executions(), work.job("clean")
    work.misbehave(pause=3.0)
    driver = work.start("run", str(job))
    store = Store(root)
    wait_for_commits(store, 3, driver)
    driver.terminate()
    code = driver.wait()
    data = folder / "data" / "bright"
    names = sorted(data.iterdir())
    replaced, removed = names[-1], names[-2]
    replaced.write_bytes(names[0].read_bytes())
    shutil.copy(names[0], data / "added.png")
    removed.unlink()
    work.misbehave()
    again = work.audit("run", str(job))
    failed = Run(root).rows(
        "select display_name as name, item_id, p.reason from predictions p join items i using (item_id) "
        "where p.status <> 'ok' order by 1"
    )
    expected = [(f"bright/{path.name}", "changed_since_inventory") for path in (removed, replaced)]
    filled(found, work, root, None, before)
    compare(found, Run(root), rows, but={row["item_id"] for row in failed})
    named = "bright/added.png added" in again.stderr and f"bright/{removed.name} gone" in again.stderr
    found.seen = (
        f"stopped with {code}; exit {again.returncode}; named {named}; {[tuple(r.values())[::2] for r in failed]}"
    )
    found.ok = (
        code == 143
        and named
        and [(row["name"], row["reason"]) for row in failed] == expected
        and again.returncode == 3
        and whole(found)
    )
    return found


FAULTS = {"F10": f10, "F11": f11, "F12": f12}
