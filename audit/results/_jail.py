"""The process in which a stranger's query runs: started by `jail.py`, by its path, with a request on standard input.

It imports nothing of audit. The request is JSON: `datasets`, by name an Arrow schema and the Parquet files that have
it; `statements` that set up tables and views over them; the `query`, and limits. The answer on standard output is '+'
and an Arrow stream, or '-' and what is wrong.

Files are read through Arrow and not by DuckDB, which may thus be denied all of them: it would let a query that may read
a file overwrite it (a COPY inside of a CTE, without a temporary file).
"""

from __future__ import annotations

import base64
import json
import resource
import sys
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

CONFIG: dict[str, Any] = {
    "threads": 1,
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
}


class Refused(Exception):
    """A query that is not run, or whose answer is not given."""


def main() -> None:
    request = json.load(sys.stdin)
    _confine(request)
    try:
        answer = b"+" + _asked(request)
    except (Refused, duckdb.Error, pa.ArrowException) as error:
        answer = b"-" + str(error).encode("utf-8", "replace")
    except (MemoryError, RecursionError):
        answer = b"-the query needs more memory than one may take"
    sys.stdout.buffer.write(answer)


def _confine(request: dict[str, Any]) -> None:
    """No file can be written or grow, and neither memory nor time be taken beyond what is given."""
    for what, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_CPU, request["seconds"] + 5),  # what begins a query takes a second of it
    ):
        resource.setrlimit(what, (most, most))


def _asked(request: dict[str, Any]) -> bytes:
    connection = _connected(request)
    found = connection.extract_statements(request["query"])
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        raise Refused("one SELECT is answered here, and nothing else")
    connection.execute("begin transaction read only")  # a CTE that writes is typed SELECT
    most = request["rows"]
    reader = connection.sql(request["query"]).to_arrow_reader(2048)
    batches: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in reader:
        batches.append(batch.slice(0, most - rows))
        rows, size = rows + batches[-1].num_rows, size + batches[-1].nbytes
        if size > request["bytes"]:
            raise Refused(f"the answer has more than {request['bytes'] / 1e6:.0f} MB: ask for fewer rows or columns")
        if rows >= most:
            break
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, reader.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _connected(request: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    """The run's tables and views, and no way to anything else."""
    limits = {"max_execution_time": 1000 * request["seconds"], "memory_limit": f"{request['memory'] // 2}B"}
    pa.set_cpu_count(1)  # each further thread takes of the address space that is limited
    pa.set_io_thread_count(1)
    connection = duckdb.connect(config={**CONFIG, **limits})
    connection.execute("set enable_progress_bar=false")
    connection.execute("set enable_external_access=false")
    for name, (schema, paths) in request["datasets"].items():
        columns = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
        connection.register(name, ds.dataset(paths, schema=columns, format="parquet"))
    for statement in request["statements"]:
        connection.execute(statement)
    connection.execute("set lock_configuration=true")
    return connection


if __name__ == "__main__":
    main()
