"""All warnings of a run: those that its stages wrote, and those that its tables show."""

from __future__ import annotations

from audit.results.sql import Run
from audit.results.warnings import RunWarning


def warnings_of(run: Run) -> list[RunWarning]:
    """Every warning once, those that block a gate first."""
    rows = run.rows(
        "select distinct code, message, model_id, role, items, blocks_gate from warnings "
        "order by blocks_gate desc, code, model_id, role, message"
    )
    return [RunWarning(**row) for row in rows]
