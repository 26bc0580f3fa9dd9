"""Labels of a data set against outputs of a model: the right pairs, or a refusal that says what would help."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audit.class_names import are_integers, folded, in_order, resolve
from audit.classifiers import names_for
from audit.config import LabelOptions, checked
from audit.errors import ConfigError, ModelError
from audit.labels.imagenet import imagenet_1k, in_imagenet_order
from audit.labels.matching import DataClasses, Matching, classes_of, match
from audit.models.doubts import _of_labels, _of_names

IMAGENET = list(imagenet_1k().values())  # as the configuration of a model on the hub writes its names
NFD = unicodedata.normalize("NFD", "café")
NFC = unicodedata.normalize("NFC", "café")


def test_predicted_classes_alone_have_no_positions() -> None:
    """They are in the order in which a file names them first."""
    with pytest.raises(ModelError, match=r"by_position needs the outputs in their order.*'2', '0'.*class_names"):
        match(["0", "1", "2"], ["2", "0"], "by_position", complete=False)


@pytest.mark.parametrize(
    ("labels", "outputs", "names"),
    [
        (["cat", "dog"], ["cat", "dog"], ("cat", "dog")),
        (["cat", "dog"], ["dog", "cat"], ("dog", "cat")),
        (["A", "a"], ["A", "a"], ("A", "a")),
        (["a"], ["A", "a"], ("A", "a")),
        (["-1", "1"], ["1", "-1"], ("1", "-1")),
        (["hot dog", "ice cream"], ["hotdog", "ice_cream"], ("hot dog", "ice cream")),
        (["Water_Bottle"], ["water-bottle"], ("Water_Bottle",)),
        ([NFC], [NFD, "tea"], (NFC, "tea")),
        (["tench"], ["tench, Tinca tinca", "goldfish, Carassius auratus"], ("tench", "goldfish, Carassius auratus")),
        (["Tinca tinca"], ["tench, Tinca tinca", "goldfish"], ("Tinca tinca", "goldfish")),
        (["tench, Tinca tinca"], ["tench", "goldfish"], ("tench, Tinca tinca", "goldfish")),
        (["n01440764", "n01443537"], ["goldfish", "tench, Tinca tinca"], ("n01443537", "n01440764")),
        (["tench"], ["n01443537", "n01440764"], ("n01443537", "tench")),
        (["heron"], ["crane", "heron", "crane"], ("crane (0)", "heron", "crane (2)")),
        (["cat"], ["", "cat"], ("output 0", "cat")),
        ([], ["cat", "dog"], ("cat", "dog")),
    ],
)
def test_a_label_is_matched_with_the_one_output_that_means_it(
    labels: list[str], outputs: list[str], names: tuple[str, ...]
) -> None:
    assert match(labels, outputs).names == names


@pytest.mark.parametrize(
    ("labels", "outputs", "says"),
    [
        (["cat", "dog"], ["LABEL_0", "LABEL_1"], "2 of 2 labels match no output"),
        (["cat", "dog", "zebra"], ["cat", "dog"], "Labels: 'zebra'. Outputs: 'cat', 'dog'"),
        (["hippopotamus"], ["cat", "hippopotamos"], "'hippopotamus' is similar to 'hippopotamos'"),
        (["A", "a"], ["a", "b"], "1 of 2"),  # 'A' is not 'a' where 'a' is a label too
        (["Cat", "cat"], ["cat"], "1 of 2"),
        (["-1"], ["1"], "1 of 1"),
        (["1-2"], ["12"], "1 of 1"),
        (["crane"], ["crane", "heron", "crane"], "2 outputs are named 'crane'"),
        (["crane"], IMAGENET, "labels: {crane: 134}"),
        (["0", "1"], ["cat", "dog"], "labels: by_position"),
    ],
)
def test_a_label_without_an_output_is_refused_by_name(labels: list[str], outputs: list[str], says: str) -> None:
    with pytest.raises(ModelError) as refused:
        match(labels, outputs)
    assert says in str(refused.value)


def test_wordnet_ids_tell_imagenets_two_cranes_apart() -> None:
    found = match(["n02012849", "n03126707"], IMAGENET)
    assert found.names[134] == "n02012849"  # the bird
    assert found.names[517] == "n03126707"  # the machine
    assert len(set(found.names)) == 1000


def test_wordnet_ids_follow_names_where_outputs_are_in_another_order() -> None:
    found = match(["n01440764", "n01443537"], IMAGENET[::-1])
    assert (found.names[999], found.names[998]) == ("n01440764", "n01443537")
    mixed = match(["n01440764"], ["tench, Tinca tinca", "n01440764"])  # the same text comes first
    assert mixed.names == ("tench, Tinca tinca", "n01440764")


def test_the_wordnet_id_of_a_word_that_two_classes_share_is_refused_beside_few_outputs() -> None:
    """Both the bird and the machine are a crane; the bird's other word tells."""
    with pytest.raises(ModelError, match="1 of 1"):
        match(["n02012849"], ["crane", "heron"])
    assert match(["n01440764"], ["tench", "heron"]).names == ("n01440764", "heron")


