"""Images of Hugging Face `datasets` (extra: `hf`): a folder that `save_to_disk` wrote, a folder of its Parquet
or Arrow files, or a data set of the hub at a pinned revision.

Images are not decoded here, and no code that comes with a data set is run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, ValidationInfo

from audit.datasets import DataSource, Entry, printable
from audit.datasets._encoded import cell_of
from audit.datasets._files import Folder, as_name, as_uri
from audit.datasets._labels import Label, classes_of, label_of, of_class
from audit.datasets._listed import ListedSource
from audit.datasets._patience import is_file, is_folder, patiently, status_of
from audit.datasets._sampling import Part
from audit.datasets._selection import Selection
from audit.datasets.parquet import Columns, ParquetSource, columns_of
from audit.datasets.parquet import Options as ParquetOptions
from audit.errors import DataError, DataUnavailable
from audit.results.warnings import RunWarning

WORKS = (
    "What works: a folder that save_to_disk wrote, a folder of the data set's .parquet or .arrow files, or a hub id "
    "with a pinned 'revision' whose files are Parquet (any data set's commits of refs/convert/parquet are)"
)
_BATCH = 1000
_SPLIT = re.compile(r"(?:.*-)?([A-Za-z_]+)(?:-\d+-of-\d+)?")
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_FAILS = (OSError, ValueError, LookupError, TypeError, pa.ArrowInvalid, datasets.exceptions.DatasetsError)


def _folder_or_id(value: Any, info: ValidationInfo) -> Any:
    """A folder to its absolute path, relative to the job file; a hub id stays."""
    if not isinstance(value, str):
        return value
    path = ((info.context or {}).get("folder", Path()) / Path(value).expanduser()).resolve()
    return str(path) if status_of(path) or value.startswith((".", "/", "~")) else value


class Options(Part):
    path: Annotated[str, BeforeValidator(_folder_or_id)] = Field(description="folder, or hub id with a revision")
    revision: str | None = Field(None, description="of a hub id: the commit hash, 40 digits")
    config: str | None = Field(None, description="of a data set with several: the folder that its files are in")
    split: str | None = Field(None, description="such as train; needed where there are several")
    image_column: str = Field("image", description="if missing, the only column that can hold images is used")
    label_column: str | None = Field(
        "label",
        description="if missing, the only column with a similar name is used; numbers become class names; null: no "
        "labels",
    )
    name_column: str | None = Field("name", description="ignored where there is none")
    caption_column: str | None = Field("caption", description="of text; ignored where there is none")
    mask_column: str | None = Field(
        "mask", description="of images, white where the object is; ignored where there is none"
    )


class HfSource:
    """A uri is '<split>#<row>', or in a folder of Parquet files '<file>#<row>'. Nothing is copied into a cache: Arrow
    files are mapped into memory, Parquet files read by row groups.

    Of a file that is mapped, a fault of its file system is no error that could be told from others: it ends the
    process. Where that may happen, Parquet files are the safer choice.
    """

    def __init__(self, options: Options) -> None:
        self.options = options

    def classes(self) -> tuple[str, ...]:
        return self._opened.classes()

    def warnings(self) -> tuple[RunWarning, ...]:
        return self._opened.warnings()

    def where(self, uri: str) -> str:
        return self._opened.where(uri)

    def entries(self) -> Iterator[Entry]:
        return self._opened.entries()

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._opened.read(uris)

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._opened.read_masks(uris)

    @cached_property
    def _opened(self) -> DataSource:
        options = self.options
        folder = _folder(options)
        if is_file(folder / "dataset_dict.json"):
            folder, split = self._split_of_dict(folder)
            return _Rows(options, _saved(folder), split, folder)
        if is_file(folder / "state.json"):
            return _Rows(options, _saved(folder), options.split or "data", folder)
        kind = next((kind for kind in ("parquet", "arrow") if any(_below(folder, kind))), None)
        if kind is None:
            raise DataError(f"{options.path} holds no data set of Hugging Face. {WORKS}")
        split, names = self._split_of_files(folder, kind)
        if kind == "parquet":
            shared = {key: getattr(options, key) for key in ParquetOptions.model_fields if key != "path"}
            return ParquetSource(ParquetOptions(path=folder, **shared), (Folder(folder), names))
        return _Rows(options, _concatenated([folder / name for name in names]), split, folder)

    def _split_of_dict(self, folder: Path) -> tuple[Path, str]:
        try:
            splits = [str(name) for name in _json(folder / "dataset_dict.json")["splits"]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"{folder}/dataset_dict.json cannot be read: {error}") from error
        split = self._chosen(splits)
        if os.path.basename(split) != split or split == "..":
            raise DataError(f"{folder}/dataset_dict.json names a split {split!r}, which leads out of the folder")
        return folder / split, split

    def _split_of_files(self, folder: Path, kind: str) -> tuple[str, list[str]]:
        """A split, and the names of its files in the folder."""
        within = self.options.config or ""
        by_split: dict[str, list[str]] = {}
        for name in _below(folder / within, kind):
            path = PurePosixPath(within, name)
            found = _SPLIT.fullmatch(path.stem)
            split = found[1] if found else path.parent.name if path.stem.isdigit() else path.stem
            by_split.setdefault(split, []).append(str(path))
        split = self._chosen(list(by_split))
        folders = sorted({os.path.dirname(name) for name in by_split[split]})
        if len(folders) > 1:
            raise DataError(
                f"{self.options.path}: several folders have a split {split!r}; name one as 'config': {folders}"
            )
        return split, by_split[split]

    def _chosen(self, splits: list[str]) -> str:
        wanted, where = self.options.split, self.options.path
        if wanted is None and len(splits) == 1:
            return splits[0]
        if wanted not in splits:
            asked = "'split' is needed" if wanted is None else f"there is no split {wanted!r}"
            raise DataError(f"{where}: {asked}; known: {', '.join(map(printable, splits)) or 'none'}")
        return wanted


class _Rows(ListedSource):
    """The rows of one split, in Arrow tables. An image without bytes is read from its path, if it is in the folder."""

    def __init__(self, options: Options, rows: datasets.Dataset, split: str, folder: Path) -> None:
        super().__init__(options)
        self.options, self.split, self.files = options, split, Folder(folder)
        self.rows = rows.with_format("arrow")
        self._stored: dict[str, datasets.Dataset] = {}
        self.columns = self._resolved()

    def _resolved(self) -> Columns:
        where, schema = f"{self.options.path}, split {self.split}", self.rows.features.arrow_schema
        return columns_of(schema, self.options, where, self.notes, asked=self.options.label_column)

    def labels_expected(self) -> bool:
        return self.options.label_column is not None

    def classes(self) -> tuple[str, ...]:
        return classes_of(self.columns.names)

    def _all(self) -> Iterator[Entry]:
        options, columns = self.options, self._resolved()
        wanted = (columns.image, columns.label, options.name_column, options.caption_column, options.mask_column)
        asked = [column for column in wanted if column in self.rows.column_names]
        if not len(self.rows):
            raise DataError(f"no rows in {options.path}, split {self.split}")
        row = 0
        for table in self.rows.select_columns(list(dict.fromkeys(asked))).iter(batch_size=_BATCH):
            texts = table.select([name for name in asked if name not in (columns.image, options.mask_column)])
            reasons, masked = self._reasons(table[columns.image]), _has_bytes(table, options.mask_column)
            for values, reason, has_mask in zip(_dicts(texts), reasons, masked, strict=True):
                yield self._entry(f"{as_uri(self.split)}#{row}", values, reason, has_mask)
                row += 1

    def _entry(self, uri: str, values: dict[str, Any], reason: str | None, mask: bool) -> Entry:
        label = self._label(values.get(self.columns.label or ""))
        used = f"{uri}!" if label.reason and not reason else uri
        name, caption = values.get(self.options.name_column or ""), values.get(self.options.caption_column or "")
        return Entry(
            used,
            printable(str(name or uri)),
            label.text,
            reason or label.reason,
            printable(caption) if caption else None,
            used if mask and not label.reason else None,
        )

    def _label(self, value: Any) -> Label:
        names = self.columns.names
        return of_class(names, value, self.notes) if names else label_of(value, self.notes)

    def _reasons(self, images: pa.ChunkedArray) -> Iterator[str | None]:
        """Why each image of a column cannot be read."""
        if not pa.types.is_struct(images.type):
            yield from (None if there else "no_image" for there in pc.is_valid(images).to_pylist())
            return
        there = pc.is_valid(pc.struct_field(images, "bytes")).to_pylist()
        has_path = images.type.get_field_index("path") >= 0
        paths = pc.struct_field(images, "path").to_pylist() if has_path else [None] * len(there)
        for inside, path in zip(there, paths, strict=True):
            yield None if inside else "no_image" if not path else self.files.reason(self._relative(path))

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.files.root) if path.startswith(f"{self.files.root}/") else path

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return (self._image(self.columns.image, uri) for uri in uris)

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return (self._image(self.options.mask_column, uri) for uri in uris)

    def _image(self, column: str | None, uri: str) -> bytes | None:
        split, _, number = uri.rpartition("#")
        if column is None or column not in self.rows.column_names or as_name(split) != self.split:
            return None
        if not number.isdecimal() or int(number) >= len(self.rows):
            return None
        rows = self._column(column)
        cell = cell_of(rows[int(number) : int(number) + 1][column][0])
        return self.files.read(self._relative(cell.path)) if cell.path else cell.data

    def _column(self, column: str) -> datasets.Dataset:
        if column not in self._stored:
            self._stored[column] = self.rows.select_columns([column])
        return self._stored[column]

    def where(self, uri: str) -> str:
        split, _, number = uri.rpartition("#")
        return f"{self.files.root}, split {as_name(split)}, row {number.rstrip('!')}"


def _dicts(table: pa.Table) -> list[dict[str, Any]]:
    return table.to_pylist() if table.num_columns else [{} for _ in range(table.num_rows)]


def _has_bytes(table: pa.Table, column: str | None) -> list[bool]:
    if column not in table.column_names:
        return [False] * table.num_rows
    values = table[column]
    return pc.is_valid(pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values).to_pylist()


def _folder(options: Options) -> Path:
    """Where the data set is, fetched from the hub where the path is a hub id with a pinned revision."""
    if is_folder(options.path):
        return Path(options.path)
    if options.path.startswith("/") or not _HUB_ID.fullmatch(options.path):
        raise DataError(f"no folder at {options.path}. {WORKS}")
    if options.revision is None or not re.fullmatch("[0-9a-f]{40}", options.revision):
        found = "none is given" if options.revision is None else f"found {options.revision!r}"
        raise DataError(
            f"{options.path!r} is no folder here, so it is taken for a hub id, and a hub id needs a pinned 'revision' "
            f"(a commit hash of 40 digits, {found}). {WORKS}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                options.path, repo_type="dataset", revision=options.revision, allow_patterns=["*.parquet", "*.arrow"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        raise (DataError if refused else DataUnavailable)(
            f"cannot fetch the data set {options.path!r} at revision {options.revision!r} from the hub: {error}. "
            + WORKS
        ) from error


def _below(folder: Path, kind: str) -> Iterator[str]:
    """The names of files of a kind below a folder, sorted. Links are followed: the hub's files are links."""
    if is_folder(folder):
        yield from (
            name for name, _ in Folder(folder).walk(Selection((f".{kind}",)), set()) if name.endswith(f".{kind}")
        )


