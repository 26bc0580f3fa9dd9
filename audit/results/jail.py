"""SQL of strangers: a query that arrives through the report runs in a process of its own, which can read the run's
tables and nothing else, writes nothing, and is killed when it takes too long.

DuckDB's own limits do not hold against every query (a repeated text of gigabytes, a range of a billion rows), so the
operating system's stand behind them: memory, processor time, and no file that may grow.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from audit.errors import ConfigError
from audit.results.schema import TABLES
from audit.results.sql import Run, definitions

LONGEST_QUERY = 100_000  # characters
_CHILD = Path(__file__).with_name("_jail.py")
# Else every thread takes of the limited address space what it may need one day.
_ALLOCATION = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
_START = 5  # seconds that the process may take to begin


@dataclass(frozen=True)
class Limits:
    """What one query may take: seconds of the clock and of the processor, rows and bytes of its answer, bytes of
    memory."""

    seconds: int = 5
    rows: int = 10_000
    bytes: int = 64 * 2**20
    memory: int = 2 * 2**30


@dataclass(frozen=True)
class Answer:
    """The first rows of an answer; `whole`: there are no more."""

    table: pa.Table
    whole: bool


def ask(run: Run, query: str, limits: Limits = Limits()) -> Answer:
    """Run one SELECT over the units that the run has open. Raises ConfigError where it is refused, is wrong, or takes
    more than its limits; and for a run in an object store, which such a process has no way to."""
    if not isinstance(run.location, Path):
        raise ConfigError("queries in the report need a run on a disk; use 'audit sql' for this one")
    if len(query) > LONGEST_QUERY:
        raise ConfigError(f"the query has {len(query)} characters, more than {LONGEST_QUERY}")
    files = {name: run.store.files(name, (run.commits or {}).values()) for name in TABLES}
    datasets = {
        f"_files_{name}": (
            base64.b64encode(TABLES[name].serialize()).decode(),
            [str(run.location.resolve() / file.path) for file in listed],
        )
        for name, listed in files.items()
        if listed
    }
    request = {
        "datasets": datasets,
        "statements": definitions({name: f'"_files_{name}"' for name, listed in files.items() if listed}),
        "query": query,
        "rows": limits.rows + 1,
        "seconds": limits.seconds,
        "bytes": limits.bytes,
        "memory": limits.memory,
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(request).encode(),
            capture_output=True,
            env=_ALLOCATION,
            cwd="/",
            timeout=limits.seconds + _START,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"the query took more than {limits.seconds} seconds") from None
    if ended.stdout[:1] == b"+":
        table = pa.ipc.open_stream(ended.stdout[1:]).read_all()
        return Answer(table.slice(0, limits.rows), table.num_rows <= limits.rows)
    if ended.stdout[:1] == b"-":
        raise ConfigError(f"the query failed: {ended.stdout[1:].decode('utf-8', 'replace')[:2000]}")
    raise ConfigError(f"the query took more memory or time than one may, and was ended ({ended.returncode})")
