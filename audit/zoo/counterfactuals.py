"""Counterfactuals of the embedded world, judged by its CLIP: is the target there, did the planted feature change?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.classifiers import Embedder
from audit.errors import ConfigError
from audit.results.sql import Run
from audit.zoo.measure import load_clip
from audit.zoo.scenes import BACKGROUNDS, COLOURS, EMPTY, LABELS
from audit.zoo.score import planted_models
from audit.zoo.world import Mode, load_world

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
    """For each planted mode that is a target: of the flipped results, how many gained the feature, and the object.

    `feature`: the oracle sees the mode's feature and did not on the original; `object`: it sees the target object;
    `feature_only`: the former without the latter.
    """
    models, oracle = planted_models(run), _Oracle(run)
    found = []
    for stage, rows in _by_stage(run).items():
        for mode in load_world().modes:
            own = [
                r for r in rows if (models.get(r["model_id"]), r["target_class"]) == (mode.classifier, mode.class_name)
            ]
            asked = [r for r in own if not oracle.shows(r["start_image_id"], mode)]
            flipped = [r for r in asked if r["flipped"]]
            gained = np.array([oracle.shows(r["image_id"], mode) for r in flipped], bool)
            there = np.array([oracle.sees(r["image_id"]) == mode.class_name for r in flipped], bool)
            if own:
                shares = {"feature": gained, "object": there, "feature_only": gained & ~there}
                found.append(
                    {"stage": stage, "mode": mode.id, "kind": mode.kind, "images": len(asked), "flipped": len(flipped)}
                    | {name: float(values.mean()) if len(values) else None for name, values in shares.items()}
                )
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
    """The world's CLIP on the stored embeddings of a run's generated images; it is no model under audit."""

    def __init__(self, run: Run) -> None:
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
            return bool(
                self._nearest(image_id, [f"a photograph of a {name}", f"a photograph of a {name} with a badge"])
            )
        if attribute == "colour":
            shown = [f"a photograph of a {colour} {name}" for colour in COLOURS]
            return name != EMPTY and list(COLOURS)[self._nearest(image_id, shown)] == value
        return BACKGROUNDS[self._nearest(image_id, [f"a photograph of a {name} on {b}" for b in BACKGROUNDS])] == value

    def _nearest(self, image_id: str, texts: list[str]) -> int:
        for text in texts:
            if text not in self._texts:
                self._texts[text] = np.asarray(self.clip.embed_texts([text])[0], np.float64)
        return int(np.argmax([self._texts[text] @ self.embeddings[image_id] for text in texts]))
