"""Finds out where and why image classifiers fail.

`audit.open(run)` opens the results of a run for reading; `pipelines.run(job)` makes them, and
`audit.screen(model, dataset)` makes them of what is in memory.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.in_memory import Screening, screen
    from audit.results.sql import Run
    from audit.results.sql import open_run as open

__all__ = ["Run", "Screening", "open", "screen"]


def __getattr__(name: str) -> Any:
    """Import DuckDB when results are first opened, and torch when a model is first shown an image, not before."""
    if name in ("Screening", "screen"):
        from audit import in_memory

        return getattr(in_memory, name)
    if name not in __all__:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    from audit.results import sql

    return {"Run": sql.Run, "open": sql.open_run}[name]
