"""The bad-input corpus: what turns up in data sets, model folders and job files, and what must become of it.

Everything is generated. Each case has an id, a function that makes the input, and the outcome. There is no loader for
HTTP models yet, so the corpus has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["image", "mask", "data", "model", "job"]


@dataclass(frozen=True)
class Accepted:
    """An image that is used. `pixels`: an array or a colour that the result is within `tolerance` of, everywhere."""

    size: tuple[int, int]
    pixels: Any
    note: str | None = None
    tolerance: int = 0


@dataclass(frozen=True)
class Quarantined:
    """An item that is not used, with exactly this reason."""

    reason: str


@dataclass(frozen=True)
class Listed:
    """A data set of which these are the rows, in order: name and reason. What has a reason reads as None; so do the
    names in `gone`, and nothing else."""

    rows: tuple[tuple[str, str | None], ...]
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """An error of this library, and what its message names."""

    error: type[Exception]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Holds:
    """A model that loads, or a job file that is read, and what comes of it."""

    value: Any


@dataclass(frozen=True)
class Case:
    """`make`: for images, () -> bytes; for masks, () -> bytes or None; for the others, a folder -> what a job file says
    (of a data source or a model), or the path of a job file."""

    id: str
    kind: Kind
    make: Callable[..., Any]
    expected: Accepted | Quarantined | Listed | Refused | Holds


def cases() -> list[Case]:
    from tests import bad_data, bad_images, bad_jobs, bad_models

    return [*bad_images.CASES, *bad_data.CASES, *bad_models.CASES, *bad_jobs.CASES]


def reasons(found: list[Case]) -> set[str]:
    """All reasons that the cases expect."""
    quarantined = {case.expected.reason for case in found if isinstance(case.expected, Quarantined)}
    rows = (row for case in found if isinstance(case.expected, Listed) for row in case.expected.rows)
    return quarantined | {reason for _, reason in rows if reason}
