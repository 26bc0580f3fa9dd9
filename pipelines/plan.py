"""What a run is: its place, its fingerprint, and what has changed since it was made."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from audit.config import Job, restored_job
from audit.errors import ConfigError, StoreError
from audit.labels.matching import DataClasses, classes_of
from audit.locations import Location, child, folders, is_uri, located, name_of, parent
from audit.methods import INVENTORY
from audit.models import digests, open_source
from audit.results.sql import Run
from audit.results.store import Store
from audit.stages.identity import decides, job_record, run_row, versions
from pipelines.units import entries_of

CHEAP = 100  # units of the inventory, of 1,000 images each, that are done again without being asked for


def run_place(job: Job, folder: Path) -> Location:
    """Where a job's run lives: <output.uri>/<name>, a folder relative to the working folder or a URI."""
    uri = job.output.uri
    return child(located(uri), job.name) if is_uri(uri) else folder / uri / job.name


def newest_of(job: Job, root: Location, found: dict[str, str]) -> Location:
    """The newest of <name>, <name>-2, ... that was made from this very job; <name> where none was."""
    asked = decides(job, found)
    for number in sorted(_numbers(root), reverse=True):
        existing = Store(_numbered(root, number)).read("job.json")
        if existing is not None and not differences(_before(existing, asked), asked):
            return _numbered(root, number)
    return root


def why_not_resumed(job: Job, root: Location, found: dict[str, str]) -> list[str]:
    """In words, that 'audit run' would be refused because of another run under the job's name; empty where it would
    not."""
    store = Store(newest_of(job, root, found))
    changes = _changes(job, store, found)
    if not changes or may_start_again(store):
        return []
    what = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    return [
        f"{store.location} holds results of another job of this name ({what}): give the job another name, or start "
        "over beside it with 'audit run --new-run'"
    ]


def start_again(job: Job, root: Location, found: dict[str, str]) -> list[str]:
    """Make room for a job under the name of another one that came to nothing: what changed between them, as
    `differences` says it; empty where there is no such run. The caller holds the run."""
    store = Store(root)
    changes = _changes(job, store, found)
    if not changes or not may_start_again(store):
        return []
    for folder in ("commits", "snapshots", "plan", "data"):
        for stored in list(store.objects.listing(folder)):
            store.objects.delete(stored.key)
    store.objects.delete("live.json")
    store.objects.delete("job.json")  # last: until then the run is the old one, without rows
    return changes


def may_start_again(store: Store) -> bool:
    """Whether nothing is committed of a run but its own row and, of at most `CHEAP` units, the inventory, which takes
    a look at the images and no decision of anybody's."""
    stages_done = [commit.stage for commit in store.commits().values() if commit.stage != "run"]
    return set(stages_done) <= {INVENTORY} and len(stages_done) <= CHEAP


def _changes(job: Job, store: Store, found: dict[str, str]) -> list[str]:
    """`differences` between the run that is there and what the job asks for; empty where no run is there."""
    existing, asked = store.read("job.json"), decides(job, found)
    return [] if existing is None else differences(_before(existing, asked), asked)


def free_place(root: Location) -> Location:
    """Of <name>, <name>-2, ... the one after the last that is there: the newest run has the largest number."""
    return _numbered(root, max(_numbers(root), default=0) + 1)


def _numbers(root: Location) -> set[int]:
    """Of <name> (1), <name>-2, ..., those that are there."""
    name = name_of(root)
    there = folders(parent(root))
    ends = (other.removeprefix(f"{name}-") for other in there if other.startswith(f"{name}-"))
    return {int(end) for end in ends if end.isdigit()} | ({1} if name in there else set())


def _numbered(root: Location, number: int) -> Location:
    return root if number == 1 else child(parent(root), f"{name_of(root)}-{number}")


