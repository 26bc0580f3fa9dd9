"""A folder with a Parquet file for each table and view, for any tool that reads Parquet."""

from __future__ import annotations

from pathlib import Path

from audit.results.schema import TABLES
from audit.results.sql import Run
from audit.results.views import VIEWS

SUFFIX = ""


def write(run: Run, target: Path) -> None:
    """Every table, whole, in a file of its own."""
    target.mkdir()
    for name in (*TABLES, *VIEWS):
        run.write(f'select * from "{name}"', target / f"{name}.parquet")
