"""Kinds of failure modes, each on planted rows and embeddings in which every direction has one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit import discovery as d
from audit.check import Check
from audit.failure_modes import claims, confusions, evidence, flips, spurious_neurons
from audit.failure_modes.claims import EMBEDDER, Material, Options, Real
from audit.results.schema import Rows
from audit.results.sql import Run
from audit.results.store import Store

CLASSES = ("crab", "boat", "car")
VOCABULARY = ("{} on sand", "{} on water", "red {}", "{} with a badge")
AXES = np.eye(len(CLASSES) + len(VOCABULARY))
SAND, WATER, RED, BADGE = (AXES[len(CLASSES) + i] for i in range(len(VOCABULARY)))
CONCEPTS = np.stack([SAND, WATER, RED, BADGE, -SAND, -WATER, -RED, -BADGE])


def embedding(name: str, *features: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """An image of a class with features, of norm 1."""
    noise = 0 if rng is None else 0.05 * rng.normal(size=len(AXES))
    whole = 1.5 * AXES[CLASSES.index(name)] + sum(features, np.zeros(len(AXES))) + noise
    return np.asarray(whole / np.linalg.norm(whole))


def seen(embeddings: np.ndarray) -> np.ndarray:
    """The embedder's classes."""
    return np.array([CLASSES[i] for i in embeddings[:, : len(CLASSES)].argmax(1)], object)


def images(count: int, misled: Any, seed: int = 0) -> Real:
    """Real images of all classes on sand or water; `misled(name, on_sand)` is what model f says."""
    rng = np.random.default_rng(seed)
    names = [CLASSES[i] for i in rng.integers(0, 3, count)]
    sand = rng.random(count) < 0.4
    rows = np.stack([embedding(n, SAND if s else WATER, rng=rng) for n, s in zip(names, sand, strict=True)])
    said = np.array([misled(n, s) for n, s in zip(names, sand, strict=True)], object)
    ids = np.array([f"{(i * 2654435761) % 2**32:08x}" for i in range(count)], object)
    truth = np.array(names, object)
    along = rows @ CONCEPTS[: len(VOCABULARY)].T
    return Real(ids, rows, along, d.halves(along), {"f": said, None: truth, EMBEDDER: seen(rows)})


def material(root: Path, rows: Rows, **real: Real | None) -> Material:
    Store(root).create("job.json", b"{}")
    Store(root).commit("u", "1-x", rows)
    check = Check(EMBEDDER, lambda _: [], seen)
    options = Options(vocabulary=VOCABULARY, smallest_control=3)
    given: dict[str, Any] = {"pool": None, "data": None, **real}
    return Material(options, Run(root), ("f",), CLASSES, CONCEPTS, check, **given)


def search(number: int, start: np.ndarray, result: np.ndarray, **columns: Any) -> Rows:
    """One row of explanations, and the embeddings of its two images."""
    ids = [f"s{number}", f"r{number}"]
    row = {"explanation_id": f"x{number:03d}", "stage": "4-x", "model_id": "f", "status": "ok", "flipped": True}
    row |= {"start_image_id": ids[0], "image_id": ids[1], **columns}
    arrays = [
        {"subject_id": i, "role": "generated", "name": "embedding", "values": values.tolist()}
        for i, values in zip(ids, (start, result), strict=True)
    ]
    return {"explanations": [row], "arrays": arrays}


def together(parts: list[Rows]) -> Rows:
    return {table: [row for part in parts for row in part.get(table, [])] for table in ("explanations", "arrays")}


