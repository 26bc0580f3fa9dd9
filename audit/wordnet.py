"""The noun hierarchy of WordNet, read from the database files of a local installation (format: wndb(5WN)).

The eight digits of an ImageNet class id such as n01440764 are the place of its line in `data.noun` of WordNet 3.0,
which Debian packages as `wordnet-base` in /usr/share/wordnet.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from audit.errors import ConfigError

_ID = re.compile(r"n(\d{8})")


def offset_of(wordnet_id: str) -> int | None:
    """n01440764 to 1440764; None for what is no id of a noun."""
    match = _ID.fullmatch(wordnet_id)
    return int(match.group(1)) if match else None


class WordNet:
    """A folder with `data.noun` and `index.noun`. Raises ConfigError where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        missing = [name for name in ("data.noun", "index.noun") if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"{folder} holds no WordNet: it lacks {' and '.join(missing)}. Give the folder of WordNet 3.0's "
                "database files; Debian's package wordnet-base puts them in /usr/share/wordnet."
            )
        self._above: dict[int, dict[int, int]] = {}

    def senses(self, lemmas: Collection[str]) -> dict[str, set[int]]:
        """The synsets (offsets) of each lemma that there is. 'Tinca tinca' is looked up as tinca_tinca."""
        wanted = {lemma.lower().replace(" ", "_"): lemma for lemma in lemmas}
        found = {}
        with open(self.folder / "index.noun", encoding="ascii", errors="replace") as file:
            for line in file:
                lemma = line.partition(" ")[0]
                if lemma in wanted:
                    fields = line.split()
                    found[wanted[lemma]] = {int(offset) for offset in fields[-int(fields[2]) :]}
        return found

    def knows(self, offset: int) -> bool:
        return self._line(offset) is not None

    def above(self, offset: int) -> dict[int, int]:
        """The synset and all above it, each with the least number of hypernym steps to it. Instances count one."""
        if offset not in self._above:
            steps = {offset: 0}
            for hypernym in self._hypernyms(offset):
                for synset, more in self.above(hypernym).items():
                    steps[synset] = min(steps.get(synset, more + 1), more + 1)
            self._above[offset] = steps
        return self._above[offset]

    def distance(self, one: int, other: int) -> int | None:
        """Steps on the shortest path over a common hypernym; None where there is none."""
        a, b = self.above(one), self.above(other)
        return min((a[synset] + b[synset] for synset in a.keys() & b.keys()), default=None)

    def _hypernyms(self, offset: int) -> list[int]:
        line = self._line(offset)
        if line is None:
            return []
        fields = line.partition("|")[0].split()
        first = 4 + 2 * int(fields[3], 16)  # offset, file, type, and the number of words, each with an id
        pointers = fields[first + 1 : first + 1 + 4 * int(fields[first])]
        return [int(pointers[i + 1]) for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")]

    def _line(self, offset: int) -> str | None:
        """The line at an offset; it begins with that offset, and no other place of the file does."""
        if self._data[offset : offset + 9] != b"%08d " % offset:
            return None
        return self._data[offset : self._data.index(b"\n", offset)].decode()

    @cached_property
    def _data(self) -> bytes:
        return (self.folder / "data.noun").read_bytes()
