"""Objects on a disk and in an S3 server behave the same, and so does the commit protocol above them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.errors import ConfigError, StoreError
from audit.locations import Location, absolute, child, folders, name_of, parent
from audit.results.compaction import compact, due
from audit.results.integrity import collect, repair, verify
from audit.results.objects import open_objects
from audit.results.progress import LIVE, live
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.stores import Proxy
from benchmarks.s3_server import environment
from pipelines import lock
from tests.s3_server import s3_endpoint as s3_endpoint


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    if request.param == "disk":
        yield tmp_path / "run"
    else:
        request.getfixturevalue("s3_endpoint")
        yield f"s3://bucket/{uuid.uuid4().hex}/run"


@pytest.fixture
def store(place: Location) -> Store:
    opened = Store(place)
    opened.create("job.json", b"{}")
    return opened


def rows(count: int) -> dict[str, list[dict[str, object]]]:
    return {"measurements": [{"subject_id": f"s{i}", "name": "n", "value": 1.0} for i in range(count)]}


def counted(place: Location) -> int:
    return int(Run(place).rows("select count(*) as n from measurements")[0]["n"])


def test_create_never_overwrites_and_knows_its_own_bytes(place: Location) -> None:
    objects = open_objects(place)
    assert objects.create("a/b", b"first")
    assert not objects.create("a/b", b"second")
    assert objects.create("a/b", b"first")  # the answer to the first call may have been lost
    assert objects.read("a/b") == b"first"
    objects.replace("a/b", b"third")
    assert objects.read("a/b") == b"third"


def test_names_and_listing(place: Location) -> None:
    objects = open_objects(place)
    for key in ("f/b", "f/a", "f/g/c", "fx/d"):
        objects.create(key, key.encode())
    assert objects.names("f") == ["a", "b"]
    assert objects.names("none") == []
    listed = {stored.key: stored.bytes for stored in objects.listing("f")}
    assert listed == {"f/a": 3, "f/b": 3, "f/g/c": 5}
    objects.delete("f/a")
    objects.delete("f/a")
    assert objects.read("f/a") is None
    assert objects.names("f") == ["b"]


def test_racing_attempts_commit_once_and_leave_one_file(store: Store) -> None:
    won: list[bool] = []
    racers = [threading.Thread(target=lambda i=i: won.append(store.commit("u", "1-x", rows(i + 1)))) for i in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sum(won) == 1
    assert len(list(store.objects.listing("data"))) == 1
    assert counted(store.location) == next(iter(store.commits().values())).files["measurements"].rows


def test_a_store_that_honours_conditions_passes_the_probe_and_keeps_nothing_of_it(store: Store) -> None:
    store.probe()
    assert list(store.objects.listing("probe")) == []


def test_compaction_keeps_every_row_and_readers_of_before_go_on(store: Store) -> None:
    for i in range(6):
        store.commit(f"u{i}", "1-x" if i < 5 else "2-y", rows(i + 1))
    before = Run(store.location)
    assert compact(store, least=3) == 1
    assert len(store.files("measurements", store.commits().values())) == 2  # five merged, one of another stage
    assert sorted(store.commits()) == [f"u{i}" for i in range(6)]
    assert before.rows("select count(*) as n from measurements") == [{"n": 21}]
    assert counted(store.location) == 21
    assert not store.commit("u0", "1-x", rows(9))  # merged or not, a unit is committed once
    assert counted(store.location) == 21


def test_verify_names_what_is_damaged_and_repair_restores_what_an_older_file_still_holds(store: Store) -> None:
    for i in range(4):
        store.commit(f"u{i}", "1-x", rows(i + 1))
    compact(store, least=3)
    (merged,) = {file.path for file in store.files("measurements", store.commits().values())}
    store.objects.replace(merged, b"nothing")
    (damage,) = verify(store)
    assert damage.where == store.where(merged)
    assert damage.units == ("u0", "u1", "u2", "u3")
    repaired = repair(store)
    assert (repaired.restored, repaired.withdrawn) == (("u0", "u1", "u2", "u3"), ())
    assert verify(store) == []
    assert counted(store.location) == 10


def test_what_nothing_whole_is_left_of_is_withdrawn_with_no_other_unit(store: Store) -> None:
    for i in range(3):
        store.commit(f"u{i}", "1-x", rows(i + 1))
    store.objects.delete(store.commits()["u1"].files["measurements"].path)
    assert repair(store).withdrawn == ("u1",)
    assert sorted(store.commits()) == ["u0", "u2"]
    assert store.commit("u1", "1-x", rows(2))
    assert counted(store.location) == 6
    assert verify(store) == []


def test_a_split_unit_whose_record_is_broken_stays_split(store: Store) -> None:
    """Done again as a whole, it would double the rows of its halves."""
    store.commit("u", "1-x", {}, status="split")
    store.commit("u.0", "1-x", rows(2))
    store.objects.replace("commits/u.json", b'{"half')
    assert repair(store).withdrawn == ()
    assert store.commits()["u"].status == "split"
    assert counted(store.location) == 2


def test_only_old_orphans_are_collected(store: Store) -> None:
    store.commit("u", "1-x", rows(2))
    store.create("data/measurements/stray-1.parquet", b"x")
    assert collect(store, older_than=3600, delete=True) == []
    (orphan,) = collect(store, older_than=-10, delete=True)
    assert orphan.key == "data/measurements/stray-1.parquet"
    assert collect(store, older_than=-10) == []
    assert counted(store.location) == 2


def test_snapshots_are_found_though_a_listing_lacks_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit("u", "1-x", rows(1))
    for _ in range(3):
        store.snapshot()
    monkeypatch.setattr(store.objects, "names", lambda folder: [])
    commits, number = store.covered()
    assert (sorted(commits), number) == (["u"], 3)


def test_a_view_of_some_stages_sees_no_others(store: Store) -> None:
    store.commit("u", "1-x", rows(1))
    store.commit("v", "2-y", rows(4))
    assert Run(store.location, stages={"1-x"}).rows("select count(*) as n from measurements") == [{"n": 1}]
    assert list(Run(store.location).stream("select value from measurements", rows=2)) == [(1.0,)] * 5


def test_what_does_not_fit_into_memory_is_streamed_too(tmp_path: Path) -> None:
    """Sorting two million long texts takes more than a stream's memory, so DuckDB writes to disk; twice."""
    store = Store(tmp_path)
    store.create("job.json", b"{}")
    opened = Run(tmp_path)
    query = "select sha256(i::varchar) as h from range(2000000) t(i) order by h"
    for _ in range(2):
        hashes = (found for (found,) in opened.stream(query))
        first = next(hashes)
        assert first == min(itertools.chain([first], hashes))


