"""What a run says that it cannot know or doubts: written by its stages, and read from its confusion matrices."""

from __future__ import annotations

import hashlib
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import poisson

from audit.config import checked
from audit.gate import Rules, check
from audit.review.label_order import Confusion, _at_chance, _permuted, assigned
from audit.review.warnings import warnings_of
from tests.audited import audited

CLASSES = tuple(f"class {i}" for i in range(12))


def answers(pairs: list[tuple[str | None, str]], model: str = "v", role: str = "data") -> list[dict[str, Any]]:
    """Predictions of one image for each (label, predicted)."""
    return [
        {
            "item_id": hashlib.sha256(f"{i}".encode()).hexdigest(),
            "role": role,
            "model_id": model,
            "label": label,
            "predicted": predicted,
            "correct": None if label is None else label == predicted,
            "confidence": 0.9,
            "status": "ok",
        }
        for i, (label, predicted) in enumerate(pairs)
    ]


def codes(root: Path, predictions: list[dict[str, Any]]) -> dict[str, tuple[bool, str]]:
    """From the code of each warning to whether it blocks a gate, and its words."""
    return {w.code: (w.blocks_gate, w.message) for w in warnings_of(audited(root, [], predictions))}


def test_outputs_in_another_order_are_found_by_the_permutation_that_mends_them(tmp_path: Path) -> None:
    """Integers sorted as text: a model that is right on all 12 classes seems right on 0, 1 and no other."""
    as_text = sorted(map(str, range(12)))
    pairs = [(CLASSES[k], CLASSES[int(as_text[k])]) for k in range(12) for _ in range(6)]
    blocks, words = codes(tmp_path, answers(pairs))["outputs_permuted"]
    assert blocks
    assert "and would be 100.0% if 10 of them had other names" in words


def test_two_swapped_classes_of_ten_are_found(tmp_path: Path) -> None:
    swapped = {0: 1, 1: 0}
    pairs = [(CLASSES[k], CLASSES[swapped.get(k, k)]) for k in range(10) for _ in range(20)]
    blocks, words = codes(tmp_path, answers(pairs))["outputs_permuted"]
    assert blocks
    assert "'class 1' should be 'class 0', 'class 0' should be 'class 1'" in words


def test_outputs_shifted_by_one_are_found_where_the_last_is_no_label(tmp_path: Path) -> None:
    """A model with a background class before all others."""
    pairs = [(CLASSES[k], CLASSES[k + 1]) for k in range(5) for _ in range(20)]
    assert "would be 100.0% if 5 of them" in codes(tmp_path, answers(pairs))["outputs_permuted"][1]


def test_a_model_that_confuses_two_classes_has_no_permuted_outputs(tmp_path: Path) -> None:
    """Cats called dogs nine times in ten, and dogs as well: no permutation makes more images right."""
    pairs = [(name, "dog") for name in ("cat", "dog") for _ in range(90)]
    pairs += [(name, "cat") for name in ("cat", "dog") for _ in range(10)]
    assert "outputs_permuted" not in codes(tmp_path, answers(pairs))


