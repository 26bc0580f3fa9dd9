"""Runs beside one another: which there are below the same root, and opening one by its name alone."""

from __future__ import annotations

from pathlib import Path

from audit.errors import ConfigError, unknown
from audit.locations import Location, absolute, child, folders, located, name_of, parent
from audit.results.progress import stages_of
from audit.results.sql import Run
from audit.results.store import Store


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


def unfinished(run: Run) -> str:
    """What of a run is still to be done, in words; empty where it is finished."""
    for stage in stages_of(run):
        if stage["units"] is None or stage["done"] < stage["units"]:
            return f"stage {stage['stage']} has done {stage['done']} of {stage['units'] or 'its'} units"
    return ""


def _root(run: Location) -> Location:
    return parent(located(absolute(run)))


def _is_link(location: Location) -> bool:
    return isinstance(location, Path) and location.is_symlink()
