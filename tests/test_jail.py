"""F36: hostile SQL is refused or ended in time, reads nothing but the run, and writes nothing anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from audit.errors import ConfigError
from audit.pictures import image_row
from audit.results.jail import _CHILD, Limits, ask
from audit.results.sql import Run
from audit.results.store import Store

LIMITS = Limits(seconds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("jail") / "it's a run"
    store = Store(root)
    store.create("job.json", b"{}")
    rows = [
        {"item_id": str(i), "role": "data", "model_id": "v", "predicted": "cat", "label": "cat", "correct": i % 4 > 0}
        for i in range(1000)
    ]
    about = {"name": "made", "created_at": datetime(2026, 1, 2, tzinfo=UTC)}
    picture = image_row(np.zeros((8, 8, 3), np.uint8), "generated")
    modes = [{"failure_mode_id": "m", "evidence": ["a", "b"], "impact": 0.5}]
    store.commit("u", "1-x", {"predictions": rows, "runs": [about], "images": [picture], "failure_modes": modes})
    (root / "secret.txt").write_text("secret")
    return Run(root)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every file its size and when it was written."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize(
    "query",
    [
        "select * from accuracy",
        "select name, created_at from runs",
        "select failure_mode_id, evidence, impact, kind from failure_modes",
        "select png from images",
        "with wrong as (select * from predictions where not correct) select count(*) as n from wrong",
        "select count(*) from explanations",
        "select label, predicted from predictions where label <> predicted order by item_id limit 3",
        "from predictions select item_id order by item_id limit 3;",
    ],
)
def test_a_question_has_the_same_answer_as_its_owner_s(run: Run, query: str) -> None:
    answer = ask(run, query)
    assert answer.whole
    assert answer.table.to_pylist() == run.rows(query)


def test_long_answers_are_cut_and_say_so(run: Run) -> None:
    answer = ask(run, "select item_id from predictions", Limits(rows=999))
    assert (answer.table.num_rows, answer.whole) == (999, False)
    answer = ask(run, "select item_id from predictions", Limits(rows=1000))
    assert (answer.table.num_rows, answer.whole) == (1000, True)
    with pytest.raises(ConfigError, match="more than 1 MB: ask for fewer"):
        ask(run, "select repeat('x', 1000) from predictions a, predictions b", Limits(bytes=1_000_000))


WRITES = (
    "with x as (copy (select 1) to 'FILE' (use_tmp_file false)) select * from x",  # a file of the run
    "with x as (copy (select 1) to 'FILE' (format csv, use_tmp_file false)) select * from x",
    "with x as (copy (select 1) to 'OUT/x.csv' (use_tmp_file false)) select * from x",
    "copy predictions to 'OUT/x.csv'",
    "copy (select 1) to 'OUT/x.parquet' (format parquet)",
    "explain analyze copy (select 1) to 'OUT/x.csv'",
    "with x as (insert into _empty_predictions default values returning 1) select * from x",
    "with x as (copy (select 1) to 'OUT/x.csv') select * from x",
    "insert into _empty_predictions default values",
    "create table t as select 1",
    "create or replace view accuracy as select 1",
    "drop view predictions",
    "delete from _empty_predictions",
    "export database 'OUT'",
    "attach 'OUT/x.db' as other",
    "select 1; copy (select 1) to 'OUT/x.csv'",
    "begin; copy (select 1) to 'OUT/x.csv'",
    "commit",
    "checkpoint",
    "pragma database_list",
    "call pragma_version()",
    "set memory_limit='100GB'",
    "reset enable_external_access",
    "set enable_external_access=true",
    "install httpfs",
    "load httpfs",
    "create secret s (type s3, key_id 'x', secret 'y')",
    "prepare p as select 1",
    "execute p",
    "use memory",
    "vacuum",
    "explain select 1",
    "",
    ";",
    "-- nothing",
)
READS = (
    "select * from read_parquet('FILE')",
    "select * from glob('/etc/*')",
    "select * from glob('RUN/*')",
    "select * from '/etc/passwd'",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/proc/self/environ')",
    "select * from read_csv('/etc/passwd', sep=':')",
    "select * from read_json('RUN/job.json')",
    "select * from read_text('RUN/secret.txt')",
    "select * from read_parquet('RUN/data/*/*.parquet')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from parquet_metadata('/etc/x.parquet')",
    "select * from 'https://example.com/x.parquet'",
    "select * from 's3://bucket/x.parquet'",
    "select getenv('HOME')",
    "select * from query('copy (select 1) to ''OUT/x.csv''')",
    "select * from python_variable",
    "selec 1",
    "select \x00",
    "select 'unfinished",
    "select " + "(" * 20_000 + "1" + ")" * 20_000,
    "select " + "x" * 100_001,
)
EXHAUSTS = (
    "select count(*) from range(1e12::bigint) a, range(1e12::bigint) b",
    "select repeat('x', 4000000000)",
    "select sum(length(repeat('x', 1000000000))) from range(1000)",
    "with recursive r(i) as (select 1 union all select i + 1 from r) select max(i) from r",
    "select list(i) from range(1000000000) t(i)",
    "select count(*) from predictions a, predictions b, predictions c, predictions d",
    "select * from predictions where item_id in (" + ",".join(f"'{i}'" for i in range(9000)) + ") and (select "
    "count(*) from range(1e12::bigint)) > 0",
    "select string_agg(i::varchar, ',') from range(1000000000) t(i)",
    "select i, random() from range(100000000000) t(i) order by 2",
)


@pytest.mark.parametrize("query", [*WRITES, *READS], ids=lambda query: query[:40])
def test_what_is_no_question_to_the_run_is_refused(run: Run, tmp_path: Path, query: str) -> None:
    root = str(run.root).replace("'", "''")
    file = next(str(path) for path in (run.root / "data" / "images").iterdir()).replace("'", "''")
    before = state(run.root), state(tmp_path)
    with pytest.raises(ConfigError) as refused:
        ask(run, query.replace("OUT", str(tmp_path)).replace("RUN", root).replace("FILE", file), LIMITS)
    assert "secret" not in str(refused.value).replace("secret.txt", "").replace("create secret", "")
    assert "root:" not in str(refused.value)
    assert (state(run.root), state(tmp_path)) == before


@pytest.mark.parametrize("query", EXHAUSTS, ids=lambda query: query[:40])
def test_what_takes_too_much_is_ended(run: Run, query: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError):
        ask(run, query, LIMITS)
    assert time.monotonic() - began < 30  # the process is given seven seconds, on a machine that may be busy


@pytest.mark.parametrize(
    ("does", "seconds", "ends"),
    [
        ("open('OUT', 'wb', 0).write(b'x')", 5, "File too large"),
        ("bytes(2**31)", 5, "MemoryError"),
        ("[0 for _ in iter(int, 1)]", -4, "killed"),  # after 1 second, in which the others may not have begun
    ],
)
def test_the_system_s_limits_hold_whatever_the_process_does(tmp_path: Path, does: str, seconds: int, ends: str) -> None:
    limits = {"memory": 2**31, "seconds": seconds}
    code = f"import runpy; runpy.run_path({str(_CHILD)!r})['_confine']({limits}); {does}"
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code.replace("OUT", str(tmp_path / "x"))], capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert ends in ended.stderr or (ends == "killed" and ended.returncode < 0)
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0
    assert time.monotonic() - began < 60


def test_a_query_s_process_knows_nothing_of_its_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    names = ask(run, "select name, value from duckdb_settings()").table.to_pylist()
    assert "mine" not in str(names)
    assert ask(run, "select current_setting('enable_external_access') as x").table.to_pylist() == [{"x": False}]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "mine"


def test_a_run_in_an_object_store_is_asked_by_its_owner() -> None:
    class Remote:
        location = "s3://bucket/run"

    with pytest.raises(ConfigError, match="use 'audit sql' for this one"):
        ask(Remote(), "select 1")  # type: ignore[arg-type]
