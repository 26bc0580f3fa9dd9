"""The commit protocol: create-only records on a file system, so that nothing is lost, doubled or half seen.

    <root>/job.json                                  what was asked; create-only
    <root>/plan/<stage>.json                         the stage's units; create-only
    <root>/data/<table>/<unit>-<attempt>.parquet     unique per attempt, never overwritten, never listed by readers
    <root>/commits/<unit>.json                       create-only: THE commit of a unit
    <root>/snapshots/<N>.json                        create-only, dense: the commits that readers need not list

A unit's rows count once its commit record exists; the record names its files. Of two attempts that race, the
second finds the record there and deletes its own files. Readers take the newest snapshot and the records that
it does not cover.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from audit.errors import StoreError
from audit.results.schema import SCHEMA_VERSION, Rows, to_table


@dataclass(frozen=True)
class Commit:
    """The record of a committed unit. `files` maps table to the path of its Parquet file, relative to the root."""

    unit_id: str
    stage: str
    attempt: str
    status: str
    files: Mapping[str, str]
    rows: Mapping[str, int]
    sha256: Mapping[str, str]
    error: str | None = None

    def dump(self) -> bytes:
        return json.dumps({**self.__dict__, "schema": SCHEMA_VERSION}, sort_keys=True).encode()


class Store:
    """A run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- bytes ----------------------------------------------------------------------------------------------

    def create(self, key: str, data: bytes) -> bool:
        """Write a new file whole, durably, or not at all. False if it is there already; never overwrites."""
        path = self.root / key
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
            return True
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def read(self, key: str) -> bytes | None:
        """The bytes of a file, None if there is none."""
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {self.root / key}: {error.strerror}") from error

    def names(self, folder: str) -> list[str]:
        """Whole files in a folder, sorted."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(n for n in os.listdir(self.root / folder) if not n.startswith("."))
        return []

    def probe(self) -> None:
        """Check that a second create of one key is refused here. Raises StoreError where it is not."""
        key = f"probe/{uuid.uuid4().hex}"
        first, second = self.create(key, b"1"), self.create(key, b"2")
        (self.root / key).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.root / "probe").rmdir()
        if not first or second:
            raise StoreError(f"{self.root} does not refuse to create a file twice; use a local disk or NFS v4")

    # --- units ----------------------------------------------------------------------------------------------

    def commit(self, unit_id: str, stage: str, rows: Rows, *, status: str = "ok", error: str | None = None) -> bool:
        """Write a unit's rows and its record. False if another attempt was first; then nothing of this one stays."""
        attempt = uuid.uuid4().hex[:12]
        files, counts, hashes = {}, {}, {}
        for table, listed in rows.items():
            if not listed:
                continue
            buffer = io.BytesIO()
            pq.write_table(to_table(table, listed), buffer, compression="zstd")
            key = f"data/{table}/{unit_id}-{attempt}.parquet"
            self.create(key, buffer.getvalue())
            files[table], counts[table] = key, len(listed)
            hashes[table] = hashlib.sha256(buffer.getvalue()).hexdigest()
        record = Commit(unit_id, stage, attempt, status, files, counts, hashes, error)
        if self.create(f"commits/{unit_id}.json", record.dump()):
            return True
        for key in files.values():
            (self.root / key).unlink(missing_ok=True)
        return False

    def commits(self) -> dict[str, Commit]:
        """All committed units by id: the newest snapshot and the records after it."""
        found = {}
        snapshots = self.names("snapshots")
        if snapshots:
            for raw in json.loads(self._present(f"snapshots/{snapshots[-1]}"))["commits"]:
                found[raw["unit_id"]] = _commit(raw, f"snapshots/{snapshots[-1]}")
        for name in self.names("commits"):
            if name.removesuffix(".json") not in found:
                key = f"commits/{name}"
                try:
                    raw = json.loads(self._present(key))
                except ValueError as error:
                    raise StoreError(f"the commit record {self.root / key} is not whole: {error}") from error
                found[raw["unit_id"]] = _commit(raw, key)
        return found

    def snapshot(self) -> int:
        """Publish the present commits as the next snapshot; returns its number."""
        while True:
            commits = sorted(self.commits().values(), key=lambda c: c.unit_id)
            number = len(self.names("snapshots")) + 1
            body = {"schema": SCHEMA_VERSION, "commits": [commit.__dict__ for commit in commits]}
            if self.create(f"snapshots/{number:08d}.json", json.dumps(body, sort_keys=True).encode()):
                return number

    def files(self, table: str, commits: Iterable[Commit] | None = None) -> list[str]:
        """Absolute paths of a table's committed files, in the order of their unit ids."""
        chosen = self.commits().values() if commits is None else commits
        return [str(self.root / c.files[table]) for c in sorted(chosen, key=lambda c: c.unit_id) if table in c.files]

    def _present(self, key: str) -> bytes:
        data = self.read(key)
        if data is None:
            raise StoreError(f"{self.root / key} vanished while it was read")
        return data


def _commit(raw: Mapping[str, Any], key: str) -> Commit:
    try:
        return Commit(**{name: value for name, value in raw.items() if name != "schema"})
    except TypeError as error:
        raise StoreError(f"the commit record {key} is not one of this version: {error}") from error


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def runs_in(folder: Path) -> Iterator[Path]:
    """Folders below that hold a run."""
    return (path.parent for path in sorted(folder.glob("*/job.json")))
