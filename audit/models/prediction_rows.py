"""Which row of a file of predictions belongs to which image of a job.

A row names its image by a path, a file name without suffix, or the sha256 of the image's bytes. A row that fits
several images belongs to none of them.
"""

from __future__ import annotations

import filecmp
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from audit.datasets._files import as_name
from audit.errors import ModelError

Rule = Literal["auto", "path", "stem", "name", "sha256"]
_AUTO: tuple[Rule, ...] = ("sha256", "path", "stem")
_SHA256 = re.compile("[0-9a-fA-F]{64}")


class Place(NamedTuple):
    """An image at a place of a data set, as the inventory lists it. `root`: the local folder that its name is relative
    to, '' where there is none. `usable`: whether it can be screened. `label`: the data set's."""

    role: str
    item_id: str
    uri: str
    display_name: str
    root: str = ""
    usable: bool = True
    label: str | None = None


@dataclass
class Matching:
    """`rows`: the row of each matched image, by item id. `unused`: rows that fit no image. `ambiguous`: rows that fit
    several images, each with two of these images. `copies`: the rows of further copies of an image, each with the row
    of its first copy. `rule`: how rows and images were compared."""

    rule: Rule
    rows: dict[str, int] = field(default_factory=dict)
    unused: list[int] = field(default_factory=list)
    ambiguous: list[tuple[int, Place, Place]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


def by_digest(keys: Sequence[str], rule: Rule = "auto") -> bool:
    """Whether rows may name images by the sha256 of their bytes, so that they cannot be matched with a listing."""
    return rule == "sha256" or (rule == "auto" and any(map(_is_sha256, keys[:100])))


def match(keys: Sequence[str], places: Sequence[Place], rule: Rule = "auto", source: str = "the file") -> Matching:
    """The row of each image. `places`: in the order of the listings. `source`: the file, for messages.

    'path': the row's path ends in the image's path within its data set, or the image's whole path ends in the row's.
    'stem': the same without the suffix of the file name. 'name': equal file names in any
    folders. 'sha256': of the image's bytes. 'auto': the one of 'sha256', 'path' and 'stem' that gives most images a
    row; on a tie, the first of them.

    Raises ModelError where two rows belong to one place of the data set.
    """
    if rule != "auto":
        return _matched(keys, places, rule, source)
    tried = [_matched(keys, places, one, source) for one in _AUTO if one != "sha256" or by_digest(keys)]
    return max(tried, key=lambda one: len(one.rows))  # max keeps the first of equals


def normal(key: str) -> str:
    """A path in the form that is compared: NFC, '/' between its parts, without './'."""
    return posixpath.normpath(unicodedata.normalize("NFC", key.strip()).replace("\\", "/"))


def _is_sha256(key: str) -> bool:
    return _SHA256.fullmatch(key.strip()) is not None


def _matched(keys: Sequence[str], places: Sequence[Place], rule: Rule, source: str) -> Matching:
    found = Matching(rule)
    candidates = _BY_RULE[rule](places)
    taken: dict[int, int] = {}  # by place, its row
    for row, key in enumerate(keys):
        fitting = candidates(key)
        if not fitting:
            found.unused.append(row)
            continue
        first = places[fitting[0]]
        other = next((places[i] for i in fitting if places[i].item_id != first.item_id), None)
        if other is not None:
            found.ambiguous.append((row, first, other))
            continue
        for i in fitting:
            if taken.setdefault(i, row) != row:
                raise ModelError(
                    f"{source}: the rows {taken[i] + 1} ({keys[taken[i]]!r}) and {row + 1} ({key!r}) both belong to "
                    f"the image {places[i].display_name!r}; give each image one row"
                )
    for i, row in sorted(taken.items()):  # of an image at several places, the first is screened
        first_row = found.rows.setdefault(places[i].item_id, row)
        if first_row != row:
            found.copies.append((row, first_row))
    return found


_Candidates = Callable[[str], list[int]]


def _by_sha256(places: Sequence[Place]) -> _Candidates:
    index = _indexed((place.item_id, i) for i, place in enumerate(places))
    return lambda key: index.get(key.strip().lower(), [])


def _by_name(places: Sequence[Place]) -> _Candidates:
    index = _indexed((posixpath.basename(name), i) for i, place in enumerate(places) for name in _names(place))
    return lambda key: index.get(posixpath.basename(normal(key)), [])


def _by_path(places: Sequence[Place]) -> _Candidates:
    return _by_end(places, lambda name: name)


def _by_stem(places: Sequence[Place]) -> _Candidates:
    return _by_end(places, lambda name: posixpath.splitext(name)[0])


def _by_end(places: Sequence[Place], shown: Callable[[str], str]) -> _Candidates:
    """Equal paths, else images whose whole path ends in the row's path, else images whose path ends the row's path.

    A row that names another file, which is there and not a copy of the image, does not belong to the image.
    """
    names = [[shown(name) for name in _names(place)] for place in places]
    wholes = [
        [shown(normal(f"{p.root}/{n}")) for n in _names(p)] if p.root else own
        for p, own in zip(places, names, strict=True)
    ]
    index = _indexed((posixpath.basename(name), i) for i, own in enumerate(names) for name in own)

    def candidates(key: str) -> list[int]:
        key = normal(key)
        same = index.get(posixpath.basename(key), [])
        equal = [i for i in same if key in names[i] or key in wholes[i]]
        longer = equal or [i for i in same if any(whole.endswith(f"/{key}") for whole in wholes[i])]
        ending = longer or [i for i in same if any(key.endswith(f"/{name}") for name in names[i])]
        return ending if longer or not _is_file(key) else [i for i in ending if _is_copy(key, places[i])]

    return candidates


def _is_file(path: str) -> bool:
    """Whether an absolute path leads to a file of this machine."""
    return os.path.isabs(path) and os.path.isfile(path)


def _is_copy(path: str, place: Place) -> bool:
    """Whether a file has the bytes of an image, as far as the image is a local file."""
    own = Path(place.root, as_name(place.uri.partition("#mask=")[0]))
    return not place.root or not own.is_file() or filecmp.cmp(path, own, shallow=False)


_BY_RULE: dict[Rule, Callable[[Sequence[Place]], _Candidates]] = {
    "sha256": _by_sha256,
    "path": _by_path,
    "stem": _by_stem,
    "name": _by_name,
}


def _names(place: Place) -> list[str]:
    """The names of a place: its path, its display name, and its uri."""
    path = as_name(place.uri.partition("#mask=")[0])
    return list(dict.fromkeys(normal(name) for name in (path, place.display_name, place.uri)))


def _indexed(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, i in pairs:
        held = found.setdefault(name, [])
        if not held or held[-1] != i:
            held.append(i)
    return found


def without_row(matching: Matching, places: Iterable[Place]) -> Iterator[Place]:
    """The usable images without a row, each once."""
    seen: set[str] = set()
    for place in places:
        if place.usable and place.item_id not in matching.rows and place.item_id not in seen:
            seen.add(place.item_id)
            yield place
