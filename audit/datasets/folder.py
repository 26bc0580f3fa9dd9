"""Images in a folder: a sub-folder per class, a metadata file, or a pattern in the file names."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
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
    limit: int | None = Field(None, ge=1, description="use the first so many images")


class FolderSource:
    """Labels come from `metadata.csv` / `metadata.jsonl` (columns `file_name`, `label`), else from
    `label_pattern`, else from the sub-folder that an image is in. A uri is the path in the folder,
    percent-encoded, so that names that are no text can be stored and read again."""

    def __init__(self, options: Options) -> None:
        self.root, self.limit = options.path, options.limit
        try:
            self.pattern = re.compile(options.label_pattern) if options.label_pattern else None
        except re.error as error:
            raise ConfigError(
                f"label_pattern {options.label_pattern!r} is not a regular expression: {error}"
            ) from error

    def entries(self) -> Iterator[Entry]:
        if not self.root.is_dir():
            raise DataError(f"no folder of images at {self.root}")
        labels = self._metadata()
        listed = 0
        for relative in self._all(labels):
            if self.limit is not None and listed >= self.limit:
                return
            listed += 1
            label = self._label(relative, labels)
            yield Entry(
                quote(os.fsencode(relative)),
                printable(relative),
                None if label is None else printable(label),
                self._reason(relative),
            )
        if not listed:
            raise DataError(f"no images in {self.root}; looked for {', '.join(_SUFFIXES)}")

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        for uri in uris:
            relative = os.fsdecode(unquote_to_bytes(uri))
            if self._reason(relative):
                yield None
                continue
            try:
                yield (self.root / relative).read_bytes()
            except OSError:
                yield None

    def _all(self, named: dict[str, str | None]) -> Iterator[str]:
        """What is there, then what the metadata names and is not."""
        missing = dict.fromkeys(named)
        for relative in self._walk(""):
            missing.pop(relative, None)
            yield relative
        yield from missing

    def _walk(self, relative: str) -> Iterator[str]:
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
                yield from self._walk(path)
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
        except (OSError, RuntimeError):
            return "unreadable"
        return None

    def _label(self, relative: str, labels: dict[str, str | None]) -> str | None:
        if relative in labels:
            return labels[relative]
        if self.pattern:
            match = self.pattern.search(os.path.basename(relative))
            return match.group(1 if self.pattern.groups else 0) if match else None
        parent = os.path.dirname(relative)
        return os.path.basename(parent) if parent else None

    def _metadata(self) -> dict[str, str | None]:
        labels: dict[str, str | None] = {}
        for metadata in _METADATA:
            path = self.root / metadata
            if path.is_file():
                for number, row in enumerate(_decoded(path), 1):
                    name = row.get("file_name")
                    if not isinstance(name, str):
                        raise DataError(f"{path}, row {number}: needs a column 'file_name', found {sorted(row)}")
                    label = row.get("label")
                    labels[os.path.normpath(name)] = None if label in (None, "") else str(label)
        return labels


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
