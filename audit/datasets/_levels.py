"""Select the folder of a path that is the label, and warn if another folder may be meant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

from audit.datasets import printable
from audit.datasets._notes import Notes

Level = Literal["parent", "first"] | int
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"))
_MASKS = frozenset(
    (
        *("mask", "masks", "seg", "segmentation", "segmentations", "segmentation_masks", "annotations", "annotation"),
        *("gt", "ground_truth", "groundtruth", "trimaps", "labels"),
    )
)
_COLUMNS = frozenset(("split", "splits", "subset", "set", "partition", "phase"))
_SHOWN, _STEMS = 4, 2000


def label_at(folders: tuple[str, ...], level: Level) -> str | None:
    """The folder that is the label. folders: those that contain an image, from the root. level: the last folder
    (parent), the first, or the one at this depth, from 1. None if the image is less deep."""
    if level == "parent":
        return folders[-1] if folders else None
    depth = 1 if level == "first" else level
    return folders[depth - 1] if depth <= len(folders) else None


class Levels:
    """The folders of one listing whose names are labels. Holds a few names per level, and a few thousand hashes."""

    def __init__(self, level: Level | None) -> None:
        """level: None if the job does not set it."""
        self.level = level
        self._depths: dict[int, str] = {}
        self._first: dict[str, None] = {}
        self._last: dict[str, None] = {}
        self._splits: dict[str, None] = {}
        self._masks: dict[str, set[int]] = {}
        self._stems: set[int] = set()

    def add(self, relative: str, folders: tuple[str, ...]) -> None:
        """An image whose label is a folder."""
        self._of_masks(relative, folders)
        if not folders:
            return
        self._depths.setdefault(len(folders), relative)
        _keep(self._first, folders[0])
        _keep(self._last, folders[-1])
        if folders[0].casefold() in SPLITS:
            _keep(self._splits, folders[0])

    def _of_masks(self, relative: str, folders: tuple[str, ...]) -> None:
        stem = hash(os.path.splitext(os.path.basename(relative))[0])
        masks = next((folder for folder in folders if folder.casefold() in _MASKS), None)
        stems = self._stems if masks is None else self._masks.setdefault(masks, set())
        if len(stems) < _STEMS:
            stems.add(stem)

    def say(self, notes: Notes) -> None:
        """Warn of ambiguous folders."""
        for folder, stems in self._masks.items():
            if len(stems & self._stems) * 2 >= min(len(stems), len(self._stems)) > 0:
                notes.say(
                    "folder_of_masks",
                    f"the folder {printable(folder)!r} holds images with the same names as images of other folders, "
                    "and they are used as images. If they are masks, move them out of the data set, or name them in "
                    "the column 'mask' of metadata.csv",
                )
        if len(self._splits) > 1:
            notes.say(
                "several_splits",
                f"the folders {_shown(self._splits)} look like splits of one data set, and all their images are used; "
                "to use one split, set path to its folder",
            )
        if self.level is None and self._is_unclear():
            notes.say("label_level", self._levels())

    def _is_unclear(self) -> bool:
        """Whether another level may be meant: images are in nested folders, and the first level is not only splits."""
        nested = max(self._depths, default=0) > 1
        return nested and not (set(self._depths) == {2} and {name.casefold() for name in self._first} <= SPLITS)

    def _levels(self) -> str:
        depths = " and ".join(f"{depth} ({printable(self._depths[depth])})" for depth in sorted(self._depths)[:3])
        return (
            f"images lie in folders of depth {depths}; the label of an image is the folder that contains it: "
            f"{_shown(self._last)}. Set label_level: parent to confirm this; label_level: first for "
            f"{_shown(self._first)}; or a number for the folder at that depth"
        )


def folders_of(relative: str) -> tuple[str, ...]:
    """The folders that contain a path, from the root."""
    return PurePosixPath(relative).parts[:-1]


def splits_of(names: Iterable[str], notes: Notes) -> None:
    """Warn if the files of a data set look like several splits. names: of the files."""
    found: dict[str, None] = {}
    for name in names:
        parts = [*PurePosixPath(name).parts[:-1], re.split(r"[-_.\d]", PurePosixPath(name).stem)[0]]
        found.update(dict.fromkeys(part for part in parts if part.casefold() in SPLITS))
    if len(found) > 1:
        notes.say(
            "several_splits",
            f"the files of {_shown(found)} look like splits of one data set, and all their images are used; "
            "to use one split, set path to a pattern for its files",
        )


def split_column(names: Iterable[str]) -> str | None:
    """The column that may hold the split of a row, such as 'split'. names: of the columns."""
    return next((name for name in names if name.strip().casefold() in _COLUMNS), None)


class SplitColumn:
    """The splits that the rows of a table name."""

    def __init__(self) -> None:
        self._column = ""
        self._splits: dict[str, str] = {}  # by the name in lower case, as it is first written

    def add(self, column: str | None, value: object) -> None:
        if column is not None and isinstance(value, str) and value.strip().casefold() in SPLITS:
            self._column = column
            self._splits.setdefault(value.strip().casefold(), value.strip())

    def say(self, notes: Notes) -> None:
        """Warn if there is more than one."""
        if len(self._splits) > 1:
            splits = _shown(self._splits.values())
            notes.say(
                "several_splits",
                f"the column {printable(self._column)!r} names several splits ({splits}), and the rows of all of them "
                "are used; to use one split, write its rows to a file of their own",
            )


def _keep(names: dict[str, None], name: str) -> None:
    if len(names) <= _SHOWN:
        names[name] = None


def _shown(names: Iterable[str]) -> str:
    known = [repr(printable(name)) for name in names]
    return ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
