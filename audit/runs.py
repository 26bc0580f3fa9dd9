"""Runs beside one another: which there are below the same root, how far each is, and opening one by its name alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audit.errors import ConfigError, StoreError, unknown
from audit.locations import Location, absolute, child, folders, located, name_of, parent
from audit.results.sql import Run
from audit.results.store import Store, unique

Row = dict[str, Any]


def beside(run: Location) -> list[str]:
    """Names of the runs in the same root, with this one: folders that hold a `job.json`, no links to elsewhere."""
    root = _root(run)
    there = (child(root, name) for name in sorted(folders(root)))
    return [name_of(one) for one in there if not _is_link(one) and Store(one).read("job.json") is not None]


def open_beside(run: Location, name: str) -> Run:
    """Open a run of the same root. Raises ConfigError for a name that is none of `beside`: a path leads nowhere."""
    names = beside(run)
    if name not in names:
        raise ConfigError(unknown("run", name, names))
    return Run(child(_root(run), name))


def stages(run: Run) -> list[Row]:
    """For each stage: units planned (None: not yet), done and quarantined; items planned, done and failed.

    Raises ConfigError where the run's job, StoreError where a plan is not whole.
    """
    commits = unique((run.commits or {}).values())
    found = []
    for name in _names(run.store):
        plan, own = _plan(run.store, name), [commit for commit in commits if commit.stage == name]
        count = {
            status: sum(len(commit.units) for commit in own if commit.status == status)
            for status in ("ok", "quarantined", "split")
        }
        found.append(
            {
                "stage": name,
                "units": None if plan is None else plan["units"] + count["split"],
                "done": count["ok"] + count["quarantined"],
                "quarantined": count["quarantined"],
                "items": None if plan is None else plan["items"],
                "items_done": sum(commit.items for commit in own if commit.status != "split"),
                "items_failed": sum(commit.failed for commit in own),
            }
        )
    return found


def unfinished(run: Run) -> str:
    """What of a run is still to be done, in words; empty where it is finished."""
    for stage in stages(run):
        if stage["units"] is None or stage["done"] < stage["units"]:
            return f"stage {stage['stage']} has done {stage['done']} of {stage['units'] or 'its'} units"
    return ""


def _names(store: Store) -> list[str]:
    """'0-inventory', then one name for each stage of the job, by position and kind."""
    try:
        kinds = [stage["plugin"] for stage in json.loads(store.read("job.json") or b"")["job"]["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{store.where('job.json')} is not whole: {error}") from error
    return [f"{i}-{kind}" for i, kind in enumerate(["inventory", *kinds])]


def _plan(store: Store, stage: str) -> Row | None:
    key = f"plan/{stage}.json"
    data = store.read(key)
    try:
        raw = None if data is None else json.loads(data)
        return None if raw is None else {"units": raw["units"], "items": raw["items"]}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store.where(key)} is not whole: {error}; 'audit repair' mends it") from error


def _root(run: Location) -> Location:
    return parent(located(absolute(run)))


def _is_link(location: Location) -> bool:
    return isinstance(location, Path) and location.is_symlink()
