"""A run's tables as DuckDB views over exactly the committed files, beside those of `views.py`; all have comments."""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from audit.errors import ConfigError, StoreError, unknown
from audit.locations import Location, key_of, located
from audit.results.schema import TABLES
from audit.results.store import Commit, File, Store
from audit.results.views import VIEWS
from audit.sentences import claim

if TYPE_CHECKING:
    import pandas as pd

# Failure modes that concern their class: those that are listed, and what a model misses that says another instead.
CONCERNING = (
    "(select m.* from failure_modes m left join failure_modes whole on whole.failure_mode_id = m.part_of "
    "where m.listed or whole.class_name <> m.class_name)"
)
# What a column would hold in files that were written before there was such a column.
_OLDER = {"failure_modes": "coalesce(listed, source is distinct from 'screen') as listed"}
_TYPES = {
    pa.string(): "varchar",
    pa.float64(): "double",
    pa.float32(): "float",
    pa.int64(): "bigint",
    pa.bool_(): "boolean",
    pa.binary(): "blob",
    pa.timestamp("us", tz="UTC"): "timestamptz",
}


def definitions(relations: Mapping[str, str]) -> list[str]:
    """Statements that define a run's tables and views in DuckDB. `relations`: of a table that has files, what reads
    them.

    Every table has all its columns, also those that older files lack.
    """
    lines = []
    for name, schema in TABLES.items():
        columns = ", ".join(f'"{field.name}" {_type(field.type)}' for field in schema)
        lines.append(f'create or replace table "_empty_{name}" ({columns})')
        told = f"* replace ({_OLDER[name]})" if name in _OLDER else "*"
        files = f" union all by name select * from {relations[name]}" if name in relations else ""
        body = f'select {told} from (select * from "_empty_{name}"{files})'
        lines.append(f'create or replace view "{name}" as {body}')
    return lines + [f'create or replace view "{name}" as {view.query}' for name, view in VIEWS.items()]


def _type(of: pa.DataType) -> str:
    return f"{_TYPES[of.value_type]}[]" if pa.types.is_list(of) else _TYPES[of]


def _comments() -> str:
    """Statements that say of every table, view and column what it holds."""
    told = {name: (schema.metadata[b"comment"].decode(), _columns(schema)) for name, schema in TABLES.items()}
    told |= {name: (view.comment, dict(view.columns)) for name, view in VIEWS.items()}
    lines = []
    for name, (comment, columns) in told.items():
        lines.append(f'comment on view "{name}" is {_quoted(comment)}')
        lines += [f'comment on column "{name}"."{column}" is {_quoted(text)}' for column, text in columns.items()]
    return ";".join(lines)


def _columns(schema: pa.Schema) -> dict[str, str]:
    return {field.name: field.metadata[b"comment"].decode() for field in schema}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_COMMENTS = _comments()


