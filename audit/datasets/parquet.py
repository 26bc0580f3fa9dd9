"""Images in Parquet files: a column of encoded bytes (or Hugging Face's {bytes, path}), of labels, captions, masks.

Files are read by row groups and columns, from an object store too: nothing ever reads a whole file.
"""

from __future__ import annotations

import json
import posixpath
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from audit.config import AnyPlace
from audit.datasets import Entry, printable
from audit.datasets._columns import BYTES, IMAGE, LABEL, LABELS, find, folded, label_column, shown
from audit.datasets._encoded import cell_of, is_image, is_text
from audit.datasets._files import Files, as_name, as_uri
from audit.datasets._labels import Label, classes_of, label_of, named, normal, of_class
from audit.datasets._levels import SplitColumn, split_column, splits_of
from audit.datasets._listed import ListedSource
from audit.datasets._notes import Notes
from audit.datasets._places import matching
from audit.datasets._sampling import Part
from audit.errors import DataError, DataUnavailable
from audit.locations import child

_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = 2**27  # bytes of a column of a row group that are read at once; Arrow takes four times as much meanwhile
_ROWS = 8  # of a larger one
_BUFFER = 2**23  # bytes of a larger one that are fetched at once


class Options(Part):
    path: AnyPlace = Field(
        description="a file, a folder of *.parquet, or a pattern such as data/train-*.parquet; local or s3://bucket/..."
    )
    image_column: str = Field(
        "image", description="of encoded images; if missing, the only column that can hold images is used"
    )
    label_column: str | None = Field(
        "label",
        description="if missing, the only column with a similar name is used, or a folder such as label=cat; "
        "numbers of a Hugging Face ClassLabel become its names; null: no labels",
    )
    name_column: str | None = Field("name", description="ignored where the files lack it")
    caption_column: str | None = Field("caption", description="of text; ignored where the files lack it")
    mask_column: str | None = Field(
        "mask",
        description="of images as in image_column, white where the object is; ignored where the files lack it",
    )


@dataclass(frozen=True, slots=True)
class Columns:
    """Of one file. `names`: what the numbers of the label column stand for; empty where they stand for nothing."""

    image: str
    label: str | None
    names: list[str]


