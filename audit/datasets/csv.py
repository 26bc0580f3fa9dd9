"""Images that a manifest names: a CSV, TSV or JSON-lines file with a column of paths or s3:// URIs.

Rows are read one at a time, so a manifest may have any number of them.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pydantic import Field, model_validator

from audit.config import AnyPlace
from audit.datasets import Entry, printable
from audit.datasets._columns import PATHS, image_column, label_column
from audit.datasets._files import Files, ahead, as_name, as_uri, files_at
from audit.datasets._labels import Label, is_whole_number, label_of
from audit.datasets._levels import SplitColumn, split_column
from audit.datasets._listed import ListedSource
from audit.datasets._patience import patiently, real
from audit.datasets._places import parent_of
from audit.datasets._sampling import Part
from audit.datasets._table import KINDS, rows, text_of
from audit.errors import DataError
from audit.locations import SCHEMES, Location, is_uri, name_of, parent

_MASK = "#mask="


class Options(Part):
    path: AnyPlace = Field(description="the manifest: *.csv, *.tsv or *.jsonl, local or s3://bucket/...")
    root: AnyPlace | None = Field(
        None, description="folder or s3://bucket/prefix that paths are relative to; default: where the manifest is"
    )
    image_column: str = Field(
        "image", description="of paths or s3:// URIs; if missing, the only column with a similar name is used"
    )
    label_column: str | None = Field(
        "label", description="if missing, the only column with a similar name is used; null: no labels"
    )
    caption_column: str | None = Field("caption", description="ignored where the manifest lacks it")
    mask_column: str | None = Field(
        "mask", description="of paths or URIs of images that are white where the object is; ignored where it lacks it"
    )
    allow_outside: bool = Field(False, description="whether the manifest may name what is not in the root")

    @model_validator(mode="after")
    def _known_kind(self) -> Options:
        if PurePosixPath(name_of(self.path)).suffix not in KINDS:
            raise ValueError(f"{self.path} is no manifest: its name must end in {', '.join(KINDS)}")
        return self


@dataclass(frozen=True, slots=True)
class _Columns:
    image: str
    label: str | None
    split: str | None


class CsvSource(ListedSource):
    """A uri is the path in the root, percent-encoded, or the whole path or URI of what is outside; where the image has
    a mask, that follows after '#mask='. '#row=<number>' is a row that cannot be used.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.options = options
        beside = options.path.parent if isinstance(options.path, Path) else parent_of(options.path)
        self.root: Location = options.root or beside
        self.files = files_at(self.root)
        self._elsewhere = lru_cache(maxsize=64)(files_at)

    def labels_expected(self) -> bool:
        return self.options.label_column is not None

    def _all(self) -> Iterator[Entry]:
        options, number, known = self.options, 0, {}
        whole, splits = None, SplitColumn()
        for number, row in self._rows():
            where, names = f"{options.path}, row {number}", tuple(row)
            if names not in known:  # rows of JSON may each have keys of their own
                known = {names: self._columns(names, where)}
            columns = known[names]
            if whole is None and columns.label is not None:
                whole = self._are_whole_numbers(columns.label)
            splits.add(columns.split, row.get(columns.split or ""))
            yield self._entry(row, columns, number, bool(whole))
        splits.say(self.notes)
        if not number:
            raise DataError(f"no rows in {options.path}")

    def _columns(self, names: Sequence[str], where: str) -> _Columns:
        image = image_column(self.options.image_column, names, PATHS, where=where, notes=self.notes)
        others = [name for name in names if name != image]
        label = label_column(self.options.label_column, others, where=where, notes=self.notes)
        return _Columns(image, label, split_column(name for name in others if name != label))

    def _are_whole_numbers(self, column: str) -> bool:
        """Whether all labels of a column are text such as '1.0', as tables write whole numbers among empty cells. The
        manifest is read up to the first that is not."""
        values = (row.get(column) for _, row in self._rows())
        return all(value is None or value == "" or _is_whole(value) for value in values)

    def _entry(self, row: dict[str, object], columns: _Columns, number: int, whole: bool) -> Entry:
        options, where = self.options, f"{self.options.path}, row {number}"
        image, caption, mask = (
            text_of(row, column, where) for column in (columns.image, options.caption_column, options.mask_column)
        )
        label = self._label(row.get(columns.label) if columns.label else None, whole)
        uri, reason = self._resolved(image, where) if image else (f"#row={number}", "no_image")
        if label.reason and not reason:
            uri, reason = f"#row={number}", label.reason
        mask_uri = self._resolved(mask, where)[0] if mask else None
        return Entry(
            uri + (_MASK + mask_uri if mask_uri else ""),
            printable(image or f"row {number}"),
            label.text,
            reason,
            printable(caption) if caption else None,
            mask_uri,
        )

    def _label(self, value: object, whole: bool) -> Label:
        if whole and isinstance(value, str) and value:
            value = value.strip().partition(".")[0]
        return label_of(value, self.notes)

    def _rows(self) -> Iterator[tuple[int, dict[str, object]]]:
        above = self.options.path.parent if isinstance(self.options.path, Path) else str(parent(self.options.path))
        name = name_of(self.options.path)
        return rows(files_at(above).open(name), PurePosixPath(name).suffix, str(self.options.path))

    def _resolved(self, value: str, where: str) -> tuple[str, str | None]:
        """The uri of what a cell names, and why it must not be opened."""
        name = self._name(value, where)
        if not _is_outside(name):
            reason = self.files.reason(name) if isinstance(self.root, Path) else None
            if reason == "missing" and "\\" in value:  # as other systems write paths
                return self._resolved(value.replace("\\", "/"), where)
            return as_uri(name), reason
        if not self.options.allow_outside:
            return as_uri(name), "name_out_of_root"
        return as_uri(name), None if is_uri(name) else files_at(Path("/")).reason(name.lstrip("/"))

    def _name(self, value: str, where: str) -> str:
        """A name in the root, or the whole path or URI of what is outside."""
        if "://" in value and value.partition("://")[0] not in SCHEMES:
            raise DataError(
                f"{where}: {value!r} cannot be read. What works: paths, and URIs of {', '.join(SCHEMES)}://; download "
                "other images first, and name the files"
            )
        root = str(self.root)
        if is_uri(value) or (is_uri(root) and not value.startswith("/")):
            scheme, _, rest = (value if is_uri(value) else f"{root}/{value}").partition("://")
            whole = f"{scheme}://{posixpath.normpath(rest)}"
        else:
            whole = os.path.normpath(os.path.join("/" if is_uri(root) else root, value))
            if value.startswith("/") and not is_uri(root) and not whole.startswith(f"{root}/"):
                whole = str(patiently(value, lambda: real(value)))  # the root is known by its real path
        return whole[len(root) + 1 :] if whole.startswith(root.rstrip("/") + "/") else whole

    def where(self, uri: str) -> str:
        name = uri.partition(_MASK)[0]
        if name.startswith("#"):
            return f"{self.options.path}, {name[1:].replace('=', ' ')}"
        name = as_name(name)
        return name if _is_outside(name) else f"{self.root}/{name}"

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._read([uri.partition(_MASK)[0] for uri in uris])

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._read([uri.partition(_MASK)[2] for uri in uris])

    def _read(self, uris: list[str]) -> Iterator[bytes | None]:
        local = isinstance(self.root, Path) and not self.options.allow_outside
        return map(self._bytes, uris) if local else ahead(self._bytes, uris)

    def _bytes(self, uri: str) -> bytes | None:
        if not uri or uri.startswith("#"):
            return None
        name = as_name(uri)
        files, inside = self._holding(name)
        return files.read(inside) if files else None

    def _holding(self, name: str) -> tuple[Files | None, str]:
        """The files that a name is one of, and its name there; None for what must not be opened."""
        if not _is_outside(name):
            return self.files, name
        if not self.options.allow_outside:
            return None, name
        if not is_uri(name):
            return self._elsewhere(Path("/")), name.lstrip("/")
        scheme, _, rest = name.partition("://")
        bucket, _, key = rest.partition("/")
        return self._elsewhere(f"{scheme}://{bucket}"), key


def _is_whole(value: object) -> bool:
    return isinstance(value, str) and is_whole_number(value)


def _is_outside(name: str) -> bool:
    return name.startswith("/") or is_uri(name)


def open_source(options: Options) -> CsvSource:
    return CsvSource(options)