def test_a_confusion_that_a_feature_makes_is_named_by_it_and_one_of_a_class_by_its_label(tmp_path: Path) -> None:
    """f says crab for what is on sand, whatever it is; and boat for a third of the cars on water."""
    turn = iter(range(10**6))

    def misled(name: str, on_sand: bool) -> str:
        if on_sand:
            return "crab"
        return "boat" if name == "car" and next(turn) % 3 == 0 else name

    data = images(600, misled)
    found = [group.mode for group in confusions.find(material(tmp_path, {}, data=data))]
    crab = next(m for m in found if (m["class_name"], m["concept"]) == ("crab", "{} on sand"))
    assert (crab["kind"], crab["source"], crab["other_model_id"]) == ("confusion", "labels", None)
    assert crab["p_value"] < 1e-20
    assert crab["evidence_rate"] > 0.9
    assert crab["control_rate"] < 0.1
    odd = data.halves()[1].ids.tolist()
    assert set(crab["evidence"]) <= set(odd)  # named by one half, tested on the other
    assert crab["at_fault"] == "f"
    boats = next(m for m in found if (m["class_name"], m["name"]) == ("boat", "labelled car"))
    other = data.halves()[1]
    cars, crabs = (other.said[None] == name for name in ("car", "crab"))
    called = other.said["f"] == "boat"
    assert boats["evidence_rate"] == pytest.approx(called[cars].mean())
    assert boats["control_rate"] == pytest.approx(called[crabs].mean()) == 0.0
    assert (boats["evidence_images"], boats["control_images"]) == (cars.sum(), crabs.sum())
    assert boats["impact"] == pytest.approx(called[cars].sum() / len(other.ids), rel=1e-6)


def test_a_model_that_is_right_has_no_confusions(tmp_path: Path) -> None:
    data = images(300, lambda name, on_sand: name)
    assert confusions.find(material(tmp_path, {}, data=data)) == []
    assert confusions.find(material(tmp_path / "unlabelled", {})) == []


def neuron_rows(verdict: str = "harmful") -> Rows:
    rng = np.random.default_rng(1)
    parts = []
    for i in range(6):  # from boats and cars on water to the same on sand, which the model calls crabs
        name = CLASSES[1 + i % 2]
        start, result = embedding(name, WATER, rng=rng), embedding(name, WATER, 2 * SAND, rng=rng)
        of = {"method": "neuron", "arm": "others", "neuron": 7, "layer": "last", "target_class": "crab"}
        parts.append(search(i, start, result, seen_after=False, **of))
    for i in range(6, 10):  # a crab came: the check sees it
        of = {"method": "neuron", "arm": "others", "neuron": 7, "layer": "last", "target_class": "crab"}
        parts.append(search(i, embedding("boat", WATER), embedding("crab", RED, rng=rng), seen_after=True, **of))
    for i in range(10, 16):  # another neuron, of another class
        of = {"method": "neuron", "arm": "others", "neuron": 3, "layer": "last", "target_class": "car"}
        name = CLASSES[i % 2]
        result = embedding(name, WATER, 0.3 * RED, rng=rng)
        parts.append(search(i, embedding(name, WATER, rng=rng), result, seen_after=False, **of))
    neuron = {"neuron_id": "n7", "stage": "4-x", "model_id": "f", "layer": "last", "class_name": "crab", "neuron": 7}
    core = {**neuron, "neuron_id": "n3", "class_name": "car", "neuron": 3, "verdict": "core"}
    return {**together(parts), "neurons": [{**neuron, "verdict": verdict, "check_id": EMBEDDER}, core]}


def test_a_harmful_neuron_is_a_failure_mode_with_what_it_shows_as_its_name(tmp_path: Path) -> None:
    pool = images(600, lambda name, on_sand: "crab" if on_sand else name)
    (group,) = spurious_neurons.find(material(tmp_path, neuron_rows(), pool=pool))
    mode = group.mode
    assert (mode["kind"], mode["class_name"], mode["name"], mode["reason"]) == ("neuron", "crab", "on sand", None)
    assert (mode["support"], mode["seeds"], mode["neurons"]) == (6, 10, ["n7"])
    assert set(mode["exemplars"]) == {f"x{i:03d}" for i in range(6)}
    assert mode["evidence_rate"] == 1.0
    assert mode["p_value"] < 1e-6
    assert mode["impact_low"] > 0.1


