"""The commit protocol: whole or nothing, once, whatever is lying around."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from audit.errors import ConfigError, RowError, StoreError
from audit.results import gallery
from audit.results.schema import TABLES, to_table
from audit.results.sql import Run
from audit.results.store import Store

ROW = {"subject_id": "s", "stage": "1-x", "name": "n", "value": 1.0}


def rows(count: int) -> dict[str, list[dict[str, object]]]:
    return {"measurements": [{**ROW, "subject_id": f"s{i}"} for i in range(count)]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path)
    opened.create("job.json", b"{}")
    return opened


def test_create_never_overwrites(store: Store) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"
    assert store.names("a") == ["b"]


def test_the_second_attempt_at_a_unit_leaves_nothing(store: Store) -> None:
    assert store.commit("u", "1-x", rows(3))
    assert not store.commit("u", "1-x", rows(5))
    assert Run(store.root).rows("select count(*) as n from measurements") == [{"n": 3}]
    assert len(list(store.root.rglob("*.parquet"))) == 1


def test_racing_attempts_commit_once(store: Store) -> None:
    won: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(store.commit("u", "1-x", rows(i + 1)))) for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1
    assert len(list(store.root.rglob("*.parquet"))) == 1


def test_stray_and_half_written_data_files_are_invisible(store: Store) -> None:
    store.commit("u", "1-x", rows(2))
    stray = store.root / "data" / "measurements"
    (stray / "v-000.parquet").write_bytes(b"")
    (stray / "w-000.parquet").write_bytes(b"PAR1 truncated")
    assert Run(store.root).rows("select count(*) as n from measurements") == [{"n": 2}]


def test_a_half_written_record_is_named_not_skipped(store: Store) -> None:
    store.commit("u", "1-x", rows(1))
    (store.root / "commits" / "v.json").write_bytes(b'{"unit_id": "v", ')
    with pytest.raises(StoreError, match=r"v\.json is not whole"):
        Store(store.root).commits()


def test_snapshots_hold_what_was_committed_and_readers_see_later_records(store: Store) -> None:
    store.commit("u", "1-x", rows(1))
    assert store.snapshot() == 1
    store.commit("v", "1-x", rows(4))
    (store.root / "commits" / "u.json").unlink()  # the snapshot speaks for it
    assert set(store.commits()) == {"u", "v"}
    assert store.snapshot() == 2
    listed = json.loads((store.root / "snapshots" / "00000002.json").read_bytes())["commits"]
    assert [commit["units"] for commit in listed] == [["u"], ["v"]]


def test_a_snapshot_is_read_once_and_the_next_one_is_seen(store: Store) -> None:
    store.commit("u0", "1-x", rows(1))
    store.snapshot()
    reader = Store(store.root)
    first = reader.commits()["u0"]
    assert reader.commits()["u0"] is first  # not read and compared again
    store.commit("u1", "1-x", rows(1))
    store.snapshot()
    (store.root / "commits" / "u1.json").unlink()
    assert reader.commits().keys() == {"u0", "u1"}


def test_a_merged_file_tells_which_row_groups_lack_an_id(store: Store) -> None:
    content = to_table("measurements", rows(1000)["measurements"])
    path = store.root / store.write("merged", "measurements", content, 100).path
    probe = "select bloom_filter_excludes from parquet_bloom_probe(?, 'subject_id', ?) order by row_group_id"
    with duckdb.connect() as connection:
        told = [row[0] for row in connection.execute(probe, [str(path), "s250"]).fetchall()]
    assert len(told) == 10
    assert not told[2]
    assert sum(told) >= 8  # one in a hundred is told wrongly


@pytest.mark.parametrize("after", ["data", "partial", "record"])
def test_sigkill_between_any_two_steps_leaves_all_or_nothing(store: Store, after: str) -> None:
    """The writer kills itself after writing data, before the record's link, or after it; a second run completes."""
    script = f"""
import os, signal
from pathlib import Path
from audit.results import store as module
store = module.Store(Path({str(store.root)!r}))
rows = {{"measurements": [{{"subject_id": str(i), "stage": "s", "name": "n", "value": 1.0}} for i in range(3)]}}
link = os.link
def die(): os.kill(os.getpid(), signal.SIGKILL)
def dying_link(a, b):
    record = "commits" in str(b)
    if record and {after!r} == "partial": die()
    link(a, b)
    if not record and {after!r} == "data": die()
    if record and {after!r} == "record": die()
os.link = dying_link
store.commit("u", "1-x", rows)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    seen = Run(store.root).rows("select count(*) as n from measurements")[0]["n"]
    assert seen == (3 if after == "record" else 0)
    assert store.commit("u", "1-x", rows(3)) == (after != "record")
    assert Run(store.root).rows("select count(*) as n, count(distinct subject_id) as d from measurements") == [
        {"n": 3, "d": 3}
    ]


def test_probe_accepts_this_disk_and_refuses_one_that_overwrites(store: Store) -> None:
    store.probe()

    class Overwrites(Store):
        def create(self, key: str, data: bytes) -> bool:
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            (self.root / key).write_bytes(data)
            return True

    with pytest.raises(StoreError, match="does not refuse"):
        Overwrites(store.root).probe()


def test_an_unwritable_root_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StoreError, match="cannot write"):
        Store(blocked / "run").create("a", b"")


def test_a_file_system_without_hard_links_is_told_what_would_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported", source, None, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match=r"Operation not supported\. A run needs .* hard links.*s3://"):
        Store(tmp_path / "run").probe()


def test_nan_and_unknown_columns_are_refused() -> None:
    with pytest.raises(RowError, match="NaN"):
        to_table("measurements", [{**ROW, "value": float("nan")}])
    with pytest.raises(RowError, match="no column 'colour'"):
        to_table("measurements", [{**ROW, "colour": 1}])


def test_every_column_says_what_it_is() -> None:
    for name, schema in TABLES.items():
        assert schema.metadata[b"comment"], name
        for field in schema:
            assert field.metadata[b"comment"], f"{name}.{field.name}"


def test_a_fresh_run_has_every_table_empty_and_typed(store: Store) -> None:
    run = Run(store.root)
    for name, schema in TABLES.items():
        result = run.sql(f"select * from {name}")
        assert result.num_rows == 0
        assert result.column_names == schema.names
    with pytest.raises(ConfigError, match="the query failed"):
        run.sql("select nothing_like_this from runs")


def test_a_column_that_older_files_lack_is_null(store: Store) -> None:
    """A run of before a column was added can still be read."""
    store.commit("u", "1-x", {"predictions": [{"item_id": "a", "status": "ok"}]})
    (file,) = store.files("predictions", store.commits().values())
    path = store.root / file.path
    pq.write_table(pq.read_table(path).drop_columns(["correct"]), path)
    assert Run(store.root).rows("select item_id, correct from predictions") == [{"item_id": "a", "correct": None}]


def test_failure_modes_of_before_there_was_a_choice_are_listed_but_for_those_of_screening(store: Store) -> None:
    """As the report of then listed them: to show none would say that there are none."""
    of = {"search": "by search", "labels": "by label", "screen": "by screening"}
    store.commit("u", "1-discover", {"failure_modes": [{"failure_mode_id": v, "source": k} for k, v in of.items()]})
    (file,) = store.files("failure_modes", store.commits().values())
    path = store.root / file.path
    pq.write_table(pq.read_table(path).drop_columns(["listed"]), path)
    run = Run(store.root)
    assert {mode["failure_mode_id"] for mode in run.failure_modes()} == {"by search", "by label"}
    assert gallery.count_modes(run, gallery.Modes()) == 2
    store.commit(
        "v", "1-discover", {"failure_modes": [{"failure_mode_id": "part", "source": "search", "listed": False}]}
    )
    run.refresh()
    assert len(run.failure_modes()) == 2


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no job\.json"):
        Run(tmp_path)
    assert os.listdir(tmp_path) == []
