"""Images in a folder: a sub-folder per class, a metadata file, or a pattern in the file names."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from pydantic import Field

from audit.config import Frozen, LocalPath
from audit.datasets import Entry, printable
from audit.errors import ConfigError, DataError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jfif")
_METADATA = ("metadata.csv", "metadata.jsonl")


class Options(Frozen):
    path: LocalPath
    label_pattern: str | None = Field(
        None, description="regular expression; its first group in a file name is the label"
    )
    caption_column: str | None = Field("caption", description="of the metadata; ignored where it lacks it")
    mask_column: str | None = Field(
        "mask", description="of the metadata: paths in the folder, of images that are white where the object is"
    )
    limit: int | None = Field(None, ge=1, description="use the first so many images")


class _Told(NamedTuple):
    """What the metadata say of an image. `mask`: its path in the folder."""

    label: str | None
    caption: str | None
    mask: str | None


class FolderSource:
    """Labels come from `metadata.csv` / `metadata.jsonl` (columns `file_name`, `label`), else from
    `label_pattern`, else from the sub-folder that an image is in. Captions and masks come from the metadata. A uri
    is the path in the folder, percent-encoded, so that names that are no text can be stored and read again.

    Masks are no images of the data set: they are not listed, and a folder of masks is not walked unless it also
    holds images that the metadata name.
    """

    def __init__(self, options: Options) -> None:
        self.root, self.limit, self.options = options.path, options.limit, options
        try:
            self.pattern = re.compile(options.label_pattern) if options.label_pattern else None
        except re.error as error:
            raise ConfigError(
                f"label_pattern {options.label_pattern!r} is not a regular expression: {error}"
            ) from error

    def entries(self) -> Iterator[Entry]:
        if not self.root.is_dir():
            raise DataError(f"no folder of images at {self.root}")
        listed = 0
        for relative in self._all():
            if self.limit is not None and listed >= self.limit:
                return
            listed += 1
            told = self._told.get(relative) or _Told(self._label(relative), None, None)
            yield Entry(
                quote(os.fsencode(relative)),
                printable(relative),
                None if told.label is None else printable(told.label),
                self._reason(relative),
                None if told.caption is None else printable(told.caption),
                None if told.mask is None else quote(os.fsencode(told.mask)),
            )
        if not listed:
            raise DataError(f"no images in {self.root}; looked for {', '.join(_SUFFIXES)}")

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        for uri in uris:
            yield self._bytes(_path(uri))

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        for uri in uris:
            told = self._told.get(_path(uri))
            yield self._bytes(told.mask) if told and told.mask else None

    def _bytes(self, relative: str) -> bytes | None:
        if self._reason(relative):
            return None
        try:
            return (self.root / relative).read_bytes()
        except OSError:
            return None

    def _all(self) -> Iterator[str]:
        """What is there and no mask, then all else that the metadata name."""
        unlisted = dict.fromkeys(self._told)
        masks = {told.mask for told in self._told.values() if told.mask}
        unwalked = {os.path.dirname(mask) for mask in masks} - _folders(unlisted)
        for relative in self._walk("", unwalked):
            if relative in masks:
                continue
            unlisted.pop(relative, None)
            yield relative
        yield from unlisted

    def _walk(self, relative: str, unwalked: set[str]) -> Iterator[str]:
        """Files and sub-folders in sorted order; links to folders are not followed. A folder that cannot be listed
        stands for what is in it."""
        try:
            with os.scandir(self.root / relative) as scan:
                children = sorted(scan, key=lambda child: child.name)
        except OSError as error:
            if not relative:
                raise DataError(f"cannot list {self.root}: {error.strerror}") from error
            yield relative
            return
        for child in children:
            path = os.path.join(relative, child.name)
            if child.is_dir(follow_symlinks=False):
                if path not in unwalked:
                    yield from self._walk(path, unwalked)
            elif child.name.lower().endswith(_SUFFIXES):
                yield path

    def _reason(self, relative: str) -> str | None:
        """Why a file must not be opened: devices and pipes would block, links and names may lead outside."""
        path = self.root / relative
        try:
            if os.path.isabs(relative) or ".." in Path(relative).parts:
                return "name_out_of_root"
            if path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
                return "link_out_of_root"
            if not path.is_symlink() and path.is_dir():
                return "unreadable_folder"
            if not stat.S_ISREG(path.stat().st_mode):
                return "not_a_regular_file"
        except FileNotFoundError:
            return "unreadable" if path.is_symlink() else "missing"
        except (OSError, RuntimeError, ValueError):
            return "unreadable"
        return None

    def _label(self, relative: str) -> str | None:
        """The label of an image that the metadata do not name."""
        if self.pattern:
            match = self.pattern.search(os.path.basename(relative))
            return match.group(1 if self.pattern.groups else 0) if match else None
        parent = os.path.dirname(relative)
        return os.path.basename(parent) if parent else None

    @cached_property
    def _told(self) -> dict[str, _Told]:
        """What the metadata say, by path in the folder."""
        found: dict[str, _Told] = {}
        for metadata in _METADATA:
            path = self.root / metadata
            if path.is_file():
                for number, row in enumerate(_decoded(path), 1):
                    name = row.get("file_name")
                    if not isinstance(name, str):
                        raise DataError(f"{path}, row {number}: needs a column 'file_name', found {sorted(row)}")
                    mask = _text(row, self.options.mask_column)
                    found[os.path.normpath(name)] = _Told(
                        _text(row, "label"),
                        _text(row, self.options.caption_column),
                        None if mask is None else os.path.normpath(mask),
                    )
        return found


def _text(row: dict[str, object], column: str | None) -> str | None:
    value = row.get(column) if column else None
    return None if value in (None, "") else str(value)


def _path(uri: str) -> str:
    return os.fsdecode(unquote_to_bytes(uri))


def _folders(paths: Iterable[str]) -> set[str]:
    """The folders that hold these files, and those above them."""
    return {os.fspath(parent) for path in paths for parent in Path(path).parents}


def _decoded(path: Path) -> Iterator[dict[str, object]]:
    try:
        yield from _rows(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table in CSV: {error}") from error


def _rows(path: Path) -> Iterator[dict[str, object]]:
    with open(path, encoding="utf-8-sig", errors="strict", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is not a JSON object")
            yield row


def open_source(options: Options) -> FolderSource:
    return FolderSource(options)
