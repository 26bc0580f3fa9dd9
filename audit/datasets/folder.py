"""Images in a folder or below a prefix: a sub-folder per class, a metadata file, or a pattern in the file names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from audit.config import AnyPlace
from audit.datasets import Entry, printable
from audit.datasets._columns import PATHS, image_column, label_column
from audit.datasets._files import Keys, as_name, as_uri, files_at
from audit.datasets._labels import NONE, Label, label_of, named
from audit.datasets._levels import Level, Levels, folders_of, label_at
from audit.datasets._listed import ListedSource
from audit.datasets._notes import Notes
from audit.datasets._patience import is_file
from audit.datasets._sampling import Part
from audit.datasets._selection import READ, Selection
from audit.datasets._table import rows, text_of
from audit.errors import ConfigError, DataError
from audit.locations import child

_METADATA = ("metadata.csv", "metadata.jsonl")
_FILE_NAME = "file_name"


def _depth(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ValueError(f"{value} is not a depth; the folders directly below the root have depth 1")
    return value


class Options(Part):
    path: AnyPlace = Field(description="a folder, or s3://bucket/prefix")
    label_pattern: str | None = Field(
        None, description="regular expression; its first group in a file name is the label"
    )
    label_level: Annotated[Level, BeforeValidator(_depth)] | None = Field(
        None,
        description="the folder whose name is the label: parent (the one that contains the image), first (directly "
        "below the root), or its depth from 1; default: parent, with a warning if another one is plausible",
    )
    image_column: str = Field("file_name", description="of the metadata: paths in the folder")
    label_column: str | None = Field(
        "label", description="of the metadata; if missing, the only column with a similar name is used; null: none"
    )
    caption_column: str | None = Field("caption", description="of the metadata; ignored where it lacks it")
    mask_column: str | None = Field(
        "mask", description="of the metadata: paths in the folder, of images that are white where the object is"
    )
    follow_links: bool = Field(
        False, description="whether to follow links to folders, and links that lead out of the folder"
    )


class _Told(NamedTuple):
    """What the metadata say of an image. `label`: None where they have no column of labels. `mask`: its path in the
    folder."""

    label: Label | None
    caption: str | None
    mask: str | None


class FolderSource(ListedSource):
    """Labels come from `metadata.csv` / `metadata.jsonl` (columns `file_name`, `label`), else from
    `label_pattern`, else from the sub-folder that an image is in. Captions and masks come from the metadata. A uri
    is the path in the folder, percent-encoded, so that names that are no text can be stored and read again; after a
    '#' it is one that cannot be used.

    Masks are no images of the data set: they are not listed, and a folder of masks is not walked unless it also
    holds images that the metadata name. The metadata are held in memory, about 500 bytes a row; a `csv` source holds
    nothing.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.root, self.options = options.path, options
        self.files = files_at(options.path, options.follow_links)
        self._of_metadata = Notes()
        try:
            self.pattern = re.compile(options.label_pattern) if options.label_pattern else None
        except re.error as error:
            raise ConfigError(
                f"label_pattern {options.label_pattern!r} is not a regular expression: {error}"
            ) from error

    def _all(self) -> Iterator[Entry]:
        images = links = 0
        levels = Levels(self.options.label_level)
        self.notes.include(self._of_metadata_read())
        for relative, reason in self._files():
            links += reason == "linked_folder"
            images += reason != "linked_folder"
            if reason == "link_out_of_root":
                self.notes.count("links_out", relative)
            yield self._entry(relative, reason, levels)
        if not images:
            linked = f"; {links} folders in it are links: set follow_links: true to follow them" if links else ""
            left_out = "".join(f"; {warning.message}" for warning in self.notes.warnings() if not links)
            raise DataError(f"no images in {self.root}; looked for {', '.join(READ)}{linked}{left_out}")
        levels.say(self.notes)
        self.notes.missing_column = self.notes.missing_column or (
            "labels are read from names of sub-folders, from a column of metadata.csv, or from file names by "
            "'label_pattern'"
        )

    def _of_metadata_read(self) -> Notes:
        """What reading the metadata leaves unclear; they are read once."""
        _ = self._told
        return self._of_metadata

    def _entry(self, relative: str, reason: str | None, levels: Levels) -> Entry:
        told = self._told.get(relative)
        label = told.label if told and told.label is not None else self._label(relative, reason, levels)
        if told is None and reason is None and self._has_labels:
            self.notes.count("not_in_metadata", relative)
        unusable = None if reason else label.reason
        return Entry(
            f"#{as_uri(relative)}" if unusable else as_uri(relative),
            printable(relative),
            label.text,
            reason or unusable,
            printable(told.caption) if told and told.caption is not None else None,
            as_uri(told.mask) if told and told.mask is not None and not unusable else None,
        )

    def _label(self, relative: str, reason: str | None, levels: Levels) -> Label:
        """The label of an image of which the metadata say none."""
        if self.pattern:
            match = self.pattern.search(os.path.basename(relative))
            return label_of(match.group(1 if self.pattern.groups else 0) if match else None, self.notes)
        folders = folders_of(relative)
        if reason is None:
            levels.add(relative, folders)
        name = label_at(folders, self.options.label_level or "parent")
        return NONE if name is None else named(name, self.notes)

    def where(self, uri: str) -> str:
        return str(child(self.root, as_name(uri.removeprefix("#"))))

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        asked = [None if uri.startswith("#") else as_name(uri) for uri in uris]
        found = self.files.each(self.files.read, [name for name in asked if name is not None])
        return (None if name is None else next(found) for name in asked)

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        told = [self._told.get(as_name(uri)) for uri in uris]
        found = self.files.each(self.files.read, [one.mask for one in told if one and one.mask])
        return (next(found) if one and one.mask else None for one in told)

    def _files(self) -> Iterator[tuple[str, str | None]]:
        """What is there and no mask, then all else that the metadata name; and why it must not be opened."""
        unlisted = dict.fromkeys(self._told)
        masks = {told.mask for told in self._told.values() if told.mask}
        unwalked = {os.path.dirname(mask) for mask in masks} - _folders(unlisted)
        wanted = Selection(READ, self.notes, self.options.follow_links)
        for relative, reason in self.files.walk(wanted, unwalked):
            if relative in masks:
                continue
            unlisted.pop(relative, None)
            yield relative, reason
        for relative in unlisted:
            yield relative, self.files.reason(relative)

    @cached_property
    def _told(self) -> dict[str, _Told]:
        """What the metadata say, by path in the folder."""
        return {name: told for metadata in _METADATA if self._has(metadata) for name, told in self._rows(metadata)}

    @cached_property
    def _has_labels(self) -> bool:
        """Whether the metadata say labels."""
        return any(told.label is not None for told in self._told.values())

    def _has(self, name: str) -> bool:
        if isinstance(self.files, Keys):
            return self.files.size(name) is not None
        return is_file(os.path.join(self.root, name))

    def _rows(self, metadata: str) -> Iterator[tuple[str, _Told]]:
        where, known = str(child(self.root, metadata)), {}
        for number, row in rows(self.files.open(metadata), PurePosixPath(metadata).suffix, where):
            at, names = f"{where}, row {number}", tuple(row)
            if names not in known:  # rows of JSON may each have keys of their own
                known = {names: self._columns(names, at)}
            column, labels = known[names]
            name = row[column]
            if not isinstance(name, str):
                raise DataError(f"{at}: the column {column!r} holds {name!r}, not the path of an image")
            mask = text_of(row, self.options.mask_column, at)
            caption = text_of(row, self.options.caption_column, at)
            label = label_of(row[labels], self._of_metadata) if labels else None
            yield os.path.normpath(name), _Told(label, caption, None if mask is None else os.path.normpath(mask))

    def _columns(self, names: tuple[str, ...], where: str) -> tuple[str, str | None]:
        """The columns of paths and of labels."""
        options, notes = self.options, self._of_metadata
        image = image_column(options.image_column, names, PATHS, where=where, notes=notes, default=_FILE_NAME)
        others = [name for name in names if name != image]
        return image, label_column(options.label_column, others, where=where, notes=notes)


def _folders(paths: Iterable[str]) -> set[str]:
    """The folders that hold these files, and those above them."""
    return {os.fspath(parent) for path in paths for parent in PurePosixPath(path).parents}


def open_source(options: Options) -> FolderSource:
    return FolderSource(options)
