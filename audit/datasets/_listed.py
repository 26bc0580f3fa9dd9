"""Common part of all data sources: sampling of the listing, and its warnings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from audit.datasets import Entry
from audit.datasets._notes import Notes
from audit.datasets._sampling import Part, sampled
from audit.results.warnings import RunWarning


class ListedSource(ABC):
    """Base of data sources. `notes`: of the last listing; notes that reading adds later are not reported."""

    def __init__(self, part: Part) -> None:
        self.part, self.notes = part, Notes()

    @abstractmethod
    def _all(self) -> Iterator[Entry]:
        """All entries of the data set; counts doubtful ones in `notes`."""

    def entries(self) -> Iterator[Entry]:
        self.notes = Notes(self.labels_expected())
        entries = sampled(self.notes.watched(self._all()), self.part)
        return entries if self.part.first is None else self._noting_one_class(entries)

    def _noting_one_class(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """The same entries, with a note if all have one label, as the first ones of a sorted listing do."""
        labels = set()
        for entry in entries:
            labels.add(entry.label)
            yield entry
        if len(labels) == 1 and None not in labels:
            self.notes.say(
                "one_class",
                f"first: {self.part.first} takes images with the label {labels.pop()!r} only; limit takes a sample",
                blocks_gate=False,
            )

    def labels_expected(self) -> bool:
        """Whether to warn of images without a label."""
        return True

    def classes(self) -> tuple[str, ...]:
        return ()

    def warnings(self) -> tuple[RunWarning, ...]:
        return self.notes.warnings()
