"""The frozen plan of a stage, in parts of a run's store. Neither who writes nor who reads it holds all units in memory.

A line of a part is a unit's id, its number of items, and its payload in JSON, with tabs between.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from audit.errors import StoreError
from audit.methods import Unit
from audit.results.store import Store

PART_BYTES = 4 * 2**20  # of text, before compression


@dataclass(frozen=True)
class Plan:
    """What is planned of a stage. `parts`: path and sha256 of each file of units."""

    stage: str
    units: int
    items: int
    parts: tuple[Mapping[str, str], ...]


def plan_of(store: Store, stage: str) -> Plan | None:
    """The frozen plan of a stage, None while there is none."""
    data = store.read(f"plan/{stage}.json")
    if data is None:
        return None
    try:
        raw = json.loads(data)
        return Plan(stage, raw["units"], raw["items"], tuple(raw["parts"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{store.where(f'plan/{stage}.json')} is not whole: {error}; 'audit repair' mends it"
        ) from error


def write_plan(store: Store, stage: str, units: Iterator[Unit]) -> Plan:
    """Freeze a plan; where another driver was first, its plan is returned."""
    made = _written(store, stage, units)
    body = {"units": made.units, "items": made.items, "parts": made.parts}
    if store.create(f"plan/{stage}.json", json.dumps(body, indent=1).encode()):
        return made
    first = plan_of(store, stage)
    assert first is not None
    return first


def _written(store: Store, stage: str, units: Iterator[Unit]) -> Plan:
    """Parts of about `PART_BYTES`, named by their content, so that one that is there already is the same."""
    parts: list[Mapping[str, str]] = []
    lines: list[str] = []
    size = count = items = 0

    def flush() -> None:
        data = gzip.compress("".join(lines).encode(), compresslevel=1, mtime=0)
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"plan/{stage}/{len(parts):06d}-{sha256[:16]}.tsv.gz"
        store.create(path, data)
        parts.append({"path": path, "sha256": sha256})

    for unit in units:
        lines.append(f"{unit.unit_id}\t{unit.items}\t{unit.text}\n")
        count, items, size = count + 1, items + unit.items, size + len(lines[-1])
        if size >= PART_BYTES:
            flush()
            lines, size = [], 0
    if lines:
        flush()
    return Plan(stage, count, items, tuple(parts))


def units_in(store: Store, plan: Plan) -> Iterator[Unit]:
    """The units of a plan in their order; one part at a time is in memory."""
    for part in plan.parts:
        data = store.read(part["path"])
        if data is None or hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise StoreError(f"{store.where(part['path'])} is missing or damaged; 'audit repair' makes the plan anew")
        for line in gzip.decompress(data).decode().split("\n"):
            if line:
                unit_id, items, text = line.split("\t", 2)
                yield Unit(unit_id, plan.stage, text, int(items))
