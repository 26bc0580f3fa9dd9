"""What changed between two runs made by hand: each status by real images, by names, and where nothing can be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats
from typer.testing import CliRunner

from audit.comparison import Comparison, compare, twins_of
from audit.errors import ConfigError
from audit.results.sql import Run
from pipelines.cli import app
from tests.audited import CONTROLS, against, audited, mode, said


def on(letters: str, crabs: int) -> dict[str, str]:
    """Of these images, the first so many are called a crab, the others a boat."""
    return {letter: "crab" if i < crabs else "boat" for i, letter in enumerate(letters)}


def changed(found: Comparison) -> list[tuple[str, str, int | None, int | None, int | None]]:
    return [(c.status, c.name, c.images, c.happened, c.happens) for c in found.changes]


@pytest.mark.parametrize(
    ("crabs", "status"), [(0, "fixed"), (2, "fixed"), (3, "fixed"), (4, "unchanged"), (8, "unchanged")]
)
def test_real_images_tell_what_became_of_a_mode_that_is_not_confirmed_again(
    tmp_path: Path, crabs: int, status: str
) -> None:
    """Of eight images that the first run gets wrong, without an error on the controls: gone is what is less than half
    and shown to be less, by intervals that `test_excess.py` derives."""
    modes = [mode("crab", "on sand", evidence="abcdefgh")]
    before = audited(tmp_path / "a", modes, against(on("abcdefghz", 8)))  # z is another image
    after = audited(tmp_path / "b", [], against(on("abcdefgh", crabs)))
    assert changed(compare(before, after)) == [(status, "on sand", 8, 8, crabs)]
    assert changed(compare(after, before)) == [({"fixed": "new"}.get(status, status), "on sand", 8, crabs, 8)]


@pytest.mark.parametrize("directions", [("reference", "v"), ("v", "reference")])
def test_a_mode_is_the_model_s_that_is_at_fault_whatever_it_was_held_against(
    tmp_path: Path, directions: tuple[str, str]
) -> None:
    """Version 2 of v misses fish where the reference sees them, or says fish where it sees none; version 1 did not."""
    says, misses = directions
    name = "fish" if misses == "v" else "crab"
    found = mode(name, "not on water", evidence="abcdefgh", at_fault="v", model_id=says, other_model_id=misses)
    before = audited(tmp_path / "a", [], against(dict.fromkeys("abcdefgh", "fish"), other="fish"))
    after = audited(tmp_path / "b", [found], against(dict.fromkeys("abcdefgh", "crab"), other="fish"))
    assert changed(compare(before, after)) == [("new", "not on water", 8, 0, 8)]
    assert changed(compare(after, before)) == [("fixed", "not on water", 8, 8, 0)]
    assert compare(before, after).changes[0].model_id == "v"
    alone = [row for row in against(dict.fromkeys("abcdefgh", "crab"), other="fish") if row["model_id"] == "v"]
    assert changed(compare(before, audited(tmp_path / "c", [found], alone, ("v",)))) == [
        ("new", "not on water", 8, 0, 8)  # there is no reference to ask: v alone is asked
    ]


def test_of_two_modes_of_a_name_the_twin_is_the_one_against_the_same_model(tmp_path: Path) -> None:
    both = [mode("crab", "on sand", other_model_id=other, failure_mode_id=other) for other in ("g", "reference")]
    found = compare(audited(tmp_path / "a", both, []), audited(tmp_path / "b", both[1:], []))
    assert [(c.status, c.ids) for c in found.changes] == [("unclear", ["g"]), ("unchanged", ["reference", "reference"])]


def test_a_mode_of_a_low_rate_is_not_fixed_by_mistakes_that_move(tmp_path: Path) -> None:
    """The model is wrong on four of 26 images that show it: on other four afterwards, or on three, or on none."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    modes = [mode("crab", "on sand", evidence="abcd", showing=list(letters))]
    before = audited(tmp_path / "a", modes, against(on(letters, 4)))

    def after(name: str, crabs: str) -> Comparison:
        answers = {letter: "crab" if letter in crabs else "boat" for letter in letters}
        return compare(before, audited(tmp_path / name, [], against(answers)))

    doubtful = after("moved", "wxyz")
    assert changed(doubtful) == [("unclear", "on sand", 26, 4, 4)]  # with 20 controls the excess may be 0 in both
    assert "excess: +15% [-3%, 34%] before, +15% [-3%, 34%] after" in doubtful.changes[0].reason
    before = audited(
        tmp_path / "many",
        [mode("crab", "on sand", evidence=letters[:8], showing=list(letters))],
        against(on(letters, 8)),
    )
    assert changed(after("eight", letters[18:])) == [("unchanged", "on sand", 26, 8, 8)]
    assert changed(after("five", letters[21:])) == [("unchanged", "on sand", 26, 8, 5)]
    assert changed(after("gone", "")) == [("fixed", "on sand", 26, 8, 0)]


