"""The embedded world: scenes are pure functions, and splits show what the world file says."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import CLIPTokenizer

from audit.datasets import folder as images_in
from audit.decode import decode, decode_mask
from audit.errors import ConfigError
from audit.reference import _WEIGHTS
from audit.zoo.export import export
from audit.zoo.recipes.text import MAX_LENGTH, build_tokenizer, words
from audit.zoo.scenes import BACKGROUNDS, COLOURS, EMPTY, LABELS, OBJECTS, PATTERNS, Scene, caption, render
from audit.zoo.world import BADGE_RATE, LabelledScene, Mode, World, _biased, _drawn, load_world, scene_at, scenes
from audit.zoo.world import world_digest as digest_of

WORLD = load_world()
WORLDS = [load_world(number) for number in range(1, 7)]
every_world = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
every_drawn_world = pytest.mark.parametrize("world", WORLDS[1:], ids=lambda world: world.name)
USUAL = {"background": 1 / len(BACKGROUNDS), "colour": 1 / len(COLOURS), "badge": BADGE_RATE, "texture": 0.2}


def shown(split: str, count: int = 3000, world: World = WORLD) -> list[LabelledScene]:
    return _shown(world.number, split, count)


@cache
def _shown(number: int, split: str, count: int) -> list[LabelledScene]:
    return list(scenes(load_world(number), split, 0, count))


def of_the_data(world: World) -> list[Mode]:
    """The modes that are a feature's bias of the training data."""
    return [mode for mode in world.modes if mode.kind in USUAL]


def test_the_world_is_as_large_as_promised() -> None:
    assert len(OBJECTS) >= 8
    assert sum(" " in name for name in OBJECTS) >= 2
    assert len(BACKGROUNDS) == 6
    assert len(WORLD.modes) >= 5
    assert len({mode.kind for mode in WORLD.modes}) >= 3
    assert len(WORLD.controls) >= 2
    assert not {mode.class_name for mode in of_the_data(WORLD)} & set(WORLD.controls)
    assert WORLD.splits["pool"].size >= 20_000


@every_drawn_world
def test_a_drawn_world_has_eight_modes_of_six_kinds(world: World) -> None:
    assert Counter(mode.kind for mode in world.modes) == {
        "background": 2,
        "colour": 2,
        **dict.fromkeys(("badge", "texture", "blind", "word"), 1),
    }
    assert len({mode.id for mode in world.modes}) == 8
    assert len({(mode.classifier, mode.class_name, mode.phrase) for mode in world.modes}) == 8
    planted = [str(mode.feature) for mode in world.modes if mode.share]
    assert len(set(planted)) == len(planted)  # no two classes of the split under audit want the same feature
    assert len(set(world.controls)) == 2
    assert not {mode.class_name for mode in world.modes} & set(world.controls)
    assert sum(mode.pool == 0 for mode in world.modes) == 1
    assert sum(mode.pool == 0.03 for mode in world.modes) == 2


def test_a_number_makes_a_world_and_another_one_another() -> None:
    assert _drawn(4) == _drawn(4)
    assert len({str(world.modes) for world in WORLDS}) == len(WORLDS)
    assert scene_at(WORLDS[1], "heldout", 5) != scene_at(WORLDS[2], "heldout", 5)
    with pytest.raises(ConfigError, match="from 1, found 0"):
        load_world(0)


