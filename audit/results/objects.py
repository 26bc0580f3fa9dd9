"""Named bytes that are created whole and never overwritten: on a file system, or in an S3-compatible store.

Both answer in the same way, so that the commit protocol above them is one. A fault that may pass (a server that is
busy, a disk that answers EIO once) is tried again a few times; what does not pass is a StoreError that names the place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from audit.errors import StoreError
from audit.locations import Location, object_store

PAUSES = (0.1, 0.5, 2.0)  # seconds between tries
_NO_LINKS = {errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EMLINK}  # what a file system without hard links says
_PASSING = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EBUSY}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stored:
    """What a store says of an object. `modified`: seconds since 1970 on the store's own clock."""

    key: str
    bytes: int
    modified: float


class Objects(Protocol):
    def create(self, key: str, data: bytes) -> bool:
        """Write a new object whole, durably, or not at all. False if another is there already; never overwrites.

        An object with these very bytes counts as written by this call: its answer may have been lost.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write an object over what is there: only for what nothing rests on, such as a run's live state."""

    def read(self, key: str) -> bytes | None:
        """All bytes, None where there are none."""

    def names(self, folder: str) -> list[str]:
        """Names of the objects right in a folder, sorted."""

    def listing(self, folder: str) -> Iterator[Stored]:
        """Every object below a folder, partial ones of writers that died too, in any order."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    def where(self, key: str) -> str:
        """For people."""


def open_objects(location: Location) -> Objects:
    """The objects below a folder, or below a URI."""
    return LocalObjects(location) if isinstance(location, Path) else RemoteObjects(location)


class LocalObjects:
    """Files below a folder, which need not exist yet. Needs a file system with hard links and fsync."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, key: str) -> str:
        return str(self.root / key)

    def create(self, key: str, data: bytes) -> bool:
        path = self.root / key

        def once() -> bool:
            with _written(path, data) as partial:
                try:
                    os.link(partial, path)  # unlike a rename, refuses to overwrite
                except FileExistsError:
                    return path.read_bytes() == data
            _sync(path.parent)
            return True

        return self._tried("write", key, once)

    def replace(self, key: str, data: bytes) -> None:
        path = self.root / key

        def once() -> None:
            with _written(path, data) as partial:
                os.replace(partial, path)

        self._tried("write", key, once)

    def read(self, key: str) -> bytes | None:
        def once() -> bytes | None:
            try:
                return (self.root / key).read_bytes()
            except FileNotFoundError:
                return None

        return self._tried("read", key, once)

    def names(self, folder: str) -> list[str]:
        def once() -> list[str]:
            try:
                with os.scandir(self.root / folder) as found:
                    return sorted(one.name for one in found if not one.name.startswith(".") and one.is_file())
            except FileNotFoundError:
                return []

        return self._tried("list", folder, once)

    def listing(self, folder: str) -> Iterator[Stored]:
        for parent, _, files in os.walk(self.root / folder):
            for name in files:
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    yield Stored(path.relative_to(self.root).as_posix(), facts.st_size, facts.st_mtime)

    def delete(self, key: str) -> None:
        self._tried("delete", key, lambda: (self.root / key).unlink(missing_ok=True))

    def _tried(self, verb: str, key: str, action: Callable[[], _T]) -> _T:
        for pause in (*PAUSES, None):
            try:
                return action()
            except OSError as error:
                if pause is None or error.errno not in _PASSING:
                    why = error.strerror or str(error)
                    if error.errno in _NO_LINKS and error.filename2:
                        why += ". A run needs a file system with hard links, which mounted buckets lack: give the "
                        why += "bucket itself, as output: {uri: s3://...}"
                    raise StoreError(f"cannot {verb} {self.where(key)}: {why}") from error
                time.sleep(pause)
        raise AssertionError("unreachable")


@contextlib.contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """The bytes, durable, in a file of another name beside `path`; gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RemoteObjects:
    """Objects below a URI of an S3-compatible store, which must honour If-None-Match on PUT."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._store = object_store(uri)

    def where(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def create(self, key: str, data: bytes) -> bool:
        """One PUT, and after any answer but a success a look at what is there: a lost answer looks like a failure."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PermissionDeniedError

        for pause in (*PAUSES, None):
            try:
                obstore.put(self._store, key, data, mode="create")
                return True
            except AlreadyExistsError as error:
                there = self.read(key)
                if there is not None:
                    return there == data
                failed: Exception = error  # a conflict with a write that has not come through, or never will
            except (BaseError, OSError) as error:
                failed = error
            if pause is None or isinstance(failed, (NotSupportedError, PermissionDeniedError)):
                raise self._failed("write", key, failed) from failed
            time.sleep(pause)
        raise AssertionError("unreachable")

    def replace(self, key: str, data: bytes) -> None:
        import obstore

        with self._errors("write", key):
            obstore.put(self._store, key, data)

    def read(self, key: str) -> bytes | None:
        import obstore

        with self._errors("read", key):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        prefix = f"{folder}/"
        found = (stored.key.removeprefix(prefix) for stored in self.listing(folder))
        return sorted(name for name in found if "/" not in name)

    def listing(self, folder: str) -> Iterator[Stored]:
        import obstore

        with self._errors("list", folder):
            for chunk in obstore.list(self._store, prefix=f"{folder}/"):
                for meta in chunk:
                    yield Stored(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        import obstore

        with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            raise self._failed(verb, key, error) from error

    def _failed(self, verb: str, key: str, error: Any) -> StoreError:
        return StoreError(f"cannot {verb} {self.where(key)}: {str(error).splitlines()[0][:300]}")