def test_a_core_neuron_is_none(tmp_path: Path) -> None:
    pool = images(200, lambda name, on_sand: "crab" if on_sand else name)
    assert spurious_neurons.find(material(tmp_path, neuron_rows("core"), pool=pool)) == []


def test_searches_that_kept_their_start_are_no_controls(tmp_path: Path) -> None:
    """They show what no search did: the spread of the controls, and so the effect, is that of those that moved."""
    pool = images(600, lambda name, on_sand: "crab" if on_sand else name)
    (whole,) = spurious_neurons.find(material(tmp_path / "moved", neuron_rows(), pool=pool))
    rows, still = neuron_rows(), embedding("boat", WATER)
    for i, (neuron, name) in enumerate([(3, "car"), (7, "crab")] * 4, 20):
        of = {"method": "neuron", "arm": "others", "neuron": neuron, "layer": "last", "target_class": name}
        for table, added in search(i, still, still, seen_after=False, **of).items():
            rows[table] += added
    (same,) = spurious_neurons.find(material(tmp_path / "kept", rows, pool=pool))
    assert [same.mode[key] for key in ("effect", "support", "seeds")] == [
        whole.mode[key] for key in ("effect", "support", "seeds")
    ]


def flip_rows() -> Rows:
    rng = np.random.default_rng(2)
    parts = []

    def flip(number: int, start: np.ndarray, result: np.ndarray, source: str, target: str) -> None:
        of = {"method": "uvce", "item_id": f"i{number}", "source_class": source, "target_class": target}
        parts.append(search(number, start, result, **of))

    for i in range(5):  # a boat becomes a crab by sand alone; a badge on cars does nothing of the kind
        flip(i, embedding("boat", WATER, rng=rng), embedding("boat", WATER, 2 * SAND, rng=rng), "boat", "crab")
    for i in range(5, 10):  # what was called a crab is a car again without its sand
        flip(i, embedding("car", WATER, 2 * SAND, rng=rng), embedding("car", WATER, rng=rng), "crab", "car")
    for i in range(10, 15):  # the object itself changed: nothing to complain of
        flip(i, embedding("boat", WATER, rng=rng), embedding("car", WATER, BADGE, rng=rng), "boat", "car")
    for i in range(15, 21):  # for comparison: cars became boats by red
        flip(i, embedding("car", WATER, rng=rng), embedding("car", WATER, 2 * RED, rng=rng), "car", "boat")
    return together(parts)


def test_what_was_added_or_taken_away_when_a_decision_turned_and_the_object_did_not(tmp_path: Path) -> None:
    pool = images(600, lambda name, on_sand: "crab" if on_sand else name)
    found = [group.mode for group in flips.find(material(tmp_path, flip_rows(), pool=pool))]
    by_exemplar = {(m["class_name"], min(m["exemplars"])): m for m in found}
    assert set(by_exemplar) == {("crab", "x000"), ("crab", "x005"), ("boat", "x015")}
    added, taken, red = (by_exemplar[k] for k in sorted(by_exemplar, key=lambda k: k[1]))
    for mode in (added, taken):
        assert (mode["name"], mode["kind"], mode["other_model_id"]) == ("on sand", "flip", EMBEDDER)
        assert mode["evidence_rate"] == 1.0
        assert mode["p_value"] < 1e-6
    assert red["name"] == "red"  # no real image is wrongly called a boat: named by the searches alone
    assert not red.get("evidence")


