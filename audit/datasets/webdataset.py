"""Images in tar shards, in the layout of WebDataset: files of the same name up to the first dot are one sample.

Shards are listed by their headers. A uri holds where in the shard an image is, so reading one is one seek, or one
ranged request to an object store.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO, Literal

from pydantic import Field

from audit.config import AnyPlace, NamedClasses, Names
from audit.datasets import Entry, printable
from audit.datasets._columns import LABEL, LABELS, folded, shown
from audit.datasets._files import Files, as_name, as_uri
from audit.datasets._labels import BAD, NONE, Label, classes_of, label_of, named
from audit.datasets._levels import splits_of
from audit.datasets._listed import ListedSource
from audit.datasets._places import matching
from audit.datasets._sampling import Part
from audit.datasets._selection import is_leftover
from audit.decode import Limits
from audit.errors import DataError

_LARGEST_HEADER = _LARGEST_TEXT = 2**20
_JSON = "json"
_CLS, _LABEL_SUFFIXES = "cls", ("label", "class", "lbl", "target", "cls.txt", "label.txt", "class.txt")
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_URI = re.compile(r"(?P<shard>[^#]+)#(?P<start>\d+)\+(?P<size>\d+)(?:&mask=(?P<mask_start>\d+)\+(?P<mask_size>\d+))?")
# What the standard library raises for headers that are none.
_BROKEN = (tarfile.TarError, OSError, ValueError, OverflowError, LookupError)


class Options(Part):
    path: AnyPlace = Field(
        description="a shard, a folder of *.tar, or a pattern such as train-{000..099}.tar; local or s3://bucket/..."
    )
    image_suffixes: Names = Field(
        ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif", "jp2", "jfif", "heic"),
        min_length=1,
        description="of a sample's files, what follows the dot; the first that a sample has is its image",
    )
    key: Literal["first_dot", "last_dot"] = Field(
        "first_dot",
        description="where the name of a sample ends; last_dot: for names that contain dots, such as cat.0.jpg",
    )
    label_suffix: str | None = Field(
        "cls",
        description="of a file that holds a class name or a number; if missing, label or class is used",
    )
    class_names: NamedClasses = Field((), description="names of the classes that numbers stand for")
    caption_suffix: str | None = Field("txt", description="of a file that holds a caption")
    label_key: str | None = Field(
        "label",
        description="in a .json file, used if the sample has no file with its label; if missing, the only key with a "
        "similar name is used; without both, the folder of a sample is its label. null here and as label_suffix: no "
        "labels",
    )
    caption_key: str | None = Field("caption", description="in a .json file, where it has no file with its caption")
    mask_suffix: str | None = Field("mask.png", description="of an image that is white where the object is")


@dataclass(slots=True)
class _Sample:
    """What a shard says of one key. `places`: first byte and size of images and mask, by suffix. `dotted`: names of
    images whose suffix has more than one dot, which may be samples of their own."""

    name: str
    start: int
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    dotted: list[str] = field(default_factory=list)
    reason: str | None = None


class WebDatasetSource(ListedSource):
    """A uri is '<shard>#<first byte>+<size>', with '&mask=<first byte>+<size>' where the sample has a mask.

    What cannot be used is a row with a reason: a sample without an image (`no_image`), whose image is a link
    (`not_a_regular_file`) or named to lead elsewhere (`name_out_of_root`), a second file of the same name
    (`duplicate_name`), a label that is none (`bad_label`). A shard that is cut off (`truncated_shard`) or has a header
    that is none (`broken_shard`) has a row of its own, after its samples, for all that is lost. The files of a sample
    need not be neighbours: one shard's index is held in memory, about 900 bytes a sample.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.options = options

    @cached_property
    def _places(self) -> tuple[Files, list[str]]:
        files, names = matching(self.options.path, ".tar")
        for name in names:
            if name.endswith(_PACKED):
                raise DataError(
                    f"{files.root}/{name} is compressed, so no image in it can be reached; unpack it to a .tar"
                )
        return files, names

    def classes(self) -> tuple[str, ...]:
        return classes_of(self.options.class_names)

    def labels_expected(self) -> bool:
        return self.options.label_suffix is not None or self.options.label_key is not None

    def _all(self) -> Iterator[Entry]:
        listed = lost = images = 0
        splits_of(self._places[1], self.notes)
        for shard in self._places[1]:
            for entry in self._shard(shard):
                yield entry
                listed += 1
                lost += entry.display_name == printable(shard)
                images += entry.reason != "no_image"
        if not images and self.notes.counted("dotted_names"):
            raise DataError(
                f"no sample in {self.options.path} has an image, but {self.notes.counted('dotted_names')} files "
                "with several dots are images: the name of a sample ends at its first dot. Set key: last_dot"
            )
        if listed == lost:
            damage = f", and {lost} of its shards are damaged or no tar files" if lost else ""
            raise DataError(
                f"no samples in {self.options.path}{damage}; "
                f"looked for members named *.{', *.'.join(self.options.image_suffixes)}"
            )

    def _shard(self, shard: str) -> Iterator[Entry]:
        samples: dict[str, _Sample] = {}
        with self._places[0].open(shard) as file:
            damage = None
            for member in _members(file):
                if isinstance(member, str):
                    damage = member
                else:
                    self._add(samples, member, file)
        by_folder = self.labels_expected() and not any(map(self._has_label, samples.values()))
        for key in list(samples):
            yield self._entry(shard, samples.pop(key), key.rpartition("/")[0] if by_folder else "")
        if damage:
            yield Entry(f"{as_uri(shard)}#{damage}", printable(shard), reason=damage)

    def _label_suffixes(self) -> tuple[str, ...]:
        """Suffixes of files with a label, the one that counts first."""
        asked = self.options.label_suffix
        return () if asked is None else (_CLS, *_LABEL_SUFFIXES) if asked == _CLS else (asked,)

    def _has_label(self, sample: _Sample) -> bool:
        return bool(sample.texts.keys() & {*self._label_suffixes(), _JSON})

    def _split(self, base: str) -> tuple[str, str]:
        """The name of a sample and the suffix of a file's name; without one where it is no file of a sample."""
        if self.options.key == "first_dot":
            stem, _, suffix = base.partition(".")
            return stem, suffix.lower()
        low = base.lower()
        several = (self.options.mask_suffix, *self._label_suffixes(), self.options.caption_suffix)
        known = next((end for end in several if end and "." in end and low.endswith(f".{end}")), None)
        stem = base[: -len(known) - 1] if known else base.rpartition(".")[0]
        return stem, low[len(stem) + 1 :]

    def _add(self, samples: dict[str, _Sample], member: _Member, file: BinaryIO) -> None:
        """Put a file of the shard to its sample."""
        options, path = self.options, member.name.removeprefix("./")
        folder, _, base = path.rpartition("/")
        if not member.is_folder and any(map(is_leftover, path.split("/"))) and ".." not in path.split("/"):
            self.notes.count("hidden", path)
            return
        stem, suffix = self._split(base)
        if member.is_folder or not stem or not suffix or base.startswith("__"):
            return
        sample = samples.setdefault(f"{folder}/{stem}", _Sample(path, member.start))
        image = suffix in options.image_suffixes
        text = suffix in (*self._label_suffixes(), options.caption_suffix, _JSON)
        if not (image or text or suffix == options.mask_suffix):
            if suffix.rpartition(".")[2] in options.image_suffixes:
                sample.dotted.append(path)
            return
        if image and not any(known in sample.places for known in options.image_suffixes):
            sample.name = path
        if suffix in sample.places or suffix in sample.texts:
            samples[f"{path}\0{member.start}"] = _Sample(path, member.start, reason="duplicate_name")
            return
        reason = _why_not(member, path, image)
        if reason and not (image or text):  # the image can be used without its mask
            return
        sample.reason = sample.reason or reason
        if text and reason is None:
            file.seek(member.start)
            data = file.read(min(member.size, _LARGEST_TEXT))
            sample.texts[suffix] = data.decode("utf-8-sig", "surrogateescape").strip()
        else:
            sample.places[suffix] = member.start, member.size

    def _entry(self, shard: str, sample: _Sample, folder: str) -> Entry:
        """`folder`: whose name is the label where the sample has none; '' where it is not."""
        options = self.options
        images = [suffix for suffix in options.image_suffixes if suffix in sample.places]
        place = sample.places[images[0]] if images else None
        several = [suffix for suffix in images if suffix != options.mask_suffix]
        if len(several) > 1:
            self.notes.count("several_images", ", ".join(several))
        mask = sample.places.get(options.mask_suffix) if options.mask_suffix else None
        if place is None:
            for path in sample.dotted:
                self.notes.count("dotted_names", path)
        label, caption = self._told(sample)
        if label == NONE and folder and place is not None and not sample.reason:
            label = named(folder.rpartition("/")[2], self.notes)
            self.notes.count("labels_from_folders", str(label.text))
        reason = sample.reason or ("no_image" if place is None else label.reason)
        if reason or place is None:  # nothing that `read` would take for a place
            uri = f"{as_uri(shard)}#{as_uri(sample.name)}@{sample.start}"
        else:
            uri = f"{as_uri(shard)}#{place[0]}+{place[1]}"
        if not reason and mask:
            uri += f"&mask={mask[0]}+{mask[1]}"
        return Entry(
            uri,
            printable(f"{shard}/{sample.name}"),
            label.text,
            reason,
            printable(caption) if caption else None,
            uri if not reason and mask else None,
        )

    def _told(self, sample: _Sample) -> tuple[Label, str | None]:
        """Label and caption of a sample."""
        said = _object(sample.texts.get(_JSON, "{}"))
        caption = sample.texts.get(self.options.caption_suffix or "") or _plain(said or {}, self.options.caption_key)
        return BAD if said is None else self._label(sample, said), caption

    def _label(self, sample: _Sample, said: dict[str, Any]) -> Label:
        suffix = next((end for end in self._label_suffixes() if sample.texts.get(end)), None)
        if suffix is not None:
            if suffix not in (_CLS, self.options.label_suffix):
                self.notes.count("label_suffix_taken", suffix)
            return self._of_value(sample.texts[suffix])
        key = self._key_of(said)
        return NONE if key is None else self._of_value(said[key])

    def _key_of(self, said: dict[str, Any]) -> str | None:
        """The key of a JSON object that holds the label. Raises DataError where several may."""
        asked = self.options.label_key
        if asked is None or asked in said:
            return asked
        fits = [key for key in said if asked == LABEL and folded(key) in LABELS]
        if len(fits) > 1:
            raise DataError(
                f"{self.options.path}: several keys of a .json file may hold the label: {shown(fits)}. Name one with "
                "'label_key', or set it to null."
            )
        if fits:
            self.notes.count("label_in_json", fits[0])
        return fits[0] if fits else None

    def _of_value(self, value: Any) -> Label:
        """A label as it is, or the class that a number stands for."""
        label, names = label_of(value, self.notes), self.options.class_names
        if label.text is None or not names or label.text in names:
            return BAD if label.text is not None and _is_no_text(value) else label
        if not re.fullmatch(r"[0-9]{1,9}", label.text):
            return BAD if not re.fullmatch(r"-[0-9]{1,9}", label.text) else self._nameless(label.text)
        number = int(label.text)
        return named(names[number], self.notes) if number < len(names) else self._nameless(label.text)

    def _nameless(self, number: str) -> Label:
        self.notes.count("label_outside_names", number)
        return NONE

    def where(self, uri: str) -> str:
        shard, _, place = uri.partition("#")
        root = self._places[0].root
        named_place = as_name(place.partition("@")[0]) if "@" in place else f"byte {place.partition('+')[0]}"
        return f"{root}/{as_name(shard)}, {named_place}"

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._read(uris, "")

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        return self._read(uris, "mask_")

    def _read(self, uris: Sequence[str], which: str) -> Iterator[bytes | None]:
        files = self._places[0]

        def one(uri: str) -> bytes | None:
            found = _URI.fullmatch(uri)
            if found is None or found[f"{which}start"] is None:
                return None
            start, size = int(found[f"{which}start"]), int(found[f"{which}size"])
            return files.part(as_name(found["shard"]), start, size) if size <= Limits.max_bytes else None

        return files.each(one, uris)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in a shard. `whole`: whether all of its bytes are there."""

    name: str
    start: int
    size: int
    is_file: bool
    is_folder: bool
    whole: bool


class _Headers:
    """What `tarfile` reads headers from: it is given no more at once than a header can need."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header that claims {size} bytes")
        return self._file.read(size)


