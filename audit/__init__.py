"""Finds out where and why image classifiers fail.

`audit.open(run)` opens the results of a run for reading; `pipelines.run(job)` makes them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.results.sql import Run
    from audit.results.sql import open_run as open

__all__ = ["Run", "open"]


def __getattr__(name: str) -> Any:
    """Import DuckDB when results are first opened, not before."""
    if name not in __all__:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    from audit.results import sql

    return {"Run": sql.Run, "open": sql.open_run}[name]
