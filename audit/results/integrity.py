"""Whether a run's files are what its records say, what can be mended from older copies, and what nobody needs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

from audit.errors import StoreError
from audit.results.objects import Stored
from audit.results.store import Commit, File, Store, unique

_HASHERS = 4


@dataclass(frozen=True)
class Damage:
    """An object that is not what it should be. `units`: whose rows are in it."""

    where: str
    what: str
    stage: str = ""
    table: str = ""
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Repair:
    """`restored`: units whose rows were found whole in an older file; `withdrawn`: units that must be done again."""

    restored: tuple[str, ...]
    withdrawn: tuple[str, ...]


def verify(store: Store) -> list[Damage]:
    """Everything that readers of the run would trip over: records that are not whole, files that are missing, cut
    short or changed. Reads every byte that the run's tables stand on."""
    found: list[Damage] = list(_plans(store))
    commits: dict[str, Commit] = {}
    try:
        commits, _ = store.covered()
    except StoreError as error:
        found.append(Damage(store.where("snapshots"), str(error)))
    for name in store.names("commits"):
        unit = name.removesuffix(".json")
        if unit not in commits:
            try:
                record = store.record(f"commits/{name}")
            except StoreError as error:
                found.append(Damage(store.where(f"commits/{name}"), str(error), units=(unit,)))
                continue
            if record is not None:
                commits[unit] = record
    asked = [(commit, table, file) for commit in unique(commits.values()) for table, file in commit.files.items()]
    with ThreadPoolExecutor(_HASHERS) as hashers:
        states = hashers.map(lambda one: _state(store, one[2]), asked)
        for (commit, table, file), state in zip(asked, states, strict=True):
            if state is not None:
                found.append(Damage(store.where(file.path), state, commit.stage, table, commit.units))
    return found


def _state(store: Store, file: File) -> str | None:
    """What is wrong with a file, None where nothing is."""
    data = store.read(file.path)
    if data is None:
        return "missing"
    if len(data) != file.bytes:
        return f"{len(data)} bytes instead of {file.bytes}"
    return None if hashlib.sha256(data).hexdigest() == file.sha256 else "changed: its sha256 is another"


def _plans(store: Store) -> Iterator[Damage]:
    for name in store.names("plan"):
        if not name.endswith(".json"):
            continue
        stage = name.removesuffix(".json")
        try:
            parts = json.loads(store.read(f"plan/{name}") or b"")["parts"]
        except (ValueError, KeyError, TypeError) as error:
            yield Damage(store.where(f"plan/{name}"), f"not whole: {error}", stage, "plan")
            continue
        for part in parts:
            data = store.read(part["path"])
            if data is None or hashlib.sha256(data).hexdigest() != part["sha256"]:
                what = "missing" if data is None else "changed: its sha256 is another"
                yield Damage(store.where(part["path"]), what, stage, "plan")


def repair(store: Store) -> Repair:
    """Publish a snapshot without damage. Units whose rows are whole in an older file (one that a compaction merged, or
    merged it from) are restored from there; the others are withdrawn, so that the next run of the job does them again.

    Damaged plans are removed; they are made again, with the same units. No other driver may be at work on the run.
    """
    for damage in _plans(store):
        store.objects.delete(f"plan/{damage.stage}.json")
    names = {name.removesuffix(".json") for name in store.names("commits")}
    placed: dict[str, Commit] = {}
    restored: set[str] = set()
    states: dict[str, bool] = {}
    for commit, current in _candidates(store, names):
        whole = all(states.setdefault(file.path, _state(store, file) is None) for file in commit.files.values())
        if whole and not any(unit in placed for unit in commit.units):
            placed.update(dict.fromkeys(commit.units, commit))
            restored.update(() if current else commit.units)
    for unit in names - placed.keys():
        halves = [placed[other] for other in names & placed.keys() if other.startswith(f"{unit}.")]
        if halves:
            placed[unit] = Commit((unit,), halves[0].stage, uuid4().hex[:12], "split", {})
    withdrawn = tuple(sorted(names - placed.keys()))
    number = max((int(name.removesuffix(".json")) for name in store.names("snapshots")), default=0) + 1
    if not store.publish(placed.values(), number):
        raise StoreError(f"{store.where('snapshots')} has a new one: another driver is at work; stop it first")
    for unit in withdrawn:
        store.objects.delete(f"commits/{unit}.json")
    return Repair(tuple(sorted(restored)), withdrawn)


def _candidates(store: Store, names: Iterable[str]) -> Iterator[tuple[Commit, bool]]:
    """Commits that can be read, the present ones (True) before older ones."""
    generations = _snapshots(store)
    newest = next(generations, [])
    covered = {unit for commit in newest for unit in commit.units}
    yield from ((commit, True) for commit in newest)
    own = {}
    for name in names:
        with contextlib.suppress(StoreError):
            record = store.record(f"commits/{name}.json")
            if record is not None:
                own[name] = record
    yield from ((commit, True) for unit, commit in own.items() if unit not in covered)
    for older in generations:
        yield from ((commit, False) for commit in older)
    yield from ((commit, False) for unit, commit in own.items() if unit in covered)


def _snapshots(store: Store) -> Iterator[list[Commit]]:
    """The commits of each snapshot that can be read, newest first."""
    for name in reversed(store.names("snapshots")):
        with contextlib.suppress(StoreError):
            yield store.snapshot_at(int(name.removesuffix(".json")))


def collect(store: Store, older_than: float, delete: bool = False) -> list[Stored]:
    """Objects that no reader needs, older than so many seconds: of attempts that lost or died, and what compaction
    replaced. They are deleted only where `delete` says so. Age is told by the store's own clock.

    A reader that still holds an older snapshot needs what it names: keep `older_than` above the longest query.
    """
    commits = store.commits()
    needed = {file.path for commit in unique(commits.values()) for file in commit.files.values()}
    for name in store.names("plan"):
        if name.endswith(".json"):
            needed |= {f"plan/{name}"} | {
                part["path"] for part in json.loads(store.read(f"plan/{name}") or b"")["parts"]
            }
    snapshots = store.names("snapshots")
    needed |= {f"snapshots/{name}" for name in snapshots[-1:]}
    needed |= {f"commits/{name}" for name in store.names("commits")}
    now = _clock(store)
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
