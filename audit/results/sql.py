"""A run's tables as DuckDB views over exactly the committed files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from audit.errors import ConfigError, StoreError
from audit.results.schema import TABLES
from audit.results.store import Store


class Run:
    """A run, for reading. Sees the units that were committed when it was opened; `refresh` sees more."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        if self.store.read("job.json") is None:
            raise ConfigError(f"{root} is not a run: it has no job.json. A run is the folder that 'audit run' names.")
        self._connection = duckdb.connect()
        self._connection.execute("set enable_progress_bar=false")
        self.refresh()

    def refresh(self) -> None:
        """Point the views at what is committed now."""
        self.commits = self.store.commits()
        for name, schema in TABLES.items():
            self._connection.register("_columns", schema.empty_table())
            self._connection.execute(f'create or replace table "_empty_{name}" as select * from _columns')
            body = f'select * from "_empty_{name}"'  # every column, also those that older files lack
            files = self.store.files(name, self.commits.values())
            if files:
                listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
                body += f" union all by name select * from read_parquet([{listed}], union_by_name=true)"
            self._connection.execute(f'create or replace view "{name}" as {body}')

    def sql(self, query: str, parameters: list[Any] | None = None) -> pa.Table:
        """The result of a query as an Arrow table. Raises ConfigError where the query is wrong, else StoreError."""
        try:
            relation = self._connection.cursor().sql(query, params=parameters or None)
            return pa.table({"done": [True]}) if relation is None else relation.to_arrow_table()
        except duckdb.ProgrammingError as error:
            raise ConfigError(f"the query failed: {error}") from error
        except duckdb.Error as error:
            raise StoreError(f"the query failed: {error}") from error

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The result of a query as a list of dictionaries."""
        return self.sql(query, parameters).to_pylist()

    def failure_modes(self) -> list[dict[str, Any]]:
        """The discovered failure modes of the generative search, confirmed ones first, by impact."""
        return self.rows(
            "select * from failure_modes where source = 'search' "
            "order by verdict = 'confirmed' desc, impact desc nulls last, effect desc nulls last"
        )


def open_run(path: str | Path) -> Run:
    """Open a run's folder for reading."""
    return Run(Path(path))
