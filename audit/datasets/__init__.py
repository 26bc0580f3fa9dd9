"""Data sources: one file each. A source lists its entries cheaply and reads the bytes of those it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from audit.results.warnings import RunWarning

# Codes of warnings that do not apply to a pool, whose images need no labels.
ABOUT_LABELS = ("no_label", "no_label_column", "several_labels", "fractional_labels", "label_outside_names")


class Entry(NamedTuple):
    """A place in a data set. `uri` is enough for the source to read it again; `reason`: why it cannot be used.

    `caption`: what the image shows, in words. `mask`: where the source has the image of its object, None where it
    has none; whether that can be read and decoded is found when it is used.
    """

    uri: str
    display_name: str
    label: str | None = None
    reason: str | None = None
    caption: str | None = None
    mask: str | None = None


class DataSource(Protocol):
    """What a plugin's `open_source(options)` returns."""

    def classes(self) -> tuple[str, ...]:
        """The classes that the data set declares, in its own order, with or without images (the names of a ClassLabel,
        the option `class_names`); empty if it declares none."""

    def warnings(self) -> tuple[RunWarning, ...]:
        """Warnings of the last listing, without a role; complete only after `entries` has been read to its end, and
        empty before that."""

    def where(self, uri: str) -> str:
        """The full path or address of an item, for people."""

    def entries(self) -> Iterator[Entry]:
        """All entries, in a stable order, as they are listed: none is kept. Raises DataError where the data set cannot
        be listed, DataUnavailable where it cannot be now."""

    def read(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        """The bytes of each uri, in the order asked; None where an item cannot be read any more. Raises
        DataUnavailable where that cannot be told of an item, since nothing can be read now."""

    def read_masks(self, uris: Sequence[str]) -> Iterator[bytes | None]:
        """The bytes of the mask of each uri (of the image), in the order asked; None where it has none to read.
        Raises DataUnavailable as `read` does."""


def warnings_of(source: DataSource, role: str) -> tuple[RunWarning, ...]:
    """Warnings of the last listing of a source for a role. For a pool, warnings about labels are left out."""
    return tuple(
        replace(warning, role=role)
        for warning in source.warnings()
        if role != "pool" or warning.code not in ABOUT_LABELS
    )


def printable(raw: str) -> str:
    """A name that is safe to print and to store: control characters and undecodable bytes are escaped."""
    if raw.isprintable():  # as nearly all are, and lone surrogates are not
        return raw
    return "".join(c if c.isprintable() else f"\\x{ord(c) & 0xFFFF:02x}" for c in raw)