@pytest.mark.parametrize("skill", [0.0, 0.3])
def test_chance_alone_seldom_looks_like_permuted_outputs(skill: float) -> None:
    """400 models that guess, or know a third: at a level of 1 %, more than 10 alarms have a probability of .003."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        counts = np.zeros((2, 10, 10), np.int64)
        for _ in range(150):
            label = rng.integers(10)
            counts[rng.integers(2), label, label if rng.random() < skill else rng.integers(10)] += 1
        alarms += _permuted("v", Confusion(CLASSES[:10], CLASSES[:10], counts)) is not None
    assert alarms <= 10


def test_the_assignment_is_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        counts = rng.integers(0, 30, (5, 5))
        best = max(sum(counts[i, j] for i, j in enumerate(order)) for order in permutations(range(5)))
        assert counts[np.arange(5), assigned(counts)].sum() == best
    assert assigned(np.zeros((3, 4), np.int64)).tolist() == [0, 1, 2]  # nothing to gain: every output keeps its name


def test_of_equally_good_permutations_the_one_that_renames_fewest_is_taken() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        counts = rng.integers(0, 3, (4, 4))
        totals = {order: sum(counts[i, j] for i, j in enumerate(order)) for order in permutations(range(4))}
        best = [order for order, total in totals.items() if total == max(totals.values())]
        kept = [sum(i == j for i, j in enumerate(order)) for order in best]
        assert int((assigned(counts) == np.arange(4)).sum()) == max(kept)


@pytest.mark.parametrize(("halves", "found"), [((7, 7), False), ((8, 7), True), ((7, 8), True), ((8, 0), False)])
def test_a_permutation_has_to_hold_on_the_other_half(halves: tuple[int, int], found: bool) -> None:
    """Two swapped classes of which one half tests n images: p is 2 ** -n, twice that (two tests) has to be under .01.
    For 8 images that is .0078, for 7 .0156; a half without images proposes nothing."""
    counts = np.array([[[0, n // 2], [n - n // 2, 0]] for n in halves], np.int64)
    assert (_permuted("v", Confusion(("cat", "dog"), ("cat", "dog"), counts)) is not None) is found


@pytest.mark.parametrize(
    ("classes", "named", "blocks"),
    [
        ({"cat": (10, 0), "dog": (40, 40)}, ["cat"], False),
        ({"cat": (9, 0), "dog": (40, 40)}, [], None),  # too few images to say it of cats
        ({"cat": (10, 0)}, [], None),  # nothing to compare with
        ({"cat": (20, 4), "dog": (20, 20)}, ["cat"], False),
        ({"cat": (20, 6), "dog": (20, 20)}, ["cat"], False),
        ({"cat": (20, 7), "dog": (20, 20)}, [], None),
        ({"cat": (20, 0), "dog": (20, 0), "fox": (9, 9)}, ["cat", "dog"], True),  # every class with images enough
        ({"cat": (20, 0), "dog": (20, 20), "fox": (9, 0)}, ["cat"], False),
    ],
)
def test_which_classes_are_at_chance(
    classes: dict[str, tuple[int, int]], named: list[str], blocks: bool | None
) -> None:
    """Of each class its images and how many are right; of the others the model says something that is no label.

    That k of 20 cats and none of 20 dogs are called cats has by chance the probability C(20, k) / C(40, k)."""
    assert math.comb(20, 6) / math.comb(40, 6) > 0.01 > math.comb(20, 7) / math.comb(40, 7)
    names = tuple(classes)
    counts = np.zeros((2, len(names), len(names) + 1), np.int64)
    for i, (images, right) in enumerate(classes.values()):
        counts[0, i, i], counts[1, i, -1] = right, images - right
    found = _at_chance("v", Confusion(names, (*names, "unicorn"), counts))
    assert [name for name in names if any(f"'{name} (" in warning.message for warning in found)] == named
    assert [warning.blocks_gate for warning in found] == ([] if blocks is None else [blocks])


def small_classes(right: int) -> list[tuple[str, str]]:
    """100 images of 20 classes, five each, of which so many are right; the others get the name of another class."""
    labels = [f"class {i % 20}" for i in range(100)]
    return [(label, label if i < right else f"class {(i + 1) % 20}") for i, label in enumerate(labels)]


@pytest.mark.parametrize("right", [0, 3, 5, 8, 10, 12, 13, 100])
def test_classes_of_few_images_are_tested_together(tmp_path: Path, right: int) -> None:
    """About as many are right by chance as the Poisson distribution with the mean 100 / 20 says."""
    pairs = small_classes(right)
    p_value = float(poisson.sf(right - 1, 5))
    assert not 0.007 < p_value < 0.013  # the approximation is good enough to tell
    found = codes(tmp_path, answers(pairs))
    assert ("at_chance" in found) == (p_value > 0.01)
    if right == 3:
        blocks, words = found["at_chance"]
        assert blocks
        assert words.startswith("accuracy is 3.0%, no better than by chance")


def test_a_model_that_always_predicts_one_of_many_small_classes_does_not_pass(tmp_path: Path) -> None:
    pairs = [(f"class {i % 20}", "class 0") for i in range(100)]
    assert codes(tmp_path / "many", answers(pairs))["at_chance"][0]
    assert "at_chance" not in codes(tmp_path / "few", answers(pairs[:9]))  # too few images in all
    assert "at_chance" not in codes(tmp_path / "one", answers([("cat", "dog")] * 9))


def test_images_of_the_pool_do_not_speak_of_the_order(tmp_path: Path) -> None:
    right = [(name, name) for name in ("cat", "dog") for _ in range(30)]
    wrong = [("cat", "dog"), ("dog", "cat")] * 200
    assert codes(tmp_path, [*answers(right), *answers(wrong, role="pool")]) == {}


def test_a_class_that_is_predicted_no_more_often_on_its_own_images_is_named(tmp_path: Path) -> None:
    pairs = [(name, name) for name in ("cat", "dog") for _ in range(30)] + [("fox", "cat")] * 30
    blocks, words = codes(tmp_path, answers(pairs))["at_chance"]
    assert not blocks
    assert "1 of 3 classes" in words
    assert "'fox (0%)'" in words


def test_a_model_at_chance_on_every_class_does_not_pass(tmp_path: Path) -> None:
    pairs = [(name, "cat") for name in ("cat", "dog", "fox") for _ in range(30)]
    blocks, words = codes(tmp_path, answers(pairs))["at_chance"]
    assert blocks
    assert "3 of 3 classes" in words


def test_a_model_that_guesses_does_not_pass_for_being_lucky(tmp_path: Path) -> None:
    """Right on 151 of 300 cats and on 150 of 300 dogs: above the rate of the others, by a single image."""
    pairs = [("cat", "cat")] * 151 + [("cat", "dog")] * 149 + [("dog", "dog")] * 150 + [("dog", "cat")] * 150
    blocks, words = codes(tmp_path, answers(pairs))["at_chance"]
    assert blocks
    assert "2 of 2 classes" in words


def test_a_weak_model_that_does_not_guess_is_not_at_chance(tmp_path: Path) -> None:
    pairs = [("cat", "cat")] * 180 + [("cat", "dog")] * 120 + [("dog", "dog")] * 180 + [("dog", "cat")] * 120
    assert "at_chance" not in codes(tmp_path, answers(pairs))


def test_a_good_model_has_no_warning_of_order(tmp_path: Path) -> None:
    pairs = [(name, name) for name in CLASSES for _ in range(10)] + [("class 0", "class 1")] * 5
    assert codes(tmp_path, answers(pairs)) == {}


def test_labels_of_the_pool_that_no_class_stands_for_are_counted(tmp_path: Path) -> None:
    rows = answers([("unicorn", "cat"), ("unicorn", "dog"), (None, "dog")], role="pool")
    for row in rows:
        row["correct"] = None
    blocks, words = codes(tmp_path, rows)["pool_labels_unknown"]
    assert not blocks
    assert words.startswith("2 images of the pool have one of 1 labels, such as 'unicorn'")


RULES = {"version": 1, "rules": [{"name": "few errors", "sql": "select 0", "at_most": 0}]}


def test_a_gate_fails_on_what_the_run_cannot_know_and_passes_once_it_is_accepted(tmp_path: Path) -> None:
    run = audited(tmp_path, [], answers([(name, "cat") for name in ("cat", "dog", "fox") for _ in range(30)]))
    outcomes = check(checked(Rules, RULES, "rules", {}), run, None)
    assert [(outcome.name, outcome.passed) for outcome in outcomes] == [("warnings", False), ("few errors", True)]
    assert outcomes[0].modes[0].startswith("at_chance (v, data): 3 of 3 classes")
    accepting = checked(Rules, {**RULES, "accept_warnings": ["at_chance"]}, "rules", {})
    assert [outcome.passed for outcome in check(accepting, run, None)] == [True]


def test_a_rule_about_one_model_is_not_held_up_by_warnings_of_another(tmp_path: Path) -> None:
    bad = answers([(name, "cat") for name in ("cat", "dog", "fox") for _ in range(30)], model="reference")
    run = audited(tmp_path, [], bad)
    rule = {"name": "none", "failure_modes": {"model": "v"}, "at_most": 0}
    outcomes = check(checked(Rules, {"version": 1, "rules": [rule]}, "rules", {}), run, None)
    assert [outcome.name for outcome in outcomes] == ["none"]
    for other in ({**rule, "failure_modes": {}}, RULES["rules"][0]):  # a rule on every model, and a query
        for rules in ([other], [rule, other]):
            outcomes = check(checked(Rules, {"version": 1, "rules": rules}, "rules", {}), run, None)
            assert [outcome.name for outcome in outcomes] == ["warnings", *(each["name"] for each in rules)]


def test_warnings_of_the_baseline_fail_only_a_gate_that_compares_with_it(tmp_path: Path) -> None:
    bad = answers([(name, "cat") for name in ("cat", "dog", "fox") for _ in range(30)])
    before, now = audited(tmp_path / "before", [], bad), audited(tmp_path / "now", [], [])
    assert check(checked(Rules, RULES, "rules", {}), now, before)[0].name == "few errors"
    new = {"name": "new", "failure_modes": {"status": ["new"]}, "at_most": 0}
    outcomes = check(checked(Rules, {"version": 1, "rules": [RULES["rules"][0], new]}, "rules", {}), now, before)
    assert [outcome.name for outcome in outcomes] == ["warnings", "few errors", "new"]
    assert outcomes[0].modes[0].startswith("the baseline: at_chance (v, data)")
