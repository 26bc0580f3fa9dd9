"""Finds out where and why image classifiers fail.

`audit.open(run)` opens the results of a run for reading; `pipelines.run(job)` makes them.
"""

from audit.results.sql import Run
from audit.results.sql import open_run as open

__all__ = ["Run", "open"]