def test_snapshots_come_ever_more_seldom() -> None:
    """Each covers a quarter more than the last: their sizes sum to a small multiple of the last one's."""
    units = covered = work = 0
    while units < 100_000:
        units += 1
        if due(covered, units - covered):
            covered, work = units, work + units
    assert work < 6 * units


def test_places_of_runs(tmp_path: Path, s3_endpoint: str) -> None:
    for root in (tmp_path / "runs", f"s3://bucket/{uuid.uuid4().hex}/runs"):
        for name in ("a", "a-2"):
            Store(child(root, name)).create("job.json", b"{}")
        assert sorted(folders(root)) == ["a", "a-2"]
        assert name_of(child(root, "a")) == "a"
        assert parent(child(root, "a")) == root
        assert folders(child(root, "none")) == []
        assert absolute(root) == str(root)


def test_a_bucket_that_is_not_there_is_named(s3_endpoint: str) -> None:
    with pytest.raises(StoreError, match="s3://none/run"):
        Store("s3://none/run").create("a", b"1")
    with pytest.raises((StoreError, ConfigError), match="s3://"):
        Run("s3://bucket/no-run")


def test_a_run_in_a_store_is_held_by_whoever_changes_its_state(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store has no lock: a driver that is at work shows by its beat, one that died by its silence."""
    monkeypatch.setattr(lock, "BEAT", 0.3)
    store = Store(f"s3://bucket/{uuid.uuid4().hex}/run")
    beats, over = iter(range(10**6)), threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            state = {"pid": 7, "host": "elsewhere", "beat": next(beats), "ended": None}
            store.objects.replace(LIVE, json.dumps(state).encode())

    with lock.only_driver(store):
        pass  # nobody was there yet
    other = threading.Thread(target=beat)
    other.start()
    try:
        while live(store) is None:
            over.wait(0.05)
        with pytest.raises(ConfigError, match="worked on by process 7 on elsewhere"), lock.only_driver(store):
            pass
    finally:
        over.set()
        other.join()
    with lock.only_driver(store):
        pass  # its state says that it is at work, and does not change any more


def test_a_process_ends_while_arrow_reads_ahead(s3_endpoint: str) -> None:
    """A query that needs one row leaves reads behind, which take longer than what the program still does."""
    place = f"s3://bucket/{uuid.uuid4().hex}/run"
    store = Store(place)
    store.create("job.json", b"{}")
    for unit in range(6):
        store.commit(f"u{unit}", "s", rows(10))
    query = "select subject_id from measurements limit 1"
    script = f"import sys; from audit.results.sql import Run; print(len(Run(sys.argv[1]).rows('{query}')))"
    with Proxy(s3_endpoint, pause=1.0).serving() as endpoint, environment({"AWS_ENDPOINT_URL": endpoint}):
        ended = subprocess.run(
            [sys.executable, "-c", script, place], capture_output=True, text=True, timeout=100, check=False
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")
