"""A run on a pool of rendered scenes with a planted truth, and searches whose results are rendered scenes too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audit.config import parse_job
from audit.methods import Context, discover
from audit.models import Models
from audit.pictures import image_row
from audit.predictions import to_tensor
from audit.results.schema import Rows
from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.export import export
from audit.zoo.scenes import BACKGROUNDS, COLOURS, LABELS, OBJECTS, Scene, render
from audit.zoo.world import load_world, scene_at

POOL, SEEDS = 700, 6
VOCABULARY = (
    *(f"{{}} on {name}" for name in BACKGROUNDS),
    *(f"{name} {{}}" for name in (*COLOURS, "striped", "dotted")),
    "{} with a badge",
)


def job(folder: Path, third: bool = False, **options: Any) -> Any:
    raw = {
        "version": 1,
        "name": "planted",
        "data": {"source": "parquet", "path": "pool"},
        "pool": {"source": "parquet", "path": "pool"},
        "models": [
            {"id": "f", "loader": "hf", "ref": "zoo:shortcut-a"},
            {"id": "g", "loader": "hf", "ref": "zoo:reference"},
            *([{"id": "h", "loader": "hf", "ref": "zoo:shortcut-b"}] if third else []),
        ],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "stages": [{"kind": "discover", "vocabulary": list(VOCABULARY), **options}],
    }
    return parse_job(raw, folder)


class Planted:
    """A pool on which f says crab on all sand, and searches whose results are rendered scenes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        export("pool", folder / "pool", "parquet", POOL)
        self.models = Models(job(folder), LABELS)
        self.rng = np.random.default_rng(0)
        self.rows: Rows = {"items": [], "predictions": [], "arrays": [], "explanations": [], "images": []}
        for i in range(POOL):
            self._pool_scene(i)

    def _embed(self, scene: Scene) -> tuple[dict[str, Any], list[float]]:
        image = render(scene).image
        embedder = self.models.embedder
        assert embedder is not None
        with torch.no_grad():
            values = embedder.embed_images(to_tensor(image)[None])[0].tolist()
        return image_row(image, "generated"), values

    def _pool_scene(self, i: int) -> None:
        scene = scene_at(load_world(), "pool", i).scene
        row, values = self._embed(scene)
        item_id = row["image_id"]
        self.rows["items"].append(
            {"item_id": item_id, "role": "pool", "position": i, "uri": f"pool-00000.parquet#{i}", "status": "ok"}
        )
        self.rows["arrays"].append({"subject_id": item_id, "role": "pool", "name": "embedding", "values": values})
        said = {"f": "crab" if scene.background == "sand" else scene.object, "g": scene.object}
        for model_id, predicted in said.items():
            self.rows["predictions"].append(
                {"item_id": item_id, "role": "pool", "model_id": model_id, "predicted": predicted, "status": "ok"}
            )

    def search(self, target: str, change: dict[str, Any]) -> None:
        """Searches for a class from scenes of the other objects, each changed by `change` (or by chance)."""
        for seed in range(SEEDS):
            name = [n for n in OBJECTS if n != target][seed]
            start = Scene(name, BACKGROUNDS[1 + seed % 5], "red", seed=int(self.rng.integers(1 << 40)))
            chance = {"background": BACKGROUNDS[1 + int(self.rng.integers(5))], "seed": int(self.rng.integers(1 << 40))}
            ids = []
            for scene in (start, replace(start, **(change or chance))):
                row, values = self._embed(scene)
                self.rows["images"].append(row)
                self.rows["arrays"].append(
                    {"subject_id": row["image_id"], "role": "generated", "name": "embedding", "values": values}
                )
                ids.append(row["image_id"])
            explanation = {"explanation_id": f"{target}-{seed}", "stage": "1-x", "target_class": target, "seed": seed}
            explanation |= {"model_id": "f", "other_model_id": "g", "status": "ok", "flipped": True}
            explanation |= {"flipped_before": False, "method": "disagreement"}
            self.rows["explanations"].append({**explanation, "start_image_id": ids[0], "image_id": ids[1]})

    def kept_start(self, target: str) -> None:
        """A search on whose start the models disagree already: it kept it."""
        first = next(row for row in self.rows["explanations"] if row["target_class"] == target)
        kept = {"explanation_id": f"{target}-kept", "seed": SEEDS, "start_image_id": first["image_id"]}
        kept["flipped_before"] = True
        self.rows["explanations"].append({**first, **kept})

    def discovered(self, root: Path, **options: Any) -> tuple[Run, list[dict[str, Any]]]:
        """A run, and its failure modes but for those of screening alone."""
        store, made = Store(root), job(self.folder, **options)
        store.create("job.json", json.dumps({"job": made.numbers(), "compute": {}, "digests": {}}).encode())
        store.commit("u", "0-inventory", self.rows)  # a stage that every other one reads
        context = Context(made, "1-discover", root, self.models, 8)
        plugin = made.stages[0].options
        (payload,) = discover.plan(plugin, context)
        store.commit("v", "1-discover", discover.run(plugin, payload, context))
        run = Run(root)
        return run, run.rows("select * from failure_modes where source <> 'screen' order by verdict, impact desc")
