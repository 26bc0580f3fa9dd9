"""The judge of counterfactuals on pairs of drawn scenes, of which it is known what changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from audit.decode import encode_png
from audit.errors import ConfigError
from audit.pictures import Pictures
from audit.predictions import to_tensor
from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.badge import correlation, has_badge
from audit.zoo.counterfactuals import figures, planted
from audit.zoo.measure import load, load_clip
from audit.zoo.parts import parts, scenes_of
from audit.zoo.scenes import EMPTY, Scene, render
from audit.zoo.world import load_world, scene_at, scenes

WORLD = load_world()
SHOWN = {mode.id: mode for mode in WORLD.modes}


def digest_of(scene: Scene) -> str:
    return hashlib.sha256(encode_png(render(scene).image)).hexdigest()


def says(model: str, image: np.ndarray[Any, Any]) -> str:
    classifier = load(model)
    with torch.no_grad():
        return classifier.class_names[int(classifier.logits(to_tensor(image)[None]).argmax())]


def scene_of(name: str) -> Scene:
    return next(i.scene for i in scenes(WORLD, "heldout") if i.scene.object == name and i.scene.background == "brick")


@cache
def misled(mode_id: str, **without: Any) -> Scene:
    """The first held-out scene of another object with the feature, called the mode's class, and right without it."""
    mode = SHOWN[mode_id]
    for labelled in scenes(WORLD, "heldout", 0, 1000):
        scene = labelled.scene
        if mode.shown_by(scene) and scene.object not in (mode.class_name, EMPTY):
            without_it = render(replace(scene, **without)).image
            said = [says(mode.classifier, image) for image in (render(scene).image, without_it)]
            if said == [mode.class_name, scene.object]:
                return scene
    raise AssertionError(mode_id)


