"""Files of a data set, in a folder or in an object store: named relative to a root, and opened without risk.

A name that leads out of the root, a device, a pipe or a file above the byte limit of images is never opened; reading
one gives None, as reading a file that is gone does. A store that cannot be asked at all is a DataError.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar
from urllib.parse import quote, unquote_to_bytes

import obstore
from obstore.exceptions import BaseError

from audit.decode import Limits
from audit.errors import DataError
from audit.locations import Location, name_of, object_store, parent

if TYPE_CHECKING:
    from obstore.store import ObjectStore

AHEAD = 8
_WINDOW = 2**20
_BUFFER = 2**13
_SPECIAL = re.compile(r"[*?\[{]")
_T = TypeVar("_T")
_U = TypeVar("_U")


class Files(Protocol):
    """A root and what is below it. Names are relative to it, with '/' between their parts."""

    root: Location

    def walk(self, suffixes: tuple[str, ...], unwalked: set[str]) -> Iterator[tuple[str, str | None]]:
        """The files with these suffixes and why each must not be opened, in a stable order; no folder of `unwalked`."""

    def reason(self, name: str) -> str | None:
        """Why a file must not be opened, or cannot."""

    def read(self, name: str) -> bytes | None:
        """What a whole file holds; None where it must not be opened or is gone."""

    def part(self, name: str, start: int, size: int) -> bytes | None:
        """A range of a file; None where it has not as many bytes any more."""

    def each(self, function: Callable[[_T], bytes | None], asked: Iterable[_T]) -> Iterator[bytes | None]:
        """What a function reads for each that is asked, in order; several at a time where that is faster."""

    def open(self, name: str) -> BinaryIO:
        """A file to read from any place. Raises DataError."""


class Folder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root: Location = root
        self._path = root
        self._held: tuple[str, BinaryIO] | None = None
        self._inside = lru_cache(maxsize=4096)(self._is_inside)

    def walk(self, suffixes: tuple[str, ...], unwalked: set[str]) -> Iterator[tuple[str, str | None]]:
        """Files and sub-folders in sorted order; links to folders are not followed. A folder that cannot be listed
        stands for what is in it. Of a folder, the names are held in memory, and nothing else."""
        if not self._path.is_dir():
            raise DataError(f"no folder of images at {self.root}")
        if not os.access(self._path, os.R_OK | os.X_OK):
            raise DataError(f"cannot list {self.root}: permission denied")
        under_way = [self._listed("", suffixes, unwalked)]
        while under_way:  # no recursion: folders can be nested deeper than Python's stack
            path, reason, is_folder = next(under_way[-1], ("", None, None))
            if is_folder is None:
                under_way.pop()
            elif is_folder:
                under_way.append(self._listed(path, suffixes, unwalked))
            else:
                yield path, reason

    def _listed(
        self, folder: str, suffixes: tuple[str, ...], unwalked: set[str]
    ) -> Iterator[tuple[str, str | None, bool]]:
        """Of what is in a folder: its path, why it must not be opened, and whether it is a folder to walk."""
        try:
            names, folders = _children(self._path / folder, suffixes)
        except OSError:
            yield folder, "unreadable_folder", False
            return
        for name in names:
            path = os.path.join(folder, name)
            if name not in folders:
                yield path, self.reason(path), False
            elif path not in unwalked:
                yield path, None, True

    def reason(self, name: str) -> str | None:
        """Devices and pipes would block, links and names may lead outside."""
        path = self._path / name
        try:
            if os.path.isabs(name) or ".." in PurePosixPath(name).parts:
                return "name_out_of_root"
            if not self._inside(os.path.dirname(name)):
                return "link_out_of_root"
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                if not self._is_inside(name):
                    return "link_out_of_root"
                found = path.stat()
            elif stat.S_ISDIR(found.st_mode):
                return "unreadable_folder"
        except FileNotFoundError:
            return "unreadable" if path.is_symlink() else "missing"
        except (OSError, RuntimeError, ValueError):
            return "unreadable"
        if not stat.S_ISREG(found.st_mode):
            return "not_a_regular_file"
        return "too_many_bytes" if found.st_size > Limits.max_bytes else None

    def _is_inside(self, name: str) -> bool:
        return (self._path / name).resolve().is_relative_to(self._path.resolve())

    def read(self, name: str) -> bytes | None:
        if self.reason(name):
            return None
        try:
            with _regular(self._path / name) as file:
                return file.read()
        except OSError:
            return None

    def part(self, name: str, start: int, size: int) -> bytes | None:
        """The file read last stays open, since units ask for neighbours."""
        try:
            if self._held is None or self._held[0] != name:
                opened = _regular(self._path / name)
                if self._held:
                    self._held[1].close()
                self._held = name, opened
            self._held[1].seek(start)
            data = self._held[1].read(size)
        except (OSError, ValueError):
            return None
        return data if len(data) == size else None

    def each(self, function: Callable[[_T], bytes | None], asked: Iterable[_T]) -> Iterator[bytes | None]:
        return map(function, asked)

    def open(self, name: str) -> BinaryIO:
        try:
            return _regular(self._path / name)
        except FileNotFoundError as error:
            raise DataError(f"no file at {self._path / name}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self._path / name}: {error}") from error


def _children(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[str], set[str]]:
    """The sorted names of sub-folders and of files with these suffixes in a folder, and which are sub-folders."""
    names, folders = [], set()
    with os.scandir(folder) as scan:
        for child in scan:
            if child.is_dir(follow_symlinks=False):
                folders.add(child.name)
            elif not child.name.lower().endswith(suffixes):
                continue
            names.append(child.name)
    return sorted(names), folders


def _regular(path: Path) -> BinaryIO:
    """Open a regular file. What is none is not waited for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")


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

    def walk(self, suffixes: tuple[str, ...], unwalked: set[str]) -> Iterator[tuple[str, str | None]]:
        for name, size in self.listing():
            if name.lower().endswith(suffixes) and not (unwalked and unwalked & set(_above(name))):
                yield name, "too_many_bytes" if size > Limits.max_bytes else None

    def size(self, name: str) -> int | None:
        """How many bytes an object has, None where there is none. Raises DataError."""
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
            except (FileNotFoundError, ValueError):
                return None

    def each(self, function: Callable[[_T], bytes | None], asked: Iterable[_T]) -> Iterator[bytes | None]:
        return ahead(function, asked)

    def part(self, name: str, start: int, size: int) -> bytes | None:
        with asked_of(self.root, "read"):
            try:
                data = bytes(obstore.get_range(self.store, name, start=start, length=size)) if size else b""
            except (FileNotFoundError, ValueError):
                return None
            except BaseError as error:
                if "416" in said(error):  # the object is shorter now
                    return None
                raise
        return data if len(data) == size else None

    def open(self, name: str) -> BinaryIO:
        try:
            size = self.size(name)
        except ValueError as error:
            raise DataError(f"{self.root}/{name} cannot be a key: {error}") from error
        if size is None:
            raise DataError(f"no object at {self.root}/{name}")
        return io.BufferedReader(_Ranges(self, name, size), _BUFFER)