@pytest.mark.parametrize(("renamed", "in_order"), [(0, True), (60, True), (400, False)])
def test_most_names_tell_whether_outputs_are_in_imagenets_order(renamed: int, in_order: bool) -> None:
    outputs = [f"thing {i}" if i < renamed else name for i, name in enumerate(IMAGENET)]
    assert in_imagenet_order(outputs) is in_order
    assert in_imagenet_order(list(imagenet_1k()))
    assert not in_imagenet_order(outputs[1:])
    assert not in_imagenet_order([*outputs[1:], outputs[0]])


def test_wordnet_ids_follow_the_numbers_of_1000_outputs_without_names() -> None:
    found = match(["n01440764", "n02012849"], [str(i) for i in range(1000)])
    assert (found.names[0], found.names[134]) == ("n01440764", "n02012849")


@pytest.mark.parametrize(
    ("labels", "given", "names"),
    [
        (["cat", "dog"], {"cat": "dog", "dog": "cat"}, ("dog", "cat")),
        (["cat", "dog"], {"cat": 1, "dog": 0}, ("dog", "cat")),
        (["cat"], {"cat": "Dog"}, ("cat (output 0)", "cat")),
        (["kitten", "dog"], {"kitten": "cat"}, ("kitten", "dog")),
        (["cat", "dog", "zebra"], {"zebra": None}, ("cat", "dog")),
        (["cat", "dog"], {"cat": "1", "dog": "0"}, ("dog", "cat")),  # as a file of pairs has numbers
        (["0", "1"], "by_position", ("0", "1")),
    ],
)
def test_the_job_may_say_what_a_label_is_called(
    labels: list[str], given: Mapping[str, str | int | None] | str, names: tuple[str, ...]
) -> None:
    assert match(labels, ["cat", "dog"], given).names == names


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cot": "cat"}, "no label 'cot'; nearest: cat"),
        ({"cat": "dig"}, "no output 'dig'; nearest: dog"),
        ({"cat": 2}, "'2' is not the number of an output"),
        ({"cat": 0, "dog": 0}, "are all matched with the output 'cat'"),
        ({"cat": "2"}, "'2' is not the number of an output"),
        ({"cat": 0, "Cat": 1}, "'cat' is given twice, the second time as 'Cat'"),
        ({"cat": None, "CAT": 0}, "'cat' is given twice"),
        ({"cat": 1}, "1 of 2 labels match no output of the model. Labels: 'dog'"),  # another label has its output
        ("by_position", "'cat' is not the number of an output"),
    ],
)
def test_what_the_job_says_of_labels_is_checked(given: Mapping[str, str | int | None] | str, says: str) -> None:
    with pytest.raises(ModelError) as refused:
        match(["cat", "dog"], ["cat", "dog"], given)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "pairs"),
    [
        ("a.csv", " 0 , tench \n\n1,\nhot dog,3\n", {"0": "tench", "1": None, "hot dog": "3"}),
        ("a.csv", '\ufeff"a, b",c\r\n', {"a, b": "c"}),
        ("a.tsv", "a, b\tc, d\n", {"a, b": "c, d"}),
        ("a.json", '{"cat": 1, "dog": null, "fox": "vixen"}', {"cat": 1, "dog": None, "fox": "vixen"}),
        ("a.csv", "Label,Output\nCats,cat\n", {"Cats": "cat"}),
        ("a.tsv", "label\tclass\nCats\tcat\n", {"Cats": "cat"}),
        ("a.csv", "cat,label\nlabel,cat\n", {"cat": "label", "label": "cat"}),
        ("a.csv", "cat\n", "two columns"),
        ("a.csv", "cat,0\ndog,1\ncat ,1\n", "'cat' is given twice"),
        ("a.txt", "cat,0\n", "must end in .json, .csv or .tsv"),
        ("a.json", "[1]", "labels"),
        ("a.json", "{", "labels"),
    ],
)
def test_a_file_of_labels_and_outputs(name: str, text: str, pairs: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, "utf-8")

    def read() -> Any:
        return checked(LabelOptions, {"labels": name}, "models[0]", {"folder": tmp_path}).labels

    if isinstance(pairs, dict):
        assert read() == pairs
    else:
        with pytest.raises(ConfigError, match=pairs):
            read()


