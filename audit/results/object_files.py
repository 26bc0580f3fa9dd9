"""An Arrow file system over the object stores.

Arrow reads ahead in threads of its own, and goes on for a while after a query has all rows that it needs. A thread that
is inside a read when the interpreter ends never returns. Arrow waits for this thread, so the process would never end.
Therefore reads that begin after the program's end are refused, and the process ends after the last read.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler, PyFileSystem

from audit.locations import client_settings

CLOSING = 2.0  # seconds that Arrow may take to let go of its files after the last read


class Reads:
    """The reads that go on at this moment, and the files that are open. After `end` there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._going_on = 0
        self._ended = False
        self.files: weakref.WeakSet[ObjectFile] = weakref.WeakSet()

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._changed:
            if self._ended:
                raise OSError("the program has ended; nothing more is read from object stores")
            self._going_on += 1
        try:
            yield
        finally:
            with self._changed:
                self._going_on -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Refuse new reads, and return when the others have ended."""
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._going_on)
        until = time.monotonic() + CLOSING  # a query that is held by a variable keeps its files open
        while self.files and time.monotonic() < until:
            time.sleep(0.01)


READS = Reads()
atexit.register(READS.end)


class ObjectFile:
    """An object that is read as a file; Arrow calls these methods from its threads, one at a time."""

    def __init__(self, file: Any, reads: Reads) -> None:
        self._file, self._reads = file, reads
        reads.files.add(self)

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, length: int = -1) -> bytes:
        with self._reads.one():
            return bytes(self._file.read(length))

    def seek(self, position: int, whence: int = 0) -> int:
        with self._reads.one():
            return int(self._file.seek(position, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()


class Handler(FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """Opens objects for Arrow."""

    def open_input_file(self, path: str) -> PythonFile:
        with READS.one():
            return PythonFile(ObjectFile(self.fs.open(path, mode="rb"), READS), mode="r")


def filesystem() -> PyFileSystem:
    """The Arrow file system over the object stores, with the settings of `audit.locations`."""
    return _filesystem(os.environ.get("AWS_ENDPOINT_URL", ""), os.environ.get("AWS_ACCESS_KEY_ID", ""))


@lru_cache(maxsize=4)
def _filesystem(endpoint: str, key_id: str) -> PyFileSystem:  # noqa: ARG001 - another key, another store
    from obstore.fsspec import FsspecStore

    options: Any = {"skip_instance_cache": True, **client_settings(endpoint)}  # fsspec would keep the first endpoint
    return PyFileSystem(Handler(FsspecStore("s3", **options)))
