"""What a job cannot know or doubts about its models and data, in one line each: rows of the table `warnings`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RunWarning:
    """One thing that a reader of a run's numbers must know.

    `code`: a short stable word, by which a gate's rules accept it. `message`: one line that names what was found and
    what would help. `model_id`, `role`: what it is about; None for the whole job. `items`: how many images it is about.
    `blocks_gate`: whether a gate refuses to pass while it stands.
    """

    code: str
    message: str
    model_id: str | None = None
    role: str | None = None
    items: int | None = None
    blocks_gate: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, and for a row of `warnings`."""
        return asdict(self)


def warning_rows(warnings: Iterable[RunWarning]) -> list[dict[str, Any]]:
    """Rows of the table `warnings`."""
    return [warning.as_dict() for warning in warnings]
