"""The files that an option's path stands for: one file, all of a folder or prefix, or those that fit a pattern."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from audit.datasets._files import Files, Folder, Keys
from audit.datasets._patience import children, is_folder, status_of
from audit.datasets._selection import is_leftover
from audit.errors import DataError
from audit.locations import Location, name_of, parent

_SPECIAL = re.compile(r"[*?\[{]")


def matching(place: Location, suffix: str) -> tuple[Files, list[str]]:
    """The files that an option's path selects: a file; all files of a folder with this suffix, or those of its
    sub-folders if the folder has none; or the files that match a pattern. Hidden files are left out.

    A pattern has *, ? and [] as in a shell, {000..099} for numbers and {a,b} for words. Names are sorted, but for
    braces, which keep their order. Raises DataError where nothing matches.
    """
    files, names = _literal(place, suffix) or _pattern(place)
    if not names:
        raise DataError(f"no *{suffix} at {place}; give a file, a folder of them, or a pattern such as part-*{suffix}")
    return files, names


def _literal(place: Location, suffix: str) -> tuple[Files, list[str]] | None:
    """A file, or the files in a folder; None for a pattern."""
    if isinstance(place, Path):
        if is_folder(place):
            right_in = [name for name in children(place)[0] if name.endswith(suffix) and not is_leftover(name)]
            return Folder(place), right_in or _all_below(Folder(place), f"**/*{suffix}")
        there = status_of(place) is not None
        if there or not _SPECIAL.search(str(place)):
            return Folder(place.parent), [place.name] if there else []
        return None
    if _SPECIAL.search(place):
        return None
    above, name = Keys(parent_of(place)), name_of(place)
    if place.count("/") > 2 and above.size(name) is not None:
        return above, [name]
    files = Keys(place)
    below = [name for name, _ in files.listing() if name.endswith(suffix) and not _is_left(name)]
    return files, [name for name in below if "/" not in name] or below


def parent_of(place: str) -> str:
    """The prefix above, or the bucket itself."""
    return str(parent(place)) if place.count("/") > 2 else place


def _pattern(place: Location) -> tuple[Files, list[str]]:
    parts = str(place).split("/")
    fixed = next(i for i, part in enumerate(parts) if _SPECIAL.search(part))
    above = "/".join(parts[:fixed])
    files = Folder(Path(above or "/")) if isinstance(place, Path) else Keys(above)
    names: list[str] = []
    for wanted in expanded("/".join(parts[fixed:])):
        if re.search(r"[*?\[]", wanted):
            names += [name for name in _all_below(files, wanted) if name not in names]
        else:
            names.append(wanted)
    return files, names


def _all_below(files: Files, pattern: str) -> list[str]:
    if isinstance(files, Folder):
        return sorted(set(_fitting(Path(files.root), "", pattern.split("/"))))
    assert isinstance(files, Keys)
    return [name for name, _ in files.listing() if _fits(name, pattern)]


def _fitting(root: Path, folder: str, patterns: list[str]) -> Iterator[str]:
    """The names below a folder that fit a pattern for each of their parts; '**' stands for any number of folders."""
    try:
        names, folders = children(root / folder)
    except OSError:  # no folder, or none that may be listed
        return
    first, *rest = patterns
    if first == "**" and rest:
        yield from _fitting(root, folder, rest)
    for name in names:
        path = os.path.join(folder, name)
        if first == "**" and rest:
            if name in folders and not is_leftover(name):
                yield from _fitting(root, path, patterns)
        elif fnmatch.fnmatchcase(name, first) and (first.startswith(".") or not is_leftover(name)):
            yield from _fitting(root, path, rest) if rest else [path]


def _fits(name: str, pattern: str) -> bool:
    names, patterns = name.split("/"), pattern.split("/")
    if "**" in patterns[:-1]:
        at = patterns.index("**")
        rest = "/".join(patterns[at + 1 :])
        fits = len(names) > at and all(map(fnmatch.fnmatchcase, names[:at], patterns[:at]))
        return fits and any(_fits("/".join(names[start:]), rest) for start in range(at, len(names)))
    return len(names) == len(patterns) and all(map(_fits_part, names, patterns))


def _fits_part(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or not is_leftover(name))


def _is_left(name: str) -> bool:
    return any(map(is_leftover, name.split("/")))


def expanded(pattern: str) -> list[str]:
    """The names that braces stand for.

    >>> expanded("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inner: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not numbers:
        return inner.split(",")
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") or last.startswith("0") else 0
    if not 0 <= int(last) - int(first) < 10**6:
        raise DataError(f"{{{inner}}} counts upwards, to a million names at most")
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
