"""Images in Parquet files: a column of encoded bytes (or Hugging Face's {bytes, path}), of labels, captions, masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt
from pydantic import Field

from audit.config import Frozen, LocalPath
from audit.datasets import Entry, printable
from audit.errors import DataError


class Options(Frozen):
    path: LocalPath = Field(description="a file, or a folder of *.parquet")
    image_column: str = "image"
    label_column: str | None = Field("label", description="ignored where the files lack it")
    name_column: str | None = Field("name", description="ignored where the files lack it")
    caption_column: str | None = Field("caption", description="of text; ignored where the files lack it")
    mask_column: str | None = Field(
        "mask",
        description="of images as in image_column, white where the object is; ignored where the files lack it",
    )
    limit: int | None = Field(None, ge=1, description="use the first so many rows")


class ParquetSource:
    """A uri is '<file>#<row>'."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._open: dict[str, tuple[str, int, int, pa.Array]] = {}

    def _paths(self) -> list[Path]:
        root = self.options.path
        paths = sorted(root.glob("*.parquet")) if root.is_dir() else [root] if root.is_file() else []
        if not paths:
            raise DataError(f"no Parquet file at {root}")
        return paths

    def entries(self) -> Iterator[Entry]:
        listed = 0
        for path in self._paths():
            file = self._file(path)
            asked = (self.options.label_column, self.options.name_column, self.options.caption_column)
            columns = [column for column in asked if column in file.schema_arrow.names]
            row = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                rows = table.to_pylist() if columns else [{}] * file.metadata.row_group(group).num_rows
                for values, masked in zip(rows, self._masked(file, group), strict=True):
                    if self.options.limit is not None and listed >= self.options.limit:
                        return
                    yield self._entry(f"{path.name}#{row}", values, masked)
                    row, listed = row + 1, listed + 1
        if not listed:
            raise DataError(f"no rows in {self.options.path}")

    def _entry(self, uri: str, values: dict[str | None, Any], masked: bool) -> Entry:
        label, caption = values.get(self.options.label_column), values.get(self.options.caption_column)
        return Entry(
            uri,
            printable(str(values.get(self.options.name_column) or uri)),
            None if label is None else printable(str(label)),
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
            _encoded(value) is not None for value in file.read_row_group(group, columns=[column])[column].to_pylist()
        ]

    def _file(self, path: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
        if self.options.image_column not in file.schema_arrow.names:
            raise DataError(
                f"{path} has no column {self.options.image_column!r}; it has {', '.join(file.schema_arrow.names)}. "
                "Name the column of encoded images with 'image_column'."
            )
        for option, fits, holds in (("caption_column", _is_text, "text"), ("mask_column", _is_image, "encoded images")):
            column = getattr(self.options, option)
            if column in file.schema_arrow.names and not fits(file.schema_arrow.field(column).type):
                raise DataError(
                    f"{path}: the column {column!r} holds {file.schema_arrow.field(column).type}, not {holds}. "
                    f"Name another column with {option!r}, or set it to null."
                )
        return file

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._cells(self.options.image_column, uris)

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._cells(self.options.mask_column, uris)

    def _cells(self, column: str | None, uris: Sequence[str]) -> Iterator[bytes | None]:
        for uri in uris:
            name, _, row = uri.rpartition("#")
            yield None if column is None else _encoded(self._value(column, name, int(row)))

    def _value(self, column: str, name: str, row: int) -> Any:
        """One cell; of each column the last row group read is kept, since units ask for neighbours."""
        held = self._open.get(column)
        if held is None or held[0] != name or not held[1] <= row < held[2]:
            held = self._row_group(column, name, row)
            if held is None:
                return None
            self._open[column] = held
        return held[3][row - held[1]].as_py()

    def _row_group(self, column: str, name: str, row: int) -> tuple[str, int, int, pa.Array] | None:
        """The file, first row, row after the last, and values of the row group that holds a row."""
        root = self.options.path
        file = self._file(root / name if root.is_dir() else root)
        if column not in file.schema_arrow.names:
            return None
        start = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if start <= row < start + count:
                values = file.read_row_group(group, columns=[column]).column(0)
                return name, start, start + count, values.combine_chunks()
            start += count
        return None


def _encoded(value: Any) -> bytes | None:
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pt.is_string, pt.is_large_string, pt.is_string_view, pt.is_null))


def _is_image(kind: pa.DataType) -> bool:
    if pt.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return any(test(kind) for test in (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_null))


def open_source(options: Options) -> ParquetSource:
    return ParquetSource(options)