def test_a_mode_that_happens_as_often_without_its_feature_is_new_where_it_no_longer_does(tmp_path: Path) -> None:
    """The case of the clean model and the shortcut: 6 of 8 with a square and 15 of 20 without, then 8 of 8 and 0."""
    found = mode("dog", "yellow", evidence="abcdefgh")
    clean = {
        **{c: "dog" if i < 15 else "cat" for i, c in enumerate(CONTROLS)},
        **dict.fromkeys("abcdef", "dog"),
        "g": "cat",
        "h": "cat",
    }
    shortcut = dict.fromkeys("abcdefgh", "dog")
    before = audited(tmp_path / "clean", [], against(clean, other="cat"))
    after = audited(tmp_path / "shortcut", [found], against(shortcut, other="cat"))
    for one, other, status in ((before, after, "new"), (after, before, "fixed")):
        (change,) = compare(one, other).changes
        assert (change.status, change.images, change.controls) == (status, 8, 20)
        assert "on 8 images with the feature: " in change.reason
        assert "on 20 control images of the same classes: " in change.reason
    told = compare(before, after).as_dict()["failure_modes"][0]
    assert (told["excess_before"], told["excess_after"], told["excess_change"]) == (0.0, 1.0, 1.0)
    assert told["excess_before_low"] < 0 < told["excess_change_low"] < 1 == told["excess_after_high"]


