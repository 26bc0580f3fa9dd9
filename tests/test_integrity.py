"""Verifying, mending and clearing up a run: what readers need stays, at any number of units."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from pathlib import Path

import pytest

from audit.results import integrity
from audit.results.compaction import compact
from audit.results.integrity import Damage, collect, repair, verify
from audit.results.sql import Run
from audit.results.store import Store

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "run")
    opened.create("job.json", b"{}")
    return opened


def rows(count: int) -> dict[str, list[dict[str, object]]]:
    return {"measurements": [{"subject_id": f"s{i}", "name": "n", "value": 1.0} for i in range(count)]}


def counted(reader: Run) -> int:
    return int(reader.rows("select count(*) as n from measurements")[0]["n"])


def aged(store: Store, hours: float) -> None:
    """Make everything that is there now so much older."""
    for path in store.root.rglob("*"):
        if path.is_file():
            modified = path.stat().st_mtime - hours * HOUR
            os.utime(path, (modified, modified))


def keys(store: Store, *folders: str) -> set[str]:
    return {stored.key for folder in folders for stored in store.objects.listing(folder)}


def test_what_compaction_has_just_replaced_stays_though_it_is_old(store: Store) -> None:
    """A reader that opened the run before the compaction goes on reading, until it is older than the age itself."""
    for i in range(4):
        store.commit(f"u{i}", "1-x", rows(i + 1))
    own = keys(store, "data")
    aged(store, 48)
    reader = Run(store.location)
    compact(store, least=3)
    assert collect(store, 24 * HOUR, delete=True) == []
    assert counted(reader) == counted(Run(store.location)) == 10
    aged(store, 25)
    assert {stored.key for stored in collect(store, 24 * HOUR, delete=True)} == own
    assert counted(Run(store.location)) == 10
    assert verify(store) == []


def test_what_was_current_within_the_age_stays_and_all_before_it_goes(store: Store) -> None:
    """Four compactions, ten hours apart, each with a unit more; readers of every time between them.

    A reader took the newest snapshot of its time and the records that this one does not cover, and is unharmed exactly
    if the next snapshot is younger than the age: what it took was current until then.
    """
    readers = []
    for i in range(4):
        store.commit(f"u{i}", "1-x", rows(2**i))
        aged(store, 5)
        readers.append(Run(store.location))  # with the records of u0..ui, of which the last snapshot lacks one
        aged(store, 5)
        compact(store, least=1)
    snapshots = [f"snapshots/{i:08d}.json" for i in range(1, 5)]  # made 30, 20, 10 and 0 hours ago
    ages = {40: [0, 1, 2, 3], 31: [0, 1, 2, 3], 25: [1, 2, 3], 21: [1, 2, 3], 15: [2, 3], 5: [3], -1: []}
    kept_snapshots = {40: 4, 31: 4, 25: 4, 21: 4, 15: 3, 5: 2, -1: 1}
    for age, unharmed in ages.items():
        collect(store, age * HOUR, delete=True)
        assert keys(store, "snapshots") == set(snapshots[-kept_snapshots[age] :]), age
        for i, reader in enumerate(readers):
            if i in unharmed:
                assert counted(reader) == 2 ** (i + 1) - 1, (age, i)
            needed = reader.store.files("measurements", (reader.commits or {}).values())
            there = [(store.root / file.path).exists() for file in needed]
            assert all(there) or i not in unharmed, (age, i)
            assert not all(there) or i in unharmed, (age, i)
        assert counted(Run(store.location)) == 15
    assert verify(store) == []


def test_orphans_go_by_their_own_age(store: Store) -> None:
    store.commit("u", "1-x", rows(1))
    store.create("data/measurements/old-1.parquet", b"x")
    aged(store, 2)
    compact(store, least=1)
    store.create("data/measurements/new-1.parquet", b"x")
    assert [one.key for one in collect(store, HOUR, delete=True)] == ["data/measurements/old-1.parquet"]
    assert counted(Run(store.location)) == 1


def test_a_snapshot_of_before_that_is_not_whole_keeps_nobody_from_clearing_up(store: Store) -> None:
    store.commit("u", "1-x", rows(1))
    compact(store, least=1)
    compact(store, least=1)
    store.objects.replace("snapshots/00000001.json", b'{"half')
    assert collect(store, HOUR) == []
    aged(store, 2)
    gone = {one.key for one in collect(store, HOUR, delete=True)}
    assert "snapshots/00000001.json" in gone
    assert counted(Run(store.location)) == 1


def leaves(depth: int) -> list[str]:
    return ["".join(f".{k}" for k in path) for path in itertools.product((0, 1), repeat=depth)]


@pytest.mark.parametrize("broken", ["roots", "all above the leaves"])
def test_repair_restores_every_split_unit_above_rows_that_are_there(store: Store, broken: str) -> None:
    """Of 40 units, each third is split down to 8 leaves. Whose records are broken has to be split again, and no other:
    'u1' is no half of 'u10', nor is anything above a unit without rows."""
    split = [f"u{i}" for i in range(0, 40, 3)]
    above = {root + inner for root in split for depth in range(3) for inner in leaves(depth)}
    for i in range(40):
        if f"u{i}" not in split:
            store.commit(f"u{i}", "1-x", rows(1))
    for unit in sorted(above):
        store.commit(unit, "1-x", {}, status="split")
    for root in split:
        for leaf in leaves(3):
            store.commit(root + leaf, "1-x", rows(1))
    damaged = above if broken == "all above the leaves" else set(split)
    for unit in damaged | {"u1", "u2"}:
        store.objects.replace(f"commits/{unit}.json", b'{"half')
    store.objects.delete("commits/u0.json")
    assert repair(store).withdrawn == ("u1", "u2")
    commits = store.commits()
    assert {unit for unit, commit in commits.items() if commit.status == "split"} == above
    assert len(commits) == 40 - 2 + len(split) * (15 - 1)
    assert counted(Run(store.location)) == (40 - len(split) - 2) + 8 * len(split)
    assert verify(store) == []


def test_repair_reads_each_file_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many snapshots name it."""
    for i in range(5):
        store.commit(f"u{i}", "1-x", rows(1))
        store.snapshot()
    store.objects.replace(store.commits()["u0"].files["measurements"].path, b"")
    read: list[str] = []
    real = store.objects.read

    def counting(key: str) -> bytes | None:
        read.append(key)
        return real(key)

    monkeypatch.setattr(store.objects, "read", counting)
    assert repair(store).withdrawn == ("u0",)
    data = [key for key in read if key.startswith("data/")]
    assert len(data) == len(set(data)) == 5


def test_verify_finds_each_damage_among_many_and_holds_few_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 units of 100 kB, fifty in a round: their bytes are read and let go."""
    monkeypatch.setattr(integrity, "_AT_ONCE", 50)
    size, count = 100_000, 300
    content = {"measurements": [{"subject_id": os.urandom(size).hex(), "name": "n", "value": 1.0}]}
    for i in range(count):
        store.commit(f"u{i:04d}", "1-x", content)
    bad = {f"u{i:04d}" for i in (0, 49, 50, 299)}
    for unit in bad - {"u0049"}:
        store.objects.replace(store.commits()[unit].files["measurements"].path, b"")
    store.objects.replace("commits/u0049.json", b'{"half')
    tracemalloc.start()
    found = verify(store)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {unit for damage in found for unit in damage.units} == bad
    assert all(isinstance(damage, Damage) for damage in found)
    assert most < count * size / 3
