"""Doubts about a listing, counted while it goes on and turned into one warning per kind at its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from audit.datasets import Entry, printable
from audit.results.warnings import RunWarning

_EXAMPLES, _SUFFIXES = 3, 8


@dataclass(slots=True)
class _Count:
    """How often something occurred, with the first few examples."""

    items: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str, items: int = 1, most: int = _EXAMPLES) -> None:
        self.items += items
        if len(self.examples) < most and example not in self.examples:
            self.examples.append(example)

    def shown(self) -> str:
        return ", ".join(printable(example[:100]) for example in self.examples)


@dataclass(frozen=True)
class _Kind:
    """`message`: with {items}, {listed} and {examples}."""

    message: str
    blocks_gate: bool = True
    examples: int = _EXAMPLES


_KINDS = {
    "several_labels": _Kind(
        "{items} items have a list of labels ({examples}) and are not used: an audit needs one label per image"
    ),
    "fractional_labels": _Kind(
        "{items} labels are numbers with a fraction ({examples}), which are not classes; set 'label_column' to the "
        "column of classes"
    ),
    "label_outside_names": _Kind(
        "{items} labels are numbers without a class name ({examples}); these images have no label"
    ),
    "label_spaces": _Kind("{items} labels had spaces at their ends ({examples}), which were removed", False),
    "label_in_json": _Kind(
        "{items} labels come from the key {examples} of .json files; set 'label_key' to confirm", False
    ),
    "label_suffix_taken": _Kind(
        "{items} labels come from files named *.{examples}; set 'label_suffix' to confirm", False
    ),
    "labels_from_folders": _Kind(
        "{items} samples have no label of their own; their folder in the shard is used as label ({examples}). To use "
        "no labels, set label_suffix and label_key to null",
        False,
    ),
    "labels_from_partitions": _Kind("{items} labels come from the folders of the files ({examples})", False),
    "dotted_names": _Kind(
        "{items} images in shards belong to no sample ({examples}), since the name of a sample ends at its first dot; "
        "if file names contain dots of their own, set key: last_dot"
    ),
    "several_images": _Kind(
        "{items} samples have several images; of ({examples}), the first is used. To choose one, set image_suffixes"
    ),
    "linked_folder": _Kind(
        "{items} folders are links and were not followed ({examples}): their files are not part of this run; set "
        "follow_links: true to follow them"
    ),
    "linked_again": _Kind("{items} links lead to folders that were already listed by another link ({examples})"),
    "link_loop": _Kind(
        "{items} links lead to a folder that contains the link ({examples}); they were not followed", False
    ),
    "hidden": _Kind("{items} hidden files and folders, or files of other software, were skipped ({examples})", False),
    "links_out": _Kind(
        "{items} links lead out of the data set and were not followed ({examples}): set follow_links: true to follow "
        "them"
    ),
    "images_not_read": _Kind(
        "{items} files look like images of a format that is not read ({examples})", True, _SUFFIXES
    ),
    "files_not_listed": _Kind(
        "{items} files do not look like images and were not listed ({examples})", False, _SUFFIXES
    ),
    "not_in_metadata": _Kind(
        "{items} images are not named in the metadata ({examples}); their label is the folder that they are in, if any"
    ),
}


class Notes:
    """The doubts of one listing. `labels_expected`: whether to warn of items without a label."""

    def __init__(self, labels_expected: bool = True) -> None:
        self.labels_expected = labels_expected
        self.missing_column: str | None = None
        self._counts: dict[str, _Count] = {}
        self._said: dict[str, RunWarning] = {}
        self._listed = self._labelled = 0
        self._unlabelled = _Count()

    def count(self, code: str, example: str, items: int = 1) -> None:
        """Count one occurrence of a kind in `_KINDS`."""
        self._counts.setdefault(code, _Count()).add(example, items, _KINDS[code].examples)

    def counted(self, code: str) -> int:
        return self._counts[code].items if code in self._counts else 0

    def say(self, code: str, message: str, items: int | None = None, *, blocks_gate: bool = True) -> None:
        """Add a warning. Later warnings with the same code are ignored."""
        self._said.setdefault(code, RunWarning(code, message, items=items, blocks_gate=blocks_gate))

    def include(self, other: Notes) -> None:
        """Add the counts and warnings of other notes."""
        for code, count in other._counts.items():
            mine = self._counts.setdefault(code, _Count())
            mine.items += count.items
            mine.examples = (mine.examples + count.examples)[:_EXAMPLES]
        self._said = {**other._said, **self._said}
        self.missing_column = self.missing_column or other.missing_column

    def watched(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Pass the entries on, and count usable entries without a label."""
        for entry in entries:
            if entry.reason is None:
                self._listed += 1
                if entry.label is None:
                    self._unlabelled.add(entry.display_name)
                else:
                    self._labelled += 1
            yield entry

    def warnings(self) -> tuple[RunWarning, ...]:
        """One warning per kind, those that block a gate first."""
        found = [*self._said.values(), *self._about_labels()]
        for code, count in self._counts.items():
            kind = _KINDS[code]
            message = kind.message.format(items=f"{count.items:,}", examples=count.shown())
            found.append(RunWarning(code, message, items=count.items, blocks_gate=kind.blocks_gate))
        return tuple(sorted(found, key=lambda warning: not warning.blocks_gate))

    def _about_labels(self) -> Iterator[RunWarning]:
        count = self._unlabelled.items
        if not self.labels_expected or not count:
            return
        lacks = f"; {self.missing_column}" if self.missing_column else ""
        if not self._labelled and self.missing_column:
            message = f"no image has a label: {self.missing_column}"
            yield RunWarning("no_label_column", message, items=count)
            return
        message = (
            f"{count:,} of {self._listed:,} images have no label ({self._unlabelled.shown()}) and are left out "
            f"of all accuracies{lacks}"
        )
        yield RunWarning("no_label", message, items=count)
