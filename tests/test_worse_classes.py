"""Classes that got worse between two runs: McNemar's test in closed form, and a gate that finds no reason for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audit.comparison import compare
from audit.gate import Outcome, check, load_rules
from audit.results.sql import Run
from audit.review.paired_accuracy import paired_accuracy
from pipelines.cli import app
from tests.audited import audited, mode, said

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NEW = "{name: nothing new, failure_modes: {status: [new]}, at_most: 0}"


def screened(root: Path, crabs: str, boats: str = "") -> Run:
    """26 labelled images of crabs and 26 of boats, of which model v gets those of these letters wrong."""
    wrong = {"crab": set(crabs), "boat": set(boats)}
    answers = [
        row
        for label, letters in wrong.items()
        for letter in LETTERS
        for row in said("data", "v", {f"{label} {letter}": "fish" if letter in letters else label}, label)
    ]
    return audited(root, [], answers, ("v",), askable=True)


def test_a_class_is_worse_where_more_of_its_images_were_broken_than_chance_explains(tmp_path: Path) -> None:
    """Four classes. Crabs: 14 broken, 1 fixed, p = (1 + 15) / 2^15, the least of four, so Holm multiplies it by four.
    Boats: one fixed, which is not worse."""
    before, after = screened(tmp_path / "a", "z", "z"), screened(tmp_path / "b", LETTERS[:14])
    (accuracy,), (worse,) = paired_accuracy(before, after, {"v": "v"})
    crabs = 26 + sum(1 for i in range(60) if i // 2 % 4 == 0)
    assert (worse.model_id, worse.class_name, worse.images) == ("v", "crab", crabs)
    assert (worse.before, worse.after) == (pytest.approx(1 / crabs), pytest.approx(14 / crabs))
    assert worse.share == pytest.approx(13 / 112)
    assert worse.p_corrected == pytest.approx(4 * 16 / 2**15)
    assert (accuracy.images, accuracy.fixed, accuracy.broken) == (112, 2, 14)
    assert (accuracy.before, accuracy.after) == (pytest.approx(110 / 112), pytest.approx(98 / 112))
    # 16 changed, of which at most two are fixed or at most two broken
    assert accuracy.p_value == pytest.approx(2 * (1 + 16 + 120) / 2**16)
    assert paired_accuracy(after, before, {"v": "v"})[1] == ()  # better


@pytest.mark.parametrize(("broken", "fixed", "worse"), [(8, 0, False), (9, 0, True), (9, 1, False), (13, 2, False)])
def test_the_test_is_corrected_for_the_number_of_classes(tmp_path: Path, broken: int, fixed: int, worse: bool) -> None:
    """Four classes: 4 * 2^-8 = .016; 4 * 2^-9 = .008; 4 * 11 / 2^10 = .043; 4 * (1 + 15 + 105) / 2^15 = .015."""
    before = screened(tmp_path / "a", LETTERS[20 : 20 + fixed])
    after = screened(tmp_path / "b", LETTERS[:broken])
    assert [one.class_name for one in paired_accuracy(before, after, {"v": "v"})[1]] == ["crab"] * worse


def test_images_count_under_the_label_that_both_runs_have(tmp_path: Path) -> None:
    answers = said("data", "v", dict.fromkeys(LETTERS, "crab"), "crab")
    other = said("data", "v", dict.fromkeys(LETTERS, "crab"), "boat")  # labelled anew: no image is the same
    before, after = audited(tmp_path / "a", [], answers, ("v",)), audited(tmp_path / "b", [], other, ("v",))
    (accuracy,), worse = paired_accuracy(before, after, {"v": "v"})
    assert (accuracy.images, accuracy.before, accuracy.after, accuracy.p_value, worse) == (0, 0, 0, 1, ())
    assert accuracy.relabelled == 26
    assert (
        accuracy.note == "v: images that both runs have, but whose labels name different classes, are not counted: 26"
    )
    pool = said("pool", "v", dict.fromkeys(LETTERS, "crab"), "crab")  # not under audit
    one, other = audited(tmp_path / "c", [], pool, ("v",)), audited(tmp_path / "d", [], pool, ("v",))
    assert paired_accuracy(one, other, {"v": "v"})[0][0].images == 0


def test_a_class_that_is_spelled_otherwise_now_is_the_same_class(tmp_path: Path) -> None:
    """By hand: 26 images of hot dogs, all right before, 14 broken now."""
    old = said("data", "v", dict.fromkeys(LETTERS, "hot_dog"), "hot_dog")
    new = said("data", "v", {x: "crab" if x in LETTERS[:14] else "Hot dog" for x in LETTERS}, "Hot dog")
    before, after = audited(tmp_path / "a", [], old, ("v",)), audited(tmp_path / "b", [], new, ("v",))
    (accuracy,), (worse,) = paired_accuracy(before, after, {"v": "v"})
    assert (accuracy.images, accuracy.broken, accuracy.relabelled, accuracy.note) == (26, 14, 0, None)
    assert (worse.class_name, worse.images, worse.after) == ("Hot dog", 26, pytest.approx(14 / 26))


def outcome(folder: Path, rule: str, run: Run, baseline: Run, accepted: str = "") -> Outcome:
    text = f"version: 1\naccept_warnings: [{accepted}]\nrules:\n- {rule}\n"
    (folder / "rules.yaml").write_text(text, "utf-8")
    (found,) = check(load_rules(folder / "rules.yaml"), run, baseline)
    return found


def test_a_rule_on_new_modes_does_not_pass_where_a_class_got_worse_for_no_reason_that_was_found(tmp_path: Path) -> None:
    before, after = screened(tmp_path / "a", ""), screened(tmp_path / "b", LETTERS[:12])
    found = outcome(tmp_path, NEW, after, before)
    assert (found.passed, found.value) == (False, None)
    assert "the run cannot decide this rule" in found.message
    assert "accept_warnings: [worse_class]" in found.message
    assert found.modes == ("v is wrong on 28.6% of 42 images of “crab”, before on 0.0% (p = 0.001)",)
    assert outcome(tmp_path, NEW, after, before, "worse_class").passed
    assert outcome(tmp_path, NEW, before, after).passed
    for wanted, passed in (
        ("classes: [crab]", False),
        ("classes: [boat]", True),
        ("model: v", False),
        ("least_impact: 0.1", False),  # 12 of 112 images
        ("least_impact: 0.11", True),
    ):
        assert outcome(tmp_path, NEW.replace("[new]", f"[new], {wanted}"), after, before).passed == passed, wanted
    assert outcome(tmp_path, NEW.replace("[new]", "[fixed]"), after, before).passed


@pytest.mark.parametrize(("count", "passed"), [(1, True), (2, False)])
def test_a_rule_on_new_modes_does_not_pass_where_images_were_labelled_anew(
    count: int, passed: bool, tmp_path: Path
) -> None:
    """Of 112 images, 1 % is 1.12. What the model gets wrong of a class that has another name now, nobody compares."""
    before = screened(tmp_path / "a", "")
    rows = before.rows("select * from predictions")
    anew = {f"crab {letter}" for letter in LETTERS[:count]}
    rows = [row | ({"label": "lobster", "correct": False} if row["item_id"] in anew else {}) for row in rows]
    after = audited(tmp_path / "b", [], [row for row in rows if row["item_id"][0] in "bc"], ("v",), askable=True)
    found = outcome(tmp_path, NEW, after, before)
    assert found.passed == passed
    if not passed:
        assert "have another label than in the baseline" in found.message
        assert "accept_warnings: [relabelled]" in found.message
        assert found.modes[0].endswith("are not counted: 2")
        assert outcome(tmp_path, NEW, after, before, "relabelled").passed
        assert outcome(tmp_path, NEW.replace("[new]", "[fixed]"), after, before).passed


def test_a_new_mode_among_the_images_of_a_class_explains_why_it_got_worse(tmp_path: Path) -> None:
    """The rule allows one new mode: of the class itself, of images of the class, or of those of another one."""
    before = screened(tmp_path / "a", "")
    rule = NEW.replace("at_most: 0", "at_most: 1")
    wrong = said("data", "v", {f"crab {letter}": "boat" if letter in LETTERS[:12] else "crab" for letter in LETTERS})
    rows = [row | {"label": "crab", "correct": row["predicted"] == "crab"} for row in wrong]
    showing, controls = [f"crab {x}" for x in LETTERS[:12]], [f"crab {x}" for x in LETTERS[12:]]
    sand = mode("boat", "on sand", evidence="", showing=showing, other_model_id=None)
    for number, (strata, passed) in enumerate([("crab", True), ("fish", False)]):
        images = {"failure_mode_id": sand["failure_mode_id"], "item_ids": [*showing, *controls]}
        images |= {"shows": [True] * 12 + [False] * 14, "strata": [strata] * 26}
        after = audited(tmp_path / f"b{number}", [sand], rows, ("v",), askable=True, compared_images=[images])
        (change,) = compare(before, after).changes
        assert change.status == "new"
        assert outcome(tmp_path, rule, after, before).passed == passed
    assert outcome(tmp_path, NEW, after, before).value == 1  # more new ones than it allows: that is the answer


def test_a_mode_that_may_be_old_or_gone_explains_nothing(tmp_path: Path) -> None:
    """Of the images that got worse, one shows a confirmed mode, too few to tell whether it is new."""
    clean, worse = screened(tmp_path / "a", ""), screened(tmp_path / "b", LETTERS[:12])
    letters = [*LETTERS[:1], *LETTERS[12:20]]
    sand = mode("fish", "on sand", evidence="", showing=["crab a"], other_model_id=None)
    images = {"failure_mode_id": sand["failure_mode_id"], "item_ids": [f"crab {letter}" for letter in letters]}
    images |= {"shows": [True] + [False] * 8, "strata": ["crab"] * 9}
    rows = {
        name: run.rows("select * from predictions where item_id like 'crab _'")
        for name, run in (("clean", clean), ("worse", worse))
    }

    def run(name: str, modes: list[dict[str, Any]]) -> Run:
        return audited(
            tmp_path / f"{name}{len(modes)}",
            modes,
            rows[name],
            ("v",),
            askable=True,
            compared_images=[images] * len(modes),
        )

    either = NEW.replace("[new]", "[new, unclear]")
    before, after = run("clean", []), run("worse", [sand])
    assert [(one.status, one.happened, one.happens) for one in compare(before, after).changes] == [("unclear", 0, 1)]
    assert "classes that got worse" in outcome(tmp_path, NEW, after, before).message
    assert outcome(tmp_path, either, after, before).value == 1
    gone = sand | {"class_name": "crab"}  # of the class that got worse, and no longer confirmed
    before, after = run("clean", [gone]), run("worse", [])
    assert [(one.status, one.happened, one.happens) for one in compare(before, after).changes] == [("unclear", 1, 0)]
    for rule in (NEW, either):
        assert "classes that got worse" in outcome(tmp_path, rule, after, before).message


def test_compare_shows_the_classes_that_got_worse(tmp_path: Path) -> None:
    before, after = screened(tmp_path / "a", ""), screened(tmp_path / "b", LETTERS[:12])
    shown = CliRunner().invoke(app, ["compare", str(before.root), str(after.root)])
    assert "worse: v is wrong on 28.6% of 42 images of “crab”, before on 0.0%" in " ".join(shown.stdout.split())
    told = compare(before, after).as_dict()["worse_classes"]
    assert [(one["class_name"], one["images"]) for one in told] == [("crab", 42)]
