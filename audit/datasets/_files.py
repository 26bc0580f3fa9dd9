"""Files of a data set, in a folder or in an object store: named relative to a root, and opened without risk.

A name that leads out of the root, a device, a pipe or a file above the byte limit of images is never opened; reading
one gives None, as reading a file that is gone or may not be read does.

What says nothing of a file is a DataUnavailable: errors of the file system that may pass (audit/datasets/_patience.py),
a root that is gone or empty, since a file system that is not mounted looks so, and whatever a store answers instead of
what is asked of it. That includes 401 and 403, which stand for credentials that have run out far more often than for
one object that others may read: such an object has to be left out of the data set.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, TypeVar
from urllib.parse import quote, unquote_to_bytes

import obstore
from obstore.exceptions import BaseError, InvalidPathError

from audit.datasets._folder_links import FolderLinks
from audit.datasets._patience import children, is_folder, may_pass, part, patiently, real, regular, status_of, whole
from audit.datasets._selection import HEAD, Selection, is_image
from audit.decode import Limits
from audit.errors import DataError, DataUnavailable
from audit.locations import Location, object_store

if TYPE_CHECKING:
    from obstore.store import ObjectStore

AHEAD = 8
_WINDOW = 2**20
_BUFFER = 2**13
_BUSY = (408, 429)  # of HTTP: too slow, too many
_NO_BUCKET = "<Code>NoSuchBucket</Code>"
_ACCESS = (
    "Check the bucket's name, AWS_ENDPOINT_URL, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY)"
)
_T = TypeVar("_T")
_U = TypeVar("_U")


class Files(Protocol):
    """A root and what is below it. Names are relative to it, with '/' between their parts."""

    root: Location

    def walk(self, wanted: Selection, unwalked: set[str]) -> Iterator[tuple[str, str | None]]:
        """The files that a selection wants and why each must not be opened, in a stable order; no folder of
        `unwalked`."""

    def reason(self, name: str) -> str | None:
        """Why a file must not be opened, or cannot. Raises DataUnavailable."""

    def read(self, name: str) -> bytes | None:
        """What a whole file holds; None where it must not be opened or is gone. Raises DataUnavailable."""

    def part(self, name: str, start: int, size: int) -> bytes | None:
        """A range of a file; None where it has not as many bytes any more. Raises DataUnavailable."""

    def each(self, function: Callable[[_T], bytes | None], asked: Iterable[_T]) -> Iterator[bytes | None]:
        """What a function reads for each that is asked, in order; several at a time where that is faster."""

    def open(self, name: str) -> BinaryIO:
        """A file to read from any place. Raises DataError, and DataUnavailable then and at every read."""


class Folder:
    """A folder of this machine."""

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        """`follow_links`: whether a link in it may lead out of it."""
        self.root: Location = root
        self._path, self._follow = root, follow_links
        self._held: tuple[str, BinaryIO] | None = None
        self._inside = lru_cache(maxsize=4096)(self._is_inside)

    def walk(self, wanted: Selection, unwalked: set[str]) -> Iterator[tuple[str, str | None]]:
        """Files and sub-folders in sorted order. A folder that cannot be listed stands for what is in it, and so does
        a link to a folder that is not followed. Of a folder, the names are held in memory, and nothing else."""
        if not is_folder(self._path):
            raise DataError(f"no folder of images at {self.root}")
        if not os.access(self._path, os.R_OK | os.X_OK):
            raise DataError(f"cannot list {self.root}: permission denied")
        links = FolderLinks(self._path, wanted.follow_links)
        under_way = [self._listed("", wanted, unwalked, links)]
        while under_way:  # no recursion: folders can be nested deeper than Python's stack
            path, reason, to_walk = next(under_way[-1], ("", None, None))
            if to_walk is None:
                under_way.pop()
            elif to_walk:
                under_way.append(self._listed(path, wanted, unwalked, links))
            else:
                yield path, reason
        wanted.finish()

    def _listed(
        self, folder: str, wanted: Selection, unwalked: set[str], links: FolderLinks
    ) -> Iterator[tuple[str, str | None, bool]]:
        """Of what is in a folder: its path, why it must not be opened, and whether it is a folder to walk."""
        try:
            names, folders = children(self._path / folder)
        except OSError:
            yield folder, "unreadable_folder", False
            return
        for name in names:
            path = os.path.join(folder, name)
            if name in folders:
                if path not in unwalked and wanted.walks(path):
                    yield path, None, True
                continue
            if wanted.may_be_folder(name) and links.is_linked_folder(path):
                yield from links.listed(path, wanted)
                continue
            wish = wanted.wants(path)
            if wish or (wish is None and self._is_image(path)):
                yield path, self.reason(path), False
            elif wish is None:
                wanted.leave_out(path)

    def _is_image(self, path: str) -> bool:
        """Whether a file without a suffix is an image, or is outside the folder and therefore not read."""
        reason = self.reason(path)
        return reason == "link_out_of_root" or (reason is None and is_image(self._start_of(path)))

    def _start_of(self, name: str) -> bytes:
        """The first bytes of a file; empty if it cannot be read."""
        return self._asked(name, lambda: part(self._opened(name), 0, HEAD)) or b""

    def reason(self, name: str) -> str | None:
        """Devices and pipes would block, links and names may lead outside."""
        return patiently(self._path / name, lambda: self._reason(name))

    def _reason(self, name: str) -> str | None:
        path = self._path / name
        try:
            if os.path.isabs(name) or ".." in PurePosixPath(name).parts:
                return "name_out_of_root"
            if not self._follow and not self._inside(os.path.dirname(name)):
                return "link_out_of_root"
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                if not self._follow and not self._is_inside(name):
                    return "link_out_of_root"
                found = path.stat()
            elif stat.S_ISDIR(found.st_mode):
                return "unreadable_folder"
        except FileNotFoundError:
            return "unreadable" if os.path.islink(path) else self._missing()
        except OSError as error:
            if may_pass(error):
                raise
            return "unreadable"
        except (RuntimeError, ValueError):
            return "unreadable"
        if not stat.S_ISREG(found.st_mode):
            return "not_a_regular_file"
        return "too_many_bytes" if found.st_size > Limits.max_bytes else None

    def _is_inside(self, name: str) -> bool:
        return real(self._path / name).is_relative_to(real(self._path))

    def _missing(self) -> str:
        """That a file is missing says something of it only where there are others."""
        found = status_of(self._path)
        if found is None or not children(self._path)[0]:
            state = "is not there" if found is None else "is empty"
            raise DataUnavailable(
                f"cannot read from {self.root} now: it {state}, and was not when it was listed. Mount its file system "
                "again, or bring the files back, then go on"
            )
        return "missing"

    def read(self, name: str) -> bytes | None:
        if self.reason(name):
            return None
        return self._asked(name, lambda: whole(self._path / name))

    def part(self, name: str, start: int, size: int) -> bytes | None:
        """The file read last stays open, since units ask for neighbours."""
        data = self._asked(name, lambda: part(self._opened(name), start, size))
        return data if data is not None and len(data) == size else None

    def _asked(self, name: str, action: Callable[[], bytes]) -> bytes | None:
        """What an action reads of a file, None where the file is gone or cannot be read."""

        def once() -> bytes:
            try:
                return action()
            except OSError:
                self._close()  # what is open may be what cannot be read any more
                raise

        try:
            return patiently(self._path / name, once)
        except FileNotFoundError:
            self._missing()
        except (OSError, ValueError):
            pass
        return None

    def _opened(self, name: str) -> BinaryIO:
        if self._held is None or self._held[0] != name:
            self._close()
            self._held = name, regular(self._path / name)
        return self._held[1]

    def _close(self) -> None:
        if self._held is not None:
            self._held[1].close()
            self._held = None

    def each(self, function: Callable[[_T], bytes | None], asked: Iterable[_T]) -> Iterator[bytes | None]:
        return map(function, asked)

    def open(self, name: str) -> BinaryIO:
        path = self._path / name
        try:
            return io.BufferedReader(_Patient(path, patiently(path, lambda: regular(path))), _BUFFER)
        except FileNotFoundError as error:
            raise DataError(f"no file at {path}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}") from error


class _Positioned(io.RawIOBase):
    """A file of a known size that is read from any place."""

    def __init__(self, size: int) -> None:
        self._at, self._size = 0, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at


class _Patient(_Positioned):
    """A file of this machine, of which each read is tried again while its error may pass."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(os.fstat(file.fileno()).st_size)
        self._path, self._file = path, file

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = patiently(self._path, lambda: part(self._file, self._at, len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class Keys:
    """A prefix of an object store. Objects are read a few at a time, each by one request."""

    def __init__(self, root: str) -> None:
        self.root: Location = root
        self.store: ObjectStore = object_store(root)

    def listing(self) -> Iterator[tuple[str, int]]:
        """Names and sizes below the prefix, as the store lists them: on S3 in the order of the names."""
        with asked_of(self.root, "list"):
            for chunk in obstore.list(self.store, chunk_size=1000):
                for found in chunk:
                    yield found["path"], found["size"]

    def walk(self, wanted: Selection, unwalked: set[str]) -> Iterator[tuple[str, str | None]]:
        """Objects as the store lists them. One without a suffix is taken for an image, as to look into each would take
        a request for each; one of no bytes stands for a folder, and is left out."""
        for name, size in self.listing():
            if unwalked and unwalked & set(_above(name)):
                continue
            if not all(wanted.walks(folder) for folder in _above(name) if folder != "."):
                continue
            wish = wanted.wants(name)
            if wish or (wish is None and size):
                yield name, "too_many_bytes" if size > Limits.max_bytes else None
        wanted.finish()

    def size(self, name: str) -> int | None:
        """How many bytes an object has, None where there is none. Raises DataUnavailable."""
        with asked_of(self.root, "read"):
            try:
                return obstore.head(self.store, name)["size"]
            except FileNotFoundError:
                return None

    def reason(self, name: str) -> str | None:
        try:
            size = self.size(name)
        except ValueError:
            return "name_out_of_root"
        return "missing" if size is None else "too_many_bytes" if size > Limits.max_bytes else None

    def read(self, name: str) -> bytes | None:
        with asked_of(self.root, "read"):
            try:
                found = obstore.get(self.store, name)
                return None if found.meta["size"] > Limits.max_bytes else bytes(found.bytes())
            except (FileNotFoundError, ValueError) as error:
                self._refuse_no_bucket(error)
                return None

    def each(self, function: Callable[[_T], bytes | None], asked: Iterable[_T]) -> Iterator[bytes | None]:
        return ahead(function, asked)

    def part(self, name: str, start: int, size: int) -> bytes | None:
        with asked_of(self.root, "read"):
            try:
                data = bytes(obstore.get_range(self.store, name, start=start, length=size)) if size else b""
            except (FileNotFoundError, ValueError) as error:
                self._refuse_no_bucket(error)
                return None
            except BaseError as error:
                if _answered(error) == 416:  # the object is shorter now
                    return None
                raise
        return data if len(data) == size else None

    def _refuse_no_bucket(self, error: Exception) -> None:
        """Raises DataUnavailable where it is not the object that is missing, but the whole bucket."""
        if _NO_BUCKET in str(error):
            raise DataUnavailable(f"cannot read {self.root} now: its bucket is not there. {_ACCESS}")

    def open(self, name: str) -> BinaryIO:
        try:
            size = self.size(name)
        except ValueError as error:
            raise DataError(f"{self.root}/{name} cannot be a key: {error}") from error
        if size is None:
            raise DataError(f"no object at {self.root}/{name}")
        return io.BufferedReader(_Ranges(self, name, size), _BUFFER)


class _Ranges(_Positioned):
    """An object as a file: small reads through a window, large ones each by a request of that size."""

    def __init__(self, keys: Keys, name: str, size: int) -> None:
        super().__init__(size)
        self._keys, self._name = keys, name
        self._start, self._window = 0, b""

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the whole buffer, but for the object's end."""
        wanted = max(0, min(len(buffer), self._size - self._at))
        if not self._start <= self._at <= self._at + wanted <= self._start + len(self._window):
            self._start = self._at
            self._window = self._fetched(min(max(wanted, _WINDOW), self._size - self._at)) if wanted else b""
        first = self._at - self._start
        buffer[:wanted] = self._window[first : first + wanted]
        self._at += wanted
        return wanted

    def _fetched(self, size: int) -> bytes:
        data = self._keys.part(self._name, self._at, size)
        if data is None:
            raise DataError(f"{self._keys.root}/{self._name} changed while it was read")
        return data


def files_at(root: Location, follow_links: bool = False) -> Files:
    """The files of a folder or of an object store's prefix. `follow_links`: whether links may lead out of a folder."""
    return Folder(root, follow_links) if isinstance(root, Path) else Keys(root)


def ahead(function: Callable[[_T], _U], asked: Iterable[_T]) -> Iterator[_U]:
    """The results of a slow call, in order, while the next few are under way."""
    with ThreadPoolExecutor(AHEAD) as pool:
        under_way: deque[Future[_U]] = deque()
        try:
            for one in asked:
                under_way.append(pool.submit(function, one))
                if len(under_way) == AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for call in under_way:
                call.cancel()


@contextmanager
def asked_of(root: Location, doing: Literal["list", "read"]) -> Iterator[None]:
    """What an object store answers, instead of what is asked of it, becomes an error that names the store: a
    DataUnavailable, but a DataError where it refuses a listing, or lists what no name can stand for."""
    try:
        yield
    except BaseError as error:
        answer = _answered(error)
        refused = doing == "list" and answer is not None and answer < 500 and answer not in _BUSY
        kind = DataError if refused or isinstance(error, InvalidPathError) else DataUnavailable
        raise kind(f"cannot {doing} {root}: {said(error)}. {_ACCESS}") from error


def _answered(error: BaseError) -> int | None:
    """The HTTP status that a store refused with; None where it did not answer."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def said(error: BaseException) -> str:
    """An error of the object store, without its inner representation."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:400]


def as_uri(name: str) -> str:
    """A name as text that can be stored: percent-encoded, also where it is no text."""
    return quote(os.fsencode(name))


def as_name(uri: str) -> str:
    """The name that `as_uri` encoded."""
    return os.fsdecode(unquote_to_bytes(uri))


def _above(name: str) -> Iterator[str]:
    """The folders that a name is in."""
    return (str(folder) for folder in PurePosixPath(name).parents)
