"""Warnings about models and data, in one line each: rows of the table `warnings`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RunWarning:
    """A warning that a reader of a run's numbers must know.

    `code`: a short stable word, which a gate's rules may accept. `message`: one line with the finding and its remedy.
    `model_id`, `role`: what it concerns; None for the whole job. `items`: the number of images that it concerns.
    `blocks_gate`: whether a gate does not pass because of it.
    """

    code: str
    message: str
    model_id: str | None = None
    role: str | None = None
    items: int | None = None
    blocks_gate: bool = True

    @property
    def text(self) -> str:
        """The message, with the model that it concerns."""
        named = self.model_id is None or self.message.startswith(f"{self.model_id}: ")
        return self.message if named else f"{self.model_id}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, and for a row of `warnings`."""
        return asdict(self)


def warning_rows(warnings: Iterable[RunWarning]) -> list[dict[str, Any]]:
    """Rows of the table `warnings`."""
    return [warning.as_dict() for warning in warnings]