def test_text_that_is_the_name_of_an_output_is_not_its_number() -> None:
    """Outputs that are called by numbers in another order: what the job writes as text is a name."""
    assert match(["cat"], ["2", "1", "0"], {"cat": "2"}).names == ("cat", "1", "0")
    assert match(["cat"], ["2", "1", "0"], {"cat": 2}).names == ("2", "1", "cat")
    with pytest.raises(ModelError, match="no output '1'"):
        match(["cat"], ["0", "2"], {"cat": "1"})


def test_of_outputs_that_share_a_name_the_job_says_which() -> None:
    outputs = ["crane", "heron", "crane"]
    assert match(["bird"], outputs, {"bird": "crane (2)"}).names == ("crane (0)", "heron", "bird")
    assert match(["bird"], outputs, {"bird": 0}).names == ("bird", "heron", "crane (2)")
    with pytest.raises(ModelError, match="no output 'crane'; nearest: crane"):
        match(["bird"], outputs, {"bird": "crane"})


def test_a_label_that_the_job_excuses_still_makes_another_spelling_ambiguous() -> None:
    """'CAT' is said to be no class of the model, so that 'cat' may mean either of the labels."""
    for labels in (["Cat", "CAT"], ["Cat", "CAT", "dog"]):
        with pytest.raises(ModelError, match=f"1 of {len(labels)} labels match no output of the model. Labels: 'Cat'"):
            match(labels, ["cat", "dog"], {"CAT": None})


def test_names_of_outputs_without_a_label_are_composed_too() -> None:
    found = match([], [NFD])
    assert found.names == found.own == (NFC,)
    assert match([NFC], [NFD]).rules == {NFC: "same text"}


def test_the_classes_of_a_file_of_predictions_are_not_all_that_the_model_has() -> None:
    """Of labels that are never predicted nothing is known but that they are classes; names that differ are no proof."""
    found = match(["cat", "dog"], ["Cat"], complete=False)
    assert (found.names, found.own, found.unpredicted) == (("cat", "dog"), ("Cat", "dog"), ("dog",))
    assert (found.class_of("dog"), found.class_of("Dog")) == ("dog", "dog")
    assert found.other_spellings() == [("cat", "Cat", "same but for case and separators")]
    with pytest.raises(ModelError, match="1 of 2 labels"):
        match(["cat", "dog"], ["cat", "kitten"], complete=False)
    with pytest.raises(ModelError, match="1 of 2 labels"):
        match(["cat", "dog"], ["cat"])


def test_a_label_is_written_as_the_data_set_writes_it() -> None:
    classes = DataClasses(("Hot dog", NFC, "A", "a"))
    spellings = ["hot_dog", "Hot dog", NFD, "A", "a", "unicorn"]
    assert [classes.label_of(name) for name in spellings] == ["Hot dog", "Hot dog", NFC, "A", "a", "unicorn"]
    assert DataClasses(("cat",)).label_of(NFD) == NFC


