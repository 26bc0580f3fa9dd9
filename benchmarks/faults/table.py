"""The table of faults, for a terminal and for the documentation."""

from __future__ import annotations

from rich.table import Table

from benchmarks.faults.workload import Found


def table(found: list[Found]) -> Table:
    made = Table(*Found("", "", "").as_dict())
    for one in found:
        made.add_row(*(cell(value) for value in one.as_dict().values()))
    return made


def cell(value: object) -> str:
    """A figure in words; what was not measured is blank."""
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


COLUMNS = (
    "id",
    "injected",
    "expected",
    "seen",
    "seed",
    "kills",
    "executions/tasks",
    "duplicates",
    "lost",
    "recovery s",
)


def markdown(found: list[Found]) -> str:
    """The columns of the documentation."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for one in found:
        ratio = "" if one.executions is None else f"{one.executions}/{cell(one.tasks)}"
        seen = one.seen + ("" if one.ok else " **FAILED**")
        figures = (one.seed, one.kills, ratio, one.duplicates, one.lost, one.recovery_seconds)
        cells = [one.id, one.injected, one.expected, seen, *map(cell, figures)]
        lines.append(f"| {' | '.join(' '.join(text.replace('|', '/').split()) for text in cells)} |")
    return "\n".join(lines)
