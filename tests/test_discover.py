"""Discovery as a stage, on real embeddings and a planted truth: rendered scenes stand for what a search would make."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from audit import discovery as d
from audit.errors import ConfigError
from audit.failure_modes import claims, evidence
from audit.failure_modes.ends import join_ends
from audit.methods import Context, discover
from audit.results.schema import Rows
from audit.results.sql import Run
from audit.results.store import Store
from audit.screened import naming_half
from audit.zoo.scenes import OBJECTS, Scene
from audit.zoo.score import score
from audit.zoo.world import load_world, scene_at
from tests.planted import POOL, SEEDS, VOCABULARY, Planted, job


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    made = Planted(tmp_path_factory.mktemp("planted"))
    made.search("crab", {"background": "sand"})
    made.kept_start("crab")
    made.search("fish", {"colour": "purple"})
    for control in ("car", "boat", "bird"):
        made.search(control, {})
    return made


@pytest.fixture(scope="module")
def found(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[dict[str, Any]]]:
    return planted.discovered(tmp_path_factory.mktemp("run"))


def test_the_planted_mode_is_confirmed_and_named(found: tuple[Run, list[dict[str, Any]]]) -> None:
    run, modes = found
    first = modes[0]
    assert (first["class_name"], first["name"], first["verdict"]) == ("crab", "on sand", "confirmed")
    assert first["seeds"] == SEEDS + 1
    assert "crab-kept" not in first["exemplars"]
    assert first["evidence_rate"] > 0.5
    assert first["control_rate"] < 1 / 6  # of the other images, one in six is on sand, as of all
    assert first["impact_low"] > 0.05
    sand = [load_scene(run, item_id).background for item_id in first["evidence"]]
    assert set(sand[:12]) == {"sand"}
    assert sand.count("sand") > 0.9 * len(sand)
    assert len(sand) > 12
    stored = run.rows("select image_id from images where kind = 'original'")
    assert set(first["evidence"][:12]) <= {row["image_id"] for row in stored}


def test_a_mode_is_found_against_another_model_whatever_its_group_was_merged_into() -> None:
    """Two stages searched f against g and h; the first one's groups speak for all four."""

    def group(stage: str, other: str) -> claims.Group:
        mode = {"kind": "disagreement", "model_id": "f", "other_model_id": other, "class_name": "crab"}
        mode |= {"concept": "{} on sand", "failure_mode_id": f"against {other}", "verdict": "confirmed", "support": 9}
        return claims.Group(mode, stage, [], np.array([1.0, 2.0 if other == "g" else 1.0]))

    every = [group(stage, other) for stage in ("2-x", "3-x") for other in ("g", "h")]
    smaller = [group(g.stage, g.mode["other_model_id"]) for g in every]  # of the same name, and no more than hypotheses
    for g in smaller:
        g.mode.update(verdict="hypothesis", support=3)
        every.append(claims.Group(g.mode, g.stage, [], np.array([-1.0, 0.0])))
    asked = [
        {"stage": s, "model_id": "f", "other_model_id": o, "target_class": "crab"} for s in ("2-x", "3-x") for o in "gh"
    ]
    context = SimpleNamespace(run=SimpleNamespace(rows=lambda _: asked), stage="4-discover")
    kept = [every[0], every[3]]  # of each name one
    found = discover._alike(kept, every, context)  # type: ignore[arg-type]
    told = {(row["subject_id"], row["name"], row["key"]): row["value"] for row in found}
    cosine = pytest.approx(3 / np.sqrt(10))
    assert told == {
        ("against g", "alike", "h"): cosine,
        ("against g", "both_confirmed", "h"): 1.0,
        ("against h", "alike", "g"): cosine,
        ("against h", "both_confirmed", "g"): 1.0,
    }


def test_labels_are_believed_before_the_embedder(planted: Planted, tmp_path: Path) -> None:
    """Scenes of many objects, all of them labelled cars."""
    arrays = [{**row, "role": "data"} for row in planted.rows["arrays"] if row["role"] == "pool"][:40]
    of = {"role": "data", "label": "car", "predicted": "crab", "status": "ok", "correct": False}
    said = [{**of, "item_id": row["subject_id"], "model_id": model} for row in arrays for model in ("f", "g")]
    Store(tmp_path).create("job.json", b"{}")
    Store(tmp_path).commit("u", "0-inventory", {"arrays": arrays, "predictions": said})
    made = job(planted.folder)
    real = claims.material(made.stages[0].options, Context(made, "1-discover", tmp_path, planted.models, 8)).data
    assert real is not None
    assert len(real.ids) == 40
    assert set(real.said[claims.EMBEDDER]) == set(real.seen) == {"car"}


def test_images_of_a_class_that_a_model_does_not_have_are_no_errors_of_it(planted: Planted, tmp_path: Path) -> None:
    """Ten of forty are of a class that the job excuses g from, so screening says of none whether g is right."""
    arrays = [{**row, "role": "data"} for row in planted.rows["arrays"] if row["role"] == "pool"][:40]
    of = {"role": "data", "predicted": "crab", "status": "ok"}
    said = [
        {**of, "item_id": row["subject_id"], "model_id": model, "label": "whale" if i < 10 else "car"}
        | {"correct": None if i < 10 and model == "g" else False}
        for i, row in enumerate(arrays)
        for model in ("f", "g")
    ]
    Store(tmp_path).create("job.json", b"{}")
    Store(tmp_path).commit("u", "0-inventory", {"arrays": arrays, "predictions": said})
    made = job(planted.folder)
    real = claims.material(made.stages[0].options, Context(made, "1-discover", tmp_path, planted.models, 8)).data
    assert real is not None
    assert set(real.ids) == {row["subject_id"] for row in arrays[10:]}
    assert set(real.seen) == {"car"}


