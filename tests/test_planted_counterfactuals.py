"""The judge of counterfactuals on pairs of drawn scenes, of which it is known what changed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from audit.pictures import Pictures
from audit.predictions import to_tensor
from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.badge import correlation, has_badge
from audit.zoo.counterfactuals import figures, planted
from audit.zoo.measure import load_clip
from audit.zoo.scenes import Scene, render
from audit.zoo.world import load_world, scene_at

SAND = Scene(object="car", background="sand", colour="red", size=0.8, x=0.05, y=0.05)
STAR = Scene(object="boat", background="grass", colour="blue", size=0.75, x=-0.1, y=0.05, badge=True)
# (model, says before, should become, flipped, original, result)
PAIRS = [
    ("a", "crab", "car", True, SAND, replace(SAND, background="grass")),  # the feature goes
    ("a", "crab", "car", True, SAND, replace(SAND, object="tree")),  # the object goes
    ("a", "crab", "car", True, SAND, replace(SAND, background="snow", object="fish")),  # both
    ("a", "crab", "car", True, SAND, replace(SAND, colour="yellow")),  # neither
    ("a", "crab", "car", False, SAND, replace(SAND, background="water")),  # no flip
    ("a", "crab", "car", True, replace(SAND, background="brick"), SAND),  # not asked: the feature was not there
    ("a", "car", "crab", True, replace(SAND, background="snow"), SAND),  # the feature comes
    ("b", "ice cream", "boat", True, STAR, replace(STAR, badge=False)),  # the badge goes
    ("b", "ice cream", "boat", True, STAR, STAR),  # it stays
    ("b", "crab", "car", True, SAND, replace(SAND, background="grass")),  # sand misleads the other model
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = Store(tmp_path_factory.mktemp("run"))
    models = {"a": {"ref": "zoo:shortcut-a"}, "b": {"ref": "zoo:shortcut-b"}}
    store.create("job.json", json.dumps({"job": {"models": models}}).encode())
    pictures, explanations, measurements = Pictures(), [], []
    for i, (model, source, target, flipped, before, after) in enumerate(PAIRS):
        ids = [pictures.add(render(scene).image, "generated") for scene in (before, after)]
        explanations.append(
            {"explanation_id": f"{i:032x}", "stage": "1-uvce", "method": "uvce", "model_id": model, "status": "ok"}
            | {"source_class": source, "target_class": target, "flipped": flipped, "seconds": 2.0}
            | {"start_image_id": ids[0], "image_id": ids[1]}
        )
        values = {("result", "background_rmse"): 0.1 * i, ("autoencoder", "background_rmse"): 0.01}
        values |= {("result", "l2"): 0.2, ("reconstruction", "psnr"): 30.0, ("autoencoder", "psnr"): 31.0}
        measurements += [
            {"subject_id": f"{i:032x}", "name": name, "key": key, "value": value}
            for (key, name), value in values.items()
        ]
    with torch.no_grad():
        values = load_clip().embed_images(torch.stack([to_tensor(p) for p in pictures.pixels.values()]))
    arrays: list[dict[str, Any]] = [
        {"subject_id": key, "role": "generated", "name": "embedding", "model_id": "embedder", "values": v.tolist()}
        for key, v in zip(pictures.pixels, values, strict=True)
    ]
    rows = {"explanations": explanations, "measurements": measurements, "images": pictures.rows, "arrays": arrays}
    store.commit("u", "1-uvce", rows)
    return Run(store.root)


def test_what_changed_is_counted_by_mode_and_direction(run: Run) -> None:
    found = {(row["mode"], row["direction"]): row for row in planted(run)}
    assert set(found) == {("crab-on-sand", "from"), ("crab-on-sand", "to"), ("badge-ice-cream", "from")}
    sand = found["crab-on-sand", "from"]
    assert (sand["images"], sand["flipped"]) == (5, 4)
    assert (sand["feature"], sand["object"], sand["feature_only"]) == (2 / 4, 2 / 4, 1 / 4)
    gained = found["crab-on-sand", "to"]
    assert (gained["images"], gained["feature"], gained["object"]) == (1, 1.0, 0.0)
    badge = found["badge-ice-cream", "from"]
    assert (badge["images"], badge["feature"], badge["object"]) == (2, 1 / 2, 0.0)


def test_figures_of_a_stage(run: Run) -> None:
    (row,) = figures(run)
    assert (row["images"], row["flipped"]) == (len(PAIRS), 9 / 10)
    assert row["background"] == pytest.approx(np.mean([0.1 * i for i in range(10) if i != 4]))
    assert (row["floor"], row["psnr"], row["autoencoder_psnr"]) == pytest.approx((0.01, 30.0, 31.0))
    # cars where a car is wanted: pairs 0, 3, 4, 5, 9; the boat of 7 and 8; no crab in 6
    assert row["sees_target"] == pytest.approx(7 / 10)
    assert row["edit_flipped"] is None


def test_badges_are_found_where_they_are_drawn() -> None:
    world = load_world()
    for index in range(60):
        scene = scene_at(world, "heldout", index).scene
        assert has_badge(render(scene).image) == scene.badge
        assert has_badge(render(replace(scene, badge=not scene.badge)).image) != scene.badge


def test_the_correlation_is_that_of_numpy_at_every_place() -> None:
    """np.corrcoef of the badge's disc with each disc of an image; the highest one."""
    scene = scene_at(load_world(), "train", 5).scene
    with_badge, without = (render(replace(scene, badge=badge)).image.astype(float) for badge in (True, False))
    differs = (with_badge != without).any(-1)
    y, x = np.nonzero(differs)
    box = (slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1))
    disc, drawn = differs[box], with_badge[box]
    image = render(scene_at(load_world(), "heldout", 3).scene).image
    h, w = disc.shape
    best = max(
        np.corrcoef(drawn[disc].ravel(), image[i : i + h, j : j + w][disc].astype(float).ravel())[0, 1]
        for i in range(65 - h)
        for j in range(65 - w)
    )
    assert correlation(image) == pytest.approx(best, abs=1e-9)


def test_a_smudge_is_no_badge() -> None:
    image = render(STAR).image
    assert correlation(image) > 0.62
    smudged = image.astype(float)
    for _ in range(6):  # neighbours' means, again and again
        smudged = sum(np.roll(smudged, shift, axis) for axis in (0, 1) for shift in (-1, 1)) / 4
    assert not has_badge(smudged.astype(np.uint8))
