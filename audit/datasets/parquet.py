"""Images in Parquet files: a column of encoded bytes (or Hugging Face's {bytes, path}), and one of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from audit.config import Frozen, LocalPath
from audit.datasets import Entry, printable
from audit.errors import DataError


class Options(Frozen):
    path: LocalPath = Field(description="a file, or a folder of *.parquet")
    image_column: str = "image"
    label_column: str | None = Field("label", description="ignored where the files lack it")
    name_column: str | None = Field("name", description="ignored where the files lack it")
    limit: int | None = Field(None, ge=1, description="use the first so many rows")


class ParquetSource:
    """A uri is '<file>#<row>'."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._open: tuple[str, int, int, pa.Array] | None = None

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
            columns = [c for c in (self.options.label_column, self.options.name_column) if c in file.schema_arrow.names]
            row = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                for values in table.to_pylist() if columns else [{}] * file.metadata.row_group(group).num_rows:
                    if self.options.limit is not None and listed >= self.options.limit:
                        return
                    label = values.get(self.options.label_column)
                    name = values.get(self.options.name_column) or f"{path.name}#{row}"
                    yield Entry(
                        f"{path.name}#{row}", printable(str(name)), None if label is None else printable(str(label))
                    )
                    row, listed = row + 1, listed + 1
        if not listed:
            raise DataError(f"no rows in {self.options.path}")

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
        return file

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        for uri in uris:
            name, _, row = uri.rpartition("#")
            value = self._value(name, int(row))
            data = value.get("bytes") if isinstance(value, dict) else value
            yield data if isinstance(data, bytes) else None

    def _value(self, name: str, row: int) -> bytes | dict[str, bytes | None] | None:
        """One cell; the last row group read is kept, since units ask for neighbours."""
        if self._open is None or self._open[0] != name or not self._open[1] <= row < self._open[2]:
            root = self.options.path
            file = self._file(root / name if root.is_dir() else root)
            start = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if start <= row < start + count:
                    column = file.read_row_group(group, columns=[self.options.image_column]).column(0)
                    self._open = (name, start, start + count, column.combine_chunks())
                    break
                start += count
            else:
                return None
        assert self._open is not None
        return self._open[3][row - self._open[1]].as_py()


def open_source(options: Options) -> ParquetSource:
    return ParquetSource(options)
