"""Whether a run's files are what its records say, what can be mended from older copies, and what nobody needs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar
from uuid import uuid4

from audit.errors import StoreError
from audit.results.objects import Stored
from audit.results.store import Commit, File, Store, unique

_READERS = 4
_AT_ONCE = 1000
_S = TypeVar("_S")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Damage:
    """An object that is not what it should be. `units`: whose rows are in it. `key`: of a plan's file in the store."""

    where: str
    what: str
    stage: str = ""
    table: str = ""
    units: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Repair:
    """`restored`: units whose rows were found whole in an older file; `withdrawn`: units that must be done again."""

    restored: tuple[str, ...]
    withdrawn: tuple[str, ...]


def verify(store: Store) -> list[Damage]:
    """Everything that readers of the run would trip over: records that are not whole, files that are missing, cut
    short or changed. Reads every byte that the run's tables stand on."""
    found: list[Damage] = [*_job(store), *_plans(store)]
    commits: dict[str, Commit] = {}
    try:
        commits, _ = store.covered()
    except StoreError as error:
        found.append(Damage(store.where("snapshots"), str(error)))
    uncovered = [unit for unit in map(_unit, store.names("commits")) if unit not in commits]
    for record in _side_by_side(lambda unit: _record(store, unit), uncovered):
        if isinstance(record, Damage):
            found.append(record)
        elif record is not None:
            commits[record.units[0]] = record
    asked = [(commit, table, file) for commit in unique(commits.values()) for table, file in commit.files.items()]
    states = _side_by_side(lambda one: _state(store, one[2]), asked)
    for (commit, table, file), state in zip(asked, states, strict=True):
        if state is not None:
            found.append(Damage(store.where(file.path), state, commit.stage, table, commit.units))
    return found


def _side_by_side(function: Callable[[_S], _T], asked: Iterable[_S]) -> Iterator[_T]:
    """The results of a function that waits for the store, in order. So few are under way at a time that files of any
    number are read in the memory of some."""
    waiting = iter(asked)
    with ThreadPoolExecutor(_READERS) as readers:
        while some := list(islice(waiting, _AT_ONCE)):
            yield from readers.map(function, some)


def _unit(name: str) -> str:
    """Of a record's name."""
    return name.removesuffix(".json")


def _record(store: Store, unit: str) -> Commit | Damage | None:
    """A unit's own record, None where it is gone."""
    try:
        return store.record(f"commits/{unit}.json")
    except StoreError as error:
        return Damage(store.where(f"commits/{unit}.json"), str(error), units=(unit,))


def _state(store: Store, file: File) -> str | None:
    """What is wrong with a file, None where nothing is."""
    data = store.read(file.path)
    if data is None:
        return "missing"
    if len(data) != file.bytes:
        return f"{len(data)} bytes instead of {file.bytes}"
    return None if hashlib.sha256(data).hexdigest() == file.sha256 else "changed: its sha256 is another"


def _job(store: Store) -> Iterator[Damage]:
    """What was asked: nothing holds a second copy of it."""
    try:
        dict(json.loads(store.read("job.json") or b""))
    except (ValueError, TypeError) as error:
        what = f"not whole: {error}; put it back from a copy, the run's tables can still be read"
        yield Damage(store.where("job.json"), what, key="job.json")


def _plans(store: Store) -> Iterator[Damage]:
    for name in store.names("plan"):
        if not name.endswith(".json"):
            continue
        stage = name.removesuffix(".json")
        try:
            parts = json.loads(store.read(f"plan/{name}") or b"")["parts"]
        except (ValueError, KeyError, TypeError) as error:
            yield Damage(store.where(f"plan/{name}"), f"not whole: {error}", stage, "plan", key=f"plan/{name}")
            continue
        for part in parts:
            data = store.read(part["path"])
            if data is None or hashlib.sha256(data).hexdigest() != part["sha256"]:
                what = "missing" if data is None else "changed: its sha256 is another"
                yield Damage(store.where(part["path"]), what, stage, "plan", key=part["path"])


def repair(store: Store) -> Repair:
    """Publish a snapshot without damage. Units whose rows are whole in an older file (one that a compaction merged, or
    merged it from) are restored from there; the others are withdrawn, so that the next run of the job does them again.

    Damaged plans are removed; they are made again, with the same units. No other driver may be at work on the run.
    """
    for damage in list(_plans(store)):
        store.objects.delete(f"plan/{damage.stage}.json")
        store.objects.delete(damage.key)  # a part is named by what it held, so a new one would have this one's name
    names = set(map(_unit, store.names("commits")))
    placed: dict[str, Commit] = {}
    restored: set[str] = set()
    states: dict[str, bool] = {}
    for commit, current in _candidates(store, names):
        if any(unit in placed for unit in commit.units):
            continue
        for file in commit.files.values():
            if file.path not in states:
                states[file.path] = _state(store, file) is None
        if all(states[file.path] for file in commit.files.values()):
            placed.update(dict.fromkeys(commit.units, commit))
            restored.update(() if current else commit.units)
    for unit in list(names & placed.keys()):
        for above in _split_above(unit):
            if above not in placed:
                placed[above] = Commit((above,), placed[unit].stage, uuid4().hex[:12], "split", {})
    withdrawn = tuple(sorted(names - placed.keys()))
    number = max(map(_number, store.names("snapshots")), default=0) + 1
    if not store.publish(placed.values(), number):
        raise StoreError(f"{store.where('snapshots')} has a new one: another driver is at work; stop it first")
    for unit in withdrawn:
        store.objects.delete(f"commits/{unit}.json")
    return Repair(tuple(sorted(restored)), withdrawn)


