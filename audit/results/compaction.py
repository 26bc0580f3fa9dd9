"""Merges small commits of a stage into larger ones: many small files are slow to list, to open and to query.

A merged commit holds the rows of whole units, so readers need not know of it. It is published as part of the next
snapshot; of two compactions that race, the second finds that number taken and deletes its own files.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import StoreError
from audit.results.schema import TABLES
from audit.results.store import Commit, File, Store, unique

SMALL = 4 * 2**20  # bytes of a commit under which it is worth merging
TARGET = 64 * 2**20  # bytes of a merged commit
LEAST = 64  # commits that make a merge worth its while
ROWS = 1 << 14  # in a row group: of a million rows ten are looked up in the time of ten such groups
PICTURES = 1 << 9  # in one of a table whose rows are large, of which one is looked up at a time


def due(store_units: int, uncovered: int) -> bool:
    """Whether so many units without a snapshot call for one: a quarter of the others, so that all work stays linear."""
    return uncovered >= max(256, store_units // 4)


def compact(store: Store, least: int = LEAST) -> int:
    """Merge what is small, and publish everything that is committed as the next snapshot, unless the newest is just
    that already; returns its number.

    Raises StoreError for a file that is not what its record says: a merge must not hide damage.
    """
    while True:
        covered, number = store.covered()
        commits = store.beyond(covered)
        kept, groups = _groups(unique(commits.values()), least)
        if not groups and commits.keys() == covered.keys():
            return number
        merged = [_merged(store, group) for group in groups]
        if store.publish([*kept, *merged], number + 1):
            return number + 1
        for commit in merged:
            store.discard(commit)


def _groups(commits: Iterable[Commit], least: int) -> tuple[list[Commit], list[list[Commit]]]:
    """What stays as it is, and groups to merge: of one stage and status, in the order of their units."""
    kept: list[Commit] = []
    small: dict[tuple[str, str], list[Commit]] = defaultdict(list)
    for commit in sorted(commits, key=lambda commit: commit.units[0]):
        (small[commit.stage, commit.status] if commit.bytes < SMALL else kept).append(commit)
    groups: list[list[Commit]] = []
    for members in small.values():
        for group in _filled(members):
            if len(group) >= least:
                groups.append(group)
            else:
                kept += group
    return kept, groups


def _filled(commits: Iterable[Commit]) -> Iterator[list[Commit]]:
    """Runs of commits of about `TARGET` bytes together."""
    group: list[Commit] = []
    size = 0
    for commit in commits:
        group.append(commit)
        size += commit.bytes
        if size >= TARGET:
            yield group
            group, size = [], 0
    if group:
        yield group


def group_rows(table: str) -> int:
    """Rows in a row group of a merged file."""
    return PICTURES if table in ("images", "arrays") else ROWS


def _merged(store: Store, group: list[Commit]) -> Commit:
    attempt = uuid4().hex[:12]
    files: dict[str, File] = {}
    for table in sorted({table for commit in group for table in commit.files}):
        parts = [read(store, commit.files[table], table) for commit in group if table in commit.files]
        files[table] = store.write(f"merged-{attempt}", table, pa.concat_tables(parts), group_rows(table))
    return replace(
        group[0],
        units=tuple(sorted(unit for commit in group for unit in commit.units)),
        attempt=attempt,
        files=files,
        items=sum(commit.items for commit in group),
        failed=sum(commit.failed for commit in group),
        error=None,
    )


def read(store: Store, file: File, table: str) -> pa.Table:
    """The rows of a file, under the table's present schema. Raises StoreError where it is not what its record says."""
    data = store.read(file.path)
    if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
        raise StoreError(f"{store.where(file.path)} is damaged; 'audit verify' says which units, 'audit repair' mends")
    found = pq.read_table(pa.BufferReader(data))
    columns = [
        found[field.name].cast(field.type) if field.name in found.column_names else pa.nulls(len(found), field.type)
        for field in TABLES[table]
    ]
    return pa.table(columns, schema=TABLES[table])
