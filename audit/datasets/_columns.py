"""Find the columns of images and of labels in a table, if the options have their defaults."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from audit.datasets import printable
from audit.datasets._notes import Notes
from audit.datasets._selection import READ
from audit.errors import DataError

LABEL, IMAGE = "label", "image"
_LABELS = """
    label labels label_name class classes class_name classname class_label klass category categories category_name
    target targets target_name fine_label fine_labels coarse_label coarse_labels ground_truth groundtruth gt y
    label_id class_id category_id target_id
"""
_PATHS = """
    image images img imgs image_path img_path imagepath image_file image_filename img_file path paths file files
    file_name filename filepath file_path fname uri
"""
_BYTES = "picture photo jpg jpeg png bytes image_bytes img_bytes content"
LABELS, PATHS = frozenset(_LABELS.split()), frozenset(_PATHS.split())
BYTES = PATHS | frozenset(_BYTES.split())
_SHOWN = 20


def folded(name: str) -> str:
    """A column's name without differences of case, of surrounding spaces, and of '-', '_' and ' ' between words."""
    return re.sub(r"[-_\s]+", "_", unicodedata.normalize("NFC", name).strip().casefold())


def shown(names: Iterable[str]) -> str:
    """Names of columns for a message, the first 20."""
    known = [printable(name) for name in names]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more


def image_column(
    asked: str, names: Sequence[str], known: frozenset[str], *, where: str, notes: Notes, default: str = IMAGE
) -> str:
    """The column of images. known: folded names that are accepted if the option has its default.

    Raises DataError if no column fits, or if several fit.
    """
    found = find(asked, asked == default, names, known, option="image_column", where=where, notes=notes)
    if found is None:
        headless = any(PurePosixPath(name).suffix.lower() in READ for name in names)
        cure = "The first line names an image: add a header line, such as image,label" if headless else ""
        cure = cure or "Name the column of images with 'image_column'"
        raise DataError(f"{where} has no column {asked!r}; it has {shown(names)}. {cure}.")
    return found


def label_column(asked: str | None, names: Sequence[str], *, where: str, notes: Notes) -> str | None:
    """The column of labels; None if there is none, with a note.

    Raises DataError if the option names a column that is missing, or if several columns fit.
    """
    if asked is None:
        return None
    found = find(asked, asked == LABEL, names, LABELS, option="label_column", where=where, notes=notes)
    if found is None:
        lacks = f"{where} has no column {asked!r}; it has {shown(names)}"
        if asked != LABEL:
            raise DataError(f"{lacks}. Name the column of labels with 'label_column', or set it to null.")
        notes.missing_column = f"{lacks}: name the column of labels with 'label_column', or set it to null"
    return found


def find(
    asked: str, default: bool, names: Sequence[str], known: frozenset[str], *, option: str, where: str, notes: Notes
) -> str | None:
    """The column named `asked`, else the only column with this name after folding, else, if the option has its default,
    the only column with a name in `known`."""
    if names.count(asked) == 1:
        return asked
    fits = [name for name in names if folded(name) == folded(asked)]
    if not fits and default:
        fits = [name for name in names if folded(name) in known]
    if len(fits) > 1:
        raise DataError(
            f"{where}: several columns may be {asked!r}: {shown(fits)}. Name one with {option!r}"
            f"{', or set it to null' if option == 'label_column' else ''}."
        )
    if fits and fits[0] != asked:
        notes.say(
            f"{option}_taken",
            f"{where} has no column {asked!r}; the column {printable(fits[0])!r} is used instead. To confirm, set "
            f"{option}: {printable(fits[0])}",
            blocks_gate=False,
        )
    return fits[0] if fits else None
