"""Reading from a file system that may fail for a moment, so that its faults are not taken for faults of an image.

What says something of the file that was asked for (it is not there, may not be read, is a folder, has a name that is
too long) is an OSError, and its reader's to judge. Every other error, of a network file system that is away, of a
process out of descriptors or a machine out of memory, may pass: it is tried again, and then a DataUnavailable.

EIO is among these, though a bad sector gives it for one file for ever: network file systems and cloud disks answer it
while they are away, and to lose good images without a word is worse than to stop and name the file.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from audit.errors import DataUnavailable

PAUSES = (0.1, 0.5, 2.0)  # seconds between tries
_OF_THE_FILE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL),
    *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.EOVERFLOW),
}
_MORE = 2**20
_T = TypeVar("_T")


def may_pass(error: OSError) -> bool:
    """Whether an error says nothing of the file; one without a number is a reader's own and does."""
    return error.errno is not None and error.errno not in _OF_THE_FILE


def patiently(where: object, action: Callable[[], _T]) -> _T:
    """What an action gives, tried again while its error may pass. Raises DataUnavailable, which names the place,
    where it does not pass, and other OSErrors as they are."""
    for pause in (*PAUSES, None):
        try:
            return action()
        except OSError as error:
            if not may_pass(error):
                raise
            if pause is None:
                raise unavailable(where, error) from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def unavailable(where: object, error: OSError) -> DataUnavailable:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        works = "Allow more open files (ulimit -n), then go on"
    else:
        works = (
            "Go on when its file system answers again; a file that fails for ever, as on a bad sector, has to be "
            "replaced or removed first"
        )
    tries = len(PAUSES) + 1
    return DataUnavailable(f"cannot read {where} now: {error.strerror or error}, after {tries} tries. {works}")


def status_of(path: str | Path) -> os.stat_result | None:
    """What a path leads to; None where it leads nowhere or may not be followed. Raises DataUnavailable."""
    try:
        return patiently(path, lambda: os.stat(path))
    except (OSError, ValueError):
        return None


def is_folder(path: str | Path) -> bool:
    found = status_of(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | Path) -> bool:
    found = status_of(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def real(path: str | Path) -> Path:
    """A path without links. What is not there stays as it is named. Raises OSError where that cannot be told, since a
    link that is not recognised would be taken for what it is not."""
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        if may_pass(error):
            raise
        return Path(os.path.realpath(path))


def children(folder: Path, suffixes: tuple[str, ...] = ("",)) -> tuple[list[str], set[str]]:
    """The sorted names of sub-folders and of files with these suffixes in a folder, and which are sub-folders. Raises
    DataUnavailable, and OSError where the folder is none or may not be listed."""
    return patiently(folder, lambda: _children(folder, suffixes))


def _children(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[str], set[str]]:
    names, folders = [], set()
    with os.scandir(folder) as scan:
        for child in scan:
            if child.is_dir(follow_symlinks=False):
                folders.add(child.name)
            elif not child.name.lower().endswith(suffixes):
                continue
            names.append(child.name)
    return sorted(names), folders


def regular(path: Path) -> BinaryIO:
    """Open a regular file. What is none is not waited for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=0)


def whole(path: Path) -> bytes:
    """What a regular file holds. Raises OSError."""
    with regular(path) as file:
        data = part(file, 0, os.fstat(file.fileno()).st_size)
        while more := part(file, len(data), _MORE):  # it has grown, or its file system does not tell sizes
            data += more
        return data


def part(file: BinaryIO, start: int, size: int) -> bytes:
    """So many bytes of a file, fewer only at its end. Raises OSError."""
    pieces: list[bytes] = []
    while size > 0 and (piece := os.pread(file.fileno(), size, start)):
        pieces.append(piece)
        start, size = start + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
