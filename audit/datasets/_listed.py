"""What all data sources share: a listing that is sampled, and the warnings that it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from audit.datasets import Entry
from audit.datasets._notes import Notes
from audit.datasets._sampling import Part, sampled
from audit.results.warnings import RunWarning


class ListedSource(ABC):
    """Base of data sources. `notes`: of the last listing; reading adds to it and nobody looks."""

    def __init__(self, part: Part) -> None:
        self.part, self.notes = part, Notes()

    @abstractmethod
    def _all(self) -> Iterator[Entry]:
        """All entries of the data set; counts in `notes` what it meets."""

    def entries(self) -> Iterator[Entry]:
        self.notes = Notes(self.labels_expected())
        return sampled(self.notes.watched(self._all()), self.part)

    def labels_expected(self) -> bool:
        """Whether images without a label are worth a warning."""
        return True

    def classes(self) -> tuple[str, ...]:
        return ()

    def warnings(self) -> tuple[RunWarning, ...]:
        return self.notes.warnings()