def _split_above(unit: str) -> Iterator[str]:
    """The units of which this one is a half, or a half of a half: halves are named '<unit>.<number>'."""
    while "." in unit:
        unit = unit.rpartition(".")[0]
        yield unit


def _candidates(store: Store, names: Iterable[str]) -> Iterator[tuple[Commit, bool]]:
    """Commits that can be read, the present ones (True) before older ones."""
    generations = _snapshots(store)
    newest = next(generations, [])
    covered = {unit for commit in newest for unit in commit.units}
    yield from ((commit, True) for commit in newest)
    listed = list(names)
    records = _side_by_side(lambda unit: _own(store, unit), listed)
    own = {unit: record for unit, record in zip(listed, records, strict=True) if record is not None}
    yield from ((commit, True) for unit, commit in own.items() if unit not in covered)
    for older in generations:
        yield from ((commit, False) for commit in older)
    yield from ((commit, False) for unit, commit in own.items() if unit in covered)


def _snapshots(store: Store) -> Iterator[list[Commit]]:
    """The commits of each snapshot that can be read, newest first."""
    found = (_readable(store, f"snapshots/{name}") for name in reversed(store.names("snapshots")))
    return (commits for commits in found if commits is not None)


def _readable(store: Store, key: str) -> list[Commit] | None:
    """The commits of a snapshot; None where it is gone or not whole."""
    with contextlib.suppress(StoreError):
        return store.snapshot_at(_number(key))
    return None


def _number(name: str) -> int:
    """Of a snapshot's key, or name."""
    return int(name.rpartition("/")[2].removesuffix(".json"))


def collect(store: Store, older_than: float, delete: bool = False) -> list[Stored]:
    """Objects that no reader needs, older than so many seconds: of attempts that lost or died, and what compaction
    replaced. They are deleted only where `delete` says so. Age is told by the store's own clock.

    What was current at any time within that age is kept, however old it is itself: a reader that began then may still
    hold it. So keep `older_than` above the longest query.
    """
    now = _clock(store)
    needed = _current_since(store, now - older_than) | _planned(store)
    needed |= {f"commits/{name}" for name in store.names("commits")}
    found = [
        stored
        for folder in ("data", "plan", "snapshots", "commits", "probe")
        for stored in store.objects.listing(folder)
        if stored.key not in needed and now - stored.modified > older_than
    ]
    if delete:
        for stored in found:
            store.objects.delete(stored.key)
    return sorted(found, key=lambda stored: stored.key)


def _current_since(store: Store, then: float) -> set[str]:
    """Keys of what readers took, or take, that opened the run at that time or later: the snapshots that were the newest
    one, the files they name, and the files of records that the oldest of them does not cover."""
    made = {stored.key: stored.modified for stored in store.objects.listing("snapshots")}
    keys = [f"snapshots/{name}" for name in store.names("snapshots")]
    later = next((i for i, key in enumerate(keys) if made.get(key, then) > then), len(keys))
    needed = _paths(store.commits().values())
    covered: set[str] = set()  # by the snapshot that was the newest one then, where there was one
    for i, key in enumerate(keys[max(later - 1, 0) :]):
        commits = _readable(store, key) or []
        needed |= {key} | _paths(commits)
        if later and i == 0:
            covered = {unit for commit in commits for unit in commit.units}
    records = _side_by_side(lambda unit: _own(store, unit), store.covered()[0].keys() - covered)
    return needed | _paths(record for record in records if record is not None)


def _paths(commits: Iterable[Commit]) -> set[str]:
    return {file.path for commit in commits for file in commit.files.values()}


def _own(store: Store, unit: str) -> Commit | None:
    """A unit's own record; None where it is gone or not whole."""
    record = _record(store, unit)
    return record if isinstance(record, Commit) else None


def _planned(store: Store) -> set[str]:
    """Keys of the plans and of their parts. Raises StoreError for a plan that is not whole."""
    found = {f"plan/{name}" for name in store.names("plan") if name.endswith(".json")}
    parts = set()
    for key in found:
        try:
            parts |= {part["path"] for part in json.loads(store.read(key) or b"")["parts"]}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{store.where(key)} is not whole: {error!r}; 'audit repair' makes it anew") from error
    return found | parts


def _clock(store: Store) -> float:
    """Now, as the store dates what it holds: the clock of this machine may be wrong."""
    key = f"probe/{uuid4().hex}"
    store.create(key, b"now")
    try:
        for stored in store.objects.listing("probe"):
            if stored.key == key:
                return stored.modified
        raise StoreError(f"{store.location} does not list what was just written there; try again in a minute")
    finally:
        store.objects.delete(key)
