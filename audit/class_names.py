"""Names of classes are equal if their text in Unicode form NFC is equal. Other spellings resolve if they are unique."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from audit.errors import unknown

_SEPARATORS = re.compile(r"[\s_]+|(?<=[^\s_])-(?=[^\s_])")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)(?:[\s_]+|-)(?=\d)")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")


def composed(name: str) -> str:
    """A name in Unicode form NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name without case, spaces, underscores and inner hyphens; what separates two digits stays, as a space.

    >>> folded("Hot_dog"), folded("-1"), folded("1-2")
    ('hotdog', '-1', '1 2')
    """
    text = _BETWEEN_DIGITS.sub("\0", composed(name).strip().casefold())
    return composed(_SEPARATORS.sub("", text)).replace("\0", " ")


def spaced(name: str) -> str:
    """A class name for a prompt: underscores become spaces."""
    return name.replace("_", " ")


def resolve(asked: str, known: Iterable[str]) -> str | None:
    """The name in `known` with the same text, else the only one that folds to the same text, else None.

    >>> resolve("hotdog", ["hot dog", "ice cream"]), resolve("a", ["A", "a"]), resolve("B", ["b", "b "])
    ('hot dog', 'a', None)
    """
    names = dict.fromkeys(known)
    text = composed(asked)
    if text in names:
        return text
    meant = [name for name in names if folded(name) == folded(text)]
    return meant[0] if len(meant) == 1 else None


def resolved(asked: str, known: Iterable[str], error: type[Exception], what: str = "class") -> str:
    """Like `resolve`, but raises `error` with the nearest names if no name, or more than one, fits."""
    names = list(known)
    name = resolve(asked, names)
    if name is None:
        raise error(unknown(what, asked, names))
    return name


def are_integers(names: Sequence[str]) -> bool:
    """Whether there are names and all of them are integers in decimal notation without leading zeros."""
    return bool(names) and all(_INTEGER.fullmatch(name) for name in names)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names: integers by value, other names by their text."""
    found = sorted(set(names))
    return tuple(sorted(found, key=int)) if are_integers(found) else tuple(found)


def repeated(names: Sequence[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def beginning(names: Sequence[str], most: int = 5) -> str:
    """The first names, for messages."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names that look like this one."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