def load_scene(run: Run, item_id: str) -> Scene:
    position = run.rows("select position from items where item_id = ?", [item_id])[0]["position"]
    return scene_at(load_world(), "pool", position).scene


def test_what_no_real_image_shows_stays_a_hypothesis_with_the_reason(found: tuple[Run, list[dict[str, Any]]]) -> None:
    _, modes = found
    (fish,) = [m for m in modes if m["class_name"] == "fish" and m["name"] == "purple"]
    assert fish["verdict"] == "hypothesis"
    assert fish["reason"] == "too few real images are wrongly called fish to compare any"
    assert fish["to_confirm"] == "real images that are purple and not fish"


def test_controls_are_never_confirmed(found: tuple[Run, list[dict[str, Any]]]) -> None:
    """Their searches all ended in disagreement, by construction."""
    _, modes = found
    assert not [m for m in modes if m["class_name"] in ("car", "boat", "bird") and m["verdict"] == "confirmed"]


def test_the_score_is_what_was_planted(found: tuple[Run, list[dict[str, Any]]]) -> None:
    result = score(found[0])
    assert result.search.precision == 1.0
    assert result.search.found == ("crab-on-sand", "purple-fish")  # the latter as a hypothesis: absent from the pool
    assert "boat-on-water" in result.search.missed
    assert result.search.recall == pytest.approx(2 / 3)
    assert "crab-on-sand" in result.screen.found
    assert "purple-fish" not in result.screen.found


def test_without_a_pool_everything_is_a_hypothesis(planted: Planted, tmp_path: Path) -> None:
    rows = planted.rows
    try:
        planted.rows = {**rows, "arrays": [r for r in rows["arrays"] if r["role"] != "pool"]}
        _, modes = planted.discovered(tmp_path)
    finally:
        planted.rows = rows
    assert {m["verdict"] for m in modes} == {"hypothesis"}
    assert all("none were screened" in m["reason"] for m in modes)
    assert all(m["p_value"] is None and m["impact"] is None for m in modes)


def test_too_few_controls_give_no_effect_and_say_so(planted: Planted, tmp_path: Path) -> None:
    """The searches for one class alone: nothing to compare with, so no number is made up."""
    rows = planted.rows
    try:
        planted.rows = {**rows, "explanations": [r for r in rows["explanations"] if r["target_class"] == "crab"]}
        _, modes = planted.discovered(tmp_path)
    finally:
        planted.rows = rows
    assert modes
    for mode in modes:
        assert (mode["verdict"], mode["effect"], mode["effect_low"]) == ("hypothesis", None, None)
        assert "only 0 searches for other classes" in mode["reason"]


def test_searches_that_all_failed_are_no_modes(planted: Planted, tmp_path: Path) -> None:
    rows = planted.rows
    failed = [{**r, "status": "failed", "reason": "not_finite"} for r in rows["explanations"]]
    try:
        planted.rows = {**rows, "explanations": failed}
        run, modes = planted.discovered(tmp_path)
    finally:
        planted.rows = rows
    assert modes == []
    assert run.rows("select count(*) > 0 as screened from failure_modes where source = 'screen'") == [
        {"screened": True}
    ]


