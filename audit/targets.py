"""Which classes a counterfactual of an image leads to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from audit.class_names import resolve, spaced
from audit.config import Frozen, LocalPath, Names, is_restored
from audit.errors import ConfigError, unknown
from audit.wordnet import WordNet, offset_of

_NEEDS = {"named": "classes", "group": "groups", "wordnet": "wordnet"}


class Target(Frozen):
    """A rule for target classes. The image's predicted class is never one of them.

    `runner_up`: the second most probable class. `label`: the correct class of an image that is misclassified, which
    shows what the model missed (DiG-IN section 6, Fig. 12). `named`: the classes named. `group`: every other class
    in a group with the predicted one. `wordnet`: the classes nearest to the predicted one in WordNet.
    """

    rule: Literal["runner_up", "label", "named", "group", "wordnet"]
    classes: Names = Field((), description="of rule named")
    groups: Annotated[tuple[Names, ...], Field(strict=False)] = Field((), description="of rule group: lists of classes")
    count: int = Field(1, ge=1, description="of rule wordnet: how many classes")
    wordnet: LocalPath | None = Field(
        None, exclude=True, description="of rule wordnet: folder of WordNet 3.0's database files, /usr/share/wordnet"
    )
    wordnet_ids: dict[str, str] = Field(
        {}, description="of rule wordnet: ids such as n01440764 of classes whose names do not tell"
    )

    @model_validator(mode="after")
    def _own_options_only(self, info: ValidationInfo) -> Target:
        needed, own = _NEEDS.get(self.rule), {"rule"}
        if needed:
            own.add(needed)
            forgotten = needed == "wordnet" and is_restored(info)
            if not getattr(self, needed) and not forgotten:
                raise ValueError(f"the rule {self.rule!r} needs {needed!r}")
        if self.rule == "wordnet":
            own |= {"count", "wordnet_ids"}
        for name, field in sorted(type(self).model_fields.items()):
            if name not in own and getattr(self, name) != field.default:
                raise ValueError(f"{name!r} is no option of the rule {self.rule!r}")
        return self


def _in_full(value: Any) -> Any:
    """'runner_up' and 'label' are rules, any other text is a class, a list is classes."""
    if isinstance(value, str):
        return {"rule": value} if value in ("runner_up", "label") else {"rule": "named", "classes": [value]}
    return {"rule": "named", "classes": value} if isinstance(value, list | tuple) else value


# How a job file gives a target: a word, a class, a list of classes, or a mapping with 'rule'.
AsTarget = Annotated[Target, Field(strict=False), BeforeValidator(_in_full)]


def targets_of(
    target: Target, predicted: str, label: str | None, top_classes: Sequence[str], class_names: Sequence[str]
) -> list[str]:
    """The target classes of one image, as the model spells them, most wanted first; none where the rule gives none.

    `predicted`: the model's class for the image; `top_classes`: its most probable classes, most probable first;
    `label`: of the data set. Raises ConfigError where `check_target` does, except that a label which the model does
    not know is no target.
    """
    asked = _asked(target, predicted, label, top_classes, class_names)
    if target.rule != "label":
        _refuse_unknown(asked, class_names)
    meant = dict.fromkeys(resolve(name, class_names) for name in asked)
    return [name for name in meant if name is not None and name != predicted]


def _asked(
    target: Target, predicted: str, label: str | None, top_classes: Sequence[str], class_names: Sequence[str]
) -> Sequence[str]:
    match target.rule:
        case "runner_up":
            return [name for name in top_classes if name != predicted][:1]
        case "label":
            return [] if label is None else [label]
        case "named":
            return target.classes
        case "group":
            return [name for group in target.groups if _among(predicted, group) for name in group]
        case "wordnet":
            return _near(target, predicted, tuple(class_names))


def _among(name: str, names: Iterable[str]) -> bool:
    return resolve(name, names) is not None


def check_target(target: Target, class_names: Sequence[str]) -> None:
    """Refuse, before any work, classes that the model does not have, and names that WordNet does not tell.

    Raises ConfigError.
    """
    _refuse_unknown([*target.classes, *(name for group in target.groups for name in group)], class_names)
    _refuse_unknown(target.wordnet_ids, class_names)
    if target.rule == "wordnet":
        _synsets(target, tuple(class_names))


def _refuse_unknown(names: Iterable[str], class_names: Sequence[str]) -> None:
    for name in names:
        if resolve(name, class_names) is None:
            raise ConfigError(f"target: {unknown('class', name, class_names)}")


def _near(target: Target, predicted: str, class_names: tuple[str, ...]) -> list[str]:
    """The `count` classes with the shortest paths to the predicted one; of equally near ones, the first ones."""
    _refuse_unknown([predicted], class_names)
    synsets = _synsets(target, class_names)
    wordnet = _opened(_place(target))
    own = synsets[class_names.index(predicted)]
    far = []
    for name, synset in zip(class_names, synsets, strict=True):
        steps = wordnet.distance(own, synset)
        if name != predicted and steps is not None:
            far.append((steps, name))
    return [name for _, name in sorted(far, key=lambda pair: pair[0])][: target.count]


@lru_cache(maxsize=4)
def _opened(folder: Path) -> WordNet:
    return WordNet(folder)


def _place(target: Target) -> Path:
    if target.wordnet is None:
        raise ConfigError(
            "target: a run does not record where WordNet is; 'audit run' with its job file goes on with it"
        )
    return target.wordnet


def _synsets(target: Target, class_names: tuple[str, ...]) -> tuple[int, ...]:
    given = {resolve(name, class_names): wordnet_id for name, wordnet_id in target.wordnet_ids.items()}
    return _resolved(_place(target), class_names, tuple(given.get(name) for name in class_names))


@lru_cache(maxsize=4)
def _resolved(folder: Path, class_names: tuple[str, ...], given: tuple[str | None, ...]) -> tuple[int, ...]:
    """The synset of each class: the id given, else the name where it is an id, else what all parts of it can mean.

    'tench, Tinca tinca' has two parts. Raises ConfigError that lists the classes which are none, or several.
    """
    wordnet = _opened(folder)
    parts = {name: [spaced(part.strip()) for part in name.split(",")] for name in class_names}
    senses = wordnet.senses({part for found in parts.values() for part in found})
    synsets: list[int] = []
    doubtful: list[str] = []
    for name, wordnet_id in zip(class_names, given, strict=True):
        own = offset_of(wordnet_id or name)
        if own is not None:
            meant = {own} if wordnet.knows(own) else set()
        else:
            meant = set() if wordnet_id else set.intersection(*(senses.get(part, set()) for part in parts[name]))
        synsets += meant if len(meant) == 1 else []
        doubtful += [] if len(meant) == 1 else [f"{wordnet_id or name!r} ({len(meant)} meanings)"]
    if doubtful:
        raise ConfigError(
            f"target: the names of {len(doubtful)} of {len(class_names)} classes do not tell which nouns of WordNet "
            f"in {folder} they are: {', '.join(doubtful)}. Give ids of WordNet 3.0: wordnet_ids: {{class: n01440764}}"
        )
    return tuple(synsets)
