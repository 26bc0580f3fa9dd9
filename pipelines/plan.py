"""What a run is, and what its stages' units are: written once, read ever after."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from audit import registry
from audit.config import Job, digest
from audit.errors import ConfigError
from audit.methods import Context, Unit, stage_names, stages, unit_of
from audit.models import Models, digests
from audit.results.schema import SCHEMA_VERSION
from audit.results.sql import Run
from audit.results.store import Store

_VERSIONED = ("torch", "diffusers", "transformers", "ray", "duckdb", "pyarrow", "pillow", "numpy")


def run_folder(job: Job, folder: Path) -> Path:
    """Where a job's run lives: <output.uri>/<name>, relative to the working folder."""
    return folder / job.output.uri / job.name


def newest_of(job: Job, root: Path) -> Path:
    """The newest of <name>, <name>-2, ... that was made from this very job; <name> where none was."""
    beside = [path for path in root.parent.glob(f"{root.name}-*") if path.name[len(root.name) + 1 :].isdigit()]
    if not beside:
        return root
    asked = _asked(job, digests(job))
    for path in sorted(beside, key=lambda path: int(path.name[len(root.name) + 1 :]), reverse=True):
        existing = Store(path).read("job.json")
        if existing is not None and not differences(_before(existing, asked), asked):
            return path
    return root


def _asked(job: Job, found: dict[str, str]) -> dict[str, Any]:
    """Everything that decides a run's numbers. `found`: the digests of the job's models."""
    methods = {stage.name: registry.plugin("methods", stage.name).VERSION for stage in stages(job)}
    return {"job": job.numbers(), "digests": found, "methods": methods, "schema": SCHEMA_VERSION}


def _before(existing: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """The same, as an existing `job.json` has it."""
    return {key: value for key, value in json.loads(existing).items() if key in asked}


def open_or_create(job: Job, root: Path) -> dict[str, str]:
    """Create the run's `job.json`, or check that an existing one asks for the same numbers.

    Returns the digests of the job's models. Raises ConfigError with a field-by-field difference where the run was
    made from another configuration, other weights, other versions of the methods or another schema.
    """
    store = Store(root)
    found = digests(job)
    asked = _asked(job, found)
    existing = store.read("job.json")
    if existing is None:
        root.mkdir(parents=True, exist_ok=True)
        store.probe()
        created = datetime.datetime.now(datetime.UTC)
        record = {**asked, "fingerprint": digest(asked), "created_at": created.isoformat()}
        store.create("job.json", json.dumps(record, sort_keys=True, indent=1).encode())
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
        started = datetime.datetime.fromisoformat(json.loads(existing)["created_at"])
        row = {"run_id": digest(asked)[:32], "name": job.name, "config": json.dumps(job.numbers(), sort_keys=True)}
        row |= {"versions": json.dumps(versions()), "hardware": json.dumps(hardware())}
        store.commit("run", "run", {"runs": [{**row, "created_at": started}]})
    return found


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


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _VERSIONED}


def hardware() -> dict[str, Any]:
    return {"machine": platform.machine(), "cores": os.cpu_count(), "system": platform.system()}


def data_classes(root: Path) -> tuple[str, ...]:
    """The labels of the data set, sorted, those of unusable images too: known once the inventory is committed."""
    rows = Run(root).rows("select distinct label from items where role = 'data' and label is not null order by label")
    return tuple(row["label"] for row in rows)


def units_of(job: Job, stage: str, root: Path, found: dict[str, str], classes: tuple[str, ...]) -> list[Unit]:
    """The units of a stage: read from its plan, or planned now and frozen."""
    store, key = Store(root), f"plan/{stage}.json"
    frozen = store.read(key)
    if frozen is None:
        plugin = dict(zip(stage_names(job), stages(job), strict=True))[stage]
        module = registry.plugin("methods", plugin.name)
        context = Context(job, stage, root, Models(job, classes), batch_size=1)
        payloads = module.plan(plugin.options, context)
        units = [unit_of(stage, plugin, module.VERSION, payload, job, found) for payload in payloads]
        body = [{"unit_id": unit.unit_id, "payload": unit.payload} for unit in units]
        store.create(key, json.dumps(body).encode())
        frozen = store.read(key)
    assert frozen is not None
    return [Unit(raw["unit_id"], stage, raw["payload"]) for raw in json.loads(frozen)]
