"""Counterfactuals of the embedded world, judged: is the target there, did the planted feature change?

The judge is the world's CLIP, which is no model under audit. It is blind to badges (zero-shot, it finds a quarter of
them); those are found by comparing with their drawing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from audit.classifiers import Embedder
from audit.decode import decode
from audit.errors import ConfigError
from audit.predictions import to_tensor
from audit.results.sql import Run
from audit.zoo.badge import has_badge
from audit.zoo.measure import load, load_clip
from audit.zoo.parts import parts, scenes_of
from audit.zoo.scenes import BACKGROUNDS, COLOURS, EMPTY, LABELS, Scene
from audit.zoo.score import planted_models, world_of
from audit.zoo.world import Mode

Row = dict[str, Any]
Floats = NDArray[np.float64]


def figures(run: Run) -> list[Row]:
    """For each stage with counterfactuals: flips, distances and what the judge sees, of results and of prompt edits.

    `background` and `floor`: RMSE outside the mask, of flipped results and of the autoencoder alone, in [0, 1].
    `sees_target`: share on which the world's CLIP, zero-shot, sees the target object; the reconstructions' PSNR in dB.
    """
    judge = _Judge(run)
    return [_stage(rows, judge) | {"stage": stage} for stage, rows in _by_stage(run).items()]


def planted(run: Run) -> list[Row]:
    """For each planted mode: what the counterfactuals of images that it `misled` changed; none without such images.

    Of the flipped: `feature_flips`, where the change of the feature alone flips the decision too; `rest_flips`, where
    all the rest of the change does (see `parts`); `feature_gone`, where the judge sees the feature no more;
    `object_changed`, where it sees another object than in the original.
    """
    judge, found = _Judge(run), []
    for stage, mode, images in misled(run):
        flipped = [(row, scene) for row, scene in images if row["flipped"]]
        alone = [judge.flips_alone(row, scene, mode) for row, scene in flipped]
        gone = [not judge.shows(row["image_id"], mode) for row, _ in flipped]
        other = [judge.sees(row["image_id"]) != judge.sees(row["start_image_id"]) for row, _ in flipped]
        found.append(
            {"stage": stage, "mode": mode.id, "kind": mode.kind, "images": len(images), "flipped": len(flipped)}
            | {"feature_flips": _mean([feature for feature, _ in alone])}
            | {"rest_flips": _mean([rest for _, rest in alone])}
            | {"feature_gone": _mean(gone), "object_changed": _mean(other)}
        )
    return found


def misled(run: Run) -> list[tuple[str, Mode, list[tuple[Row, Scene]]]]:
    """For each stage and planted mode, where there are any: counterfactuals of images that the mode misled.

    Those show the feature and another object, and the model called them the mode's class.
    """
    models = planted_models(run)
    by_stage = {stage: [row for row in rows if row["model_id"] in models] for stage, rows in _by_stage(run).items()}
    world = world_of(run)
    shown = scenes_of(world, (row["item_id"] for rows in by_stage.values() for row in rows))
    found = []
    for (stage, rows), mode in itertools.product(by_stage.items(), world.modes):
        images = [(row, shown[row["item_id"]]) for row in rows if models[row["model_id"]] == mode.classifier]
        images = [(row, scene) for row, scene in images if mode.misleads(scene) and not mode.taken_for]
        images = [(row, scene) for row, scene in images if row["source_class"] == mode.class_name]
        if images:
            found.append((stage, mode, images))
    return found


def _by_stage(run: Run) -> dict[str, list[Row]]:
    """Counterfactuals that ended, with their measurements as columns '<key>_<name>'."""
    measured: dict[str, Row] = {}
    for row in run.rows("select m.* from measurements m join explanations e on m.subject_id = e.explanation_id"):
        measured.setdefault(row["subject_id"], {})[f"{row['key']}_{row['name']}"] = row["value"]
    rows = run.rows("select * from explanations where method = 'uvce' and status = 'ok' order by stage, explanation_id")
    if not rows:
        raise ConfigError(
            f"{run.location} has no counterfactuals; add a stage: {{kind: counterfactual, method: uvce, ...}}"
        )
    stages: dict[str, list[Row]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append({**row, **measured.get(row["explanation_id"], {})})
    return stages


def _stage(rows: list[Row], judge: _Judge) -> Row:
    flipped = [row for row in rows if row["flipped"]]
    edits = [row for row in rows if row["edit_image_id"]]
    return {
        "model": rows[0]["model_id"],
        "images": len(rows),
        "flipped": len(flipped) / len(rows),
        "background": _mean([row["result_background_rmse"] for row in flipped]),
        "floor": _mean([row["autoencoder_background_rmse"] for row in rows]),
        "sees_target": _mean([judge.sees(row["image_id"]) == row["target_class"] for row in rows]),
        "l2": _mean([row["result_l2"] for row in rows]),
        "edit_flipped": _mean([row["edit_flipped"] for row in edits]),
        "edit_background": _mean([row["edit_background_rmse"] for row in edits if row["edit_flipped"]]),
        "edit_sees_target": _mean([judge.sees(row["edit_image_id"]) == row["target_class"] for row in edits]),
        "psnr": _mean([row["reconstruction_psnr"] for row in rows]),
        "autoencoder_psnr": _mean([row["autoencoder_psnr"] for row in rows]),
        "seconds": _mean([row["seconds"] for row in rows]),
    }


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if values else None


class _Judge:
    """The world's CLIP on the stored embeddings of a run's generated images."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.clip: Embedder = load_clip()
        rows = run.rows("select subject_id, values from arrays where name = 'embedding' and role = 'generated'")
        self.embeddings = {row["subject_id"]: np.asarray(row["values"]) for row in rows}
        if not rows:
            raise ConfigError("the run has no embeddings; add to its job file: embedder: {loader: clip, ref: zoo:clip}")
        self._texts: dict[str, Floats] = {}
        self._classifier = cache(load)

    def sees(self, image_id: str) -> str:
        """The label whose prompt is nearest."""
        return LABELS[self._nearest(image_id, [f"a photograph of a {name}" for name in LABELS])]

    def shows(self, image_id: str, mode: Mode) -> bool:
        """Whether the feature of a mode is on an image: its words against the other values of the same attribute."""
        (attribute, value), name = next(iter(mode.feature.items())), self.sees(image_id)
        if attribute == "badge":
            return has_badge(self._pixels(image_id))
        if attribute == "colour":
            shown = [f"a photograph of a {colour} {name}" for colour in COLOURS]
            return name != EMPTY and list(COLOURS)[self._nearest(image_id, shown)] == value
        return BACKGROUNDS[self._nearest(image_id, [f"a photograph of a {name} on {b}" for b in BACKGROUNDS])] == value

    def flips_alone(self, row: Row, scene: Scene, mode: Mode) -> tuple[bool, bool]:
        """Whether the change of the feature, and all the rest of the change, make the model say the target."""
        classifier = self._classifier(mode.classifier)
        pictures = parts(mode, scene, self._pixels(row["start_image_id"]), self._pixels(row["image_id"]))
        with torch.no_grad():
            said = classifier.logits(torch.stack([to_tensor(picture) for picture in pictures])).argmax(-1)
        feature, rest = (said == classifier.index_of(row["target_class"])).tolist()
        return feature, rest

    def _pixels(self, image_id: str) -> NDArray[np.uint8]:
        (row,) = self.run.rows("select png from images where image_id = ? limit 1", [image_id])
        return decode(row["png"]).image

    def _nearest(self, image_id: str, texts: list[str]) -> int:
        for text in texts:
            if text not in self._texts:
                self._texts[text] = np.asarray(self.clip.embed_texts([text])[0], np.float64)
        return int(np.argmax([self._texts[text] @ self.embeddings[image_id] for text in texts]))
