"""Images in a folder or below a prefix: a sub-folder per class, a metadata file, or a pattern in the file names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import Field

from audit.config import AnyPlace, Frozen
from audit.datasets import Entry, printable
from audit.datasets._files import Keys, as_name, as_uri, files_at
from audit.datasets._patience import is_file
from audit.datasets._table import rows, text_of
from audit.errors import ConfigError, DataError
from audit.locations import child

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jfif")
_METADATA = ("metadata.csv", "metadata.jsonl")


class Options(Frozen):
    path: AnyPlace = Field(description="a folder, or s3://bucket/prefix")
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
    holds images that the metadata name. The metadata are held in memory, about 500 bytes a row; a `csv` source holds
    nothing.
    """

    def __init__(self, options: Options) -> None:
        self.root, self.limit, self.options = options.path, options.limit, options
        self.files = files_at(options.path)
        try:
            self.pattern = re.compile(options.label_pattern) if options.label_pattern else None
        except re.error as error:
            raise ConfigError(
                f"label_pattern {options.label_pattern!r} is not a regular expression: {error}"
            ) from error

    def classes(self) -> tuple[str, ...]:
        return ()

    def entries(self) -> Iterator[Entry]:
        listed = 0
        for relative, reason in self._all():
            if self.limit is not None and listed >= self.limit:
                return
            listed += 1
            told = self._told.get(relative) or _Told(self._label(relative), None, None)
            yield Entry(
                as_uri(relative),
                printable(relative),
                None if told.label is None else printable(told.label),
                reason,
                None if told.caption is None else printable(told.caption),
                None if told.mask is None else as_uri(told.mask),
            )
        if not listed:
            raise DataError(f"no images in {self.root}; looked for {', '.join(_SUFFIXES)}")

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self.files.each(self.files.read, map(as_name, uris))

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        told = [self._told.get(as_name(uri)) for uri in uris]
        found = self.files.each(self.files.read, [one.mask for one in told if one and one.mask])
        return (next(found) if one and one.mask else None for one in told)

    def _all(self) -> Iterator[tuple[str, str | None]]:
        """What is there and no mask, then all else that the metadata name; and why it must not be opened."""
        unlisted = dict.fromkeys(self._told)
        masks = {told.mask for told in self._told.values() if told.mask}
        unwalked = {os.path.dirname(mask) for mask in masks} - _folders(unlisted)
        for relative, reason in self.files.walk(_SUFFIXES, unwalked):
            if relative in masks:
                continue
            unlisted.pop(relative, None)
            yield relative, reason
        for relative in unlisted:
            yield relative, self.files.reason(relative)

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
        return {name: told for metadata in _METADATA if self._has(metadata) for name, told in self._rows(metadata)}

    def _has(self, name: str) -> bool:
        if isinstance(self.files, Keys):
            return self.files.size(name) is not None
        return is_file(os.path.join(self.root, name))

    def _rows(self, metadata: str) -> Iterator[tuple[str, _Told]]:
        where = str(child(self.root, metadata))
        for number, row in rows(self.files.open(metadata), PurePosixPath(metadata).suffix, where):
            name, at = row.get("file_name"), f"{where}, row {number}"
            if not isinstance(name, str):
                raise DataError(f"{at}: needs a column 'file_name', found {sorted(row)}")
            mask = text_of(row, self.options.mask_column, at)
            caption = text_of(row, self.options.caption_column, at)
            told = _Told(text_of(row, "label", at), caption, None if mask is None else os.path.normpath(mask))
            yield os.path.normpath(name), told


def _folders(paths: Iterable[str]) -> set[str]:
    """The folders that hold these files, and those above them."""
    return {os.fspath(parent) for path in paths for parent in PurePosixPath(path).parents}


def open_source(options: Options) -> FolderSource:
    return FolderSource(options)