def test_a_model_that_is_right_is_not_wrong_for_the_embedder_s_mistake(tmp_path: Path) -> None:
    """It is right of boats that the embedder takes for crabs; the labels say so, or there are none."""
    rng = np.random.default_rng(5)
    parts = []
    for i in range(5):  # boats that look like crabs, to the embedder, on sand; without their sand f calls them crabs
        start, result = embedding("crab", WATER, 2 * SAND, rng=rng), embedding("crab", WATER, rng=rng)
        of = {"method": "uvce", "item_id": f"i{i}", "source_class": "boat", "target_class": "crab"}
        parts.append(search(i, start, result, **of))
    for i in range(5, 11):
        of = {"method": "uvce", "item_id": f"i{i}", "source_class": "car", "target_class": "boat"}
        parts.append(search(i, embedding("car", WATER, rng=rng), embedding("car", WATER, 2 * RED, rng=rng), **of))
    pool = images(200, lambda name, on_sand: name)
    unknown = flips.find(material(tmp_path / "unknown", together(parts), pool=pool))
    assert {group.mode["class_name"] for group in unknown} == {"boat"} | {"boat"}
    items = [{"item_id": f"i{i}", "role": "data", "label": "boat" if i < 5 else "car"} for i in range(11)]
    known = flips.find(material(tmp_path / "known", {**together(parts), "items": items}, pool=pool))
    assert [group.mode["exemplars"][0] >= "x005" for group in known] == [True]


def test_flips_that_are_none_are_no_failure_mode(tmp_path: Path) -> None:
    """Decisions that had turned already, and counterfactuals that changed nothing."""
    rng = np.random.default_rng(6)
    of = {"method": "uvce", "source_class": "boat", "target_class": "crab"}
    start, result = embedding("boat", WATER, rng=rng), embedding("boat", WATER, 2 * SAND, rng=rng)
    parts = [search(i, start, result, item_id=f"i{i}", flipped_before=True, **of) for i in range(5)]
    parts += [search(i, start, start, item_id=f"i{i}", **of) for i in range(5, 10)]
    pool = images(200, lambda name, on_sand: "crab" if on_sand else name)
    assert flips.find(material(tmp_path, together(parts), pool=pool)) == []


def test_searches_that_explain_images_which_are_asked_propose_nothing(tmp_path: Path) -> None:
    """f errs at random on 24 of 600 images, and these are explained: what they have in common is chance, and said of
    one half alone."""
    rng = np.random.default_rng(7)
    data = images(600, lambda name, on_sand: name)
    chosen = np.flatnonzero(data.said[None] == "boat")[:24]
    data.said["f"][chosen] = "crab"
    naming = {i for i, place in enumerate(chosen) if int(data.ids[place], 16) % 2 == 0}
    assert 6 < len(naming) < 18
    parts = []
    for i, place in enumerate(chosen):  # what was called a crab is a boat again without something
        start = data.embeddings[place]
        of = {"method": "uvce", "item_id": data.ids[place], "source_class": "crab", "target_class": "boat"}
        parts.append(search(i, start, start - 0.4 * SAND, **of))
    for i in range(30, 36):
        of = {"method": "uvce", "item_id": f"{i:08x}x", "source_class": "car", "target_class": "boat"}
        parts.append(search(i, embedding("car", WATER, rng=rng), embedding("car", WATER, 2 * RED, rng=rng), **of))
    found = [group.mode for group in flips.find(material(tmp_path, together(parts), data=data))]
    (crab,) = [mode for mode in found if mode["class_name"] == "crab"]
    assert crab["support"] == len(naming)
    assert {int(name[1:]) for name in crab["exemplars"]} <= naming
    odd = [i for i in data.ids if int(i, 16) % 2]
    boats = data.part(np.flatnonzero(np.isin(data.ids, odd) & (data.said[None] == "boat")))
    assert crab["evidence_images"] + crab["control_images"] == len(boats.ids)  # all of them, wrong or right
    assert crab["p_value"] > 0.001


