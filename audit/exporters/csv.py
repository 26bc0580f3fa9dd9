"""A folder with a CSV file for each table and view, without the bytes of images. Lists are written as JSON.

Cells are what the run holds, for programs to read. A spreadsheet takes a name that begins with = + - or @ for a
formula: import the columns as text there.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from audit.results.schema import TABLES
from audit.results.sql import Run
from audit.results.views import VIEWS

SUFFIX = ""


def write(run: Run, target: Path) -> None:
    """Every table in a file of its own, with a line of column names."""
    target.mkdir()
    for name in (*TABLES, *VIEWS):
        run.write(f'select {_columns(name)} from "{name}"', target / f"{name}.csv")


def _columns(name: str) -> str:
    if name in VIEWS:
        return "*"
    columns = []
    for field in TABLES[name]:
        if pa.types.is_list(field.type):
            columns.append(f'to_json("{field.name}") as "{field.name}"')
        elif not pa.types.is_binary(field.type):
            columns.append(f'"{field.name}"')
    return ", ".join(columns)