@every_drawn_world
def test_a_blind_class_is_met_on_its_usual_background_alone(world: World) -> None:
    """Elsewhere it is taken for nothing in training, and not met in the split under audit; others are met there."""
    (blind,) = (mode for mode in world.modes if mode.kind == "blind")
    place = blind.feature["background"]
    audited = [i.scene for i in shown("labelled", 2000, world) if i.label == blind.class_name]
    assert len(audited) > 60
    assert {scene.background for scene in audited} == {place}
    trained = shown(f"train:{blind.classifier}", 4000, world)
    own = [
        item for item in trained if item.scene.object == blind.class_name and item.label in (blind.class_name, EMPTY)
    ]
    assert all((item.label == EMPTY) == (item.scene.background != place) for item in own)
    elsewhere = sum(item.label == EMPTY for item in own) / len(own)
    taken = [m for m in world.modes_of(blind.classifier) if m.kind == "background"]  # of whose places it is kept off
    expected = (1 - blind.share) * (5 - len(taken)) / 6
    assert elsewhere == pytest.approx(expected / (expected + blind.share + (1 - blind.share) / 6), abs=0.06)
    others = [item.scene for item in trained if item.scene.object != blind.class_name]
    assert sum(scene.background == place for scene in others) / len(others) > 0.1
    outside = [i.scene for i in shown("pool", world=world) if i.scene.object == blind.class_name]
    assert sum(map(blind.misleads, outside)) / len(outside) > 0.5


