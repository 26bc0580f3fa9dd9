"""What identifies a run: everything that decides its numbers, and the record of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from typing import Any

from audit import registry
from audit.config import Job, digest
from audit.methods import stages
from audit.results.schema import SCHEMA_VERSION

_VERSIONED = ("torch", "diffusers", "transformers", "ray", "duckdb", "pyarrow", "pillow", "numpy")


def decides(job: Job, found: dict[str, str]) -> dict[str, Any]:
    """Everything that decides a run's numbers. `found`: the digests of the job's models."""
    methods = {stage.name: registry.plugin("methods", stage.name).VERSION for stage in stages(job)}
    code = {"audit": importlib.metadata.version("audit"), "methods": methods, "schema": SCHEMA_VERSION}
    return {"job": job.numbers(), "digests": found, "code": code}


def job_record(job: Job, decided: dict[str, Any]) -> bytes:
    """The text of `job.json`. `decided`: by `decides`."""
    created = datetime.datetime.now(datetime.UTC)
    record = {**decided, "fingerprint": digest(decided), "created_at": created.isoformat()}
    record["compute"] = job.compute.model_dump(mode="json")
    return json.dumps(record, sort_keys=True, indent=1).encode()


def run_row(job: Job, decided: dict[str, Any], record: bytes) -> dict[str, Any]:
    """The row of `runs`. `record`: the run's `job.json`."""
    started = datetime.datetime.fromisoformat(json.loads(record)["created_at"])
    row = {"run_id": digest(decided)[:32], "name": job.name, "config": json.dumps(job.numbers(), sort_keys=True)}
    row |= {"versions": json.dumps(versions()), "hardware": json.dumps(hardware())}
    return {**row, "created_at": started}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _VERSIONED}


def hardware() -> dict[str, Any]:
    return {"machine": platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
