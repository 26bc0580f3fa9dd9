"""A run on a folder of labelled images that are really there, with planted answers of two models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from audit.results.schema import Rows
from audit.results.sql import Run
from audit.results.store import Store

Answer = tuple[str, str, float]  # label, what the model says, how sure it is


def labelled(root: Path, answers: dict[str, list[Answer]], rows: Rows | None = None) -> Run:
    """A run `root`/run on the images `root`/data/<number>.png.

    answers: of each model, one an image, with the same labels. rows: further ones of any table.
    """
    (root / "data").mkdir(parents=True)
    ids = []
    for number, (label, _, _) in enumerate(next(iter(answers.values()))):
        colour = np.random.default_rng(number).integers(0, 255, 3)
        path = root / "data" / f"{number}.png"
        Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(path, pnginfo=None)
        ids.append((hashlib.sha256(path.read_bytes()).hexdigest(), label))
    items = [
        {"item_id": item_id, "role": "data", "position": i, "uri": f"{i}.png", "display_name": f"{i}.png"}
        | {"label": label, "status": "ok"}
        for i, (item_id, label) in enumerate(ids)
    ]
    predictions: list[dict[str, Any]] = [
        {"item_id": item_id, "role": "data", "model_id": model_id, "label": label, "predicted": says, "status": "ok"}
        | {"confidence": sure, "correct": says.lower() == label.lower()}
        for model_id, given in answers.items()
        for (item_id, _), (label, says, sure) in zip(ids, given, strict=True)
    ]
    store = Store(root / "run")
    source = {"plugin": "folder", "path": str(root / "data")}
    store.create("job.json", json.dumps({"job": {"data": source, "models": {name: {} for name in answers}}}).encode())
    further = rows or {}
    store.commit(
        "u",
        "1-screen",
        {**further, "items": items, "predictions": [*predictions, *further.get("predictions", [])]},
    )
    return Run(root / "run")
