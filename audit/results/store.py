"""The commit protocol: create-only records, so that nothing is lost, doubled or half seen.

    <root>/job.json                                  what was asked; create-only
    <root>/plan/<stage>.json                         the stage's units are planned: names its parts; create-only
    <root>/plan/<stage>/<part>.tsv.gz               units of work, a line each; named by their content
    <root>/data/<table>/<unit>-<attempt>.parquet     unique per attempt, never overwritten, never listed by readers
    <root>/commits/<unit>.json                       create-only: THE commit of a unit
    <root>/snapshots/<N>.json                        create-only, dense: the commits that readers need not look up
    <root>/live.json                                 what the driver is doing; replaced, and nothing rests on it

A unit's rows count once its commit record exists; the record names its files. Of two attempts that race, the second
finds the record there and deletes its own files. Readers take the newest snapshot and the records that it does not
cover: an explicit list of whole units, which stays readable while others write. Compaction merges small commits into
larger ones and publishes them as the next snapshot; what it replaced stays until `collect` removes it, by age.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from audit.errors import StoreError
from audit.locations import Location, located
from audit.results.objects import Objects, open_objects
from audit.results.schema import SCHEMA_VERSION, Rows, to_table

_READERS = 16  # records read side by side: an object store answers each in tens of milliseconds
_FORWARD = 1000  # snapshots that a listing may lag behind
_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True)
class File:
    """A Parquet file of a commit; `path` is relative to the run."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """A committed unit, or several of one stage that a compaction merged. `files`: by table.

    status: ok; quarantined (given up, `error` says why); split (its halves are units of their own).
    `items` were done, `failed` of them are rows that say why not.
    """

    units: tuple[str, ...]
    stage: str
    attempt: str
    status: str
    files: Mapping[str, File]
    items: int = 0
    failed: int = 0
    error: str | None = None

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


class Store:
    """A run's folder, or the same below a URI."""

    def __init__(self, location: Location | str) -> None:
        self.location: Location = located(location) if isinstance(location, str) else location
        self.objects: Objects = open_objects(self.location)
        self._newest: tuple[int, dict[str, Commit]] = 0, {}  # the snapshot read last; one never changes

    @property
    def root(self) -> Path:
        """The folder of a run on a file system. Raises StoreError for one in an object store."""
        if isinstance(self.location, Path):
            return self.location
        raise StoreError(f"{self.location} is in an object store; this needs a run in a local folder")

    # --- objects --------------------------------------------------------------------------------------------

    def create(self, key: str, data: bytes) -> bool:
        """Write a new object whole, durably, or not at all. False if another is there already; never overwrites."""
        return self.objects.create(key, data)

    def read(self, key: str) -> bytes | None:
        """The bytes of an object, None if there is none."""
        return self.objects.read(key)

    def names(self, folder: str) -> list[str]:
        """Whole objects in a folder, sorted."""
        return self.objects.names(folder)

    def where(self, key: str) -> str:
        return self.objects.where(key)

    def probe(self) -> None:
        """Check that a second create of one key is refused here. Raises StoreError where it is not."""
        key = f"probe/{uuid.uuid4().hex}"
        try:
            first, second = self.create(key, b"1"), self.create(key, b"2")
        finally:
            self.objects.delete(key)
        if not first or second:
            raise StoreError(
                f"{self.location} does not refuse to create an object twice, so two workers could overwrite each "
                "other; use a local disk, NFS v4, or an S3-compatible store that honours If-None-Match"
            )

    # --- units ----------------------------------------------------------------------------------------------

    def commit(
        self,
        unit_id: str,
        stage: str,
        rows: Rows,
        *,
        status: str = "ok",
        error: str | None = None,
        items: int = 0,
        failed: int = 0,
    ) -> bool:
        """Write a unit's rows and its record. False if another attempt was first; then nothing of this one stays."""
        attempt = uuid.uuid4().hex[:12]
        files: dict[str, File] = {}
        for table, listed in rows.items():
            if listed:
                files[table] = self.write(f"{unit_id}-{attempt}", table, to_table(table, listed))
        record = Commit((unit_id,), stage, attempt, status, files, items, failed, error)
        body = json.dumps({"schema": SCHEMA_VERSION, **record.dump()}, sort_keys=True)
        if self.create(f"commits/{unit_id}.json", body.encode()):
            return True
        self.discard(record)
        return False

    def write(self, name: str, table: str, content: Any, group_rows: int | None = None) -> File:
        """Write rows (an Arrow table) as a data file that no reader sees yet. `group_rows`: most in a row group.

        Of the first column, the id that rows are looked up by, readers are told which row groups lack it.
        """
        buffer = io.BytesIO()
        groups: dict[str, Any] = {"row_group_size": group_rows}
        if content.num_rows:
            most = min(content.num_rows, group_rows or content.num_rows)
            groups["bloom_filter_options"] = {content.column_names[0]: {"ndv": most, "fpp": 0.01}}
        pq.write_table(content, buffer, compression="zstd", **groups)
        data = buffer.getvalue()
        key = f"data/{table}/{name}.parquet"
        if not self.create(key, data):
            raise StoreError(f"{self.where(key)} is there already, with other rows; names of attempts are unique")
        return File(key, content.num_rows, len(data), hashlib.sha256(data).hexdigest())

    def discard(self, commit: Commit) -> None:
        """Delete the data files of an attempt that lost its race."""
        for file in commit.files.values():
            self.objects.delete(file.path)

    def commits(self, known: Mapping[str, Commit] | None = None) -> dict[str, Commit]:
        """All committed units by id: the newest snapshot and the records that it does not cover.

        `known`: commits that were read before; their records are not read again.
        """
        return self.beyond(self.covered()[0], known)

    def beyond(self, covered: Mapping[str, Commit], known: Mapping[str, Commit] | None = None) -> dict[str, Commit]:
        """The commits of a snapshot, and those of the records that it does not cover."""
        found = dict(covered)
        missing = []
        for name in self.names("commits"):
            unit = name.removesuffix(".json")
            if unit in found:
                continue
            if known is not None and unit in known:
                found[unit] = known[unit]
            else:
                missing.append(f"commits/{name}")
        for commit in self._many(self.record, missing):
            if commit is not None:  # a repair may have withdrawn the record since it was listed
                found[commit.units[0]] = commit
        return found

    def covered(self) -> tuple[dict[str, Commit], int]:
        """The commits of the newest snapshot by unit, and its number; nothing and 0 where there is none.

        Numbers are dense, so snapshots that a stale listing lacks are found by asking for the next ones.
        """
        listed = self.names("snapshots")
        known, covered = self._newest
        number = max(int(listed[-1].removesuffix(".json")) if listed else 0, known)
        data = self.read(_snapshot(number)) if number > known else None
        if number > known and data is None:
            raise StoreError(f"{self.where(_snapshot(number))} vanished while it was read")
        for _ in range(_FORWARD):
            following = self.read(_snapshot(number + 1))
            if following is None:
                break
            number, data = number + 1, following
        if data is not None:
            covered = {unit: commit for commit in self._listed(number, data) for unit in commit.units}
            self._newest = number, covered
        return dict(covered), number

    def snapshot_at(self, number: int) -> list[Commit]:
        """The commits of one snapshot. Raises StoreError where it is not whole."""
        return self._listed(number, self.read(_snapshot(number)) or b"")

    def _listed(self, number: int, data: bytes) -> list[Commit]:
        key = _snapshot(number)
        return [_commit(raw, self.where(key)) for raw in self._parsed(key, data)["commits"]]

    def record(self, key: str) -> Commit | None:
        """A unit's own record, None where it is gone. Raises StoreError for one that is not whole."""
        data = self.read(key)
        return None if data is None else _commit(self._parsed(key, data), self.where(key))

    def _parsed(self, key: str, data: bytes) -> dict[str, Any]:
        try:
            raw = json.loads(data)
        except ValueError as error:
            raise StoreError(f"{self.where(key)} is not whole: {error}; 'audit repair' withdraws it") from error
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA_VERSION:
            made = raw.get("schema") if isinstance(raw, dict) else None
            raise StoreError(f"{self.where(key)} has the schema {made}, this version of audit reads {SCHEMA_VERSION}")
        return raw

    def publish(self, commits: Iterable[Commit], number: int) -> bool:
        """Create snapshot `number` of exactly these commits; False if there is one of this number."""
        unique = sorted({commit.units[0]: commit for commit in commits}.values(), key=lambda c: c.units[0])
        body = {"schema": SCHEMA_VERSION, "commits": [commit.dump() for commit in unique]}
        return self.create(_snapshot(number), json.dumps(body, sort_keys=True).encode())

    def snapshot(self) -> int:
        """Publish the present commits as the next snapshot; returns its number."""
        while True:
            covered, number = self.covered()
            if self.publish(self.beyond(covered).values(), number + 1):
                return number + 1

    def files(self, table: str, commits: Iterable[Commit]) -> list[File]:
        """A table's files in the order of their units."""
        chosen = sorted(unique(commits), key=lambda commit: commit.units[0])
        return [commit.files[table] for commit in chosen if table in commit.files]

    def _many(self, function: Callable[[_S], _T], values: Sequence[_S]) -> Iterator[_T]:
        if len(values) < _READERS:
            return map(function, values)
        with ThreadPoolExecutor(_READERS) as readers:
            return iter(list(readers.map(function, values)))


def unique(commits: Iterable[Commit]) -> list[Commit]:
    """Each commit once, however many units it holds."""
    return list({id(commit): commit for commit in commits}.values())


def _snapshot(number: int) -> str:
    return f"snapshots/{number:08d}.json"


def _commit(raw: Mapping[str, Any], where: str) -> Commit:
    try:
        fields = {name: value for name, value in raw.items() if name != "schema"}
        fields["files"] = {table: File(**file) for table, file in fields["files"].items()}
        fields["units"] = tuple(fields["units"])
        return Commit(**fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"the commit record {where} is not one of this version: {error}") from error