def test_permuted_predictions_confirm_nothing(planted: Planted, tmp_path: Path) -> None:
    """The same searches on a pool where what the models say has nothing to do with the images."""
    rows = planted.rows
    pool = [r for r in rows["predictions"] if r["role"] == "pool"]
    order = np.random.default_rng(1).permutation(POOL)
    shuffled = [{**r, "item_id": pool[2 * int(order[i // 2])]["item_id"]} for i, r in enumerate(pool)]
    try:
        planted.rows = {**rows, "predictions": shuffled}
        _, modes = planted.discovered(tmp_path)
    finally:
        planted.rows = rows
    assert not [m for m in modes if m["verdict"] == "confirmed"]


def test_a_background_that_came_along_is_not_the_name(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """f says tree for all that is green. The searches made things green and put them on grass."""
    rows = planted.rows
    try:
        planted.rows = {name: list(found) for name, found in rows.items()}
        planted.search("tree", {"colour": "green", "background": "grass"})
        for i in range(POOL):
            scene = scene_at(load_world(), "pool", i).scene
            green = scene.colour == "green" and scene.object in OBJECTS
            planted.rows["predictions"][2 * i] = {
                **rows["predictions"][2 * i],
                "predicted": "tree" if green else scene.object,
            }
        _, modes = planted.discovered(tmp_path / "as it is")
        grass = np.array([float(phrase == "{} on grass") for phrase in VOCABULARY])
        tell = d.separation
        monkeypatch.setattr(d, "separation", lambda along, *rest: grass if along.min() < 0 else tell(along, *rest))
        _, misled = planted.discovered(tmp_path / "told that grass it is")
    finally:
        planted.rows = rows
    assert [(m["name"], m["verdict"]) for m in modes if m["class_name"] == "tree"] == [("green", "confirmed")]
    assert [m["name"] for m in misled if m["class_name"] == "tree"] == ["on grass"]


def against_h(rows: Rows) -> Rows:
    """The same searches against a third model h, which on real images says what g says.

    Searches for crab end as those against g, but for one that changed nothing; none for fish ended. Of the results
    for crab, h says crab on every third.
    """
    made = {name: list(found) for name, found in rows.items()}
    pool = [row for row in rows["predictions"] if row["model_id"] == "g"]
    made["predictions"] += [{**row, "model_id": "h"} for row in pool]
    for row in rows["explanations"]:
        name, seed = row["target_class"], row["seed"]
        twin = {**row, "explanation_id": f"{row['explanation_id']}-h", "other_model_id": "h"}
        twin["flipped"] = row["flipped"] and name != "fish" and (name, seed) != ("crab", 0)
        made["explanations"].append(twin)
        said = {"f": name, "g": "empty", "h": "crab" if name == "crab" and seed % 3 == 0 else "empty"}
        made["predictions"] += 2 * [  # of two searches with this result
            {"item_id": row["image_id"], "role": "generated", "model_id": m, "predicted": word, "status": "ok"}
            for m, word in said.items()
        ]
    return made


def literal_shift(run: Run, ids: list[str], concepts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean of (result - start) . concept over searches, one number at a time."""
    values = {r["subject_id"]: np.array(r["values"]) for r in run.rows("select subject_id, values from arrays")}
    total = np.zeros(len(concepts))
    for row in run.rows("select * from explanations where explanation_id in (select unnest(?))", [ids]):
        for c, concept in enumerate(concepts):
            total[c] += sum((values[row["image_id"]] - values[row["start_image_id"]]) * concept)
    return total / len(ids)


def test_exemplars_that_show_it_best_come_first(found: tuple[Run, list[dict[str, Any]]], planted: Planted) -> None:
    """Those like the real images on which it happens; without any, those that moved furthest along the name."""
    run, modes = found
    crab, fish = (next(m for m in modes if m["class_name"] == name) for name in ("crab", "fish"))
    values = {r["subject_id"]: np.array(r["values"]) for r in run.rows("select subject_id, values from arrays")}
    rows = {r["explanation_id"]: r for r in run.rows("select * from explanations")}
    result = [values[rows[name]["image_id"]] for name in crab["exemplars"]]
    like = [np.mean([one @ values[item_id] for item_id in crab["evidence"]]) for one in result]
    assert len(like) > 3
    assert like == sorted(like, reverse=True)
    assert not fish["evidence"]
    options = job(planted.folder).stages[0].options
    concepts = claims._concepts(options, Context(job(planted.folder), "1-discover", run.root, planted.models, 8))
    purple = options.phrases.index(fish["concept"])
    moved = [literal_shift(run, [name], concepts)[purple] for name in fish["exemplars"]]
    assert moved == sorted(moved, reverse=True)


def test_a_second_model_tells_whether_a_mode_depends_on_the_first(planted: Planted, tmp_path: Path) -> None:
    rows = planted.rows
    try:
        planted.rows = against_h(rows)
        run, modes = planted.discovered(tmp_path, third=True)
    finally:
        planted.rows = rows
    found = {(m["class_name"], m["name"], m["other_model_id"]): m for m in modes}
    crab, crab_h, fish = (
        found[k] for k in (("crab", "on sand", "g"), ("crab", "on sand", "h"), ("fish", "purple", "g"))
    )
    measured = {(r["subject_id"], r["name"], r["key"]): r for r in run.rows("select * from measurements")}

    def value(mode: dict[str, Any], name: str, key: str) -> Any:
        return measured[mode["failure_mode_id"], name, key]["value"]

    assert (len(crab["exemplars"]), len(crab_h["exemplars"])) == (crab["support"], crab_h["support"])
    third = [int(name.removeprefix("crab-")) % 3 == 0 for name in crab["exemplars"]]
    assert 0 < sum(third) < len(third)
    assert value(crab, "holds_against", "h") == pytest.approx(1 - sum(third) / len(third))
    assert value(crab_h, "holds_against", "g") == 1.0
    assert value(fish, "holds_against", "h") == 1.0
    assert not [
        key for key in measured if key[1] == "holds_against" and key[0] == crab["failure_mode_id"] and key[2] in "fg"
    ]
    made = job(planted.folder, third=True)
    concepts = claims._concepts(made.stages[0].options, Context(made, "1-discover", tmp_path, planted.models, 8))
    one, other = (literal_shift(run, mode["exemplars"], concepts) for mode in (crab, crab_h))
    cosine = one @ other / np.sqrt((one @ one) * (other @ other))
    assert 0.5 < cosine < 0.9999
    assert value(crab, "alike", "h") == value(crab_h, "alike", "g") == pytest.approx(cosine, abs=1e-5)
    assert value(crab, "both_confirmed", "h") == value(crab_h, "both_confirmed", "g") == 1.0
    lonely = measured[fish["failure_mode_id"], "alike", "h"]
    assert (lonely["value"], lonely["reason"]) == (None, "the searches against h made no group of this name")
    assert value(fish, "both_confirmed", "h") == 0.0


def test_of_too_many_real_images_a_fair_sample_is_asked(planted: Planted, tmp_path: Path) -> None:
    """It holds as many of each half and background as it should, and the planted mode is confirmed on it."""
    run, modes = planted.discovered(tmp_path, images=400)
    every = sorted(row["subject_id"] for row in planted.rows["arrays"] if row["role"] == "pool")
    chosen = set(every[:400])
    assert len(every) == POOL
    assert modes[0]["name"] == "on sand"
    assert modes[0]["verdict"] == "confirmed"
    assert set(modes[0]["evidence"]) <= chosen
    assert modes[0]["evidence_images"] + modes[0]["control_images"] <= 400
    assert 160 < naming_half(np.array(sorted(chosen), object)).sum() < 240
    sand = [load_scene(run, item_id).background == "sand" for item_id in chosen]
    assert 1 / 6 - 0.06 < np.mean(sand) < 1 / 6 + 0.06


def test_a_vocabulary_without_a_place_for_the_class_is_refused(planted: Planted, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs \{\} once"):
        planted.discovered(tmp_path, vocabulary=["on sand"])


def test_real_images_propose_the_name_and_the_searches_have_to_have_moved_along_it() -> None:
    """The searches moved along "green", a little more surely along "on grass", and not along "on sky"."""
    options = discover.Options(vocabulary=("green {}", "{} on grass", "{} on sky"))
    rng = np.random.default_rng(0)
    controls = rng.normal(size=(24, 3))
    group = rng.normal(size=(6, 3)) * 0.1 + [5.0, 6.0, 0.1]
    controls, group = (np.concatenate([x, -x], 1) for x in (controls, group))

    def named(told: list[float] | None) -> tuple[str, str | None]:
        separation = None if told is None else np.array([*told, 0.0, 0.0, 0.0])
        claim = claims.Claim("disagreement", "search", "f", "g", "tree")
        mode = evidence.named(claim, group, controls, options, separation)
        return mode["name"], mode["reason"]

    assert named(None) == ("on grass", None)
    assert named([0.97, 0.9, 0.5]) == ("green", None)
    assert named([0.6, 0.95, 0.2]) == ("on grass", None)
    name, doubt = named([0.6, 0.5, 0.9])
    assert name == "on sky"
    assert "did not surely move" in str(doubt)


def test_without_real_images_the_name_is_corrected_for_all_that_could_have_been() -> None:
    """p is .03 for one of three phrases: enough for a phrase that real images proposed, not for the best of three."""
    options = discover.Options(vocabulary=("a {}", "b {}", "c {}"))
    controls = np.stack([np.array([-1.0, 1.0] * 6), np.array([1.0, -1.0] * 6), np.array([1.0, 1.0, -1.0, -1.0] * 3)], 1)
    group = np.array([[1.0, 0.3, 0.0], [1.5, -0.3, 0.1], [1.4, 0.0, -0.1]])
    assert 0.02 < d.shift_p_values(group, controls)[0] < 0.05
    claim = claims.Claim("disagreement", "search", "f", "g", "x")
    assert evidence.named(claim, group, controls, options, np.array([0.9, 0.1, 0.1]))["reason"] is None
    assert "no phrase" in evidence.named(claim, group, controls, options)["reason"]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "confirmed"),
        ({"p_value": 0.0099}, "confirmed"),
        ({"p_value": 0.0101}, "hypothesis"),
        ({"evidence_rate": 0.1501}, "confirmed"),
        ({"evidence_rate": 0.1499}, "hypothesis"),
        ({"reason": "a doubt"}, "hypothesis"),
        ({"p_value": None}, "hypothesis"),
    ],
)
def test_each_condition_of_a_confirmation_is_needed(change: dict[str, Any], verdict: str) -> None:
    """Level .01, least excess .05."""
    mode = {"evidence_rate": 0.4, "control_rate": 0.1, "evidence_images": 50, "p_value": 1e-6, "reason": None}
    mode |= {
        "name": "blue",
        "class_name": "car",
        "source": "search",
        "control_images": 200,
        **change,
    }
    if mode["p_value"] is None:
        del mode["p_value"]
    discover._judge([mode], True, discover.Options())
    assert mode["verdict"] == verdict


def test_two_tests_are_held_to_a_stricter_level_than_one() -> None:
    """Holm: of p = .006 and p = .5, the first is corrected to .012."""
    shared = {"evidence_rate": 0.4, "control_rate": 0.1, "evidence_images": 50, "reason": None, "name": "x"}
    shared |= {"source": "search", "impact_low": 0.01, "control_images": 200, "class_name": "car"}
    modes = [{**shared, "p_value": p} for p in (0.006, 0.5)]
    discover._judge(modes, True, discover.Options())
    assert modes[0]["p_corrected"] == pytest.approx(0.012)
    assert [mode["verdict"] for mode in modes] == ["hypothesis", "hypothesis"]


@pytest.mark.parametrize(
    ("rates", "images", "others", "more"),
    [
        # (2.326 sqrt(q (1 - q)) + .842 sqrt(p (1 - p)))^2 / (p - q)^2: 1304 for .2 and 1/6, 14 for .4 and .1
        ((0.2, 0.0), 5, 4, "about 1299 more"),  # none of four others is no proof of none: one of six
        ((0.4, 0.1), 8, 10**6, "about 6 more"),
        ((0.9, 0.0), 9, 10**6, "about 9 more"),  # as many should have done already
    ],
)
def test_what_it_takes_is_never_next_to_nothing(
    rates: tuple[float, float], images: int, others: int, more: str
) -> None:
    mode = {"evidence_rate": rates[0], "control_rate": rates[1], "evidence_images": images, "control_images": others}
    mode |= {"p_value": 0.5, "reason": None, "name": "blue", "class_name": "car", "source": "search"}
    discover._judge([mode], True, discover.Options())
    assert more in mode["to_confirm"]


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_equal_rates_confirm_nothing_and_end_no_stage(rate: float) -> None:
    """Also where the job asks for no excess."""
    mode = {"evidence_rate": rate, "control_rate": rate, "evidence_images": 50, "control_images": 50, "p_value": 1e-6}
    mode |= {"reason": None, "name": "blue", "class_name": "car", "source": "search", "impact_low": 0.1}
    discover._judge([mode], True, discover.Options(excess=0.0))
    assert mode["verdict"] == "hypothesis"


def test_of_groups_with_one_name_the_confirmed_speaks_else_the_larger() -> None:
    def mode(name: str, verdict: str, support: int, **columns: Any) -> dict[str, Any]:
        made = {"failure_mode_id": name, "verdict": verdict, "support": support, "source": "search", "model_id": "f"}
        return {**made, "kind": "disagreement", "class_name": "crab", "concept": name, **columns}

    def merged(*modes: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {m["failure_mode_id"]: m for m in discover._merged(list(modes), discover.Options(exemplars=3))}

    found = merged(
        mode("a", "hypothesis", 9),
        mode("a", "confirmed", 3),
        mode("b", "hypothesis", 3, found_by=["2-x"], exemplars=["p", "q"]),
        mode("b", "hypothesis", 4, found_by=["5-y"], exemplars=["r", "s", "p"]),
    )
    assert {name: (m["verdict"], m["support"]) for name, m in found.items()} == {
        "a": ("confirmed", 3),
        "b": ("hypothesis", 4),
    }
    assert found["b"]["found_by"] == ["2-x", "5-y"]
    assert found["b"]["exemplars"] == ["r", "s", "p"]


def test_what_labelled_images_show_joins_the_disagreement_of_the_same_name_and_class() -> None:
    shared = {"model_id": "f", "concept": "{} on sand", "support": 3, "verdict": "confirmed"}
    pair = {**shared, "failure_mode_id": "pair", "kind": "disagreement", "source": "search", "found_by": ["2-x"]}
    pair |= {"class_name": "water bottle", "evidence": ["p"], "evidence_rate": 0.5}
    labels = {**shared, "failure_mode_id": "labels", "kind": "confusion", "source": "labels", "found_by": ["1-screen"]}
    labels |= {"class_name": "water bottle", "evidence": ["q", "p"], "evidence_rate": 0.9, "support": 30}
    screen = {**shared, "failure_mode_id": "screen", "kind": "disagreement", "source": "screen"}
    screen |= {"class_name": "water bottle"}
    one, alone = discover._merged([labels, pair, screen], discover.Options())
    assert alone["failure_mode_id"] == "screen"  # the baseline stays apart, and speaks for none
    assert (one["failure_mode_id"], one["evidence_rate"]) == ("pair", 0.5)
    assert (one["found_by"], one["evidence"]) == (["1-screen", "2-x"], ["p", "q"])


def test_what_several_sources_say_is_listed_once_and_screening_alone_only_where_it_is_confirmed() -> None:
    def mode(source: str, verdict: str, concept: str, **columns: Any) -> dict[str, Any]:
        made = {"source": source, "verdict": verdict, "concept": concept, "model_id": "f", "other_model_id": "g"}
        made |= {"kind": "disagreement", "class_name": "crab", "found_by": [source], "evidence": [source]}
        return {**made, **columns}

    def listed(*modes: dict[str, Any]) -> list[dict[str, Any]]:
        assert discover._listed(list(modes), discover.Options()) == list(modes)  # none is lost
        return [m for m in modes if m["listed"]]

    sand, snow = "{} on sand", "{} on snow"
    found = listed(mode("search", "confirmed", sand), mode("screen", "confirmed", sand, class_name="crab"))
    assert [(m["source"], m["found_by"], m["evidence"]) for m in found] == [
        ("search", ["screen", "search"], ["search", "screen"])
    ]
    doubted = mode("search", "hypothesis", sand, exemplars=["x"])
    (one,) = listed(mode("screen", "confirmed", sand), doubted)
    assert (one["source"], one["exemplars"], one["found_by"]) == ("screen", ["x"], ["screen", "search"])
    assert listed(mode("screen", "hypothesis", sand)) == []
    assert len(listed(mode("screen", "hypothesis", sand), mode("search", "hypothesis", sand))) == 1
    assert len(listed(mode("screen", "confirmed", sand), mode("search", "confirmed", snow))) == 2
    assert len(listed(mode("screen", "confirmed", sand), mode("search", "confirmed", sand, other_model_id="h"))) == 2
    confusion = mode("labels", "hypothesis", sand, kind="confusion", other_model_id=None)
    assert [m["source"] for m in listed(mode("screen", "confirmed", sand), confusion)] == ["screen"]
    sure = {**confusion, "verdict": "confirmed"}
    assert [m["source"] for m in listed(mode("screen", "confirmed", sand), sure)] == ["labels"]


def test_of_modes_of_a_class_only_those_are_listed_that_hold_beside_the_others() -> None:
    """It happens anywhere but on sand, and to what is red. Snow is there too, and nearly all red is pink."""
    rng = np.random.default_rng(0)
    ground = rng.choice(["sand", "snow", "grass"], 3000)
    red = rng.random(3000) < 0.1
    shows = {"{} not on sand": ground != "sand", "{} on snow": ground == "snow", "red {}": red, "pink {}": red.copy()}
    wrong = rng.random(3000) < np.where((ground != "sand") | red, 0.9, 0.01)
    few = np.flatnonzero(red & wrong & (ground == "grass"))[:3]
    shows["pink {}"][few] = False  # so red does not hold beside it either, but more than it beside red
    objects = rng.choice(["car", "tree"], 3000).astype(object)

    answers = {"f": np.where(wrong, "crab", objects).tolist(), "g": objects.tolist(), "h": objects.tolist()}
    pool, data = (real(np.zeros((3000, 1)), np.zeros((3000, 1)), seen=objects.tolist(), **answers) for _ in range(2))

    def mode(concept: str, other: str = "g", of: claims.Real = pool) -> dict[str, Any]:
        facts = d.matched(wrong, shows[concept], objects)
        claim = claims.Claim("disagreement", "search", "f", other, "crab")
        made = {"failure_mode_id": f"{concept} {other}", "model_id": "f", "other_model_id": other, "class_name": "crab"}
        made |= {"concept": concept, "verdict": "confirmed", "listed": True, "impact": facts.rate - facts.control_rate}
        return made | {"asked": evidence.Asked(claim, of, np.packbits(shows[concept]), ["car", "tree"])}

    def parts(*modes: dict[str, Any]) -> dict[str, str]:
        discover._tell_apart(list(modes), discover.Options())
        return {m["concept"]: m["part_of"] for m in modes if not m["listed"]}

    assert all(d.matched(wrong, shown, objects).p_value < 1e-3 for shown in shows.values())  # each, by itself
    found = parts(*(mode(concept) for concept in shows))
    assert found == {"{} on snow": "{} not on sand g", "pink {}": "red {} g"}
    assert parts(mode("{} on snow")) == {}
    assert parts(mode("{} on snow"), mode("red {}")) == {}
    assert parts(mode("{} on snow"), mode("{} not on sand", other="h")) == {}  # of other models
    assert parts(mode("{} on snow"), mode("{} not on sand", of=data)) == {}  # of other images
    unlisted = {**mode("{} not on sand"), "listed": False}
    assert parts(mode("{} on snow"), {**mode("{} not on sand"), "verdict": "hypothesis"}) == {}
    assert parts(mode("{} on snow"), {**unlisted, "part_of": "x"}) == {"{} not on sand": "x"}


@pytest.mark.parametrize(
    ("images", "rate", "base", "holds"), [(9000, 0.53, 0.5, False), (4, 1.0, 0.5, False), (99, 0.9, 0.5, True)]
)
def test_beside_others_a_mode_has_to_be_sure_and_large(images: int, rate: float, base: float, holds: bool) -> None:
    """`images` show it, and as many as 9,000 do not; a second mode is of others and holds in any case."""
    shows = np.arange(20_000) < images
    other = np.arange(20_000) >= 18_000
    wrong = np.zeros(20_000, np.bool_)
    wrong[: round(rate * images)] = True
    wrong[images : images + round(base * (18_000 - images))] = True
    wrong[18_000:] = True
    cars = ["car"] * 20_000
    pool = real(
        np.zeros((20_000, 1)), np.zeros((20_000, 1)), f=np.where(wrong, "crab", "car").tolist(), g=cars, seen=cars
    )
    claim = claims.Claim("disagreement", "search", "f", "g", "crab")
    modes = [
        {"impact": 0.1, "concept": concept, "asked": evidence.Asked(claim, pool, np.packbits(shown), ["car"])}
        for concept, shown in (("red {}", shows), ("blue {}", other))
    ]
    weakest = discover._weakest(modes, discover.Options())
    assert (weakest is None) == holds
    assert weakest is None or weakest["concept"] == "red {}"


def test_without_searches_a_planted_failure_is_listed_once(tmp_path: Path) -> None:
    """f says crab on all sand, so it misses what else is on sand; screening both ways round finds both ends.

    Of a few classes there are so few images that CLIP's idea of sand does not hold four in five of both.
    """
    run, _ = Planted(tmp_path).discovered(tmp_path / "run")
    found = run.rows("select * from failure_modes where verdict = 'confirmed'")
    (said,) = (mode for mode in found if mode["model_id"] == "f")
    assert (said["class_name"], said["concept"], said["listed"]) == ("crab", "{} on sand", True)
    parts = [mode for mode in found if not mode["listed"]]
    assert len(parts) >= 5
    assert {(mode["model_id"], mode["at_fault"], mode["concept"], mode["part_of"]) for mode in parts} == {
        ("g", "f", "{} on sand", said["failure_mode_id"])
    }
    assert run.failure_modes() == [mode for mode in run.failure_modes(ends=True) if mode["listed"]]
    assert len(run.failure_modes(ends=True)) == len(run.failure_modes()) + len(parts)


def ends(*modes: dict[str, Any]) -> dict[str, str]:
    """Which of these modes are listed no more, and what they are a part of, by their ids."""
    join_ends(list(modes))
    return {mode["failure_mode_id"]: mode["part_of"] for mode in modes if not mode["listed"] and "part_of" in mode}


def end(real: claims.Real, says: str, name: str, shows: Any, befalls: list[str], **columns: Any) -> dict[str, Any]:
    """A confirmed mode of f and g in which f is at fault: 'crab' is what f says, '-crab' what it misses."""
    missed = says.startswith("-")
    first, other, class_name = ("g", "f", says[1:]) if missed else ("f", "g", says)
    claim = claims.Claim("disagreement", "screen", first, other, class_name)
    made = {"failure_mode_id": f"{says} {name}", "model_id": first, "other_model_id": other, "class_name": class_name}
    made |= {"kind": "disagreement", "concept": f"{{}} {name}", "verdict": "confirmed", "listed": True, "at_fault": "f"}
    return made | {"asked": evidence.Asked(claim, real, np.packbits(shows), befalls)} | columns


def test_what_a_model_misses_where_it_says_something_else_is_the_other_end_of_that() -> None:
    """f says crab on sand and tree for what is red, misses birds off grass, and calls those nothing.

    100 cars of which 40 are on sand and 20 red, and 100 boats of which 40 are on sand; 100 birds.
    """
    truth = np.repeat(np.array(["car", "boat", "bird"], object), 100)
    place = np.arange(300) % 100
    sand, red = (place < 40) & (truth != "bird"), (truth == "car") & (place >= 80)
    off = (truth == "bird") & (place < 60)
    said = truth.copy()
    said[sand], said[red], said[off] = "crab", "tree", "nothing"
    answers = {"f": said.tolist(), "g": truth.tolist(), "seen": truth.tolist()}
    pool, data = (real(np.zeros((300, 1)), np.zeros((300, 1)), **answers) for _ in range(2))

    def crab(**columns: Any) -> dict[str, Any]:
        return end(pool, "crab", "on sand", sand, ["car", "boat"], **columns)

    def car(**columns: Any) -> dict[str, Any]:
        return end(pool, "-car", "on sand", sand, ["car"], **columns)

    tree = end(pool, "tree", "red", red, ["car"])
    boat = end(pool, "-boat", "on sand", sand, ["boat"])
    assert ends(crab(), car(), boat) == {"-car on sand": "crab on sand", "-boat on sand": "crab on sand"}
    # of which 40 of 60 are crabs and 20 trees: neither is enough, both are, and most are crabs
    both = np.ones(300, np.bool_)
    assert ends(crab(), end(pool, "-car", "anywhere", both, ["car"])) == {}
    for says in ((crab(), tree), (tree, crab())):
        assert ends(*says, end(pool, "-car", "anywhere", both, ["car"])) == {"-car anywhere": "crab on sand"}
    # 32 of 40 are four in five, 31 are not
    assert ends(end(pool, "crab", "on sand", sand & (place < 32), ["car", "boat"]), car()) != {}
    assert ends(end(pool, "crab", "on sand", sand & (place < 31), ["car", "boat"]), car()) == {}
    # that it says nothing befalls birds alone, so that it misses them says more
    nothing, bird = (end(pool, says, "not on grass", off, ["bird"]) for says in ("nothing", "-bird"))
    assert ends(nothing, bird) == {"nothing not on grass": "-bird not on grass"}
    few = end(pool, "-bird", "few", off & (place < 47), ["bird"])  # but it does not miss all to which that happens
    assert ends(end(pool, "nothing", "not on grass", off, ["bird"]), few) == {"-bird few": "nothing not on grass"}
    # of others' mistakes, other images or pairs, and of what is not confirmed or another kind, it is no end
    assert ends(crab(verdict="hypothesis"), car()) == ends(crab(), car(verdict="hypothesis")) == {}
    assert ends(crab(at_fault="g"), car()) == ends(crab(), car(at_fault="g")) == {}
    assert ends(crab(kind="confusion"), car()) == ends(crab(other_model_id="h"), car()) == {}
    assert ends(end(data, "crab", "on sand", sand, ["car", "boat"]), car()) == {}
    assert ends(crab(listed=False), car()) == {}
    # what a label speaks for is listed by the label's
    label = {**crab(failure_mode_id="label", kind="confusion", other_model_id=None), "asked": None}
    assert ends(crab(listed=False), label, car()) == {"-car on sand": "label"}
    # and what is part of a larger one by that one, but not by what is no more than a guess or of another pair or model
    whole = end(pool, "crab", "anywhere", sand & (truth == "boat"), ["boat"])
    assert ends(crab(listed=False, part_of="crab anywhere"), whole, car())["-car on sand"] == "crab anywhere"
    for columns in ({"verdict": "hypothesis"}, {"other_model_id": "h"}, {"other_model_id": "h", "at_fault": "h"}):
        assert "-car on sand" not in ends(crab(listed=False), crab(failure_mode_id="other", **columns), car())


def test_what_is_told_by_one_class_that_is_missed_tells_of_no_other() -> None:
    """f says nothing on sand of 92 birds and 8 cars: it is told as missed birds, and no car is among those."""
    truth = np.repeat(np.array(["bird", "car"], object), [92, 8])
    answers = {"f": ["nothing"] * 100, "g": truth.tolist(), "seen": truth.tolist()}
    pool = real(np.zeros((100, 1)), np.zeros((100, 1)), **answers)
    every = np.ones(100, np.bool_)
    nothing, bird, car = (end(pool, says, "on sand", every, ["bird"]) for says in ("nothing", "-bird", "-car"))
    for order in ((nothing, bird, car), (car, bird, nothing)):
        copies = [dict(mode) for mode in order]
        assert ends(*copies) == {"nothing on sand": "-bird on sand"}
    twin = {**nothing, "failure_mode_id": "screen", "listed": False}  # screening found what the search speaks for
    assert ends(twin, dict(nothing), dict(bird)) == {"nothing on sand": "-bird on sand"}
    yellow = {**nothing, "failure_mode_id": "nothing yellow"}
    assert ends(yellow, dict(nothing), dict(bird)) == dict.fromkeys(
        ("nothing on sand", "nothing yellow"), "-bird on sand"
    )
    again = [dict(nothing), dict(bird), end(pool, "-bird", "yellow", every, ["bird"])]
    assert ends(*again) == {"nothing on sand": "-bird on sand"}  # of two that are missed alike one has it as a part


def test_what_has_a_part_is_none_itself() -> None:
    """f says nothing of 92 birds and 8 cars on sand, and of 50 cars elsewhere: birds on sand are told as missed."""
    truth = np.repeat(np.array(["bird", "car"], object), [92, 58])
    answers = {"f": ["nothing"] * 150, "g": truth.tolist(), "seen": truth.tolist()}
    pool = real(np.zeros((150, 1)), np.zeros((150, 1)), **answers)
    sand, every = np.arange(150) < 100, np.ones(150, np.bool_)
    told = [end(pool, "nothing", "on sand", sand, ["bird"]), end(pool, "nothing", "anywhere", every, ["bird", "car"])]
    assert ends(*told, end(pool, "-bird", "on sand", sand, ["bird"])) == {"nothing on sand": "-bird on sand"}


def test_what_a_neuron_shows_joins_the_disagreement_of_the_same_name() -> None:
    shared = {"source": "search", "model_id": "f", "class_name": "crab", "concept": "{} on sand", "support": 3}
    pair = {**shared, "failure_mode_id": "pair", "kind": "disagreement", "verdict": "hypothesis", "found_by": ["2-x"]}
    neuron = {**shared, "failure_mode_id": "one", "kind": "neuron", "verdict": "hypothesis", "found_by": ["4-n"]}
    other = {**neuron, "failure_mode_id": "two", "concept": "{} on grass", "neurons": ["n8"]}
    neuron["neurons"] = ["n7"]
    found = {m["failure_mode_id"]: m for m in discover._merged([neuron, pair, other], discover.Options())}
    assert set(found) == {"pair", "two"}
    assert (found["pair"]["found_by"], found["pair"]["neurons"]) == (["2-x", "4-n"], ["n7"])
    sure = {**neuron, "verdict": "confirmed"}
    apart = discover._merged([sure, {**pair, "found_by": ["2-x"]}], discover.Options())
    assert [m["failure_mode_id"] for m in apart] == ["one", "pair"]  # what confirms the one says nothing of the other


def real(embeddings: Any, along: Any, **said: list[str]) -> claims.Real:
    """Real images by hand: what phrases say begins at 0.5, `seen` is what the embedder sees."""
    ids = np.array([f"{i:08x}rest" for i in range(len(along))], object)
    words = {claims.EMBEDDER if name == "seen" else name: np.array(values, object) for name, values in said.items()}
    places = np.asarray(along, float)
    return claims.Real(ids, np.asarray(embeddings, float), places, np.full(places.shape[1], 0.5), dict(words))


def test_halves_share_no_image() -> None:
    whole = real(np.eye(6), np.eye(6)[:, :2], f=list("abcdef"), seen=list("abcdef"))
    even, odd = whole.halves()
    assert (even.ids.tolist(), odd.ids.tolist()) == (whole.ids[::2].tolist(), whole.ids[1::2].tolist())
    assert list(odd.said["f"]) == ["b", "d", "f"]
    assert np.array_equal(odd.embeddings, np.eye(6)[1::2])


def test_the_contrast_is_between_wrong_and_right_images_of_one_class() -> None:
    """f says crab on sand. Ten crabs and ten cars on sand, ten cars on snow, ten trees on grass.

    Along are sand, snow, "is a tree". Snow is further from sand than grass is.
    """
    sand = [1.0] * 20 + [-0.4] * 10 + [0.1] * 10
    snow = [0.0] * 20 + [1.0] * 10 + [0.0] * 10
    tree = [0.0] * 30 + [1.0] * 10
    seen = ["crab"] * 10 + ["car"] * 20 + ["tree"] * 10
    made = real(np.eye(40), np.stack([sand, snow, tree], 1), f=["crab"] * 20 + seen[20:], g=seen, seen=seen)
    told = evidence.contrast(claims.Claim("disagreement", "search", "f", "g", "crab"), np.arange(40), made, 0.5)
    assert told is not None
    # cars on sand against cars on snow: sand 1, snow 0, trees none on either side; and not on snow as surely
    assert told.tolist() == [1.0, 0.0, 0.5, 0.0, 1.0, 0.5]
    agree = evidence.contrast(claims.Claim("disagreement", "search", "f", "g", "tree"), np.arange(40), made, 0.5)
    assert agree is None
    noise = np.random.default_rng(0).normal(size=(40, 3))  # no phrase tells them apart
    blurred = real(np.eye(40), noise, f=["crab"] * 20 + seen[20:], g=seen, seen=seen)
    claim = claims.Claim("disagreement", "search", "f", "g", "crab")
    assert evidence.contrast(claim, np.arange(40), blurred, 0.5) is not None
    assert evidence.contrast(claim, np.arange(40), blurred, 0.9) is None


def test_what_a_model_is_blind_to_is_named_by_what_it_lacks_and_what_snow_is_not_by_not_being_water() -> None:
    """Four grounds, water, sand, snow and brick: along "water" at 1, .1, -.4 and 0, along "snow" at 0, 0, 1 and 0."""
    ground = np.arange(80) % 4
    along = np.stack([np.array([1.0, 0.1, -0.4, 0.0])[ground], (ground == 2).astype(float)], 1)
    fish = ["fish"] * 80
    options = claims.Options(vocabulary=("{} on water", "{} on snow"))

    def name(wrong: Any) -> str:
        said = ["fish" if not w else "none" for w in wrong]
        made = real(np.eye(80), along, f=fish, g=said, seen=fish)
        told = evidence.contrast(claims.Claim("disagreement", "search", "f", "g", "fish"), np.arange(80), made, 0.5)
        assert told is not None
        return options.phrases[int(told.argmax())]

    assert name(ground != 0) == "{} not on water"  # g knows fish on water only
    along[:, 1] = np.array([0.0, 0.4, 1.0, 0.5])[ground]  # all are more like snow than water is
    assert name(ground != 0) == "{} not on water"
    along[:, 1] = ground == 2
    assert name(ground == 2) == "{} on snow"  # g does not know fish on snow


def test_what_is_gained_and_what_is_lost_has_a_name() -> None:
    assert claims.negated("{} on sand") == "{} not on sand"
    assert claims.negated("red {}") == "not red {}"
    options = discover.Options(vocabulary=("red {}", "{} with a badge"))
    assert options.phrases == ("red {}", "{} with a badge", "not red {}", "{} not with a badge")
    assert [claims.concept_name(phrase) for phrase in options.phrases[2:]] == ["not red", "not with a badge"]


@pytest.mark.parametrize(
    ("concept", "others"), [("{} on sand", "others of the same classes"), ("car", "those with other labels")]
)
def test_a_doubt_names_the_images_that_were_compared(concept: str, others: str) -> None:
    mode = {"reason": None, "source": "labels", "concept": concept, "class_name": "crab", "name": "x"}
    mode |= {"evidence_rate": 0.02, "control_rate": 0.03, "evidence_images": 50, "control_images": 90}
    mode |= {"p_corrected": 1.0, "p_value": 1.0}
    doubt = discover._doubt(mode, True, discover.Options(), 1)
    assert doubt
    assert doubt[0] == f"real images do not show it: it happens to 2% of the 50 that show it, and to 3% of {others}"