def _json(path: Path) -> Any:
    return json.loads(patiently(path, lambda: path.read_text("utf-8")))


def _saved(folder: Path) -> datasets.Dataset:
    """What `save_to_disk` wrote. Raises DataError."""
    try:
        state = _json(folder / "state.json")
        for file in state["_data_files"]:
            if os.path.basename(file["filename"]) != file["filename"]:
                raise DataError(f"{folder}/state.json names a file {file['filename']!r}, which leads out of the folder")
        return patiently(folder, lambda: datasets.Dataset.load_from_disk(str(folder), keep_in_memory=False))
    except _FAILS as error:
        raise DataError(f"{folder} cannot be opened as a data set that save_to_disk wrote: {error}. {WORKS}") from error


def _concatenated(paths: list[Path]) -> datasets.Dataset:
    """The rows of Arrow files, one file after another. Raises DataError."""
    opened = []
    for path in paths:
        try:
            opened.append(patiently(path, partial(datasets.Dataset.from_file, str(path))))
        except _FAILS as error:
            raise DataError(f"{path} is not an Arrow file that can be read: {error}") from error
    try:
        return datasets.concatenate_datasets(opened)
    except _FAILS as error:
        raise DataError(f"the Arrow files in {paths[0].parent} do not fit one another: {error}") from error


def open_source(options: Options) -> HfSource:
    return HfSource(options)
