"""The units of a stage: planned once, frozen in parts, read as they are needed."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from audit.config import Job
from audit.errors import StoreError
from audit.labels.matching import Classes
from audit.locations import Location
from audit.methods import Context, Payload, Unit, module_of, unit_of
from audit.models import Models
from audit.results.store import Commit, Store
from audit.stages.plans import Plan, plan_of, units_in, write_plan

__all__ = ["Plan", "closed", "entries_of", "outstanding", "plan_of", "planned", "units_in", "write_plan"]


def planned(
    job: Job,
    stage: str,
    root: Location,
    digests: dict[str, str],
    classes: Classes,
    before: Collection[str] = (),
    stopping: threading.Event | None = None,
) -> Plan:
    """The plan of a stage: read, or made now and frozen. What it reads must be committed.

    `before`: units of the stage that are committed though their plan is gone. Raises StoreError if the new plan lacks
    one of them: the data are others now. `stopping`: once it is set, planning ends at the next unit, with a StoreError.
    """
    store = Store(root)
    frozen = plan_of(store, stage)
    if frozen is not None:
        return frozen
    plugin, module = module_of(job, stage)
    context = Context(job, stage, root, Models(job, classes, device="cpu"), batch_size=1)
    payloads = module.plan(plugin.options, context)
    made = (unit_of(stage, plugin, module.VERSION, payload, job, digests) for payload in _until(stopping, payloads))
    return write_plan(store, stage, _with_all(made, stage, {unit.split(".")[0] for unit in before}))


def _with_all(units: Iterator[Unit], stage: str, before: set[str]) -> Iterator[Unit]:
    """The units, with a StoreError at their end if some of those committed `before` are not among them."""
    for unit in units:
        before.discard(unit.unit_id)
        yield unit
    if before:
        raise StoreError(
            f"stage {stage} has {len(before)} committed units that its new plan has not, such as {min(before)}: the "
            "data are not what they were when these were made. Put them back, or start over with --new-run"
        )


def _until(stopping: threading.Event | None, payloads: Iterable[Payload]) -> Iterator[Payload]:
    for payload in payloads:
        if stopping is not None and stopping.is_set():
            raise StoreError("the run was stopped while it was planned")
        yield payload


def outstanding(units: Iterator[Unit], committed: Mapping[str, Commit], items_key: str | None) -> Iterator[Unit]:
    """The units that are still to be done; a unit that was split stands for its halves."""
    for unit in units:
        commit = committed.get(unit.unit_id)
        if commit is None:
            yield unit
        elif commit.status == "split":
            yield from outstanding(iter(unit.halves(str(items_key))), committed, items_key)


def closed(store: Store, plan: Plan, items_key: str | None) -> None:
    """Publish the commits of a stage whose units are all done, so that what reads it rests on no listing, which may
    lag behind. Raises StoreError where one of them has no commit."""
    while True:
        covered, number = store.covered()
        commits = store.beyond(covered)
        _add_unlisted(store, units_in(store, plan), commits, items_key)
        if commits.keys() == covered.keys() or store.publish(commits.values(), number + 1):
            return


def _add_unlisted(store: Store, units: Iterable[Unit], commits: dict[str, Commit], items_key: str | None) -> None:
    for unit in units:
        commit = commits.get(unit.unit_id) or store.record(f"commits/{unit.unit_id}.json")
        if commit is None:
            where = store.where(f"commits/{unit.unit_id}.json")
            raise StoreError(f"{where} is gone, though its unit was done; the same command does it again")
        commits[unit.unit_id] = commit
        if commit.status == "split":
            _add_unlisted(store, unit.halves(str(items_key)), commits, items_key)


def entries_of(store: Store) -> Iterator[tuple[str, list[Any]]]:
    """Role and entry, as the inventory's plan has them, of every image that was listed."""
    plan = plan_of(store, "0-inventory")
    for unit in units_in(store, plan) if plan else ():
        yield from ((unit.payload["role"], entry) for entry in unit.payload["entries"])
