"""Images in Parquet files: a column of encoded bytes (or Hugging Face's {bytes, path}), of labels, captions, masks.

Files are read by row groups and columns, from an object store too: nothing ever reads a whole file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt
from pydantic import Field

from audit.config import AnyPlace, Frozen
from audit.datasets import Entry, printable
from audit.datasets._files import Files, as_name, as_uri
from audit.datasets._places import matching
from audit.errors import DataError, DataUnavailable


class Options(Frozen):
    path: AnyPlace = Field(
        description="a file, a folder of *.parquet, or a pattern such as data/train-*.parquet; local or s3://bucket/..."
    )
    image_column: str = "image"
    label_column: str | None = Field(
        "label", description="ignored where the files lack it; numbers of a Hugging Face ClassLabel become its names"
    )
    name_column: str | None = Field("name", description="ignored where the files lack it")
    caption_column: str | None = Field("caption", description="of text; ignored where the files lack it")
    mask_column: str | None = Field(
        "mask",
        description="of images as in image_column, white where the object is; ignored where the files lack it",
    )
    limit: int | None = Field(None, ge=1, description="use the first so many rows")


class ParquetSource:
    """A uri is '<file>#<row>', the file's name percent-encoded."""

    def __init__(self, options: Options, places: tuple[Files, list[str]] | None = None) -> None:
        """`places`: the files, where they are not those of the option `path`."""
        self.options, self._given = options, places
        self._held: dict[str, tuple[str, int, int, pa.Array]] = {}
        self._opened: tuple[str, pq.ParquetFile] | None = None

    @cached_property
    def _places(self) -> tuple[Files, list[str]]:
        return self._given or matching(self.options.path, ".parquet")

    def classes(self) -> tuple[str, ...]:
        return ()

    def entries(self) -> Iterator[Entry]:
        listed = 0
        for name in self._places[1]:
            row, uri = 0, as_uri(name)
            for values in self._rows(name):
                if self.options.limit is not None and listed >= self.options.limit:
                    return
                yield self._entry(f"{uri}#{row}", *values)
                row, listed = row + 1, listed + 1
        if not listed:
            raise DataError(f"no rows in {self.options.path}")

    def _rows(self, name: str) -> Iterator[tuple[Any, Any, Any, bool]]:
        """Of each row the label, name and caption, and whether it has a mask."""
        file = self._file(name)
        asked = (self.options.label_column, self.options.name_column, self.options.caption_column)
        there = [column for column in asked if column in file.schema_arrow.names]
        classes = class_names(file.schema_arrow, self.options.label_column)
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=there)
                masked = self._masked(file, group)
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(f"{self._where(name)}, row group {group} cannot be read: {error}") from error
            labels, names, captions = (
                table[column].to_pylist() if column in there else repeat(None, len(masked)) for column in asked
            )
            if classes:
                labels = map(partial(class_of, classes), labels)
            yield from zip(labels, names, captions, masked, strict=True)

    def _entry(self, uri: str, label: Any, name: Any, caption: Any, masked: bool) -> Entry:
        return Entry(
            uri,
            printable(str(name or uri)),
            None if label is None or label != label else printable(str(label)),
            None,
            printable(caption) if caption else None,
            uri if masked else None,
        )

    def _masked(self, file: pq.ParquetFile, group: int) -> list[bool]:
        """Whether each row of a group has a mask; the masks are read only where the file does not count them."""
        metadata, column = file.metadata.row_group(group), self.options.mask_column
        places = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
        stored = places.get(f"{column}.bytes") or places.get(column)
        if column is None or stored is None:
            return [False] * metadata.num_rows
        counts = stored.statistics
        if counts is not None and counts.has_null_count and counts.null_count in (0, metadata.num_rows):
            return [counts.null_count == 0] * metadata.num_rows
        return [
            encoded(value) is not None for value in file.read_row_group(group, columns=[column])[column].to_pylist()
        ]

    def _where(self, name: str) -> str:
        return f"{self._places[0].root}/{name}"

    def _file(self, name: str) -> pq.ParquetFile:
        """The file used last stays open, since units ask for neighbours."""
        if self._opened is None or self._opened[0] != name:
            try:
                file = pq.ParquetFile(self._places[0].open(name))
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(f"{self._where(name)} is not a Parquet file that can be read: {error}") from error
            check_columns(file.schema_arrow, self.options, self._where(name))
            self._opened = name, file
        return self._opened[1]

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._cells(self.options.image_column, uris)

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._cells(self.options.mask_column, uris)

    def _cells(self, column: str | None, uris: Sequence[str]) -> Iterator[bytes | None]:
        for uri in uris:
            name, _, row = uri.rpartition("#")
            yield None if column is None else encoded(self._value(column, as_name(name), int(row)))

    def _value(self, column: str, name: str, row: int) -> Any:
        """One cell; of each column the last row group read is kept, since units ask for neighbours."""
        held = self._held.get(column)
        if held is None or held[0] != name or not held[1] <= row < held[2]:
            held = self._row_group(column, name, row)
            if held is None:
                return None
            self._held[column] = held
        return held[3][row - held[1]].as_py()

    def _row_group(self, column: str, name: str, row: int) -> tuple[str, int, int, pa.Array] | None:
        """The file, first row, row after the last, and values of the row group that holds a row; None where the file
        or the row is gone, or the group broken."""
        if name not in self._places[1]:
            return None
        file = self._file(name)
        if column not in file.schema_arrow.names:
            return None
        start = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if start <= row < start + count:
                try:
                    values = file.read_row_group(group, columns=[column]).column(0)
                except DataUnavailable:
                    self._opened = None  # opened anew, it may be read again
                    raise
                except (OSError, pa.ArrowInvalid):
                    return name, start, start + count, pa.nulls(count)
                return name, start, start + count, values.combine_chunks()
            start += count
        return None


def encoded(value: Any) -> bytes | None:
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None


def check_columns(schema: pa.Schema, options: Any, where: str) -> None:
    """Refuse a table without the image column, or with columns of another kind. Raises DataError.

    `options`: has `image_column`, `caption_column` and `mask_column`.
    """
    names = schema.names
    if options.image_column not in names:
        raise DataError(
            f"{where} has no column {options.image_column!r}; it has {', '.join(names)}. "
            "Name the column of encoded images with 'image_column'."
        )
    for option, fits, holds in (
        ("image_column", is_image, "encoded images"),
        ("caption_column", is_text, "text"),
        ("mask_column", is_image, "encoded images"),
    ):
        column = getattr(options, option)
        if column in names and not fits(schema.field(column).type):
            instead = "; a column of paths can be read by: source: csv" if option == "image_column" else ""
            nothing = ", or set it to null" if option != "image_column" else ""
            raise DataError(
                f"{where}: the column {column!r} holds {schema.field(column).type}, not {holds}. "
                f"Name another column with {option!r}{nothing}{instead}."
            )


def class_names(schema: pa.Schema, column: str | None) -> list[str]:
    """The names that a column's numbers stand for, where Hugging Face's `datasets` has written them into the file."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (ValueError, LookupError, TypeError):
        return []


def class_of(classes: Sequence[str], label: Any) -> Any:
    """The class that a number stands for, None where it stands for none; what is no number is a name by itself."""
    if not isinstance(label, int):
        return label
    return classes[label] if 0 <= label < len(classes) else None


def is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pt.is_string, pt.is_large_string, pt.is_string_view, pt.is_null))


def is_image(kind: pa.DataType) -> bool:
    if pt.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return any(test(kind) for test in (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_null))


def open_source(options: Options) -> ParquetSource:
    return ParquetSource(options)
