"""Finished runs made by hand, of whose failure modes it is known which they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audit.config import parse_job
from audit.methods import Unit
from audit.results.schema import Rows
from audit.results.sql import Run
from audit.results.store import Store
from pipelines.units import write_plan

EMBEDDED = {"role": "data", "name": "embedding", "values": [1.0]}
STAGES = ("0-inventory", "1-screen", "2-discover")


def mode(class_name: str, name: str, verdict: str = "confirmed", evidence: str = "", **columns: Any) -> dict[str, Any]:
    """A failure mode of model v; `evidence`: a letter an image, on all of which and no others it shows."""
    row = {"source": "search", "model_id": "v", "other_model_id": "reference", "class_name": class_name, "name": name}
    row |= {
        "listed": True,
        "failure_mode_id": f"{class_name} {name}",
        "concept": f"{{}} {name}",
        "verdict": verdict,
        "impact": 0.1,
    }
    return {**row, "evidence": list(evidence), "showing": list(evidence), **columns}


def said(role: str, model: str, answers: dict[str, str], label: str | None = None) -> list[dict[str, Any]]:
    """Predictions: of each image, a letter, what the model says."""
    return [
        {"item_id": item, "role": role, "model_id": model, "predicted": name, "status": "ok", "label": label}
        | {"correct": None if label is None else name == label}
        for item, name in answers.items()
    ]


def against(answers: dict[str, str], model: str = "v", other: str = "boat") -> list[dict[str, Any]]:
    """Predictions of a model for images of the pool, and of the reference, which says `other` on all of them."""
    return [*said("pool", model, answers), *said("pool", "reference", dict.fromkeys(answers, other))]


def audited(
    root: Path,
    modes: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    models: tuple[str, ...] = ("v", "reference"),
    done: tuple[str, ...] = STAGES,
    pool: Path | None = None,
) -> Run:
    """A run with these rows, in which the stages `done` are, out of all three. `pool`: a folder of images."""
    raw: dict[str, Any] = {
        "version": 1,
        "name": "made",
        "data": {"source": "folder", "path": "."},
        "models": [{"id": name, "loader": "hf", "ref": "zoo:reference"} for name in models],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "stages": [{"kind": "screen"}, {"kind": "discover"}],
    }
    if pool is not None:
        raw["pool"] = {"source": "folder", "path": str(pool)}
    store = Store(root)
    record = {"job": parse_job(raw, root).numbers(), "compute": {}, "digests": {}}
    store.create("job.json", json.dumps(record).encode())
    for stage in STAGES:
        write_plan(store, stage, iter([Unit(f"u{stage[0]}", stage, "{}")]))
    rows: dict[str, Rows] = {
        "0-inventory": {"items": [{"item_id": "one", "role": "data", "label": "crab"}]},
        "1-screen": {"predictions": predictions, "arrays": [{"subject_id": "one", **EMBEDDED}]},
        "2-discover": {"failure_modes": modes},
    }
    for stage in done:
        unit = {"unit_id": f"u{stage[0]}", "stage": stage, "status": "ok", "items": 1, "seconds": 1.0}
        store.commit(f"u{stage[0]}", stage, {"units": [unit], **rows[stage]})
    return Run(root)
