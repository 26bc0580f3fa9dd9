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
CONTROLS = "ABCDEFGHIJKLMNOPQRST"  # images of the affected classes that show no mode
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
    """Predictions of a model for images of the pool, and of the reference, which says `other` on all of them; so does
    the model on the controls that `answers` does not name."""
    answers = {**dict.fromkeys(CONTROLS, other), **answers}
    return [*said("pool", model, answers), *said("pool", "reference", dict.fromkeys(answers, other))]


def compared(modes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `compared_images`: each confirmed mode with its images, and all controls."""
    return [
        {"failure_mode_id": mode["failure_mode_id"], "item_ids": [*mode["showing"], *CONTROLS]}
        | {"shows": [True] * len(mode["showing"]) + [False] * len(CONTROLS)}
        | {"strata": [""] * (len(mode["showing"]) + len(CONTROLS))}
        for mode in modes
        if mode["verdict"] == "confirmed" and mode["showing"]
    ]


def audited(
    root: Path,
    modes: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    models: tuple[str, ...] = ("v", "reference"),
    done: tuple[str, ...] = STAGES,
    pool: Path | None = None,
    askable: bool = False,
    compared_images: list[dict[str, Any]] | None = None,
) -> Run:
    """A run with these rows, in which the stages `done` are, out of all three. `pool`: a folder of images. `askable`:
    with 60 labelled images more on which all models are right, enough to confirm something. `compared_images`: rows of
    the table; by default the controls and the images of each mode."""
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
        "2-discover": {
            "failure_modes": modes,
            "compared_images": compared(modes) if compared_images is None else compared_images,
        },
    }
    if askable:
        for table, more in _right(models).items():
            rows["0-inventory" if table == "items" else "1-screen"][table] += more
    for stage in done:
        unit = {"unit_id": f"u{stage[0]}", "stage": stage, "status": "ok", "items": 1, "seconds": 1.0}
        store.commit(f"u{stage[0]}", stage, {"units": [unit], **rows[stage]})
    return Run(root)


def _right(models: tuple[str, ...]) -> Rows:
    """Images of four classes with an embedding, and what models that are right say of them."""
    labels = {f"{i:08x}": ("crab", "boat", "car", "fish")[i // 2 % 4] for i in range(60)}
    items = [{"item_id": item, "role": "data", "label": label} for item, label in labels.items()]
    answers = [
        row | {"label": label, "correct": True}
        for model in models
        for item, label in labels.items()
        for row in said("data", model, {item: label})
    ]
    return {"items": items, "predictions": answers, "arrays": [{"subject_id": item, **EMBEDDED} for item in labels]}
