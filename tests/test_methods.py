"""What the stages' rows say, on models whose answers are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.config import digest
from audit.diffusion.optimise import Result, Variables
from audit.labels.matching import DataClasses, Matching
from audit.methods import disagreement, neuron, uvce
from audit.predictions import rows_for


class Known:
    """A classifier of three classes whose logits are the mean red, green and blue, times ten."""

    class_names = ("crab", "boat", "car")
    device = torch.device("cpu")

    def __init__(self, order: tuple[int, int, int] = (0, 1, 2)) -> None:
        self.order = list(order)

    def index_of(self, name: str) -> int:
        return self.class_names.index(name)

    def logits(self, x: Tensor) -> Tensor:
        return x.mean((-1, -2))[:, self.order] * 10

    def preprocess(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


# Presets are in no unit's id, versions are: whoever changes a preset raises VERSION, and writes both here.
@pytest.mark.parametrize(
    ("method", "version", "presets"),
    [(disagreement, 3, "8e206ec258ef"), (neuron, 3, "13f3e3abbd28"), (uvce, 1, "3f47ff088128")],
)
def test_a_changed_preset_is_a_new_version(method: Any, version: int, presets: str) -> None:
    assert (method.VERSION, digest(sorted((name, repr(one)) for name, one in method.PRESETS.items()))[:12]) == (
        version,
        presets,
    )


def colour(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])[:, None, None].expand(3, 4, 4)


def test_scores_are_both_probabilities_and_whether_the_models_disagree() -> None:
    """f reads boat from green, g from blue."""
    f, g = Known(), Known((0, 2, 1))
    objective = disagreement.Objective(f, g, "boat", "probability")
    images = torch.stack([colour(0, 1, 0), colour(0, 1, 1), colour(0, 0, 1), colour(1, 0.5, 0)])
    scores = objective.scores(images)
    e = np.exp([0.0, 5.0, 10.0])
    assert scores[0].tolist() == pytest.approx([e[2] / (e[2] + 2), 1 / (e[2] + 2), 1.0], rel=1e-5)
    assert scores[:, 2].tolist() == [1.0, 0.0, 0.0, 0.0]  # of green only; tie or other class: no
    assert scores[3, 0].item() == pytest.approx(e[1] / (e[2] + e[1] + 1), rel=1e-5)
    assert objective(images[:1]).item() == pytest.approx((scores[0, 0] - scores[0, 1]).item(), rel=1e-5)


def context(models: dict[str, Any], embedder: Any = None) -> Any:
    held = SimpleNamespace(
        classifiers=lambda: iter(models.items()),
        embedder=embedder,
        device="cpu",
        data_classes=Known.class_names,
        classes=DataClasses(Known.class_names),
        matching=lambda name: Matching(models[name].class_names),
    )
    return SimpleNamespace(stage="3-disagreement", models=held, job=SimpleNamespace(seed=0))


def test_rows_keep_before_and_after_apart_and_say_what_failed() -> None:
    """Two searches of two steps: the first is best at step 1, the second met NaN."""
    images = torch.stack([colour(0, 1, 0), colour(0, 0, 0)])
    starts = torch.stack([colour(1, 0, 0), colour(0, 0, 0)])
    losses = torch.tensor([[0.9, 0.5], [0.1, torch.inf], [0.2, torch.inf]])
    nothing = Variables(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    finite, best = torch.tensor([True, False]), torch.tensor([1, 0])
    result = Result(starts, images, nothing, losses, torch.tensor([[0.8, 0.6], [0.3, 0.6]]), best, finite)
    scores = torch.tensor([[[0.1, 0.2, 0.0]] * 2, [[0.7, 0.4, 1.0]] * 2, [[0.6, 0.5, 0.0]] * 2])
    options = disagreement.Options(maximise="f", minimise="g")
    base = {"source_class": "crab", "target_class": "boat", "stage": "3-disagreement"}
    base |= {"model_id": "f", "other_model_id": "g"}
    bases = [{**base, "seed": seed} for seed in (0, 1)]
    bases = [{**own, "explanation_id": disagreement._explanation_id(own, options, context({}))} for own in bases]
    rows = disagreement._rows(result, scores, bases, context({"f": Known()}))
    good, bad = rows["explanations"]
    figures = {"score_before": 0.1, "other_before": 0.2, "score_after": 0.7, "other_after": 0.4}
    figures |= {"loss_before": 0.9, "loss_after": 0.1, "best_step": 1}
    assert {name: good[name] for name in figures} == pytest.approx(figures)
    assert (good["flipped_before"], good["flipped"], good["status"]) == (False, True, "ok")
    assert (bad["status"], bad["reason"]) == ("failed", "not_finite")
    assert "image_id" not in bad
    kinds = {row["image_id"]: row["kind"] for row in rows["images"]}
    assert (kinds[good["start_image_id"]], kinds[good["image_id"]]) == ("start", "generated")
    said = {row["item_id"]: row["predicted"] for row in rows["predictions"]}
    assert (said[good["start_image_id"]], said[good["image_id"]]) == ("crab", "boat")
    assert [row["loss"] for row in rows["traces"]] == pytest.approx([0.9, 0.1, 0.2])
    assert [row["augmented_loss"] for row in rows["traces"]] == [pytest.approx(0.8), pytest.approx(0.3), None]


def test_numbers_that_are_not_finite_become_rows_with_a_reason(tmp_path: Path) -> None:
    """A model and an embedder that break on black images."""

    class Breaks(Known):
        def logits(self, x: Tensor) -> Tensor:
            return super().logits(x) / x.amax((1, 2, 3))[:, None]

    embedder = SimpleNamespace(
        embed_images=lambda x: x.mean((2, 3)) / x.amax((1, 2, 3))[:, None], embed_preprocessed=None
    )
    white, black = np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)
    rows = rows_for(context({"f": Breaks()}, embedder).models, [white, black], ["w", "b"], "data", ["crab", None])
    assert [(row["status"], row.get("reason")) for row in rows["predictions"]] == [
        ("ok", None),
        ("failed", "not_finite"),
    ]
    assert rows["predictions"][0]["correct"] is True
    assert [(row.get("values"), row.get("reason")) for row in rows["arrays"]] == [
        ([1.0, 1.0, 1.0], None),
        (None, "not_finite"),
    ]