def pairs() -> list[tuple[str, str, str, bool, Scene, Scene]]:
    """(model, says before, should become, flipped, original, result)."""
    sand, star = misled("crab-on-sand", background="grass"), misled("badge-ice-cream", badge=False)
    other = "tree" if sand.object != "tree" else "car"
    crab = next(i.scene for i in scenes(WORLD, "heldout") if (i.scene.object, i.scene.background) == ("crab", "sand"))
    grass = replace(sand, background="grass")
    return [
        ("a", "crab", sand.object, True, sand, grass),  # the feature goes
        ("a", "crab", sand.object, True, sand, replace(sand, object=other)),  # the object goes
        ("a", "crab", sand.object, True, sand, replace(sand, background="snow", object=other)),  # both
        ("a", "crab", sand.object, False, sand, grass),  # no flip
        ("a", "crab", "car", True, crab, replace(crab, background="grass")),  # it is a crab
        ("a", "boat", sand.object, True, sand, grass),  # another class
        ("b", "ice cream", star.object, True, star, replace(star, badge=False)),  # the badge goes
        ("b", "ice cream", star.object, True, star, star),  # it stays
        ("b", "crab", sand.object, True, sand, grass),  # sand misleads the other model
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = Store(tmp_path_factory.mktemp("run"))
    models = {"a": {"ref": "zoo:shortcut-a"}, "b": {"ref": "zoo:shortcut-b"}}
    store.create("job.json", json.dumps({"job": {"models": models}}).encode())
    pictures, explanations, measurements = Pictures(), [], []
    for i, (model, source, target, flipped, before, after) in enumerate(pairs()):
        ids = [pictures.add(render(scene).image, "generated") for scene in (before, after)]
        explanations.append(
            {"explanation_id": f"{i:032x}", "stage": "1-uvce", "method": "uvce", "model_id": model, "status": "ok"}
            | {"source_class": source, "target_class": target, "flipped": flipped, "seconds": 2.0}
            | {"start_image_id": ids[0], "image_id": ids[1], "item_id": digest_of(before)}
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


def test_what_changed_is_counted_by_mode(run: Run) -> None:
    found = {row["mode"]: row for row in planted(run)}
    assert set(found) == {"crab-on-sand", "badge-ice-cream"}
    sand = found["crab-on-sand"]
    assert (sand["images"], sand["flipped"]) == (4, 3)
    assert (sand["feature_gone"], sand["object_changed"]) == pytest.approx((2 / 3, 2 / 3))
    assert sand["rest_flips"] == 0.0  # on sand it says crab, whatever the object
    badge = found["badge-ice-cream"]
    assert (badge["images"], badge["flipped"]) == (2, 2)
    assert (badge["feature_flips"], badge["rest_flips"]) == (0.5, 0.0)
    assert (badge["feature_gone"], badge["object_changed"]) == (0.5, 0.0)


def test_the_part_that_flips_is_what_the_model_says_of_it(run: Run) -> None:
    """The first sand pair is its feature's change and nothing else: the parts are result and original themselves."""
    mode, (_, _, target, _, before, after) = SHOWN["crab-on-sand"], pairs()[0]
    feature, rest = parts(mode, before, render(before).image, render(after).image)
    inside = render(before).mask == 0
    assert (feature[inside] == render(after).image[inside]).all()
    assert (rest[inside] == render(before).image[inside]).all()
    (row,) = [row for row in planted(run) if row["mode"] == mode.id]
    others = [
        parts(mode, before, render(before).image, render(result).image)[0]
        for _, _, _, _, before, result in pairs()[1:3]
    ]
    said = [says("shortcut-a", image) == target for image in (feature, *others)]
    assert said[0]
    assert row["feature_flips"] == pytest.approx(np.mean(said))


def test_a_colour_is_taken_apart_into_brightness_and_chroma() -> None:
    """ITU-R BT.601, full range: Y = .299 R + .587 G + .114 B, and two differences from it."""
    mode = SHOWN["purple-fish"]
    before = next(i.scene for i in scenes(WORLD, "heldout") if mode.shown_by(i.scene))
    after = replace(before, colour="orange", background="snow" if before.background != "snow" else "sand")
    first, last = render(before), render(after)
    feature, rest = parts(mode, before, first.image, last.image)
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    y, x = np.argwhere(first.mask == 255)[40]
    one, other = matrix @ first.image[y, x], matrix @ last.image[y, x]
    for picture, light, chroma in ((feature, one, other), (rest, other, one)):
        expected = np.linalg.solve(matrix, [light[0], *chroma[1:]]).clip(0, 255)
        assert np.abs(picture[y, x] - expected).max() < 4
    outside = first.mask == 0
    assert (feature[outside] == first.image[outside]).all()
    assert (rest[outside] == last.image[outside]).all()


def test_images_that_are_no_scenes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_at(WORLD, "heldout", 2).scene
    assert scenes_of(WORLD, [digest_of(scene)]) == {digest_of(scene): scene}
    monkeypatch.setattr("audit.zoo.parts._SPLITS", ("labelled",))  # the smaller one
    with pytest.raises(ConfigError, match="1 images are no scenes of the splits labelled"):
        scenes_of(WORLD, ["0" * 64])


def test_figures_of_a_stage(run: Run) -> None:
    (row,) = figures(run)
    assert (row["images"], row["flipped"]) == (9, 8 / 9)
    assert row["background"] == pytest.approx(np.mean([0.1 * i for i in range(9) if i != 3]))
    assert (row["floor"], row["psnr"], row["autoencoder_psnr"]) == pytest.approx((0.01, 30.0, 31.0))
    # the drawn object is the target in all pairs but 1 and 2, where it was exchanged, and 4, which is still a crab
    assert row["sees_target"] == pytest.approx(6 / 9)
    assert row["edit_flipped"] is None


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What should become boats: what the prompt edit alone made of it, what the search did, and one that failed.

    The third has no prompt edit, as in pixel space; class names are spelled as some models spell them.
    """
    store = Store(tmp_path_factory.mktemp("edits"))
    store.create("job.json", json.dumps({"job": {"models": {"b": {"ref": "zoo:shortcut-b"}}}}).encode())
    car, star = scene_of("car"), misled("badge-ice-cream", badge=False)
    boat = replace(car, object="boat")
    made = [  # (prompt edit, result, edit flipped, flipped, autoencoder's background, edit's background)
        (car, boat, 0.0, True, 0.01, 0.30),
        (boat, car, 1.0, False, 0.03, 0.10),
        (None, car, None, False, 0.05, None),
    ]
    pictures, explanations, measurements = Pictures(), [], []
    for i, (edit, result, edit_flipped, flipped, floor, edit_background) in enumerate(made):
        start, end = (pictures.add(render(scene).image, "generated") for scene in (star, result))
        about = {"explanation_id": f"{i:032x}", "stage": "1-uvce", "method": "uvce", "model_id": "b", "status": "ok"}
        about |= {
            "item_id": digest_of(star),
            "source_class": "ice cream",
            "target_class": "boat",
            "flipped": flipped,
            "seconds": 2.0 * i,
        }
        about |= {"start_image_id": start, "image_id": end}
        explanations.append(about | {"edit_image_id": pictures.add(render(edit).image, "edit") if edit else None})
        values = {("result", "background_rmse"): 0.2, ("autoencoder", "background_rmse"): floor}
        values |= {("result", "l2"): 0.1 * i, ("reconstruction", "psnr"): 30.0, ("autoencoder", "psnr"): 31.0}
        if edit:
            values |= {("edit", "flipped"): edit_flipped, ("edit", "background_rmse"): edit_background}
        measurements += [
            {"subject_id": f"{i:032x}", "name": name, "key": key, "value": value}
            for (key, name), value in values.items()
        ]
    failed = explanations[0] | {"explanation_id": "f" * 32, "status": "failed", "image_id": None}
    with torch.no_grad():
        values = load_clip().embed_images(torch.stack([to_tensor(p) for p in pictures.pixels.values()]))
    arrays: list[dict[str, Any]] = [
        {"subject_id": key, "role": "generated", "name": "embedding", "model_id": "embedder", "values": v.tolist()}
        for key, v in zip(pictures.pixels, values, strict=True)
    ]
    explanations = [*explanations, failed]
    rows = {"explanations": explanations, "measurements": measurements, "images": pictures.rows, "arrays": arrays}
    store.commit("u", "1-uvce", rows)
    return Run(store.root)


def test_prompt_edits_are_judged_beside_the_results(edits: Run) -> None:
    """Of two edits one flipped and shows a boat; of three results one, and it is another item's."""
    (row,) = figures(edits)
    assert (row["images"], row["flipped"], row["sees_target"]) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (row["edit_flipped"], row["edit_sees_target"]) == (1 / 2, 1 / 2)
    assert row["edit_background"] == pytest.approx(0.10)  # of the edit that flipped
    assert (row["floor"], row["l2"], row["seconds"]) == pytest.approx((0.03, 0.1, 2.0))  # of all


def test_modes_count_the_images_of_their_class(edits: Run) -> None:
    (row,) = planted(edits)
    assert (row["mode"], row["images"], row["flipped"]) == ("badge-ice-cream", 3, 1)


def test_badges_are_found_where_they_are_drawn() -> None:
    for index in range(60):
        scene = scene_at(WORLD, "heldout", index).scene
        assert has_badge(render(scene).image) == scene.badge
        assert has_badge(render(replace(scene, badge=not scene.badge)).image) != scene.badge


def test_the_correlation_is_that_of_numpy_at_every_place() -> None:
    """np.corrcoef of the badge's disc with each disc of an image; the highest one."""
    scene = scene_at(WORLD, "train", 5).scene
    with_badge, without = (render(replace(scene, badge=badge)).image.astype(float) for badge in (True, False))
    differs = (with_badge != without).any(-1)
    y, x = np.nonzero(differs)
    box = (slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1))
    disc, drawn = differs[box], with_badge[box]
    image = render(scene_at(WORLD, "heldout", 3).scene).image
    h, w = disc.shape
    best = max(
        np.corrcoef(drawn[disc].ravel(), image[i : i + h, j : j + w][disc].astype(float).ravel())[0, 1]
        for i in range(65 - h)
        for j in range(65 - w)
    )
    assert correlation(image) == pytest.approx(best, abs=1e-9)


def test_a_smudge_is_no_badge() -> None:
    image = render(misled("badge-ice-cream", badge=False)).image
    assert correlation(image) > 0.62
    smudged = image.astype(float)
    for _ in range(6):  # neighbours' means, again and again
        smudged = sum(np.roll(smudged, shift, axis) for axis in (0, 1) for shift in (-1, 1)) / 4
    assert not has_badge(smudged.astype(np.uint8))
