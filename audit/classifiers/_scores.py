"""Read tables of predictions, CSV or Parquet, in batches, and keep the most probable classes of each row."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pyarrow.types as pt
from numpy.typing import NDArray

from audit.errors import ModelError, unknown
from audit.separators import separator_of

KINDS = (".csv", ".tsv", ".parquet")
TOP = 5
SUM_TOLERANCE = 0.01
PERCENT_TOLERANCE = 1
SETTING = "'scores: {}'"
BATCH = 10_000
_EMPTY = frozenset(pacsv.ConvertOptions().null_values)
Scale = Literal["auto", "probabilities", "logits"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreTable:
    """A file of predictions. `columns`: its names in order, without spaces around them."""

    path: Path
    columns: tuple[str, ...]
    numeric: frozenset[str]

    def batches(self, texts: Sequence[str], numbers: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns of the file, `texts` as text, `numbers` as float64. Raises ModelError naming what is wrong."""
        try:
            if self.path.suffix == ".parquet":
                yield from _parquet(self.path, self.columns, texts, numbers)
            else:
                yield from _csv(self.path, self.columns, texts, numbers)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise ModelError(f"{self.path} cannot be read: {error}") from error


def open_table(path: Path) -> ScoreTable:
    """Read the header of a file. `numeric`: columns of numbers; of text, those whose first filled cell is a number.

    Raises ModelError if the file is not a table, or has a column twice.
    """
    try:
        columns, numeric = _parquet_header(path) if path.suffix == ".parquet" else _csv_header(path)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, csv.Error) as error:
        raise ModelError(f"{path} cannot be read as a table: {error}") from error
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ModelError(f"{path} has {_described(twice[0])} twice")
    return ScoreTable(path, tuple(columns), frozenset(numeric))


def _described(column: str) -> str:
    return f"the column {column!r}" if column else "a column without a name"


def _parquet_header(path: Path) -> tuple[list[str], list[str]]:
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    numeric = {f.name for f in schema if pt.is_floating(f.type) or pt.is_integer(f.type) or pt.is_decimal(f.type)}
    texts = [field.name for field in schema if pt.is_string(field.type) or pt.is_large_string(field.type)]
    for batch in file.iter_batches(BATCH, columns=texts) if texts else ():
        numeric |= {name for name in texts if _resembles_number(next(filter(None, batch[name].to_pylist()), ""))}
        break
    return [name.strip() for name in schema.names], [name.strip() for name in schema.names if name in numeric]


