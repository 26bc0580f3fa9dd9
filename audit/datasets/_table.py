"""Read the rows of a text table one by one: CSV or TSV with a header, or one JSON object per line.

Spaces at the ends of names and cells are removed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import BinaryIO

from audit.errors import DataError
from audit.separators import separator_of

KINDS = (".csv", ".tsv", ".jsonl")
_LONGEST = 2**22  # characters in a line


def rows(file: BinaryIO, kind: str, where: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Each row and its number, from 1. `kind`: one of KINDS. Raises DataError naming the row; closes the file."""
    number = 0
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="strict", newline="") as text:
        try:
            lines = _lines(text, where)
            for row in _objects(lines, where) if kind == ".jsonl" else _cells(lines, kind, where):
                number += 1
                yield number, row
        except UnicodeDecodeError as error:
            after = f"after row {number}, " if number else ""
            raise DataError(f"{where} is not UTF-8 text: {after}{error.reason}; save it as UTF-8") from error
        except csv.Error as error:
            raise DataError(f"{where} is not a table in CSV: after row {number}, {error}") from error


def text_of(row: Mapping[str, object], column: str | None, where: str) -> str | None:
    """A cell as text; None where it is empty or the row lacks it. Raises DataError for a list or an object."""
    value = row.get(column) if column else None
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, list | dict):
        raise DataError(f"{where}: {column!r} holds a {type(value).__name__}, expected text or a number")
    return str(value)


def _lines(text: io.TextIOWrapper, where: str) -> Iterator[str]:
    number = 0
    while line := text.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise DataError(f"{where}, line {number} is longer than {_LONGEST} characters")
        yield line


def _cells(lines: Iterator[str], kind: str, where: str) -> Iterator[dict[str, object]]:
    first = next(lines, "")
    separator = separator_of(first, kind)
    table = csv.reader(chain([first], lines), delimiter=separator, skipinitialspace=separator != "\t")
    header = [name.strip() for name in next(table, [])]
    twice = next((name for name in header if name and header.count(name) > 1), None) if len(header) < 1000 else None
    if twice is not None:
        raise DataError(f"{where} has several columns {twice!r}: rename all but one")
    for number, row in enumerate((row for row in table if len(row) > 1 or "".join(row).strip()), 1):
        if len(row) > len(header):
            raise DataError(
                f"{where}, row {number} has {len(row) - len(header)} more cells than the header; quote cells that "
                f"hold the separator {separator!r}"
            )
        cells: list[str | None] = [*(cell.strip() for cell in row), *[None] * (len(header) - len(row))]
        yield dict(zip(header, cells, strict=True))


def _objects(lines: Iterator[str], where: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}, line {number} is not a JSON object")
        yield row