class Run:
    """A run, for reading. Sees the units that were committed when it was opened; `refresh` sees more.

    May be shared by threads. Beside the tables, `VIEWS` can be queried.
    """

    def __init__(self, location: Location, stages: Collection[str] | None = None, comments: bool = False) -> None:
        """`stages`: see the rows of these stages only, whatever else is committed meanwhile.

        `comments`: have DuckDB say what tables, views and columns hold, for people who ask; a tenth of a second.
        """
        self.store = Store(location)
        self.stages, self._comments = stages, comments
        if self.store.read("job.json") is None:
            raise ConfigError(
                f"{location} is not a run: it has no job.json. A run is the folder that 'audit run' names."
            )
        self._lock = threading.Lock()  # a DuckDB connection does one thing at a time; each cursor is its own
        self._looking = threading.Lock()
        self._looked = -math.inf
        self._connection = duckdb.connect()
        self._connection.execute("set enable_progress_bar=false; set parquet_metadata_cache=true")
        self._datasets: dict[str, Any] = {}
        self.commits: dict[str, Commit] | None = None
        self.refresh()

    @property
    def root(self) -> Path:
        """The run's folder. Raises StoreError where it is in an object store."""
        return self.store.root

    @property
    def location(self) -> Location:
        return self.store.location

    def refresh(self, within: float = 0.0) -> None:
        """Point the views at what is committed now. `within`: seconds for which what was seen last is new enough."""
        if not self._looking.acquire(blocking=not within):
            return  # another thread looks already
        try:
            if time.monotonic() - self._looked < within:
                return
            commits = self.store.commits(self.commits)
            if self.stages is not None:
                commits = {unit: commit for unit, commit in commits.items() if commit.stage in self.stages}
            self._looked = time.monotonic()
            if self.commits is None or commits != self.commits:
                self._show(commits)
        finally:
            self._looking.release()

    def _show(self, commits: dict[str, Commit]) -> None:
        """All views change at once: a query sees the old ones or the new ones."""
        with self._lock:
            self._connection.begin()
            try:
                self._define(self._connection, commits)
                if self._comments:
                    self._connection.execute(_COMMENTS)
                self._connection.commit()
            except duckdb.Error:
                self._connection.rollback()
                raise
            self.commits = commits

    def _define(self, connection: duckdb.DuckDBPyConnection, commits: Mapping[str, Commit]) -> None:
        """Tables and views of these commits in a connection."""
        relations = {}
        for name in TABLES:
            files = self.store.files(name, commits.values())
            if files:
                relations[name] = self._relation(connection, name, files)
        for statement in definitions(relations):
            connection.execute(statement)

    def _relation(self, connection: duckdb.DuckDBPyConnection, table: str, files: list[File]) -> str:
        """A table's files for DuckDB, which reads local ones itself; those of an object store come through Arrow."""
        if isinstance(self.location, Path):
            paths = ", ".join(_quoted(str(self.location / file.path)) for file in files)
            return f"read_parquet([{paths}], union_by_name=true)"
        import pyarrow.dataset as ds

        from audit.results.object_files import filesystem

        keys = [f"{key_of(self.location)}/{file.path}" for file in files]
        dataset = ds.dataset(keys, schema=TABLES[table], format="parquet", filesystem=filesystem())
        self._datasets[f"_files_{table}"] = dataset
        connection.register(f"_files_{table}", dataset)
        return f'"_files_{table}"'

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of a query's own; what is registered in one is not in another."""
        with self._lock:
            cursor = self._connection.cursor()
            for name, dataset in self._datasets.items():
                cursor.register(name, dataset)
        return cursor

    def stream(self, query: str, parameters: list[Any] | None = None, rows: int = 10_000) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one by one, however many: what does not fit into a quarter of a gigabyte goes to disk."""
        with tempfile.TemporaryDirectory(prefix="audit-") as spill, duckdb.connect() as connection:
            connection.execute("set enable_progress_bar=false")
            connection.execute(f"set memory_limit='256MB'; set threads=1; set temp_directory='{spill}'")
            self._define(connection, self.commits or {})
            found = connection.execute(query, parameters)
            while batch := found.fetchmany(rows):
                yield from batch

    def sql(self, query: str, parameters: list[Any] | None = None) -> pa.Table:
        """The result of a query as an Arrow table. Raises ConfigError where the query is wrong, else StoreError."""
        cursor = self._cursor()
        try:
            relation = cursor.sql(query, params=parameters or None)
            return pa.table({"done": [True]}) if relation is None else relation.to_arrow_table()
        except (duckdb.ProgrammingError, duckdb.DataError) as error:
            raise ConfigError(f"the query failed: {error}") from error
        except duckdb.Error as error:
            raise StoreError(f"the query failed: {error}") from error

    def batches(self, query: str, rows: int = 50_000, parameters: list[Any] | None = None) -> Iterator[pa.RecordBatch]:
        """The result of a query part by part, for one that does not fit into memory."""
        yield from self._cursor().sql(query, params=parameters or None).to_arrow_reader(rows)

    def write(self, query: str, path: Path) -> None:
        """The result of a query as a file, '.parquet' or '.csv' by its name, however large."""
        cursor = self._cursor()
        try:
            relation = cursor.sql(query)
            if path.suffix == ".csv":
                relation.write_csv(str(path), header=True)
            else:
                relation.write_parquet(str(path), compression="zstd")
        except (duckdb.ProgrammingError, duckdb.DataError) as error:
            raise ConfigError(f"the query failed: {error}") from error
        except duckdb.Error as error:
            raise StoreError(f"the query failed: {error}") from error

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The result of a query as a list of dictionaries."""
        return self.sql(query, parameters).to_pylist()

    def frame(self, query: str, parameters: list[Any] | None = None) -> pd.DataFrame:
        """The result of a query as a pandas DataFrame."""
        return self.sql(query, parameters).to_pandas()

    def schema(self, table: str | None = None) -> list[dict[str, str]]:
        """Of every column its table, name, type and comment, in order; of one table or view, or of all.

        The comments are NULL unless the run was opened with them, as `audit.open` does. Raises ConfigError where there
        is no such table.
        """
        if table is not None and table not in (*TABLES, *VIEWS):
            raise ConfigError(unknown("table", table, (*TABLES, *VIEWS)))
        return self.rows(
            'select table_name as "table", column_name as "column", lower(data_type) as type, comment '
            "from duckdb_columns() where table_name in (select unnest(?)) "
            "order by list_position(?, table_name), column_index",
            [[table] if table else [*TABLES, *VIEWS], [*TABLES, *VIEWS]],
        )

    def failure_modes(self, ends: bool = False) -> FailureModes:
        """The failure modes that a report lists: confirmed ones first, by impact.

        ends: with those that are the other end of one, what a model misses where it says something else.
        """
        rows = self.rows(
            f"select * from {CONCERNING if ends else '(from failure_modes where listed)'} "
            "order by verdict, impact desc nulls last, effect desc nulls last, failure_mode_id"
        )
        return FailureModes(self, rows)


class FailureModes(list[dict[str, Any]]):
    """Rows of `failure_modes`. In a notebook they are shown with their pictures."""

    def __init__(self, run: Run, rows: Iterable[dict[str, Any]]) -> None:
        super().__init__(rows)
        self._run = run

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from audit.exporters.html import fragment

        return fragment(self._run, self)

    def show(self) -> None:
        """Show them with their pictures where a notebook is, else print a line each."""
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if hasattr(shell, "kernel"):  # IPython in a terminal has none, and would print every column of every row
            importlib.import_module("IPython.display").display(self)
        else:
            for mode in self:
                print(f"{mode['verdict']}: {claim(mode)}")  # noqa: T201 - what was asked for


def open_run(path: str | Path) -> Run:
    """Open a run for reading: its folder, or its URI in an object store."""
    return Run(located(path) if isinstance(path, str) else path, comments=True)