def test_images_that_propose_a_name_are_not_those_that_are_asked() -> None:
    """f errs on every tenth image, whatever it shows; searches that lead nowhere in particular are named by chance.

    So in one case of forty the 95 % interval of the excess lies above 0, and no more often.
    """
    options = Options(vocabulary=VOCABULARY, smallest_control=3)
    claim = claims.Claim("disagreement", "search", "f", EMBEDDER, "crab")
    above, tested = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        turn = iter(rng.random(600) < 0.1)
        pool = images(600, lambda name, on_sand, turn=turn: "crab" if next(turn) else name, seed)
        results = np.stack([embedding("boat", rng.normal() * SAND, rng.normal() * RED, rng=rng) for _ in range(6)])
        made = claims.Searches([{"explanation_id": str(i)} for i in range(6)], results, results)
        shift, controls = 0.1 * rng.normal(size=(6, len(CONCEPTS))), 0.1 * rng.normal(size=(20, len(CONCEPTS)))
        mode = evidence.evidence(claim, made, shift, controls, *pool.halves(), options)[0]
        tested += "p_value" in mode
        above += mode.get("impact_low", 0.0) > 0
    assert tested > 150
    assert above < 0.06 * tested


def test_rates_are_of_all_images_of_one_half_that_show_the_name() -> None:
    """Counted anew: f says crab on three of four images on sand, and the embedder sees what is there."""
    turn = iter(range(10**6))
    pool = images(900, lambda name, on_sand: "crab" if on_sand and next(turn) % 4 else name)
    rng = np.random.default_rng(8)
    starts = np.stack([embedding("car", WATER, rng=rng) for _ in range(4)])
    results = np.stack([embedding("car", WATER, 2 * SAND, rng=rng) for _ in range(4)])
    made = claims.Searches([{"explanation_id": str(i)} for i in range(4)], starts, results)
    claim = claims.Claim("disagreement", "search", "f", EMBEDDER, "crab")
    shift, controls = (results - starts) @ CONCEPTS.T, 0.05 * rng.normal(size=(12, len(CONCEPTS)))
    options = Options(vocabulary=VOCABULARY, neighbours=400)  # all that are on sand, so that all tell from where on
    (mode,) = evidence.evidence(claim, made, shift, controls, *pool.halves(), options)
    assert mode["name"] == "on sand"
    half = np.array([int(i, 16) % 2 == 1 for i in pool.ids])
    on_sand = pool.along[:, 0] > 0.25  # far from both kinds
    others = half & (pool.said[EMBEDDER] != "crab")
    happens = pool.said["f"] == "crab"
    assert mode["evidence_images"] == (others & on_sand).sum()
    assert mode["evidence_rate"] == pytest.approx(happens[others & on_sand].mean())
    assert mode["control_rate"] == 0.0
    assert mode["prevalence"] == pytest.approx((others & on_sand).sum() / half.sum())
    assert set(mode["showing"]) == set(pool.ids[others & on_sand])
    assert set(mode["evidence"]) == set(pool.ids[others & on_sand & happens])


def test_the_embedder_s_own_classes_are_those_of_the_nearest_names() -> None:
    pool = images(50, lambda name, on_sand: name)
    assert (pool.said[EMBEDDER] == pool.said[None]).all()
    claim = claims.Claim("flip", "search", "f", EMBEDDER, "crab")
    assert not pool.wrong(claim).any()
    everything = np.ones(50, bool)
    assert evidence.asked(claim, everything, everything, pool.seen, RED, pool) == {}


def test_a_name_that_searches_alone_propose_is_asked_of_the_real_images_that_have_it(tmp_path: Path) -> None:
    """f says crab for what has a badge: 20 of 920 real images, none of which is like what the searches made."""
    rng = np.random.default_rng(3)
    pool = images(900, lambda name, on_sand: name)
    badges = np.stack([embedding("boat", 2 * SAND, RED, 1.5 * BADGE, rng=rng) for _ in range(20)])
    along = np.concatenate([pool.along, badges @ CONCEPTS[: len(VOCABULARY)].T])
    more = {"f": "crab", None: "boat", EMBEDDER: "boat"}
    said = {who: np.append(words, [more[who]] * 20) for who, words in pool.said.items()}
    rows = np.concatenate([pool.embeddings, badges])
    whole = Real(np.append(pool.ids, [f"{i:08x}" for i in range(20)]), rows, along, d.halves(along), said)
    claim = claims.Claim("disagreement", "search", "f", EMBEDDER, "crab")
    starts = np.stack([embedding("car", WATER, rng=rng) for _ in range(4)])
    results = np.stack([embedding("car", WATER, BADGE, rng=rng) for _ in range(4)])
    made = [{"explanation_id": str(i), "stage": "3-x", "image_id": str(i)} for i in range(4)]
    controls = 0.05 * rng.normal(size=(12, len(CONCEPTS)))
    given = material(tmp_path, {}, pool=whole)
    (group,) = evidence.groups_of(claim, claims.Searches(made, starts, results), controls, given, 4)
    assert group.mode["name"] == "with a badge"
    even = [i for i in whole.ids[-20:] if int(i, 16) % 2]  # those of the half that is asked
    assert (group.mode["evidence_images"], group.mode["evidence_rate"], group.mode["control_rate"]) == (10, 1.0, 0.0)
    assert set(group.mode["evidence"]) == set(even)
    assert group.mode["p_value"] < 1e-15


