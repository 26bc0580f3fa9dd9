"""Match the outputs of a model with the labels of the data set: once, by unambiguous rules, or with an error."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from audit.class_names import beginning, composed, folded, in_order, nearest, repeated, resolve
from audit.errors import ModelError
from audit.labels.imagenet import alternatives, imagenet_1k, in_imagenet_order


@dataclass(frozen=True)
class DataClasses:
    """The classes of a data set. `labels`: those of its images, in the order of its classes. `declared`: all classes
    that the data set declares, in its own order; empty if it declares none."""

    labels: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the outputs of a model with `class_names: data` stand for."""
        return self.declared or self.labels

    def label_of(self, label: str) -> str:
        """A label as the data set spells it; unchanged if the data set has no such label."""
        return _label_of(label, self.labels)


@lru_cache(maxsize=100_000)
def _label_of(label: str, labels: tuple[str, ...]) -> str:
    return resolve(label, labels) or composed(label)


Classes = DataClasses | tuple[str, ...]  # labels alone, where no class is declared


def as_classes(classes: Classes) -> DataClasses:
    """Turn plain labels into the classes of a data set that declares none."""
    return classes if isinstance(classes, DataClasses) else DataClasses(tuple(classes))


def classes_of(labels: Iterable[str], declared: Sequence[str] = ()) -> DataClasses:
    """The classes of a data set from its labels, in any order, and the classes that it declares."""
    there = set(labels)
    others = in_order(there - set(declared))
    all_of = (*declared, *others) if declared else ()
    return DataClasses((*(name for name in declared if name in there), *others), all_of)


@dataclass(frozen=True)
class Matching:
    """`names`: the name of each output: the label that it is matched with, as the data set spells it, else its own
    name; no name occurs twice. `rules`: by label, the rule that matched it. `excused`: labels that the job maps to
    null. `own`: the model's own names of its outputs. `unpredicted`: labels that a file of predictions never names.
    """

    names: tuple[str, ...]
    rules: Mapping[str, str] = field(default_factory=dict)
    excused: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    unpredicted: tuple[str, ...] = ()
    _asked: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._asked.update({**{name: name for name in self.names}, **dict.fromkeys(self.excused)})

    def other_spellings(self) -> list[tuple[str, str, str]]:
        """Labels that the model spells differently: the label, the model's name, and the rule that matched them."""
        pairs = zip(self.names, self.own, strict=True)
        return [(name, own, self.rules[name]) for name, own in pairs if name in self.rules and name != own]

    def class_of(self, label: str) -> str | None:
        """The prediction that is right for a label; None if the model has no such class.

        Labels of the data set are matched already. A label of the pool is matched on its own.
        """
        if label not in self._asked:
            found = _matched([label], self.own)
            self._asked[label] = self.names[found[label][0]] if label in found else None
        return self._asked[label]


def match(
    labels: Sequence[str],
    outputs: Sequence[str],
    given: Mapping[str, str | int | None] | str | None = None,
    *,
    declared: Sequence[str] = (),
    complete: bool = True,
) -> Matching:
    """Match the labels of a data set with the outputs of a model.

    given: the option `labels` of the job. It maps a label to the name or the number (from 0) of an output, or to None
    if the model does not have the class. A number may be text if no output's name is a number. Or it is 'by_position':
    each label is the number of its output. Each other label is matched by the first of these rules that links it to
    exactly one output, and this output to no other label: equal text (Unicode NFC); equal text after folding (case,
    spaces, underscores, inner hyphens); one of several names that are separated by commas; the WordNet id of one of
    ImageNet's 1,000 classes.

    declared: classes of the data set, with or without images; entries of `given` for classes without images are
    ignored. complete: whether `outputs` are all classes of the model. If not, they are the classes that it ever
    predicted; if each of these is a label, the remaining labels count as classes that it never predicted.

    Raises ModelError if a label is left without an output, or is given twice.
    """
    outputs = [composed(name) for name in outputs]
    if isinstance(given, str) and not complete:
        raise ModelError(
            f"labels: {given} needs the outputs in their order, but only predicted classes are known: "
            f"{beginning(outputs)}. Give all classes in their order with class_names"
        )
    chosen, excused = _given(labels, outputs, given, declared)
    left = [label for label in labels if label not in chosen and label not in excused]
    found = {**chosen, **_matched(left, outputs, labels, {place for place, _ in chosen.values()})}
    lacking = [label for label in left if label not in found]
    unpredicted = lacking if not complete and len(found) == len(outputs) else []
    if lacking and not unpredicted:
        raise ModelError(_refusal(lacking, labels, outputs))
    _refuse_shared(found, outputs)
    matched = {place: label for label, (place, _) in found.items()}
    names = [matched.get(place, name) for place, name in enumerate(_distinct(outputs))]
    rules = {label: rule for label, (_, rule) in found.items()}
    names = [*_apart(names, matched), *unpredicted]
    return Matching(tuple(names), rules, tuple(excused), (*outputs, *unpredicted), tuple(unpredicted))


