"""Counterfactuals of the embedded world, judged: is the target there, did the planted feature change?

The judge is the world's CLIP, which is no model under audit. It is blind to badges (zero-shot, it finds a quarter of
them); those are found by comparing with their drawing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.classifiers import Embedder, canonical
from audit.decode import decode
from audit.errors import ConfigError
from audit.results.sql import Run
from audit.zoo.badge import has_badge
from audit.zoo.measure import load_clip
from audit.zoo.scenes import BACKGROUNDS, COLOURS, EMPTY, LABELS
from audit.zoo.score import planted_models
from audit.zoo.world import Mode, load_world

_DIRECTIONS = {"to": "target_class", "from": "source_class"}

Row = dict[str, Any]
Floats = NDArray[np.float64]


def figures(run: Run) -> list[Row]:
    """For each stage with counterfactuals: flips, distances and what the oracle sees, of results and of prompt edits.

    `background` and `floor`: RMSE outside the mask, of flipped results and of the autoencoder alone, in [0, 1].
    `sees_target`: share on which the world's CLIP, zero-shot, sees the target object; the reconstructions' PSNR in dB.
    """
    oracle = _Oracle(run)
    return [_stage(rows, oracle) | {"stage": stage} for stage, rows in _by_stage(run).items()]


def planted(run: Run) -> list[Row]:
    """For each planted mode: of the flipped results, how many changed the feature, and how many the object.

    Counted are images without the feature whose target is the mode's class (`to`), and images with it that the model
    called the mode's class (`from`). `feature`: the oracle sees the feature on one of original and result only;
    `object`: it sees another object on the result than on the original; `feature_only`: the former without the latter.
    """
    models, oracle = planted_models(run), _Oracle(run)
    found = []
    for stage, rows in _by_stage(run).items():
        for mode, (direction, column) in itertools.product(load_world().modes, _DIRECTIONS.items()):
            own = [row for row in rows if models.get(row["model_id"]) == mode.classifier]
            own = [row for row in own if canonical(row[column]) == canonical(mode.class_name)]
            asked = [row for row in own if oracle.shows(row["start_image_id"], mode) == (direction == "from")]
            flipped = [row for row in asked if row["flipped"]]
            if asked:
                changed = [oracle.shows(row["image_id"], mode) == (direction == "to") for row in flipped]
                other = [oracle.sees(row["image_id"]) != oracle.sees(row["start_image_id"]) for row in flipped]
                alone = [feature and not thing for feature, thing in zip(changed, other, strict=True)]
                shares = {"feature": _mean(changed), "object": _mean(other), "feature_only": _mean(alone)}
                about = {"stage": stage, "mode": mode.id, "kind": mode.kind, "direction": direction}
                found.append(about | {"images": len(asked), "flipped": len(flipped)} | shares)
    return found


def _by_stage(run: Run) -> dict[str, list[Row]]:
    """Counterfactuals that ended, with their measurements as columns '<key>_<name>'."""
    measured: dict[str, Row] = {}
    for row in run.rows("select m.* from measurements m join explanations e on m.subject_id = e.explanation_id"):
        measured.setdefault(row["subject_id"], {})[f"{row['key']}_{row['name']}"] = row["value"]
    rows = run.rows("select * from explanations where method = 'uvce' and status = 'ok' order by stage, explanation_id")
    if not rows:
        raise ConfigError(
            f"{run.root} has no counterfactuals; add a stage: {{kind: counterfactual, method: uvce, ...}}"
        )
    stages: dict[str, list[Row]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append({**row, **measured.get(row["explanation_id"], {})})
    return stages


def _stage(rows: list[Row], oracle: _Oracle) -> Row:
    flipped = [row for row in rows if row["flipped"]]
    edits = [row for row in rows if row["edit_image_id"]]
    return {
        "model": rows[0]["model_id"],
        "images": len(rows),
        "flipped": len(flipped) / len(rows),
        "background": _mean([row["result_background_rmse"] for row in flipped]),
        "floor": _mean([row["autoencoder_background_rmse"] for row in rows]),
        "sees_target": _mean([oracle.sees(row["image_id"]) == row["target_class"] for row in rows]),
        "l2": _mean([row["result_l2"] for row in rows]),
        "edit_flipped": _mean([row["edit_flipped"] for row in edits]),
        "edit_background": _mean([row["edit_background_rmse"] for row in edits if row["edit_flipped"]]),
        "edit_sees_target": _mean([oracle.sees(row["edit_image_id"]) == row["target_class"] for row in edits]),
        "psnr": _mean([row["reconstruction_psnr"] for row in rows]),
        "autoencoder_psnr": _mean([row["autoencoder_psnr"] for row in rows]),
        "seconds": _mean([row["seconds"] for row in rows]),
    }


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if values else None


class _Oracle:
    """The world's CLIP on the stored embeddings of a run's generated images."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.clip: Embedder = load_clip()
        rows = run.rows("select subject_id, values from arrays where name = 'embedding' and role = 'generated'")
        self.embeddings = {row["subject_id"]: np.asarray(row["values"]) for row in rows}
        if not rows:
            raise ConfigError("the run has no embeddings; add to its job file: embedder: {loader: clip, ref: zoo:clip}")
        self._texts: dict[str, Floats] = {}

    def sees(self, image_id: str) -> str:
        """The label whose prompt is nearest."""
        return LABELS[self._nearest(image_id, [f"a photograph of a {name}" for name in LABELS])]

    def shows(self, image_id: str, mode: Mode) -> bool:
        """Whether the feature of a mode is on an image: its words against the other values of the same attribute."""
        (attribute, value), name = next(iter(mode.feature.items())), self.sees(image_id)
        if attribute == "badge":
            (row,) = self.run.rows("select png from images where image_id = ? limit 1", [image_id])
            return has_badge(decode(row["png"]).image)
        if attribute == "colour":
            shown = [f"a photograph of a {colour} {name}" for colour in COLOURS]
            return name != EMPTY and list(COLOURS)[self._nearest(image_id, shown)] == value
        return BACKGROUNDS[self._nearest(image_id, [f"a photograph of a {name} on {b}" for b in BACKGROUNDS])] == value

    def _nearest(self, image_id: str, texts: list[str]) -> int:
        for text in texts:
            if text not in self._texts:
                self._texts[text] = np.asarray(self.clip.embed_texts([text])[0], np.float64)
        return int(np.argmax([self._texts[text] @ self.embeddings[image_id] for text in texts]))