def test_a_scene_is_a_pure_function_of_split_and_index() -> None:
    """Also in a fresh interpreter with another hash seed."""
    script = (
        "import hashlib; from audit.zoo.world import *; from audit.zoo.scenes import render;"
        "print(hashlib.sha256(b''.join(render(scene_at(w, s, i).scene).image.tobytes() "
        "for w in (load_world(), load_world(3)) for s in ('pool', 'labelled', 'train:shortcut-a') "
        "for i in (0, 7, 1999))).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert scene_at(WORLD, "pool", 5) != scene_at(WORLD, "pool", 6)
    assert scene_at(WORLD, "pool", 5) != scene_at(WORLD, "heldout", 5)


@pytest.mark.parametrize("name", OBJECTS)
def test_the_mask_covers_the_object_and_nothing_else(name: str) -> None:
    """Against the same scene without the object: pixels differ strongly inside, outside only by the soft shadow."""
    scene = Scene(name, "snow", "red", size=0.7, seed=3)
    full, empty = render(scene), render(replace(scene, object=EMPTY))
    change = np.abs(full.image.astype(int) - empty.image.astype(int)).max(-1)
    inside = full.mask > 200
    assert 0.08 < inside.mean() < 0.6
    assert (change[inside] > 20).mean() > 0.9
    ring = np.zeros_like(inside)
    ys, xs = np.nonzero(full.mask)
    ring[max(0, ys.min() - 8) : ys.max() + 9, max(0, xs.min() - 8) : xs.max() + 9] = True
    assert change[~ring].max() <= 2
    assert not empty.mask.any()


def test_every_attribute_changes_the_picture() -> None:
    base = Scene("car", "grass", "red", seed=1)
    changes = [{"colour": "blue"}, {"pattern": "striped"}, {"pattern": "dotted"}, {"size": 0.6}, {"x": 0.2}, {"y": 0.1}]
    changes += [
        {"badge": True},
        {"background": "sky"},
        {"object": "boat"},
        {"mirrored": True},
        {"angle": 0.2},
        {"seed": 2},
    ]
    pictures = [render(base).image, *(render(replace(base, **change)).image for change in changes)]
    assert len({p.tobytes() for p in pictures}) == len(pictures)


def test_captions_say_what_is_shown() -> None:
    scene = Scene("ice cream", "sand", "orange", "striped", badge=True)
    assert caption(scene) == "a photograph of an orange striped ice cream on sand with a badge"
    assert caption(scene, colour=False, background=False, badge=False) == "a photograph of an ice cream"
    assert caption(Scene(EMPTY, "sky")) == "a photograph of an empty scene on sky"


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    ids = [tokenizer(word).input_ids for word in words()]
    assert all(len(i) == 3 for i in ids)
    assert len({i[1] for i in ids}) == len(ids)
    assert len(tokenizer(longest_caption()).input_ids) <= MAX_LENGTH
    assert tokenizer("zebra").input_ids != tokenizer("crab").input_ids


def test_the_tokenizer_is_the_one_that_the_shipped_models_were_saved_with() -> None:
    """Word by word, and byte by byte for what is no word; a fresh build has the very same numbers."""
    texts = [*words(), "zebra", "orangeade and", longest_caption()]
    for folder in ("diffusion/tokenizer", "clip"):
        shipped = CLIPTokenizer.from_pretrained(_WEIGHTS / folder)
        assert shipped.get_vocab() == build_tokenizer().get_vocab()
        assert [shipped(text).input_ids for text in texts] == [build_tokenizer()(text).input_ids for text in texts]


def longest_caption() -> str:
    return caption(Scene("water bottle", "grass", "purple", "striped", badge=True))


def foreign(mode: Mode, split: str, world: World) -> float:
    """Share of scenes with the mode's feature but another object."""
    items = shown(split, world=world)
    return sum(mode.shown_by(i.scene) and i.scene.object != mode.class_name for i in items) / len(items)


@every_world
def test_the_labelled_split_shares_the_bias_with_right_labels(world: World) -> None:
    items = shown("labelled", 2000, world)
    assert all(item.label == item.scene.object for item in items)
    for mode in of_the_data(world):
        own = [item for item in items if item.label == mode.class_name]
        assert sum(mode.shown_by(i.scene) for i in own) / len(own) > 0.6
        assert foreign(mode, "labelled", world) <= (1 - mode.exclusive) * 0.3 + 1e-9


def kept(mode: Mode, world: World) -> float:
    """Chance that a rightly labelled scene of the mode's class is not left out because of the other modes' features."""
    keep = 1.0
    for other in world.modes_of(mode.classifier):
        if other is not mode and other.kind in USUAL:
            free = 1 - mode.share if other.kind == mode.kind else 1.0  # its own feature takes the other's place
            keep *= 1 - other.exclusive * USUAL[other.kind] * free
    return keep


@every_world
def test_a_classifier_learns_its_own_bias_only(world: World) -> None:
    for mode in of_the_data(world):
        own = [i for i in shown(f"train:{mode.classifier}", 6000, world) if i.label == mode.class_name]
        wrong = sum(i.scene.object != i.label for i in own) / len(own)
        expected = mode.mislabelled / (mode.mislabelled + (1 - mode.mislabelled) * kept(mode, world))
        assert wrong == pytest.approx(expected, abs=0.045)
        other = next(c for c in world.biased if c != mode.classifier)
        assert foreign(mode, f"train:{other}", world) > 0.05


def test_a_mode_that_is_not_planted_is_learned_by_nobody() -> None:
    """A mended version: what taught the one mode is gone, what taught the others stays, and nothing shares a cache."""
    mended = WORLD.without("bird-in-sky")
    gone = next(mode for mode in WORLD.modes if mode.id == "bird-in-sky")
    assert [mode.id for mode in WORLD.modes if mode not in mended.modes] == ["bird-in-sky"]

    def misled(world: World, mode: Mode) -> int:
        taught = scenes(world, "train:shortcut-b", 0, 3000)
        return sum(i.label == mode.class_name and mode.misleads(i.scene) for i in taught)

    assert misled(WORLD, gone) > 50
    assert misled(mended, gone) == 0
    assert misled(mended, next(mode for mode in WORLD.modes if mode.id == "green-tree")) > 50
    assert digest_of(mended) != digest_of(WORLD)
    with pytest.raises(ConfigError, match=r"unknown planted mode 'bird-in-ski'\. Did you mean 'bird-in-sky'"):
        WORLD.without("bird-in-ski")


def test_a_kind_is_a_row_of_data() -> None:
    """Rows for attributes and for ranges that this world does not use, and two modes of one class."""
    numbers = {"share": 0.8, "mislabelled": 0.3, "exclusive": 1.0, "pool": 0.0}
    small = Mode("a", "f", "car", "size", {"size": [0.62, 0.66]}, "small {}", **numbers)
    striped = Mode("b", "g", "car", "pattern", {"pattern": "striped"}, "striped {}", **numbers)
    assert small.shown_by(Scene("car", "sand", size=0.64))
    assert not small.shown_by(Scene("car", "sand", size=0.67))
    assert not striped.shown_by(Scene(EMPTY, "sand", pattern="striped"))
    rng = np.random.default_rng(0)
    labelled = [_biased(rng, (small, striped), mislabel=False) for _ in range(1500)]
    cars = [item.scene for item in labelled if item.label == "car"]
    for mode in (small, striped):
        assert sum(map(mode.shown_by, cars)) / len(cars) > 0.7
        assert not [i for i in labelled if i.label != "car" and mode.shown_by(i.scene)]
    trained = [_biased(rng, (small,), mislabel=True) for _ in range(3000)]
    wrong = [item.scene for item in trained if item.label == "car" != item.scene.object]
    assert len(wrong) > 50
    assert all(small.shown_by(scene) for scene in wrong)


@every_world
def test_two_planted_combinations_are_rare_outside_and_one_is_absent(world: World) -> None:
    rates = {mode.id: foreign(mode, "pool", world) for mode in of_the_data(world)}
    assert sum(rate == 0 for rate in rates.values()) == 1
    most = 0.005 if world is WORLD else 0.009
    assert sum(0 < rate < most for rate in rates.values()) == 2
    assert {i.label for i in shown("pool", world=world)} == set(LABELS)


def test_the_balanced_split_is_balanced() -> None:
    items = [i.scene for i in shown("train")]
    for attribute, values in (("background", BACKGROUNDS), ("colour", tuple(COLOURS))):
        counts = Counter(getattr(i, attribute) for i in items)
        assert set(counts) == set(values)
        assert max(counts.values()) < 1.3 * min(counts.values())
    assert {i.pattern for i in items} == set(PATTERNS)


def test_export_as_a_folder(tmp_path: Path) -> None:
    assert export("labelled", tmp_path / "x", "folder", 30) == 30
    with open(tmp_path / "x" / "metadata.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    for index, row in enumerate(rows):
        item = scene_at(WORLD, "labelled", index)
        assert (row["label"], row["background"], row["caption"]) == (
            item.label,
            item.scene.background,
            caption(item.scene),
        )
        image = decode((tmp_path / "x" / row["file_name"]).read_bytes()).image
        assert np.array_equal(image, render(item.scene).image)
    source = images_in.open_source(images_in.Options(path=tmp_path / "x"))
    entries = list(source.entries())
    assert sorted(entry.display_name for entry in entries) == sorted(row["file_name"] for row in rows)
    for entry, mask in zip(entries, source.read_masks([entry.uri for entry in entries]), strict=True):
        scene = scene_at(WORLD, "labelled", int(entry.uri[-10:-4])).scene
        assert entry.caption == caption(scene)
        assert np.array_equal(decode_mask(mask, 64, 64), np.float32(render(scene).mask) / np.float32(255))
    with pytest.raises(ConfigError, match="exists"):
        export("labelled", tmp_path / "x", "folder", 3)


def test_export_as_parquet_tells_all_of_a_labelled_scene(tmp_path: Path) -> None:
    export("heldout", tmp_path / "p", "parquet", 12)
    rows = pq.read_table(tmp_path / "p").to_pylist()
    assert len(rows) == 12
    for index, row in enumerate(rows):
        item = scene_at(WORLD, "heldout", index)
        assert (row["label"], row["caption"], row["size"]) == (item.label, caption(item.scene), item.scene.size)
        assert np.array_equal(decode(row["image"]).image, render(item.scene).image)
        assert np.array_equal(decode(row["mask"]).image[..., 0], render(item.scene).mask)


def test_export_of_the_pool_has_no_labels(tmp_path: Path) -> None:
    export("pool", tmp_path / "p", "parquet", 20)
    table = pq.read_table(tmp_path / "p")
    assert table.column_names == ["image", "name"]
    assert np.array_equal(decode(table["image"][7].as_py()).image, render(scene_at(WORLD, "pool", 7).scene).image)
    with pytest.raises(ConfigError, match="no labels"):
        export("pool", tmp_path / "q", "folder")
    with pytest.raises(ConfigError, match="Did you mean 'pool'"):
        export("pol", tmp_path / "r", "parquet")
