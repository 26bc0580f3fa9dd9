"""Convert labels of any type to text, by one rule for all sources.

Text is normalised to NFC and loses the spaces at its ends; bytes are UTF-8; whole numbers lose their '.0'; true and
false become 'true' and 'false'; null, NaN and blank text are no label. An item is not used if its label is a list,
an object, bytes that are not text, or longer than 1,000 characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from audit.datasets import printable
from audit.datasets._notes import Notes

LONGEST = 1000
_WHOLE = re.compile(r"[-+]?\d+\.0*")


@dataclass(frozen=True, slots=True)
class Label:
    """`text`: None if there is no label. `reason`: why the item cannot be used, if its label is invalid."""

    text: str | None = None
    reason: str | None = None


NONE, BAD, SEVERAL = Label(), Label(reason="bad_label"), Label(reason="several_labels")


def label_of(value: Any, notes: Notes) -> Label:
    """A label as text, safe to print and to store."""
    if isinstance(value, list | tuple):
        notes.count("several_labels", str(value))
        return SEVERAL
    text = _text(value, notes)
    if text is None:
        return NONE
    if isinstance(text, Label):
        return text
    return named(text, notes)


def named(text: str, notes: Notes) -> Label:
    """Convert a name to a label: the name of a folder or a class, or the text of a cell."""
    if len(text) > LONGEST:
        return BAD
    plain = normal(text)
    if plain and plain != unicodedata.normalize("NFC", text):
        notes.count("label_spaces", repr(text))
    return Label(printable(plain)) if plain else NONE


def normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _text(value: Any, notes: Notes) -> str | Label | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal):
        return _number(value, notes)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return BAD
    return BAD if isinstance(value, dict) else str(value)


def _number(value: float | Decimal, notes: Notes) -> str | Label | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return BAD
    if value == int(value):
        return str(int(value))
    notes.count("fractional_labels", str(value))
    return str(value)


def of_class(names: Sequence[str], value: Any, notes: Notes) -> Label:
    """The label of a value that may be an index into `names`. A number without a name is no label; other values are
    labels themselves."""
    if isinstance(value, list | tuple):
        return label_of([names[i] if _is_number(i) and 0 <= i < len(names) else i for i in value], notes)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not _is_number(value):
        return label_of(value, notes)
    if 0 <= value < len(names):
        return named(names[value], notes)
    notes.count("label_outside_names", str(value))
    return NONE


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_whole_number(text: str) -> bool:
    """Whether text is an integer with a zero fraction, such as '3.0', as in tables written from floats."""
    return _WHOLE.fullmatch(text.strip()) is not None


def classes_of(names: Sequence[str]) -> tuple[str, ...]:
    """Class names in the form of labels."""
    return tuple(printable(normal(name)) for name in names)
