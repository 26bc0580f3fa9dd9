"""Runs jobs on Ray. `run("job.yaml")` is what `audit run job.yaml` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audit.results.sql import Run


def run(job_file: str | Path, address: str | None = None) -> Run:
    """Run a job, or resume it, and open the result for reading."""
    from audit.results.sql import Run
    from pipelines.execute import execute

    return Run(execute(Path(job_file), address=address).root)


__all__ = ["run"]