def test_what_the_job_says_of_a_declared_class_without_images_is_passed_over() -> None:
    given = {"kitten": "cat", "puppy": "dog"}
    found = match(["kitten"], ["cat", "dog"], given, declared=["kitten", "puppy"])
    assert found.names == ("kitten", "dog")
    with pytest.raises(ModelError, match="no label 'puppy'"):
        match(["kitten"], ["cat", "dog"], given)


def test_labels_that_the_model_calls_otherwise_are_listed() -> None:
    found = match(["hot dog", "tench", "cat"], ["cat", "hotdog", "tench, Tinca tinca", "fox"])
    assert match(["heron"], ["crane", "Heron", "crane", ""]).other_spellings() == [
        ("heron", "Heron", "same but for case and separators")
    ]
    assert found.other_spellings() == [
        ("hot dog", "hotdog", "same but for case and separators"),
        ("tench", "tench, Tinca tinca", "one of several names"),
    ]


def test_a_label_of_the_pool_finds_its_output_by_itself() -> None:
    found = match(["tench"], ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane"])
    assert found.class_of("tench") == "tench"
    assert found.class_of("Tinca tinca") == "tench"
    assert found.class_of("Goldfish") == "goldfish, Carassius auratus"
    assert found.class_of("crane") is None
    assert found.class_of("unicorn") is None
    assert match(["cat", "zebra"], ["cat"], {"zebra": None}).class_of("zebra") is None


@pytest.mark.parametrize(
    ("given", "own", "data", "count", "names"),
    [
        ("data", (), ("cat", "dog"), 2, ("cat", "dog")),
        ("data", (), ("0", "2", "10"), 12, tuple(map(str, range(12)))),
        ("data", (), ("1", "2", "3"), 3, ("1", "2", "3")),
        (None, (), ("0", "1"), 3, ("0", "1", "2")),
        (None, ("LABEL_0", "LABEL_1"), ("0", "1"), 2, ("0", "1")),
        (None, ("LABEL_0", "LABEL_1"), ("LABEL_0",), 2, ("LABEL_0", "LABEL_1")),
        (None, ("cat", "dog"), ("0", "1"), 2, ("cat", "dog")),
        (("a", "b"), ("cat", "dog"), ("x",), 2, ("a", "b")),
        (None, (), (), 2, ("0", "1")),
        (None, (), ("n01440764",), 1000, tuple(map(str, range(1000)))),
    ],
)
def test_outputs_are_named_by_the_job_the_model_the_data_or_their_numbers(
    given: Sequence[str] | str | None, own: tuple[str, ...], data: tuple[str, ...], count: int, names: tuple[str, ...]
) -> None:
    assert names_for(given, own, data, count) == names


@pytest.mark.parametrize(
    ("given", "own", "data", "count"),
    [
        (None, ("LABEL_0", "LABEL_1"), ("cat", "dog"), 2),
        (None, (), ("cat", "dog"), 2),
        ("data", (), ("cat", "dog"), 3),
        ("data", (), ("0", "12"), 12),
        (("a", "b"), (), ("a",), 3),
    ],
)
def test_outputs_that_nothing_names_are_refused(
    given: Sequence[str] | str | None, own: tuple[str, ...], data: tuple[str, ...], count: int
) -> None:
    with pytest.raises(ModelError, match="class_names"):
        names_for(given, own, data, count)


def test_classes_keep_the_order_that_the_data_set_declares() -> None:
    assert classes_of(["10", "9", "0"]) == DataClasses(("0", "9", "10"))
    declared = ("zebra", "yak", "xerus")
    assert classes_of(["xerus", "zebra"], declared) == DataClasses(("zebra", "xerus"), declared)
    assert classes_of(["xerus", "ant"], declared) == DataClasses(("xerus", "ant"), (*declared, "ant"))


def test_the_table_of_imagenet_is_that_of_its_1000_ids_in_their_order() -> None:
    ids = list(imagenet_1k())
    assert len(ids) == 1000
    assert ids == sorted(ids)
    # Places that any list of ImageNet's classes confirms.
    known = {0: "tench", 1: "goldfish", 7: "cock", 207: "golden retriever", 281: "tabby", 388: "giant panda"}
    known |= {413: "assault rifle", 638: "maillot", 963: "pizza", 999: "toilet tissue"}
    assert {i: imagenet_1k()[ids[i]].split(",")[0] for i in known} == known


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Hot_dog", "hotdog", True),
        ("T-shirt", "t shirt", True),
        ("-1", "1", False),
        ("1-2", "12", False),
        ("1-2", "1 2", True),
        (NFD, NFC, True),
        ("STRASSE", "straße", True),
        ("cat", "cut", False),
        (" cat ", "cat", True),
        ("cat-", "cat", False),
        ("- 1", "1", False),
        ("1 2", "12", False),
        ("\u01c6", "\u01c4", True),  # a letter with a case of its own
        ("i\u0307", "\u0130", True),
    ],
)
def test_names_fold_over_case_and_separators_and_nothing_else(a: str, b: str, same: bool) -> None:
    assert (folded(a) == folded(b)) is same


