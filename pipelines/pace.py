"""How long units take, stage by stage, and so when one is late."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median
from typing import Literal

FIRST = 3600.0  # seconds that a unit may take while nothing is known of its stage
LEAST = 600.0  # seconds that any unit may take
HUNG = 10.0  # times what such units take
SLOW = 3.0  # times what such units take, after which a second copy is worth it
SLOW_LEAST = 30.0  # seconds


class Pace:
    """Seconds for an item, as the median over a stage's last units."""

    def __init__(self, deadline_minutes: float | Literal["auto"]) -> None:
        self.deadline_minutes = deadline_minutes
        self._seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=64))
        self._median: dict[str, float] = {}

    @property
    def soonest(self) -> float:
        """Seconds before which no unit is slow or hangs."""
        return min(SLOW_LEAST, LEAST if self.deadline_minutes == "auto" else 60 * self.deadline_minutes)

    def add(self, stage: str, items: int, seconds: float) -> None:
        self._seen[stage].append(seconds / max(items, 1))
        self._median[stage] = median(self._seen[stage])

    def expected(self, stage: str, items: int) -> float | None:
        """Seconds that a unit of so many items should take, None while no unit of its stage is done."""
        seconds = self._median.get(stage)
        return None if seconds is None else seconds * max(items, 1)

    def deadline(self, stage: str, items: int, loads: bool = False) -> float:
        """Seconds after which its worker counts as hung. `loads`: it is the worker's first unit of the stage, which
        may have to load models."""
        if self.deadline_minutes != "auto":
            return 60 * self.deadline_minutes
        expected = self.expected(stage, items)
        return FIRST if expected is None else max(FIRST if loads else LEAST, HUNG * expected)

    def slow(self, stage: str, items: int) -> float | None:
        """Seconds after which a second worker should try it too, None where nothing is known."""
        expected = self.expected(stage, items)
        return None if expected is None else max(SLOW_LEAST, SLOW * expected)