Found = dict[str, tuple[int, str]]


def _given(
    labels: Sequence[str],
    outputs: Sequence[str],
    given: Mapping[str, str | int | None] | str | None,
    declared: Sequence[str],
) -> tuple[Found, list[str]]:
    """Matches that the job gives. Raises ModelError for an unknown label or output."""
    if given is None:
        return {}, []
    if isinstance(given, str):
        return {label: (_number(label, outputs), "position") for label in labels}, []
    found: Found = {}
    excused = []
    for asked, to in given.items():
        label = resolve(asked, labels)
        if label is None and resolve(asked, declared) is not None:
            continue
        if label in found or label in excused:
            raise ModelError(f"labels: {label!r} is given twice, the second time as {asked!r}; give it one output")
        if label is None:
            near = f"; nearest: {', '.join(nearest(asked, labels))}" if nearest(asked, labels) else ""
            raise ModelError(f"labels: the data set has no label {asked!r}{near}. It has {beginning(labels)}")
        if to is None:
            excused.append(label)
        elif isinstance(to, int) or (_is_number(to) and not any(map(_is_number, outputs))):
            found[label] = _number(str(to), outputs), "the job"
        else:
            found[label] = _place(to, outputs), "the job"
    return found, excused


def _number(text: str, outputs: Sequence[str]) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) >= len(outputs):
        raise ModelError(
            f"labels: {text!r} is not the number of an output; the model has {len(outputs)}, numbered from 0"
        )
    return int(text)


def _is_number(name: str) -> bool:
    return re.fullmatch("[0-9]+", name) is not None


def _place(name: str, outputs: Sequence[str]) -> int:
    """The number of the output with a name. 'crane (517)' is output 517, if several outputs are named 'crane'."""
    if composed(name) in outputs and outputs.count(composed(name)) == 1:
        return outputs.index(composed(name))
    told = _distinct(outputs)
    meant = resolve(name, told)
    if meant is None:
        near = nearest(name, told)
        raise ModelError(f"labels: the model has no output {name!r}; nearest: {', '.join(near) or 'none'}")
    return told.index(meant)


def _matched(
    left: Sequence[str], outputs: Sequence[str], labels: Sequence[str] | None = None, taken: Iterable[int] = ()
) -> Found:
    """Apply the rules in order, each to the labels and outputs that are still unmatched. `labels`: all labels."""
    found: Found = {}
    used = set(taken)
    every = list(labels) if labels is not None else list(left)
    for rule, pairs in _RULES.items():
        places = pairs([label for label in left if label not in found], every, outputs)
        for label, place in places.items():
            if place not in used:
                found[label] = place, rule
        used |= {place for place, _ in found.values()}
    return found


def _same(left: Sequence[str], labels: Sequence[str], outputs: Sequence[str]) -> dict[str, int]:  # noqa: ARG001
    twice = set(repeated(outputs))
    once = {name: i for i, name in enumerate(outputs) if name not in twice}
    return {label: once[label] for label in left if label in once}


def _alike(left: Sequence[str], labels: Sequence[str], outputs: Sequence[str]) -> dict[str, int]:
    return _by_keys(left, labels, outputs, lambda name: {folded(name)})


def _one_of_several(left: Sequence[str], labels: Sequence[str], outputs: Sequence[str]) -> dict[str, int]:
    return _by_keys(left, labels, outputs, alternatives)