def _csv_header(path: Path) -> tuple[list[str], list[str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=_separator(path))
        columns = [name.strip() for name in next(lines, [])]
        numeric: dict[int, bool] = {}
        empty = list(range(len(columns)))  # columns without a filled cell so far
        for line in lines:
            numeric |= {i: _resembles_number(line[i]) for i in empty if i < len(line) and line[i].strip()}
            empty = [i for i in empty if i not in numeric]
            if not empty:
                break
    if not columns:
        raise ModelError(f"{path} is empty: its first line names the columns")
    return columns, [name for i, name in enumerate(columns) if numeric.get(i)]


def _resembles_number(cell: str) -> bool:
    """Whether a cell is a number, or one in a spelling that `_no_number` explains."""
    return _is_number(cell.strip().removesuffix("%").replace(",", "."))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _separator(path: Path) -> str:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return separator_of(file.readline(), path.suffix)


def _csv(path: Path, columns: Sequence[str], texts: Sequence[str], numbers: Sequence[str]) -> Iterator[pa.RecordBatch]:
    types = {name: pa.string() for name in texts} | {name: pa.float64() for name in numbers}
    try:
        yield from pacsv.open_csv(
            path,
            pacsv.ReadOptions(column_names=list(columns), skip_rows=1, block_size=2**22),
            pacsv.ParseOptions(delimiter=_separator(path), newlines_in_values=True),
            pacsv.ConvertOptions(column_types=types, include_columns=[*types], strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        _refuse_text(path, columns, numbers)
        raise


def _refuse_text(path: Path, columns: Sequence[str], numbers: Sequence[str]) -> None:
    """Raise ModelError naming the first cell of a CSV file, among the columns of numbers, that is no number."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = (row for row in csv.reader(file, delimiter=_separator(path)) if row)
        next(lines, [])
        for number, row in enumerate(lines, 1):
            if len(row) != len(columns):
                return
            for name, cell in zip(columns, row, strict=True):
                if name in numbers and cell not in _EMPTY and not _is_number(cell):
                    raise ModelError(f"{path}, row {number}: {_no_number(name, cell)}")


def _no_number(column: str, cell: str) -> str:
    said = f"{column!r} holds {cell[:40]!r}, which is not a number. "
    if cell.rstrip().endswith("%"):
        return said + "Write shares instead of percentages, such as 0.524 for 52.4 %"
    if "," in cell:
        return said + "Write a decimal point instead of a comma, such as 0.524"
    return said + "Write a number such as 0.524, or leave the cell empty if the number is unknown"


def _parquet(
    path: Path, columns: Sequence[str], texts: Sequence[str], numbers: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(path)
    own = dict(zip(columns, file.schema_arrow.names, strict=True))
    wanted, start = [*texts, *numbers], 0
    for batch in file.iter_batches(BATCH, columns=[own[name] for name in wanted]):
        arrays = [batch.column(batch.schema.get_field_index(own[name])) for name in wanted]
        cast = [_as_text(array) for array in arrays[: len(texts)]]
        cast += [
            _as_numbers(array, name, path, start) for name, array in zip(numbers, arrays[len(texts) :], strict=True)
        ]
        start += batch.num_rows
        yield pa.record_batch(cast, names=wanted)


def _as_numbers(array: pa.Array, column: str, path: Path, start: int) -> pa.Array:
    try:
        return pc.cast(array, pa.float64())
    except pa.ArrowInvalid:
        for i, cell in enumerate(array.to_pylist()):
            if isinstance(cell, str) and not _is_number(cell):
                raise ModelError(f"{path}, row {start + i + 1}: {_no_number(column, cell)}") from None
        raise


def _as_text(array: pa.Array) -> pa.Array:
    """Convert text and numbers to text; lists are unchanged."""
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array if _is_list(array.type) else pc.cast(array, pa.string())


def _is_list(kind: pa.DataType) -> bool:
    return pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)


def matrix(batch: pa.RecordBatch, columns: Sequence[str]) -> Floats:
    """Columns of numbers as (rows, columns); NaN where a cell is empty."""
    return np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in columns], 1).astype(np.float64)


def width_of(batch: pa.RecordBatch, column: str) -> int:
    """Length of the first list in a column; 0 if there is none."""
    none: list[float] = []
    first = next((value for value in batch.column(column).to_pylist() if value), none)
    return first.count(",") + 1 if isinstance(first, str) else len(first)


def listed(
    batch: pa.RecordBatch, column: str, count: int, where: Callable[[int], str], expected: str = "one per class name"
) -> Floats:
    """A column of lists, or of JSON lists, as an array (rows, count); NaN in rows without a list.

    Raises ModelError for a list of another length.
    """
    array = batch.column(column)
    if _is_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), count).to_numpy(zero_copy_only=False)
        _check_lengths(lengths, column, count, where, expected)
        held = np.full((len(array), count), np.nan)
        there = array.is_valid().to_numpy(zero_copy_only=False)
        values = pc.cast(pc.list_flatten(array), pa.float64()).to_numpy(zero_copy_only=False)
        held[there] = values.reshape(-1, count)
        return held
    rows = [_numbers(text, where(i), column) if text else [np.nan] * count for i, text in enumerate(array.to_pylist())]
    _check_lengths([len(row) for row in rows], column, count, where, expected)
    return np.array(rows, np.float64).reshape(-1, count)


def _check_lengths(lengths: Any, column: str, count: int, where: Callable[[int], str], expected: str) -> None:
    wrong = np.flatnonzero(np.asarray(lengths) != count)
    if len(wrong):
        i = int(wrong[0])
        raise ModelError(f"{where(i)}: {column!r} holds {lengths[i]} numbers; expected {count}, {expected}")


def _numbers(text: str, where: str, column: str) -> list[float]:
    try:
        values = [np.nan if value is None else float(value) for value in json.loads(text.replace("nan", "NaN"))]
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where}: {column!r} holds {text[:40]!r}, expected a list such as [0.1, 0.9]") from error
    return values


def probabilities(
    scores: Floats, scale: Scale, where: Callable[[int], str], cause: str = "", setting: str = SETTING
) -> Floats:
    """Convert scores (rows, classes) to probabilities; NaN in rows that are not finite.

    scale: 'auto' expects rows in [0, 1] with a sum of 1, within `SUM_TOLERANCE`; 'logits' applies a softmax, where -inf
    excludes a class. Raises ModelError for percentages, and naming the first row that does not fit, by `where`; `cause`
    is what to say of it if a likely cause is known. setting: how messages spell the option `scores`.
    """
    scores = np.where(_finite(scores, scale)[:, None], scores, np.nan)
    _refuse_percentages(scores, scale, where)
    if scale == "logits":
        with np.errstate(invalid="ignore"):
            raised = np.exp(scores - scores.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)
    sums = scores.sum(1)
    outside = np.any((scores < -1e-6) | (scores > 1 + 1e-6), axis=1)
    allowed = SUM_TOLERANCE if scale == "auto" else 5 * SUM_TOLERANCE
    wrong = np.flatnonzero(outside | (np.abs(sums - 1) > allowed))
    if len(wrong):
        i = int(wrong[0])
        found = _extent(scores[i]) if outside[i] else f"a sum of {sums[i]:.4g}"
        raise ModelError(
            f"{where(i)}: the scores are not probabilities of classes that exclude each other: {found}. "
            + (cause or _HELP.format(setting.format("logits"), setting.format("probabilities")))
        )
    return scores


_HELP = (
    "For logits, or logarithms of probabilities, set {}; for rounded probabilities with sums from .95 to 1.05, set {}. "
    "Multi-label scores, each in [0, 1], cannot be used"
)


def refuse_all_unknown(lost: NDArray[np.bool_], where: str, setting: str = SETTING) -> None:
    """Raise ModelError if there is no row whose classes are known."""
    if lost.all():
        raise ModelError(
            f"{where}: every row is empty, NaN or infinite; if -inf excludes a class, these are logits: set "
            + setting.format("logits")
        )


def _refuse_percentages(scores: Floats, scale: Scale, where: Callable[[int], str]) -> None:
    """Raise ModelError if every known row lies in [0, 100] and has a sum of 100, except for rounding.

    Of scores that are said to be logits, less rounding is allowed, and one row is too few to tell.
    """
    known = np.flatnonzero(~np.isnan(scores).any(1))
    rows = scores[known]
    fewest, allowed = (2, PERCENT_TOLERANCE) if scale == "logits" else (1, 5 * PERCENT_TOLERANCE)
    if len(rows) < fewest or rows.min() < 0 or rows.max() > 100 + 1e-6:
        return
    sums = rows.sum(1)
    if np.abs(sums - 100).max() <= allowed + 1e-6:
        raise ModelError(
            f"{where(int(known[0]))}: the scores look like percentages: {_extent(rows[0])} with a sum of "
            f"{sums[0]:.4g}, and so in every row. Divide them by 100"
        )


def _extent(row: Floats) -> str:
    return f"values from {row.min():.4g} to {row.max():.4g}"


def _finite(scores: Floats, scale: Scale) -> NDArray[np.bool_]:
    if scale != "logits":
        return np.asarray(np.isfinite(scores).all(1), np.bool_)
    known = np.all(np.isfinite(scores) | (scores == -np.inf), axis=1)
    return np.asarray(known & np.any(np.isfinite(scores), axis=1), np.bool_)


def top_classes(values: Floats, predicted: NDArray[np.int32]) -> tuple[NDArray[np.int32], Floats, NDArray[np.bool_]]:
    """Indices and values (rows, k) of the up to `TOP` largest scores of each row, in descending order, and whether
    several classes of a row share the highest one, so that its prediction is unknown (rows,).

    predicted: the index of the predicted class of each row (rows,), -1 if unknown; it comes first if it has the highest
    score. Other ties are ordered by index. A row of NaN gives -1 and NaN.
    """
    tied = (values == values.max(1, keepdims=True)).sum(1) > 1
    of_predicted = values[np.arange(len(values)), predicted]
    known = (predicted >= 0) & (of_predicted == values.max(1))
    left, lost = values.copy(), np.isnan(values).any(1)
    left[lost] = 0
    indices = np.empty((len(values), min(TOP, values.shape[1])), np.int32)
    for place in range(indices.shape[1]):
        indices[:, place] = left.argmax(1)
        if place == 0:
            indices[known, 0] = predicted[known]
        left[np.arange(len(left)), indices[:, place]] = -np.inf
    largest = np.take_along_axis(values, indices.astype(np.int64), 1)
    indices[lost] = -1
    largest[lost] = np.nan
    return indices, largest, tied & ~known


def text_cells(batch: pa.RecordBatch, column: str | None) -> list[Any]:
    """Cells as stripped text; None for empty cells, or if there is no such column."""
    if column is None:
        return [None] * batch.num_rows
    if _is_list(batch.schema.field(column).type):
        raise ModelError(f"the column {column!r} holds lists, expected text or numbers")
    return [value.strip() or None if value is not None else None for value in batch.column(column).to_pylist()]


def named(text: str | None, names: dict[str, int], grows: bool) -> str | None:
    """A class by its name; a number that is no name counts the given names from 0."""
    if text is None or text in names:
        return text
    if grows:
        names[text] = len(names)
    elif text.isdecimal() and int(text) < len(names) and not any(name.isdecimal() for name in names):
        return list(names)[int(text)]
    return text


def index_of(name: str | None, names: dict[str, int], where: str) -> int:
    if name is not None and name not in names:
        raise ModelError(f"{where}: {unknown('class', name, names)}")
    return -1 if name is None else names[name]