def _members(file: BinaryIO) -> Iterator[_Member | str]:
    """The members of a shard, and at its end `truncated_shard` or `broken_shard` where it does not end as it should."""
    length = file.seek(0, 2)
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            while (found := tar.next()) is not None:
                tar.members.clear()  # the standard library would keep them all
                if found.size < 0 or found.offset_data < end:
                    yield "broken_shard"
                    return
                whole = found.offset_data + found.size <= length
                is_file = found.isreg() and not found.issparse()
                yield _Member(found.name, found.offset_data, found.size, is_file, found.isdir(), whole)
                end = tar.offset
    except _BROKEN:
        yield "truncated_shard" if end + tarfile.BLOCKSIZE > length else "broken_shard"
        return
    file.seek(end)
    after = file.read(tarfile.BLOCKSIZE)
    if len(after) < tarfile.BLOCKSIZE:
        yield "truncated_shard"
    elif after.strip(b"\0"):
        yield "broken_shard"


def _why_not(member: _Member, path: str, image: bool) -> str | None:
    if path.startswith("/") or ".." in path.split("/"):
        return "name_out_of_root"
    if not member.is_file:
        return "not_a_regular_file"
    if not member.whole:
        return "truncated_shard"
    return "too_many_bytes" if image and member.size > Limits.max_bytes else None


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object; None for what is none."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _plain(said: dict[str, Any], key: str | None) -> str | None:
    """Text or a number of a JSON object."""
    value = said.get(key) if key else None
    return None if value in (None, "") or isinstance(value, list | dict | float) else str(value)


def _is_no_text(value: Any) -> bool:
    return isinstance(value, str) and any(0xD800 <= ord(letter) <= 0xDFFF for letter in value)


def open_source(options: Options) -> WebDatasetSource:
    return WebDatasetSource(options)
