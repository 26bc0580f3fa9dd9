"""Everything that this library raises on purpose.

    AuditError
    ├── ConfigError        the job file, or an option, cannot be used as it is
    ├── DataError          a data set cannot be listed or read at all
    │   └── DataUnavailable   it cannot be read now, whichever item is asked; says nothing about an item
    ├── ModelError         a classifier or generator cannot be loaded, or cannot do what a method needs
    ├── StoreError         results cannot be written or read safely
    ├── RowError           a row that its table cannot hold
    ├── BadItem            one item cannot be used; the job goes on and the item's row says why
    └── Unfinished         a training that ran out of its time; the same command goes on (audit.zoo.recipes.loop)

Messages say what was asked, what was found, and what would work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AuditError(Exception):
    """Base of all errors of this library."""


class ConfigError(AuditError):
    """A job file or option that cannot be used."""


class DataError(AuditError):
    """A data set that cannot be listed or read."""


class DataUnavailable(DataError):
    """A data set that cannot be read now, whichever item is asked: its file system or store does not answer, or this
    process cannot ask. It says nothing about an item, and may pass."""


class ModelError(AuditError):
    """A classifier or generator that cannot be loaded or lacks what is needed."""


class StoreError(AuditError):
    """A results store that cannot be written or read safely."""


class RowError(AuditError):
    """A row that its table cannot hold: an unknown column, NaN, text that is no UTF-8."""


class BadItem(AuditError):
    """One unusable item. `reason` is a short stable word for the row, the message says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def unknown(what: str, asked: str, known: Iterable[str]) -> str:
    """'unknown <what> ...' with the nearest known name and the list of what would work."""
    names = sorted(known)
    near = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {asked!r}.{hint} Known: {', '.join(names) or 'none'}."