def _by_keys(
    left: Sequence[str], labels: Sequence[str], outputs: Sequence[str], keys: Callable[[str], Collection[str]]
) -> dict[str, int]:
    """Pairs of a label and an output that share a key, and share keys with no other label or output."""
    by_key: dict[str, set[int]] = defaultdict(set)
    for place, name in enumerate(outputs):
        for key in keys(name):
            by_key[key].add(place)
    meant = {label: set[int]().union(*(by_key.get(key, set()) for key in keys(label))) for label in labels}
    by_place: dict[int, int] = defaultdict(int)
    for places in meant.values():
        for place in places:
            by_place[place] += 1
    single = {label: next(iter(meant[label])) for label in left if len(meant[label]) == 1}
    return {label: place for label, place in single.items() if by_place[place] == 1}


def _by_wordnet(left: Sequence[str], labels: Sequence[str], outputs: Sequence[str]) -> dict[str, int]:
    """Match WordNet ids with outputs by their place in ImageNet's order, or by their words; and words with ids."""
    table = imagenet_1k()
    ids = [label for label in left if label in table]
    if ids and in_imagenet_order(outputs):
        order = list(table)
        return {label: order.index(label) for label in ids}
    worded = {label: table[label] for label in ids}
    found = _by_keys(list(worded.values()), [table.get(label, label) for label in labels], outputs, alternatives)
    places = {label: found[words] for label, words in worded.items() if words in found and _is_only(words, table)}
    if any(name in table for name in outputs):
        told = [table.get(name, name) for name in outputs]
        others = [label for label in left if label not in ids]
        places |= _by_keys(others, labels, told, alternatives)
    return places


def _is_only(words: str, table: Mapping[str, str]) -> bool:
    """Whether no other class of ImageNet shares one of these names. (Two classes are named crane.)"""
    keys = alternatives(words)
    return sum(not keys.isdisjoint(alternatives(other)) for other in table.values()) == 1


_RULES: dict[str, Callable[[Sequence[str], Sequence[str], Sequence[str]], dict[str, int]]] = {
    "same text": _same,
    "same but for case and separators": _alike,
    "one of several names": _one_of_several,
    "WordNet id": _by_wordnet,
}


def _refuse_shared(found: Found, outputs: Sequence[str]) -> None:
    by_place: dict[int, list[str]] = defaultdict(list)
    for label, (place, _) in found.items():
        by_place[place].append(label)
    for place, own in by_place.items():
        if len(own) > 1:
            raise ModelError(
                f"labels: {', '.join(map(repr, own))} are all matched with the output {outputs[place]!r}, which can "
                "have one label only. Give labels that mean one class the same text in the data set"
            )


def _distinct(outputs: Sequence[str]) -> list[str]:
    """Distinct names of outputs: a shared name gets the number of its output, an empty name is replaced."""
    twice = set(repeated(outputs))
    return [f"{name} ({i})" if name in twice else name or f"output {i}" for i, name in enumerate(outputs)]


def _apart(names: Sequence[str], matched: Mapping[int, str]) -> list[str]:
    """Rename each unmatched output whose name is the label of another output."""
    labels = set(matched.values())
    return [f"{name} (output {i})" if i not in matched and name in labels else name for i, name in enumerate(names)]


def _refusal(lacking: Sequence[str], labels: Sequence[str], outputs: Sequence[str]) -> str:
    shared = set(repeated(outputs))
    near = {label: nearest(label, dict.fromkeys(outputs)) for label in lacking[:3]}
    hints = [f"{label!r} is similar to {', '.join(map(repr, names))}" for label, names in near.items() if names]
    ambiguous = [label for label in lacking if shared & set(outputs) & {label}]
    told = (
        f"{len(lacking)} of {len(labels)} labels match no output of the model. Labels: {beginning(lacking)}. "
        f"Outputs: {beginning(outputs)}. "
    )
    if ambiguous:
        places = [i for i, name in enumerate(outputs) if name == ambiguous[0]]
        hints.append(
            f"{len(places)} outputs are named {ambiguous[0]!r}; choose one of them by its number: labels: "
            f"{{{ambiguous[0]}: {places[0]}}}"
        )
    told += ("; ".join(hints) + ". ") if hints else ""
    return told + _advice(lacking)


def _advice(lacking: Sequence[str]) -> str:
    if all(map(_is_number, lacking)):
        return (
            "If a label is the number of its output, add to the model: labels: by_position. Otherwise map "
            "each label to an output: labels: {label: output}, or to null for a class that the model does not have"
        )
    return (
        "Map each of these labels to an output of the model: labels: {label: output}, or a file of such "
        "pairs, with null for a class that the model does not have; or name the outputs with class_names"
    )