class ParquetSource(ListedSource):
    """A uri is '<file>#<row>', the file's name percent-encoded, with '!' after it for a row that cannot be used."""

    def __init__(self, options: Options, places: tuple[Files, list[str]] | None = None) -> None:
        """`places`: the files, where they are not those of the option `path`."""
        super().__init__(options)
        self.options, self._given = options, places
        self._held: dict[str, tuple[str, int, int, pa.Array]] = {}
        self._streams: dict[str, _Stream] = {}
        self._starts: tuple[str, list[int]] | None = None
        self._opened: tuple[str, pq.ParquetFile, Columns] | None = None

    @cached_property
    def _places(self) -> tuple[Files, list[str]]:
        return self._given or matching(self.options.path, ".parquet")

    def labels_expected(self) -> bool:
        return self.options.label_column is not None

    def classes(self) -> tuple[str, ...]:
        """The names of the first file's ClassLabel."""
        return classes_of(self._file(self._places[1][0])[1].names)

    def _all(self) -> Iterator[Entry]:
        self._opened, rows = None, 0  # so that what opening a file shows is noted in this listing
        splits_of(self._places[1], self.notes)
        splits = SplitColumn()
        for name in self._places[1]:
            self._add_splits(name, splits)
            for entry in self._entries(name):
                yield entry
                rows += 1
        splits.say(self.notes)
        if not rows:
            raise DataError(f"no rows in {self.options.path}")

    def _add_splits(self, name: str, splits: SplitColumn) -> None:
        file, columns = self._file(name)
        column = split_column(other for other in file.schema_arrow.names if other not in (columns.image, columns.label))
        if column is None or not is_text(file.schema_arrow.field(column).type):
            return
        try:
            for batch in file.iter_batches(columns=[column]):
                for value in batch.column(0).unique().to_pylist():
                    splits.add(column, value)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{self._where(name)}: the column {column!r} cannot be read: {error}") from error

    def _entries(self, name: str) -> Iterator[Entry]:
        uri, row = as_uri(name), 0
        file, columns = self._file(name)
        partition = self._partition(name) if columns.label is None else None
        for group in range(file.num_row_groups):
            for value, title, caption, masked, path in self._rows(name, group):
                if partition is not None:
                    label = partition
                else:
                    label = of_class(columns.names, value, self.notes) if columns.names else label_of(value, self.notes)
                yield self._entry(f"{uri}#{row}", label, (title, caption), masked, self._reason(name, path))
                row += 1

    def _entry(self, uri: str, label: Label, texts: tuple[Any, Any], masked: bool, reason: str | None) -> Entry:
        """`texts`: name and caption."""
        name, caption = texts
        used = f"{uri}!" if label.reason else uri
        return Entry(
            used,
            printable(str(name or uri)),
            label.text,
            reason or label.reason,
            printable(caption) if caption else None,
            used if masked and not label.reason else None,
        )

    def _rows(self, name: str, group: int) -> Iterator[tuple[Any, Any, Any, bool, str | None]]:
        """Of each row of a group the label, name and caption, whether it has a mask, and the path of its image where
        the file holds no bytes of any."""
        file, columns = self._file(name)
        asked = (columns.label, self.options.name_column, self.options.caption_column)
        there = [column for column in asked if column in file.schema_arrow.names]
        try:
            table = file.read_row_group(group, columns=there)
            masked = self._masked(file, group)
            paths = self._paths(file, columns.image, group)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{self._where(name)}, row group {group} cannot be read: {error}") from error
        labels, names, captions = (
            table[column].to_pylist() if column in there else repeat(None, len(masked)) for column in asked
        )
        yield from zip(labels, names, captions, masked, paths, strict=True)

    def _masked(self, file: pq.ParquetFile, group: int) -> list[bool]:
        """Whether each row of a group has a mask; the masks are read only where the file does not count them."""
        count, column = file.metadata.row_group(group).num_rows, self.options.mask_column
        if column is None or column not in file.schema_arrow.names:
            return [False] * count
        nulls = _nulls(file, group, column)
        if nulls in (0, count):
            return [nulls == 0] * count
        values = file.read_row_group(group, columns=[column])[column]
        return [cell_of(value).data is not None for value in values]

    def _paths(self, file: pq.ParquetFile, column: str, group: int) -> list[str | None]:
        """The paths of a group's images, where it is known without reading them that it has no bytes of any."""
        count, kind = file.metadata.row_group(group).num_rows, file.schema_arrow.field(column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return [None] * count
        if kind.get_field_index("bytes") >= 0 and _nulls(file, group, column) != count:
            return [None] * count
        values = file.read_row_group(group, columns=[f"{column}.path"])[column]
        return [value["path"].as_py() if value.is_valid else None for value in values]

    def _reason(self, name: str, path: str | None) -> str | None:
        return self._places[0].reason(self._beside(name, path)) if path else None

    def _beside(self, name: str, path: str) -> str:
        """The name of a file that a row of a Parquet file names: relative to that file, or absolute in the root."""
        root = str(self._places[0].root)
        if path.startswith(f"{root}/"):
            return path.removeprefix(f"{root}/")
        return path if path.startswith("/") else posixpath.normpath(posixpath.join(posixpath.dirname(name), path))

    def _partition(self, name: str) -> Label | None:
        """The label that a folder such as 'label=cat' says."""
        asked = self.options.label_column
        pairs = [part.partition("=")[::2] for part in PurePosixPath(name).parts[:-1] if "=" in part]
        fits = [value for key, value in pairs if key == asked]
        if not fits and asked == LABEL:
            fits = [value for key, value in pairs if folded(key) in LABELS]
        if len(fits) != 1:
            return None
        if fits[0] == _NO_PARTITION:
            return Label()
        label = named(unquote(fits[0]), self.notes)
        self.notes.count("labels_from_partitions", str(label.text), self._file(name)[0].metadata.num_rows)
        return label

    def _where(self, name: str) -> str:
        return str(child(self._places[0].root, name))

    def _file(self, name: str) -> tuple[pq.ParquetFile, Columns]:
        """The file used last stays open, since units ask for neighbours."""
        if self._opened is None or self._opened[0] != name:
            try:
                file = pq.ParquetFile(self._places[0].open(name))
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(f"{self._where(name)} is not a Parquet file that can be read: {error}") from error
            asked = None if self._partition_names(name) else self.options.label_column
            columns = columns_of(file.schema_arrow, self.options, self._where(name), self.notes, asked=asked)
            self._opened = name, file, columns
        return self._opened[1], self._opened[2]

    def _partition_names(self, name: str) -> bool:
        """Whether the folders of a file say its label, so that it needs no column."""
        keys = [part.partition("=")[0] for part in PurePosixPath(name).parts[:-1] if "=" in part]
        asked = self.options.label_column
        return asked is not None and any(key == asked or (asked == LABEL and folded(key) in LABELS) for key in keys)

    def where(self, uri: str) -> str:
        name, _, row = uri.rpartition("#")
        return f"{self._where(as_name(name))}, row {row.rstrip('!')}"

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        for uri in uris:
            name, _, row = uri.rpartition("#")
            yield self._image(as_name(name), row)

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        column = self.options.mask_column
        for uri in uris:
            name, _, row = uri.rpartition("#")
            usable = column is not None and row.isdecimal()
            yield self._value(column, as_name(name), int(row)) if column is not None and usable else None

    def _image(self, name: str, row: str) -> bytes | None:
        """The bytes of an image. Of a row that cannot be used, and of a file that is gone, None."""
        if not row.isdecimal() or name not in self._places[1]:
            return None
        return self._value(self._file(name)[1].image, name, int(row))

    def _value(self, column: str, name: str, row: int) -> bytes | None:
        """The bytes of one cell, or of the file that it names; of each column the last row group read, or the last part
        of a large one, is kept, since units ask for neighbours."""
        held = self._held.get(column)
        if held is None or held[0] != name or not held[1] <= row < held[2]:
            held = self._row_group(column, name, row)
            if held is None:
                return None
            self._held[column] = held
        cell = cell_of(held[3][row - held[1]])
        return self._places[0].read(self._beside(name, cell.path)) if cell.path else cell.data

    def _row_group(self, column: str, name: str, row: int) -> tuple[str, int, int, pa.Array] | None:
        """The file, first row, row after the last, and values of the row group that holds a row, or of a part of it
        where the whole would take too much memory; None where the file or the row is gone, nulls where the group is
        broken."""
        if name not in self._places[1]:
            return None
        file = self._file(name)[0]
        if column not in file.schema_arrow.names or not row < file.metadata.num_rows:
            return None
        starts = self._starts_of(name, file)
        group = bisect_right(starts, row) - 1
        start, stop = starts[group], starts[group + 1]
        try:
            if _bytes_of(file, group, column) > _WHOLE:
                return name, *self._streamed(column, name, group, start, row)
            return name, start, stop, file.read_row_group(group, columns=[column]).column(0).combine_chunks()
        except DataUnavailable:
            self._opened = None  # opened anew, it may be read again
            self._streams.pop(column, None)
            raise
        except (OSError, pa.ArrowInvalid):
            self._streams.pop(column, None)
            return name, start, stop, pa.nulls(stop - start)

    def _starts_of(self, name: str, file: pq.ParquetFile) -> list[int]:
        """The first row of each row group of a file, and how many rows there are."""
        if self._starts is None or self._starts[0] != name:
            counts = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            self._starts = name, list(accumulate(counts, initial=0))
        return self._starts[1]

    def _streamed(self, column: str, name: str, group: int, start: int, row: int) -> tuple[int, int, pa.Array]:
        """The first row, the row after the last, and the values of the part of a large row group that holds a row. The
        group is read on from where it was left, since units ask for rows in their order; else from its beginning."""
        stream = self._streams.get(column)
        if stream is None or (stream.name, stream.group) != (name, group) or row < stream.next:
            self._streams.pop(column, None)  # lets go of what it has decoded
            del stream
            pa.default_memory_pool().release_unused()
            file = pq.ParquetFile(self._places[0].open(name), buffer_size=_BUFFER, pre_buffer=False)
            batches = file.iter_batches(_ROWS, row_groups=[group], columns=[column], use_threads=False)
            stream = self._streams[column] = _Stream(name, group, start, batches)
        for batch in stream.batches:
            first, stream.next = stream.next, stream.next + len(batch)
            if row < stream.next:
                return first, stream.next, batch.column(0)
        raise pa.ArrowInvalid(f"row group {group} ends before row {row}")


@dataclass
class _Stream:
    """A row group that is read part by part. `next`: the first row that was not read yet."""

    name: str
    group: int
    next: int
    batches: Iterator[pa.RecordBatch]


def _bytes_of(file: pq.ParquetFile, group: int, column: str) -> int:
    """How many bytes a column of a row group has, uncompressed."""
    metadata = file.metadata.row_group(group)
    parts = (metadata.column(i) for i in range(metadata.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _nulls(file: pq.ParquetFile, group: int, column: str) -> int | None:
    """How many images of a row group have no bytes; None where the file does not say."""
    metadata = file.metadata.row_group(group)
    places = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
    stored = places.get(f"{column}.bytes") or places.get(column)
    counts = stored.statistics if stored is not None else None
    return counts.null_count if counts is not None and counts.has_null_count else None


def columns_of(schema: pa.Schema, options: Any, where: str, notes: Notes, *, asked: str | None) -> Columns:
    """The columns of a table of images. `options`: has `image_column`, `caption_column` and `mask_column`; `asked`: the
    column of labels.

    Raises DataError where there is no column of images, or where one is of another kind.
    """
    kinds = list(zip(schema.names, schema.types, strict=True))
    image = _image_column(kinds, options.image_column, where, notes)
    for option, column, fits, holds in (
        ("image_column", image, is_image, "encoded images"),
        ("caption_column", options.caption_column, is_text, "text"),
        ("mask_column", options.mask_column, is_image, "encoded images"),
    ):
        wrong = [kind for name, kind in kinds if name == column and not fits(kind)]
        if wrong:
            nothing = ", or set it to null" if option != "image_column" else ""
            raise DataError(
                f"{where}: the column {column!r} holds {wrong[0]}, not {holds}. "
                f"Name another column with {option!r}{nothing}."
            )
    label = label_column(asked, [name for name in schema.names if name != image], where=where, notes=notes)
    names = class_names(schema, label)
    if len({normal(name) for name in names}) < len(names):
        twice = next(name for i, name in enumerate(names) if normal(name) in map(normal, names[:i]))
        notes.say("class_twice", f"{where} names two classes {twice!r}, which cannot be told apart")
    return Columns(image, label, names)


def _image_column(kinds: list[tuple[str, pa.DataType]], asked: str, where: str, notes: Notes) -> str:
    """The column of images: the one asked for, else one named like it, else the only one of such a type."""
    names = [name for name, _ in kinds]
    fits = [name for name, kind in kinds if is_image(kind)]
    default = asked == IMAGE
    among = names if asked in names else fits
    found = find(asked, default, among, BYTES, option="image_column", where=where, notes=notes)
    only = [name for name, kind in kinds if is_image(kind) and not is_text(kind)]
    if found is None and default and len(only) == 1:
        found = find(asked, True, only, frozenset(map(folded, only)), option="image_column", where=where, notes=notes)
    if found is None:
        raise DataError(
            f"{where} has no column {asked!r}; it has {shown(names)}. Name the column of encoded images with "
            "'image_column'."
        )
    return found


def class_names(schema: pa.Schema, column: str | None) -> list[str]:
    """The names that a column's numbers stand for, where Hugging Face's `datasets` has written them into the file."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = features[column]
        found = found.get("feature", found) if isinstance(found, dict) else found
        return [str(name) for name in found["names"]]
    except (ValueError, LookupError, TypeError):
        return []


def open_source(options: Options) -> ParquetSource:
    return ParquetSource(options)
