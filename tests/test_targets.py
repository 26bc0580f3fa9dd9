"""Target classes of counterfactuals, rule by rule; WordNet on a planted hierarchy, and on the real one where it is."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from audit.config import Frozen
from audit.errors import ConfigError
from audit.targets import AsTarget, Target, check_target, targets_of
from audit.wordnet import WordNet, offset_of

NAMES = ("Crab", "sail boat", "car", "bird")


class Options(Frozen):
    """Of a stage that has targets."""

    target: AsTarget = Target(rule="runner_up")


def target(value: Any) -> Target:
    """As a job file in the folder /jobs gives it."""
    return Options.model_validate({"target": value}, context={"folder": Path("/jobs")}).target


def asked(value: Any, predicted: str = "Crab", label: str | None = "car", names: tuple[str, ...] = NAMES) -> list[str]:
    others = [name for name in names if name != predicted]
    return targets_of(target(value), predicted, label, [predicted, *others[::-1]], names)


def test_runner_up_is_the_second_most_probable_class() -> None:
    assert asked("runner_up") == ["bird"]
    assert targets_of(target("runner_up"), "Crab", None, ["Crab"], ("Crab",)) == []


def test_the_label_is_a_target_only_of_a_misclassified_image() -> None:
    assert asked("label") == ["car"]
    assert asked("label", label="SAIL_BOAT") == ["sail boat"]
    assert asked("label", label="crab") == []
    assert asked("label", label=None) == []
    assert asked("label", label="zebra") == []  # the model cannot say it


def test_named_classes_but_the_predicted_one() -> None:
    assert asked("bird") == ["bird"]
    assert asked(["Sail_Boat", "crab", "sail boat", "car"]) == ["sail boat", "car"]
    assert asked({"rule": "named", "classes": ["label"]}, names=("Crab", "label")) == ["label"]


def test_every_other_class_of_a_group_with_the_predicted_one() -> None:
    groups = {"rule": "group", "groups": [["crab", "bird"], ["car", "sail-boat"], ["car", "Crab"]]}
    assert asked(groups) == ["bird", "car"]
    assert asked(groups, predicted="bird") == ["Crab"]
    assert asked({"rule": "group", "groups": [["car", "bird"]]}) == []


@pytest.mark.parametrize(
    "value",
    [
        "zebra",
        ["car", "zebra"],
        {"rule": "group", "groups": [["car", "zebra"]]},
        {"rule": "wordnet", "wordnet": "wn", "wordnet_ids": {"zebra": "n00000001"}},
    ],
)
def test_unknown_classes_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="target: unknown class 'zebra'"):
        check_target(target(value), NAMES)
    for known in ("runner_up", "label", "bird", ["sail_boat"]):
        check_target(target(known), NAMES)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rule": "group"}, "needs 'groups'"),
        ({"rule": "named"}, "needs 'classes'"),
        ({"rule": "wordnet"}, "needs 'wordnet'"),
        ({"rule": "runner_up", "count": 2}, "'count' is no option of the rule 'runner_up'"),
        ({"rule": "group", "groups": [["a"]], "classes": ["b"]}, "'classes' is no option of the rule 'group'"),
        ({"rule": "second"}, "Input should be 'runner_up'"),
    ],
)
def test_a_rule_takes_its_own_options_only(value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        target(value)


def test_the_place_of_wordnet_is_relative_to_the_job_and_no_part_of_what_decides() -> None:
    read = target({"rule": "wordnet", "wordnet": "wn"})
    assert read.wordnet == Path("/jobs/wn")
    assert "wordnet" not in read.model_dump(mode="json")


# --- WordNet -------------------------------------------------------------------------------------------------------

#           thing -- animal -- fish -- tench, goldfish        'bank' is a thing and a fish; 'pike' two kinds of thing;
#                 -- tool -- pike (weapon), net               'net' lies under tool and under fish (two hypernyms)
ABOVE = {
    "thing": [],
    "animal": ["thing"],
    "fish": ["animal"],
    "tench": ["fish"],
    "goldfish": ["fish"],
    "tool": ["thing"],
    "pike_weapon": ["tool"],
    "pike_fish": ["fish"],
    "net": ["tool", "fish"],
}
WORDS = {"tench": ["tench", "Tinca_tinca"], "pike_weapon": ["pike"], "pike_fish": ["pike", "freshwater_pike"]}


def planted(folder: Path) -> dict[str, str]:
    """Write the hierarchy as database files, as wndb(5WN) describes them; the id of each synset."""
    text, offsets, places = "  1 a licence | @ 00000000\n", dict.fromkeys(ABOVE, 0), {}
    for _ in range(2):  # the lines are as long the second time, when the offsets are known
        body = text
        for synset, above in ABOVE.items():
            places[synset] = len(body)
            words = WORDS.get(synset, [synset])
            pointers = [f"{'@i' if i else '@'} {offsets[name]:08d} n 0000" for i, name in enumerate(above)]
            other = f"~ {offsets['thing']:08d} n 0000"  # a pointer that is no hypernym
            named = " ".join(f"{word} 0" for word in words)
            head = f"{offsets[synset]:08d} 05 n {len(words):02x} {named} {len(above) + 1:03d}"
            body += " ".join([head, *pointers, other, "| a gloss @ 12345678 n\n"])
        offsets = dict(places)
    senses: dict[str, list[int]] = {}
    for synset in ABOVE:
        for word in WORDS.get(synset, [synset]):
            senses.setdefault(word.lower(), []).append(offsets[synset])
    index = ["  1 a licence"]
    for word, found in sorted(senses.items()):
        index.append(f"{word} n {len(found)} 2 @ ~ {len(found)} 0 {' '.join(f'{o:08d}' for o in found)}")
    folder.mkdir(exist_ok=True)
    (folder / "data.noun").write_text(body)
    (folder / "index.noun").write_text("\n".join(index) + "\n")
    return {synset: f"n{offset:08d}" for synset, offset in offsets.items()}


def steps(one: str, other: str) -> int:
    """Shortest way up from one and down to the other, by walking: an independent derivation."""
    best = {}
    for start in (one, other):
        found, queue = {start: 0}, deque([start])
        while queue:
            name = queue.popleft()
            for above in ABOVE[name]:
                if above not in found:
                    found[above] = found[name] + 1
                    queue.append(above)
        best[start] = found
    return min(best[one][name] + best[other][name] for name in best[one].keys() & best[other].keys())


def test_distances_are_the_shortest_ways_over_a_common_hypernym(tmp_path: Path) -> None:
    ids = {name: offset_of(wordnet_id) for name, wordnet_id in planted(tmp_path).items()}
    wordnet = WordNet(tmp_path)
    for one, a in ids.items():
        for other, b in ids.items():
            assert a is not None
            assert b is not None
            assert wordnet.distance(a, b) == steps(one, other), (one, other)


def test_the_nearest_classes_by_ids_and_by_names(tmp_path: Path) -> None:
    """Goldfish, net and pike (the fish) are two steps from tench, in the order of the classes; the weapon five."""
    ids = planted(tmp_path)
    rule = {"rule": "wordnet", "wordnet": str(tmp_path), "count": 3}
    coded = tuple(ids[name] for name in ("pike_weapon", "net", "tench", "goldfish", "pike_fish"))
    near = asked(rule, predicted=ids["tench"], names=coded)
    assert near == [ids["net"], ids["goldfish"], ids["pike_fish"]]
    assert asked({**rule, "count": 9}, predicted=ids["tench"], names=coded) == [*near, ids["pike_weapon"]]
    named = ("tool", "Goldfish", "tench, Tinca tinca", "pike, freshwater pike", "net")
    assert asked(rule, predicted="tench, Tinca tinca", names=named) == ["Goldfish", "pike, freshwater pike", "net"]
    told = {**rule, "count": 1, "wordnet_ids": {"Pike": ids["pike_weapon"]}}
    assert asked(told, predicted="pike", names=("goldfish", "tench", "tool", "pike")) == ["tool"]


def test_names_that_do_not_tell_are_listed(tmp_path: Path) -> None:
    ids = planted(tmp_path)
    rule = {"rule": "wordnet", "wordnet": str(tmp_path)}
    names = ("tench", "pike", "zebra", "tench, goldfish", "n99999999", ids["net"])
    with pytest.raises(ConfigError) as caught:
        check_target(target(rule), names)
    told = "'pike' (2 meanings), 'zebra' (0 meanings), 'tench, goldfish' (0 meanings), 'n99999999' (0 meanings)"
    assert f"4 of 6 classes do not tell which nouns of WordNet in {tmp_path} they are: {told}." in str(caught.value)
    with pytest.raises(ConfigError, match=r"'n12' \(0 meanings\)"):
        check_target(target({**rule, "wordnet_ids": {"net": "n12"}}), ("net",))


def test_a_folder_without_the_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text("")
    with pytest.raises(ConfigError, match=r"lacks index\.noun\. .*wordnet-base"):
        check_target(target({"rule": "wordnet", "wordnet": str(tmp_path)}), ("tench",))


REAL = Path("/usr/share/wordnet")


@pytest.mark.skipif(not (REAL / "data.noun").is_file(), reason="WordNet is not installed (Debian: wordnet-base)")
def test_the_classes_of_imagenet_that_are_near_a_dog_are_dogs(real_data: Path) -> None:
    """The photos of ImageNet's classes are named by WordNet ids; dogs are those under dog (n02084071) there."""
    ids = sorted(path.name[:9] for path in (real_data / "imagenet_samples").glob("n*"))
    wordnet = WordNet(REAL)
    dogs = [i for i in ids if 2084071 in wordnet.above(offset_of(i) or 0)]
    assert len(ids) == 1000
    assert len(dogs) == 118
    rule = target({"rule": "wordnet", "wordnet": str(REAL), "count": 5})
    for dog in dogs:
        near = targets_of(rule, dog, None, [dog], ids)
        assert len(near) == 5
        assert set(near) <= set(dogs) - {dog}
    assert "n02099267" in targets_of(rule, "n02099601", None, [], ids)  # flat-coated to golden retriever
