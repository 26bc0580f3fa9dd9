"""Choose the data source for a path: a folder, a file, a pattern, s3:// or a hub id."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from statistics import mode
from typing import Any

from audit import registry
from audit.config import checked
from audit.datasets import DataSource, Entry, printable
from audit.decode import decode
from audit.errors import BadItem, DataError
from audit.labels.matching import classes_of
from audit.locations import is_uri
from pipelines.init_hub import pinned

WORKS = (
    "What works: a folder with a sub-folder a class or a metadata.csv; Parquet files; a manifest *.csv, *.tsv or "
    "*.jsonl; WebDataset shards *.tar; a folder from save_to_disk or of *.arrow files; each of these but the "
    "last also as s3://bucket/...; a data set of the hub as user/name"
)
LISTED = 200_000  # images of which labels are read
READ = 8
_BY_SUFFIX = {".csv": "csv", ".tsv": "csv", ".jsonl": "csv", ".parquet": "parquet", ".tar": "webdataset"}
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar", ".gz", ".zst")
_SPECIAL = re.compile(r"[*?\[{]")
_SPLITS = ("test", "validation", "val", "valid", "train")  # of several splits, the first of these that is there


@dataclass(frozen=True)
class Source:
    """A source of a job file. `options`: all except the path. `note`: a comment on the choice."""

    plugin: str
    path: str
    options: tuple[tuple[str, str | bool], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Seen:
    """The content of a source. `classes`: labels in the order of the data set. `sizes`: width and height of the images
    that were read. `whole`: whether all labels were read."""

    images: int
    classes: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    whole: bool

    @property
    def square(self) -> int | None:
        """The side of the images, if all images that were read are squares of one size."""
        side = mode(width for width, _ in self.sizes) if self.sizes else None
        return side if side and set(self.sizes) == {(side, side)} else None


def source_of(text: str, role: str) -> Source:
    """The source for a path. Raises DataError if the path does not exist or cannot be read."""
    if is_uri(text):
        return _remote(text, role)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return Source(_plugin_of(path.name, text, role), str(path.resolve()))
    if _SPECIAL.search(text):
        return Source(_plugin_of(path.name, text, role), str(path.absolute()))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not path.parent.exists():
        found = pinned(text, "dataset")
        return Source("hf", text, (("revision", found.revision),), found.note)
    raise DataError(f"no {role} at {text}; {WORKS[0].lower()}{WORKS[1:]}")


def look(source: Source, role: str) -> tuple[Source, Seen]:
    """List a source and read its first images. A folder whose images are all behind links is returned as a source that
    follows links. Raises DataError if none of the first images can be read."""
    try:
        return source, _seen(source, role)
    except DataError:
        if not _is_behind_links(source, role):
            raise
    note = "its images are behind links, so follow_links: true is set; links that lead out of the folder are read too"
    options = (*source.options, ("follow_links", True))
    followed = replace(source, options=options, note="; ".join(filter(None, (note, source.note))))
    return followed, _seen(followed, role)


def _opened(source: Source, role: str) -> DataSource:
    options: dict[str, Any] = {"path": source.path, **{name: value for name, value in source.options if value}}
    module = registry.plugin("datasets", source.plugin)
    return module.open_source(checked(module.Options, options, role, {}))


def _is_behind_links(source: Source, role: str) -> bool:
    """Whether a folder has no usable image, but links that are not followed."""
    if source.plugin != "folder" or is_uri(source.path):
        return False
    links = False
    try:
        for entry in islice(_opened(source, role).entries(), LISTED):
            if entry.reason is None:
                return False
            links = links or entry.reason in ("linked_folder", "link_out_of_root")
    except DataError:  # at the end of a folder without images
        pass
    return links


def _seen(source: Source, role: str) -> Seen:
    opened = _opened(source, role)
    first: list[Entry] = []
    unusable: Entry | None = None
    labels: dict[str, None] = {}
    count = 0
    for entry in islice(opened.entries(), LISTED):
        count += 1
        if entry.label is not None:
            labels[entry.label] = None
        if entry.reason is not None:
            unusable = unusable or entry
        elif len(first) < READ:
            first.append(entry)
    if unusable is not None and not first:
        why = _why_unusable(source, opened.where(unusable.uri), unusable)
        raise DataError(f"{role}: none of the {count:,} images that were listed can be used: {why}")
    sizes, reasons = [], []
    for data in opened.read([entry.uri for entry in first]):
        try:
            height, width = decode(data).image.shape[:2] if data is not None else (0, 0)
        except BadItem as error:
            reasons.append(str(error))
            continue
        if height:
            sizes.append((width, height))
    if not sizes:
        why = reasons[0] if reasons else "none can be opened"
        example = first[0].display_name if first else source.path
        raise DataError(f"{role}: none of the first {len(first)} images can be read, such as {example!r}: {why}")
    classes = classes_of(labels, opened.classes()).outputs
    return Seen(count, classes, tuple(sizes), count < LISTED)


def _why_unusable(source: Source, where: str, entry: Entry) -> str:
    """Why an image cannot be used, and what helps."""
    place, manifest = printable(where), source.plugin == "csv"
    if entry.reason == "missing":
        root = (
            ". Paths are relative to the folder of the manifest: move it to the folder that they are relative to, or "
            "write a job and set root: to that folder"
        )
        return f"{place} does not exist{root if manifest else ''}"
    if entry.reason == "name_out_of_root" and manifest:
        return (
            f"{place} is not in the folder of the manifest. Write a job and set root: to the folder of the images, or "
            "allow_outside: true"
        )
    return f"{place} has the reason {entry.reason}"


def _plugin_of(name: str, text: str, role: str) -> str:
    """Choose by the suffix of a file. Raises DataError if no source reads it."""
    lowered = name.lower()
    if lowered.endswith(_PACKED):
        raise DataError(
            f"the {role} {text} is packed, so its images cannot be read; unpack it and give the unpacked folder or "
            "files"
        )
    suffix = PurePosixPath(lowered).suffix
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    hint = {
        ".arrow": "give the folder of the .arrow file",
        ".json": "write a JSON object a line, and name the file *.jsonl",
    }.get(suffix, "give the folder of the images")
    raise DataError(f"the {role} {text} is not a file that a source can read; {hint}. {WORKS}")


def _folder(path: Path) -> Source:
    """Choose by the content of a folder."""
    at = str(path.resolve())
    if (path / "dataset_dict.json").is_file():
        return _with_split(at, _splits_of_dict(path / "dataset_dict.json"))
    if (path / "state.json").is_file():
        return Source("hf", at)
    names = [child.name for child in path.iterdir()]
    for suffix, plugin in ((".parquet", "parquet"), (".arrow", "hf"), (".tar", "webdataset")):
        if any(name.endswith(suffix) for name in names):
            return Source(plugin, at)
    if next(path.glob("*/*.parquet"), None) is not None:  # as the hub lays data sets out
        splits = {re.split(r"[-.]", file.name)[0] for file in path.glob("*/*.parquet")}
        return _with_split(at, sorted(splits))
    return Source("folder", at, note=_manifest_beside(names))


def _manifest_beside(names: Sequence[str]) -> str:
    """A hint if labels may be in a table that a folder source does not read."""
    tables = [name for name in names if PurePosixPath(name).suffix in (".csv", ".tsv", ".jsonl")]
    if not tables or {"metadata.csv", "metadata.jsonl"} & set(tables):
        return ""
    return f"labels are the names of sub-folders; to read the labels of {tables[0]}, give that file as --data"


def _splits_of_dict(file: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(file.read_text("utf-8"))["splits"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _with_split(path: str, splits: Sequence[str]) -> Source:
    if len(splits) < 2:
        return Source("hf", path)
    chosen = next((name for name in _SPLITS if name in splits), splits[0])
    return Source("hf", path, (("split", chosen),), f"splits: {', '.join(splits)}")


def _remote(uri: str, role: str) -> Source:
    """Choose by the suffix of the name, or by the files below a prefix."""
    if PurePosixPath(uri).suffix.lower() in _BY_SUFFIX or uri.lower().endswith(_PACKED):
        return Source(_plugin_of(PurePosixPath(uri).name, uri, role), uri)
    from audit.datasets._files import Keys

    suffixes = {PurePosixPath(name).suffix.lower() for name, _ in islice(Keys(uri.rstrip("/")).listing(), 1000)}
    if not suffixes:
        raise DataError(f"no {role} at {uri}: nothing lies below it. {WORKS}")
    for suffix in (".parquet", ".tar"):
        if suffix in suffixes:
            return Source(_BY_SUFFIX[suffix], uri)
    return Source("folder", uri)