def test_a_name_that_a_person_writes_means_one_class_or_none() -> None:
    assert resolve("A", ["A", "a"]) == "A"
    assert resolve("hot-dog", ["hot dog", "ice cream"]) == "hot dog"
    assert resolve("B", ["b", "b "]) is None


def test_integers_are_ordered_by_value_and_other_names_by_text() -> None:
    assert in_order(["10", "2", "-1"]) == ("-1", "2", "10")
    assert in_order(["10", "2", "x"]) == ("10", "2", "x")
    assert in_order(["007", "10", "9"]) == ("007", "10", "9")
    assert not are_integers([])
    assert not are_integers(["1", "01"])
    assert not are_integers(["1", ""])


def models_of(**matchings: Matching) -> Any:
    """Models of a job, as far as warnings about their names look at them."""
    loaded = {name: SimpleNamespace(class_names=found.names) for name, found in matchings.items()}
    return SimpleNamespace(
        job=SimpleNamespace(models=dict.fromkeys(matchings)), matching=matchings.get, model=loaded.__getitem__
    )


@pytest.mark.parametrize(
    ("found", "codes"),
    [
        (match(["cat"], ["cat", "dog"]), []),
        (match(["cat", "zebra"], ["cat"], {"zebra": None}), ["labels_without_output"]),
        (match(["cat", "dog"], ["cat"], complete=False), ["classes_never_predicted"]),
        (match(["n01440764"], [str(i) for i in range(1000)]), ["imagenet_order_assumed"]),
        (match(["n01440764"], IMAGENET), []),  # whose outputs say what they are
        (match(["n01440764"], ["tench", "heron"]), []),
        (match(["0", "999"], [str(i) for i in range(1000)]), []),
    ],
)
def test_what_matching_leaves_open_is_said_and_blocks_no_gate(found: Matching, codes: list[str]) -> None:
    warnings = _of_labels(models_of(m=found), "m")
    assert [(w.code, w.model_id, w.blocks_gate) for w in warnings] == [(code, "m", False) for code in codes]
    for label in ("zebra", "dog"):
        if label in found.excused or label in found.unpredicted:
            assert repr(label) in warnings[0].message


@pytest.mark.parametrize(
    ("first", "second", "pair"),
    [
        (("cat", "ice cream"), ("cat", "ice_cream"), "'ice cream' and 'ice_cream'"),
        (("cat", "dog"), ("dog", "fox"), None),
        (("A", "a"), ("A", "a"), None),  # two classes, which both models tell apart
        (("A", "a"), ("a", "A"), None),
        (("a",), ("A", "a"), None),
        (("A", "a"), ("a",), None),
        (("A",), ("a",), "'A' and 'a'"),
    ],
)
def test_models_that_write_a_class_in_two_ways_are_doubted(
    first: tuple[str, ...], second: tuple[str, ...], pair: str | None
) -> None:
    found = _of_names(models_of(v=match([], first), w=match([], second)))
    assert [(w.code, w.blocks_gate) for w in found] == ([("names_differ", True)] if pair else [])
    assert pair is None or f"v and w spell classes differently (1, such as {pair})" in found[0].message
    mixed = models_of(v=match(["ice cream"], ["ice_cream"]), w=match(["ice cream"], ["Ice cream"]))
    assert _of_names(mixed) == []  # both are spelled as the data set spells them
