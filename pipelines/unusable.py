"""Why items of a stage cannot be used, in one line of text."""

from __future__ import annotations

from typing import Any

from audit.config import Job
from audit.datasets import printable
from audit.errors import ConfigError, DataError, StoreError
from audit.locations import Location
from audit.methods import INVENTORY
from audit.models import open_source
from audit.results.sql import Run

_REASONS = 3
_LONGEST = 120  # characters of a reason
_FAILED = {
    "items": "select item_id, reason from items where status = 'quarantined'",
    "others": "select item_id, reason from predictions where status = 'failed' "
    "union all select item_id, reason from explanations where status = 'failed'",
}


def told(job: Job, root: Location, stage: str) -> str:
    """The end of a sentence: `reasons`, and where all of them are."""
    found = reasons(job, root, stage)
    return f": {found}. All are in the run's tables" if found else "; status and reason are in the run's tables"


def reasons(job: Job, root: Location, stage: str) -> str:
    """The most frequent reasons with their counts, and the place of one such item; '' if the run does not hold them.

    For example: "560 unidentified, 2 missing; for example /data/cat/a.png (unidentified)".
    """
    try:
        return _reasons(job, Run(root, {INVENTORY, stage}), stage)
    except (StoreError, ConfigError, DataError):  # why the run stops must be said even where its tables cannot be read
        return ""


def _reasons(job: Job, run: Run, stage: str) -> str:
    failed = _FAILED["items" if stage == INVENTORY else "others"]
    counted = run.rows(
        f"select coalesce(reason, 'no reason given') as reason, count(*) as n, min(item_id) as item_id from ({failed}) "
        "group by 1 order by n desc, 1"
    )
    if not counted:
        return ""
    said = [f"{row['n']:,} {_short(row['reason'])}" for row in counted[:_REASONS]]
    rest = sum(row["n"] for row in counted[_REASONS:])
    told = ", ".join([*said, f"{rest:,} others"] if rest else said)
    example = next((row for row in counted if row["item_id"] is not None), None)
    items = _items(run, example["item_id"]) if example else []
    if not items or example is None:
        return told
    where = printable(open_source(job, items[0]["role"]).where(items[0]["uri"]))
    return f"{told}; for example {where} ({_short(example['reason'])})"


def _items(run: Run, item_id: str) -> list[dict[str, Any]]:
    return run.rows("select role, uri from items where item_id = ? order by role, position limit 1", [item_id])


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
