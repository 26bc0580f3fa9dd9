"""Lists of class names in a job file: a list, a mapping from output to name, or a text or JSON file of them.

All functions raise ValueError, whose message says what was found and what would work.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FROM_DATA = "data"
_MAX_BYTES = 2**24
_FORMS = (
    "a list of names, a mapping such as {0: cat, 1: dog}, or a file with one name a line (a JSON list or object works "
    "too)"
)


def names_or_data(value: Any, folder: Path) -> Any:
    """'data' as it is; all else as `listed_names`. `folder`: of the job file, to which a file's path is relative."""
    if isinstance(value, str) and value.strip().casefold() == FROM_DATA and not (folder / value).is_file():
        if value == FROM_DATA:
            return value
        raise ValueError(f"found {value!r}; write {FROM_DATA!r} for the labels of the data set, or give {_FORMS}")
    names = listed_names(value, folder, f"{FROM_DATA!r} for the labels of the data set, {_FORMS}")
    if names == ():
        raise ValueError(f"found no names; give {FROM_DATA!r} for the labels of the data set, or {_FORMS}")
    return names


def listed_names(value: Any, folder: Path, forms: str = _FORMS) -> Any:
    """Names in the order of the outputs, as a tuple. What is neither text, a list nor a mapping is returned unchanged.

    Integers become text: classes 0 to 9 may be named [0, 1, ...]. Names are normalised to NFC, since file systems and
    editors write one name in two ways.
    """
    if isinstance(value, str):
        return _of_file(value, folder, forms)
    if isinstance(value, Mapping):
        return _in_order(value)
    if isinstance(value, Sequence):
        return tuple(_name(name, f"entry {i}") for i, name in enumerate(value))
    return value


def _of_file(value: str, folder: Path, forms: str) -> tuple[str, ...]:
    path = (folder / Path(value).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"{value!r} is not a file ({path}); give {forms}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes, too large for a list of names")
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return _of_json(text, path) if path.suffix.lower() == ".json" else _of_lines(text, path)


def _of_lines(text: str, path: Path) -> tuple[str, ...]:
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path} holds no names; write one name a line, in the order of the outputs")
    if "" in lines:
        raise ValueError(
            f"{path}: line {lines.index('') + 1} is empty, but each line is the name of one output; remove or fill it"
        )
    return tuple(_name(line, f"{path}, line {i}") for i, line in enumerate(lines, 1))


def _of_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(found, dict):
        return _in_order(found)
    if isinstance(found, list) and found:
        return tuple(_name(name, f"{path}, entry {i}") for i, name in enumerate(found))
    raise ValueError(f"{path} holds {type(found).__name__}; write a list of names, or an object from output to name")


def _in_order(mapping: Mapping[Any, Any]) -> tuple[str, ...]:
    """The names of a mapping from the number of an output to its name."""
    by_number: dict[int, Any] = {}
    for key, name in mapping.items():
        if isinstance(key, bool) or not str(key).strip().isdecimal():
            raise ValueError(f"the key {key!r} is not the number of an output; write {{0: cat, 1: dog}}")
        if int(key) in by_number:
            raise ValueError(f"the output {int(key)} is named twice")
        by_number[int(key)] = name
    if not by_number or sorted(by_number) != list(range(len(by_number))):
        lacking = next((i for i in range(len(by_number)) if i not in by_number), 0)
        raise ValueError(
            f"the output {lacking} has no name: {len(by_number)} outputs are named, up to "
            f"{max(by_number, default='none')}; name each from 0 on"
        )
    return tuple(_name(by_number[i], f"output {i}") for i in range(len(by_number)))


def _name(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} is {value!r}, not a name; put quotes around it if it is text")
    return unicodedata.normalize("NFC", value.strip())