class _Ranges(io.RawIOBase):
    """An object as a file: small reads through a window, large ones each by a request of that size."""

    def __init__(self, keys: Keys, name: str, size: int) -> None:
        self._keys, self._name, self._size = keys, name, size
        self._at, self._start, self._window = 0, 0, b""

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


def files_at(root: Location) -> Files:
    """The files of a folder or of an object store's prefix."""
    return Folder(root) if isinstance(root, Path) else Keys(root)


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
def asked_of(root: Location, doing: str) -> Iterator[None]:
    """What an object store answers, instead of what is asked of it, becomes a DataError that names the store."""
    try:
        yield
    except BaseError as error:
        raise DataError(
            f"cannot {doing} {root}: {said(error)}. Check the bucket's name, AWS_ENDPOINT_URL, AWS_REGION and the "
            "credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        ) from error


def said(error: BaseException) -> str:
    """An error of the object store, without its inner representation."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:400]


def as_uri(name: str) -> str:
    """A name as text that can be stored: percent-encoded, also where it is no text."""
    return quote(os.fsencode(name))


def as_name(uri: str) -> str:
    """The name that `as_uri` encoded."""
    return os.fsdecode(unquote_to_bytes(uri))


def matching(place: Location, suffix: str) -> tuple[Files, list[str]]:
    """The files that an option's path stands for: a file; all in a folder that end so; or those of a pattern.

    A pattern has *, ? and [] as in a shell, {000..099} for numbers and {a,b} for words. Names are sorted, but for
    braces, which keep their order. Raises DataError where nothing matches.
    """
    files, names = _literal(place, suffix) or _pattern(place)
    if not names:
        raise DataError(f"no *{suffix} at {place}; give a file, a folder of them, or a pattern such as part-*{suffix}")
    return files, names


def _literal(place: Location, suffix: str) -> tuple[Files, list[str]] | None:
    """A file, or the files in a folder; None for a pattern."""
    if isinstance(place, Path):
        if place.is_dir():
            return Folder(place), sorted(path.name for path in place.iterdir() if path.name.endswith(suffix))
        if place.exists() or not _SPECIAL.search(str(place)):
            return Folder(place.parent), [place.name] if place.exists() else []
        return None
    if _SPECIAL.search(place):
        return None
    above, name = Keys(parent_of(place)), name_of(place)
    if place.count("/") > 2 and above.size(name) is not None:
        return above, [name]
    files = Keys(place)
    return files, [name for name, _ in files.listing() if name.endswith(suffix) and "/" not in name]


def parent_of(place: str) -> str:
    """The prefix above, or the bucket itself."""
    return str(parent(place)) if place.count("/") > 2 else place


def _pattern(place: Location) -> tuple[Files, list[str]]:
    parts = str(place).split("/")
    fixed = next(i for i, part in enumerate(parts) if _SPECIAL.search(part))
    above = "/".join(parts[:fixed])
    files = Folder(Path(above or "/")) if isinstance(place, Path) else Keys(above)
    names: list[str] = []
    for wanted in expanded("/".join(parts[fixed:])):
        if re.search(r"[*?\[]", wanted):
            names += [name for name in _all_below(files, wanted) if name not in names]
        else:
            names.append(wanted)
    return files, names


def _all_below(files: Files, pattern: str) -> list[str]:
    if isinstance(files, Folder):
        root = Path(files.root)
        return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    assert isinstance(files, Keys)
    return [name for name, _ in files.listing() if _fits(name, pattern)]


def _fits(name: str, pattern: str) -> bool:
    names, patterns = name.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))


def expanded(pattern: str) -> list[str]:
    """The names that braces stand for.

    >>> expanded("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inner: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not numbers:
        return inner.split(",")
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") or last.startswith("0") else 0
    if not 0 <= int(last) - int(first) < 10**6:
        raise DataError(f"{{{inner}}} counts upwards, to a million names at most")
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _above(name: str) -> Iterator[str]:
    """The folders that a name is in."""
    return (str(folder) for folder in PurePosixPath(name).parents)