def _before(existing: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """The same, as an existing `job.json` has it."""
    try:
        return {key: value for key, value in json.loads(existing).items() if key in asked}
    except ValueError as error:
        raise StoreError(f"the run's job.json is not whole: {error}; start over with --new-run") from error


def open_or_create(job: Job, root: Location, found: dict[str, str] | None = None) -> dict[str, str]:
    """Create the run's `job.json`, or check that an existing one asks for the same numbers.

    Returns the digests of the job's models, those `found` or computed here. Raises ConfigError with a field-by-field
    difference where the run was made from another configuration, other weights, or by another version of the code.
    """
    store = Store(root)
    found = digests(job) if found is None else found
    asked = decides(job, found)
    store.probe()
    existing = store.read("job.json")
    if existing is None:
        store.create("job.json", job_record(job, asked))
        existing = store.read("job.json")
    assert existing is not None
    changes = differences(_before(existing, asked), asked)
    if changes:
        raise ConfigError(
            f"{root} was made from another job; what changed:\n"
            + "\n".join(f"  {line}" for line in changes)
            + "\nUse the old values to resume it, give the job another name, or start over beside it with --new-run."
        )
    if store.read("commits/run.json") is None:
        store.commit("run", "run", {"runs": [run_row(job, asked, existing)]})
    return found


def job_of(store: Store) -> Job:
    """The job that a run was made from, with the compute it was first given. Raises ConfigError where it cannot be."""
    raw = store.read("job.json")
    try:
        made = json.loads(raw or b"")
        return restored_job(made["job"], made["compute"], parent(store.location))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{store.where('job.json')} is not whole: {error}") from error


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """'<field>: <before> -> <now>' for every field that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        lines = []
        for key in sorted(before.keys() | now.keys()):
            lines += differences(before.get(key, "(absent)"), now.get(key, "(absent)"), f"{where}.{key}".lstrip("."))
        return lines
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [
            line
            for i, (a, b) in enumerate(zip(before, now, strict=True))
            for line in differences(a, b, f"{where}[{i}]")
        ]
    return [] if before == now else [f"{where}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def other_versions(store: Store) -> list[str]:
    """'<library>: <then> -> <now>' for each that a run was begun with and that is another one now. None of them is part
    of the fingerprint: they move numbers by rounding, if at all, and a week of work is not thrown away for that."""
    begun = Run(store.location, stages={"run"}).rows("select versions from runs")
    return differences(json.loads(begun[0]["versions"]), versions()) if begun else []


def changes_since(job: Job, store: Store, most: int = 5) -> list[str]:
    """How the listings of a run's data sets differ from its inventory, in words; the first `most` images are named.

    Both are walked side by side, and come in the same order: what is held in memory is no more than what differs.
    """
    now = (
        (role, entry.uri, entry.label)
        for role in ("data", "pool")[: 2 if job.pool else 1]
        for entry in open_source(job, role).entries()
    )
    before = ((role, entry[1], entry[3]) for role, entry in entries_of(store))
    gone: dict[Any, None] = {}
    added: dict[Any, None] = {}
    for old, new in zip_longest(before, now):
        for key, own, other in ((old, gone, added), (new, added, gone)):
            if key is not None and key in other:
                del other[key]
            elif key is not None:
                own[key] = None
    told = []
    for what, keys in (("gone", gone), ("added", added)):
        told += [f"{role}: {uri} {what}" for role, uri, _ in list(keys)[:most]]
        told += [f"and {len(keys) - most} more {what}"] if len(keys) > most else []
    return told


def data_classes(root: Location) -> DataClasses:
    """The classes of the data set, those of unusable images too: known once the inventory is committed. Classes that
    the data set declares keep its order; others are in order after them."""
    run = Run(root, stages={INVENTORY})
    rows = run.rows("select distinct label from items where role = 'data' and label is not null")
    declared = run.rows("select class_name from classes group by class_name order by min(position)")
    return classes_of((row["label"] for row in rows), tuple(row["class_name"] for row in declared))