def test_what_both_confirm_is_new_where_it_was_less_than_half_before(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    found = mode("crab", "on sand", evidence=letters)
    little, much = (audited(tmp_path / str(n), [found], against(on(letters, n))) for n in (6, 25))
    assert changed(compare(little, much)) == [("new", "on sand", 26, 6, 25)]
    assert (
        compare(little, much)
        .changes[0]
        .reason.startswith("both runs confirmed it, but most of the excess is new; error rate")
    )
    assert changed(compare(much, little)) == [("unchanged", "on sand", 26, 25, 6)]  # it is still there


def test_strata_without_controls_count_for_nothing(tmp_path: Path) -> None:
    """Of two classes of images one has no controls: its images are no evidence, however they went."""
    found = mode("crab", "on sand", evidence="abcdefgh")
    before = audited(tmp_path / "a", [found], against(on("abcdefgh", 8)))
    row = {"failure_mode_id": "crab on sand", "item_ids": [*"abcdefgh", *CONTROLS], "shows": [True] * 8 + [False] * 20}
    run = audited(tmp_path / "b", [{**found, "showing": None}], against(on("abcdefgh", 8)))
    run.store.commit("more", "2-discover", {"compared_images": [{**row, "strata": ["x"] * 6 + ["y"] * 2 + ["x"] * 20}]})
    run.refresh()
    fixed = audited(tmp_path / "c", [], against({**on("abcdef", 0), "g": "crab", "h": "crab"}))
    assert changed(compare(run, fixed)) == [("fixed", "on sand", 6, 6, 0)]
    assert changed(compare(before, fixed)) == [("fixed", "on sand", 8, 8, 2)]


def test_what_both_confirm_is_unchanged_and_what_neither_confirms_is_no_change(tmp_path: Path) -> None:
    both = mode("crab", "on sand", evidence="abc")
    guess = mode("crab", "red", "hypothesis")
    before = audited(tmp_path / "a", [both, guess], against(on("abc", 0)))
    after = audited(tmp_path / "b", [both, guess], against(on("abc", 0)))
    assert changed(compare(before, after)) == [("unchanged", "on sand", 3, 0, 0)]
    old = audited(tmp_path / "c", [{**both, "showing": None}], against(on("abc", 0)))
    assert changed(compare(old, old, {"v": "v"})) == [("unchanged", "on sand", None, None, None)]


def test_without_real_images_nobody_can_tell(tmp_path: Path) -> None:
    modes = [mode("crab", "on sand", evidence="abc")]
    before = audited(tmp_path / "a", modes, against(on("abc", 3)))
    after = audited(tmp_path / "b", [mode("crab", "on sand", "hypothesis")], against(on("xy", 0)))
    found = compare(before, after)
    assert changed(found) == [("unclear", "on sand", None, None, None)]
    assert found.changes[0].reason == (
        "the second run did not confirm it, and screened too few of the images on which the first run confirmed it "
        "(3 with the feature, 20 without)"
    )
    assert found.changes[0].ids == ["crab on sand", "crab on sand"]  # the hypothesis is its other side
    older = audited(tmp_path / "older", [{**modes[0], "showing": None}], against(on("abc", 3)))
    unknown = compare(older, after)
    assert changed(unknown) == [("unclear", "on sand", None, None, None)]
    assert "stores no images to compare: run its discovery again with this version" in unknown.changes[0].reason
    uncontrolled = [row for row in against(on("abc", 0)) if row["item_id"] not in CONTROLS]
    assert changed(compare(before, audited(tmp_path / "d", [], uncontrolled))) == [
        ("unclear", "on sand", None, None, None)
    ]


def test_other_answers_than_the_model_s_own_count_for_nothing(tmp_path: Path) -> None:
    """Images of another model, and without an answer."""
    modes = [mode("crab", "on sand", evidence="abcdef")]
    before = audited(tmp_path / "a", modes, against(on("abcdef", 6)))
    failed = [{**row, "status": "failed", "predicted": None} for row in said("pool", "v", on("f", 1))]
    others = [*said("pool", "w", on("abcdef", 6)), *said("pool", "reference", on("f", 0)), *failed]
    after = audited(tmp_path / "b", [], [*against(on("abcde", 0)), *others])
    assert changed(compare(before, after)) == [("fixed", "on sand", 5, 5, 0)]


def test_modes_are_the_same_by_concept_or_by_half_of_their_evidence() -> None:
    first = [mode("crab", "on sand", evidence="abcd"), mode("crab", "red", evidence="efgh"), mode("boat", "red")]
    second = [
        mode("crab", "yellow", evidence="abxy"),  # half of the first one's images
        mode("crab", "on sand", evidence="lmno"),  # its name: goes first
        mode("crab", "blue", evidence="efxyz"),  # half of the smaller one's
        mode("fish", "red"),  # another class
    ]
    assert twins_of(first, second) == {0: 1, 1: 2}
    assert twins_of(first[:1], second[:1]) == {0: 0}
    assert twins_of(first[:1], [mode("crab", "yellow", evidence="axyz")]) == {}
    assert twins_of(first[:1], [mode("crab", "yellow", evidence="ab")]) == {}  # two images say nothing
    assert twins_of(first[:1], [mode("crab", "yellow", evidence="abz")]) == {0: 0}  # three are enough
    for name in ("yellow", "on sand"):  # by the evidence, by the concept
        missed = {**mode("crab", name, evidence="abcd"), "at_fault": "reference"}
        assert twins_of(first[:1], [missed]) == {}  # a failure of the other model
    assert twins_of(first[:2], [second[1]] * 2) == {0: 0}  # no two for one


def test_a_mode_that_both_confirmed_is_told_as_the_later_run_has_it(tmp_path: Path) -> None:
    """By its name there, and on the images on which it was confirmed there."""
    first = [mode("crab", "on sand", evidence="abcdef")]
    second = [mode("crab", "on a beach", evidence="abcvwxyz")]
    answers = against(on("abcdefvwxyz", 11))
    before, after = audited(tmp_path / "a", first, answers), audited(tmp_path / "b", second, answers)
    assert changed(compare(before, after)) == [("unchanged", "on a beach", 8, 8, 8)]
    assert changed(compare(after, before)) == [("unchanged", "on sand", 6, 6, 6)]


def test_the_other_end_of_a_mode_is_told_by_itself_if_its_status_is_another(tmp_path: Path) -> None:
    whole = mode("crab", "on sand", evidence="abcde")
    end = mode("crab", "missed", evidence="vwxyz", part_of=whole["failure_mode_id"])
    answers = against({**on("abcde", 5), **on("vwxyz", 0)})
    old = audited(tmp_path / "a", [whole], answers)
    new = audited(tmp_path / "b", [whole, end], against(on("abcdevwxyz", 10)))
    found = compare(old, new)
    assert changed(found) == [("new", "missed", 5, 0, 5), ("unchanged", "on sand", 5, 5, 5)]
    assert found.ends == ()
    none = audited(tmp_path / "c", [], against(on("abcdevwxyz", 0)))
    found = compare(none, new)
    assert changed(found) == [("new", "on sand", 5, 0, 5)]
    assert [change.name for change in found.ends] == ["missed"]


def test_new_ones_come_first_then_by_impact(tmp_path: Path) -> None:
    answers = {**on("abcde", 5), **on("vwxyz", 0)}
    before = audited(
        tmp_path / "a",
        [mode("crab", "fixed", evidence="abcde"), mode("crab", "small", impact=0.1), mode("crab", "large", impact=0.3)],
        against(answers),
    )
    after = audited(
        tmp_path / "b",
        [mode("crab", "added", evidence="vwxyz", impact=None), mode("crab", "small"), mode("crab", "large")],
        against({**on("abcde", 0), **on("vwxyz", 5)}),
    )
    found = compare(before, after)
    assert [c.name for c in found.changes] == ["added", "large", "small", "fixed"]


def test_accuracy_on_the_images_that_both_have(tmp_path: Path) -> None:
    old = said("data", "v", {"a": "cat", "b": "dog", "c": "dog", "d": "dog", "e": "cat", "g": "cat"}, "cat")
    new = said("data", "v", {"a": "dog", "b": "cat", "c": "cat", "d": "cat", "f": "cat", "g": "cat"}, "cat")
    twice = [*old, *old[:1]]  # an image that is there twice counts once
    one = compare(audited(tmp_path / "a", [], twice), audited(tmp_path / "b", [], new)).accuracy[0]
    assert (one.model_id, one.images, one.before, one.after, one.fixed, one.broken) == ("v", 5, 0.4, 0.8, 3, 1)
    assert one.p_value == pytest.approx(2 * stats.binom.cdf(1, 4, 0.5))
    assert compare(audited(tmp_path / "c", [], []), Run(tmp_path / "a")).accuracy[0].images == 0


def test_two_models_of_one_run(tmp_path: Path) -> None:
    old = {**mode("crab", "on sand", evidence="abcde"), "model_id": "v1"}
    right = {**dict.fromkeys(CONTROLS, "boat"), **on("abcde", 0)}
    answers = [*against(on("abcde", 5), "v1"), *said("pool", "v2", right)]
    run = audited(tmp_path / "a", [old], answers, ("v1", "v2", "reference"))
    found = compare(run, run, {"v1": "v2"})
    assert changed(found) == [("fixed", "on sand", 5, 5, 0)]
    assert found.changes[0].model_id == "v2"
    between = {**old, "other_model_id": "v2"}  # what a search for images on which the two differ found
    direct = audited(tmp_path / "direct", [between], answers, ("v1", "v2", "reference"))
    assert changed(compare(direct, direct, {"v1": "v2"})) == [("fixed", "on sand", 5, 5, 0)]
    assert changed(compare(direct, direct, {"v2": "v1"})) == [("new", "on sand", 5, 0, 5)]
    with pytest.raises(ConfigError, match="within one run, name the two models to compare; it has: v1, v2, reference"):
        compare(run, run)
    with pytest.raises(ConfigError, match="the second run has no model 'v3'; it has: v1, v2, reference"):
        compare(run, run, {"v1": "v3"})
    with pytest.raises(ConfigError, match=r"no model of one name \(first: v1, v2, reference; second: w\)"):
        compare(run, audited(tmp_path / "b", [], [], ("w",)))


def test_the_command_compares_finished_runs_only(tmp_path: Path) -> None:
    modes = [mode("crab", "on sand", evidence="abcde")]
    audited(tmp_path / "a", modes, against(on("abcde", 5)))
    audited(tmp_path / "b", [], against(on("abcde", 0)))
    audited(tmp_path / "c", [], [], done=("0-inventory", "1-screen"))
    shell = CliRunner()
    told = shell.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert told.exit_code == 0, told.output
    change = json.loads(told.stdout)["failure_modes"][0]
    assert (change["status"], change["before_failure_mode_id"], change["after_verdict"]) == (
        "fixed",
        "crab on sand",
        None,
    )
    table = shell.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")], env={"COLUMNS": "400"}).stdout
    assert "error rate on 5 images with the feature: 100% before, 0% after; on 20 control images" in table
    unfinished = shell.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "c")])
    assert unfinished.exit_code == 2
    assert "is not finished: stage 2-discover has done 0 of 1 units" in " ".join(unfinished.output.split())
    one = shell.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "a"), "--model", "v=reference", "--json"])
    assert json.loads(one.stdout)["failure_modes"][0]["status"] == "fixed"  # the reference is right on all of them
    assert shell.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--model", "v"]).exit_code == 2