def test_classes_that_it_hardly_befalls_do_not_dilute_a_rate() -> None:
    """f says crab for boats on sand, and for a few others: rates are of boats, and mistakes elsewhere alter nothing."""
    names = np.array(["boat"] * 40 + ["car"] * 60, object)
    assert evidence._most(names[:40]) == ["boat"]
    assert evidence._most(np.array(["boat"] * 19 + ["car"], object)) == ["boat"]
    assert evidence._most(np.array(["boat"] * 8 + ["car"] * 2, object)) == ["boat", "car"]
    assert evidence._most(np.array([], object)) == []
    rng = np.random.default_rng(9)

    def rates(mistakes: int) -> claims.Mode:
        turn = iter([True] * mistakes + [False] * 10**5)
        pool = images(1200, lambda name, sand: "crab" if sand and (name == "boat" or next(turn)) else name, 4)
        results = np.stack([embedding("boat", 2 * SAND, rng=rng) for _ in range(4)])
        naming, testing = pool.halves()
        wrong = np.flatnonzero(naming.wrong(claim))
        options = Options(vocabulary=VOCABULARY)
        return evidence.compared(claim, "{} on sand", wrong, results.mean(0), naming, testing, options)

    claim = claims.Claim("disagreement", "search", "f", EMBEDDER, "crab")
    clean, spoilt = rates(0), rates(4)
    assert clean["evidence_rate"] == 1.0
    same = ("evidence_rate", "control_rate", "evidence_images", "prevalence", "impact")
    assert [spoilt[key] for key in same] == [clean[key] for key in same]


def test_who_is_at_fault_is_told_by_what_is_seen() -> None:
    """g misses boats on sand, of which f says what they are: the failure is g's."""
    pool = images(600, lambda name, on_sand: name)
    on_sand = pool.along[:, 0] > 0.25
    pool.said["g"] = np.where(on_sand & (pool.said["f"] == "boat"), "car", pool.said["f"])
    everything = np.ones(600, bool)

    def fault(says: str, misses: str, name: str) -> str:
        claim = claims.Claim("disagreement", "search", says, misses, name)
        return str(evidence.asked(claim, on_sand, everything, pool.seen, SAND, pool)["at_fault"])

    assert fault("f", "g", "boat") == "g"
    assert fault("g", "f", "car") == "g"


def test_one_real_image_is_none(tmp_path: Path) -> None:
    """Nothing can be compared: half of them is asked."""
    halves = images(2, lambda name, on_sand: name).halves()
    claim = claims.Claim("disagreement", "search", "f", EMBEDDER, "crab")
    results = np.stack([embedding("boat", SAND)] * 3)
    made = claims.Searches([{"explanation_id": str(i)} for i in range(3)], results, results)
    for naming, testing in (halves, halves[::-1]):
        shift, controls = (np.random.default_rng(n).normal(size=(n, len(CONCEPTS))) for n in (3, 6))
        (mode,) = evidence.evidence(claim, made, shift, controls, naming, testing, Options(vocabulary=VOCABULARY))
        assert "p_value" not in mode
