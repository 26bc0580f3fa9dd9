"""What the driver decides: which stages wait for which, when a unit is late, and where it stops."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from audit.config import parse_job
from audit.errors import BadItem, ConfigError, DataError, StoreError
from audit.memory import is_out_of_memory
from audit.methods import Counts, Unit, chunks, module_of, reads
from audit.results.progress import LIVE, live
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import Summary, is_device_lost, unusable_in
from benchmarks.scale import Host, Virtual, data_set
from pipelines.errors import InfrastructureError, LimitReached, Terminated
from pipelines.execute import _gpu_hours, _terminable
from pipelines.pace import Pace
from pipelines.plan import open_or_create, other_versions, versions
from pipelines.progress import Progress
from pipelines.runner import Runner
from pipelines.stages import _apart, _result
from pipelines.units import closed, outstanding, plan_of, planned, units_in
from pipelines.workers import STARTS, Cluster, Workers, answers, threads_of
from tests.ray_cluster import free_port

STAGES: list[dict[str, Any]] = [
    {"kind": "screen", "unit_items": 10},
    {"kind": "adequacy", "classes": ["class 1"]},
    {"kind": "disagreement", "maximise": "m", "minimise": "n", "seeds": 3},
    {"kind": "counterfactual", "method": "uvce", "model": "m"},
    {"kind": "neuron", "model": "m", "neurons": [1, 2]},
    {"kind": "counterfactual", "method": "uvce", "model": "n"},
    {"kind": "discover"},
]


def job(folder: Path, stages: list[dict[str, Any]] | None = None, **compute: Any) -> Any:
    if not (folder / "data").exists():
        data_set(folder / "data", 100)
    raw = {
        "version": 1,
        "name": "small",
        "data": {"source": "parquet", "path": str(folder / "data")},
        "models": [{"id": name, "loader": "hf", "ref": "zoo:reference"} for name in ("m", "n")],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "generator": {"loader": "diffusers", "ref": "zoo:diffusion"},
        "stages": stages or STAGES[:1],
        "compute": compute,
    }
    return parse_job(raw, folder)


def test_a_stage_waits_for_what_it_reads_and_for_nothing_else(tmp_path: Path) -> None:
    made = job(tmp_path, STAGES)
    assert reads(made, "0-inventory") == []
    assert reads(made, "1-screen") == ["0-inventory"]
    assert reads(made, "3-disagreement") == ["0-inventory", "2-adequacy"]
    assert reads(made, "4-uvce") == ["0-inventory", "1-screen"]  # beside the searches for disagreement
    assert reads(made, "5-neuron") == ["0-inventory", "1-screen", "2-adequacy"]
    assert reads(made, "6-uvce") == ["0-inventory", "1-screen", "4-uvce"]  # what that inverts is inverted once
    searches = ["3-disagreement", "4-uvce", "5-neuron", "6-uvce"]
    assert reads(made, "7-discover") == ["0-inventory", "1-screen", *searches]


def test_what_is_expected_of_a_job(tmp_path: Path) -> None:
    made, counts = job(tmp_path, STAGES), Counts(90, 10, ("class 1", "class 2"))
    told = {}
    for name in ("0-inventory", "1-screen", "2-adequacy", "3-disagreement", "4-uvce", "5-neuron", "7-discover"):
        plugin, module = module_of(made, name)
        told[name] = module.expected(plugin.options, counts)
    assert told == {
        "0-inventory": 100,
        "1-screen": 100,
        "2-adequacy": 1,
        "3-disagreement": 6,  # 1 pair, 2 classes, 3 seeds
        "4-uvce": 90,
        "5-neuron": 4,
        "7-discover": 1,
    }


@pytest.mark.parametrize(("total", "size"), [(0, 4), (3, 4), (31, 4), (32, 4), (100, 4), (1000, 7), (5, 1)])
def test_the_last_units_are_smaller_and_none_is_lost(total: int, size: int) -> None:
    parts = list(chunks(iter(range(total)), size, total))
    assert [item for part in parts for item in part] == list(range(total))
    assert all(0 < len(part) <= size for part in parts)
    if total >= 8 * size and size >= 4:
        assert len(parts[-1]) <= size // 4
        assert sum(len(part) < size for part in parts[: len(parts) // 2]) == 0


def test_halves_hold_what_the_unit_held_and_their_ids_follow_from_its() -> None:
    unit = Unit("u", "1-screen", json.dumps({"role": "data", "items": [1, 2, 3, 4, 5]}), 5)
    one, other = unit.halves("items")
    assert one.payload["items"] + other.payload["items"] == [1, 2, 3, 4, 5]
    assert (one.items, other.items, one.unit_id, other.unit_id) == (2, 3, "u.0", "u.1")
    assert other.payload["role"] == "data"
    assert other.halves("items")[1].unit_id == "u.1.1"


def test_a_split_unit_stands_for_its_halves_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    unit = Unit("u", "1-screen", json.dumps({"items": [1, 2, 3, 4]}), 4)
    store.commit("u", "1-screen", {}, status="split")
    store.commit("u.1", "1-screen", {}, status="split")
    store.commit("u.1.0", "1-screen", {})
    left = list(outstanding(iter([unit, Unit("v", "1-screen", "{}", 1)]), store.commits(), "items"))
    assert [(one.unit_id, one.payload.get("items")) for one in left] == [("u.0", [1, 2]), ("u.1.1", [4]), ("v", None)]


@pytest.mark.parametrize(
    ("resources", "share", "wanted", "threads"),
    [
        ({"CPU": 32, "GPU": 8}, 1.0, 512, 4),  # eight workers on the node, whatever is elsewhere
        ({"CPU": 32, "GPU": 8}, 0.5, 512, 2),
        ({"CPU": 32, "GPU": 8}, 1.0, 2, 16),
        ({"CPU": 8}, 0.0, 8, 1),
        ({"CPU": 8}, 0.0, 2, 4),
        ({}, 1.0, 4, 1),
    ],
)
def test_threads_follow_the_node_that_a_worker_is_on(
    resources: dict[str, float], share: float, wanted: int, threads: int
) -> None:
    assert threads_of(resources, share, wanted) == threads


def test_when_a_unit_is_slow_and_when_it_hangs() -> None:
    pace = Pace("auto")
    assert pace.slow("s", 10) is None
    assert pace.deadline("s", 10) == 3600
    for seconds in (100.0, 120.0, 900.0):
        pace.add("s", 10, seconds)
    assert pace.expected("s", 5) == 60  # the median of 10, 12 and 90 seconds an item
    assert pace.slow("s", 10) == 360
    assert pace.deadline("s", 10) == 1200
    assert pace.deadline("s", 1) == 600  # no less than ten minutes
    assert pace.deadline("s", 1, loads=True) == 3600  # its worker may have to load models first
    assert pace.slow("s", 0) == 36  # a unit without items counts as one
    assert Pace(0.5).deadline("s", 10) == 30
    assert (Pace("auto").soonest, Pace(0.1).soonest, Pace(10).soonest) == (30, 6, 30)


def test_items_that_cannot_be_used() -> None:
    """Images, searches, images of counterfactuals; the searches of a neuron are one item together."""

    def searches(*ended: str, **of: Any) -> dict[str, Any]:
        return {"explanations": [{"explanation_id": f"{i}", "status": status, **of} for i, status in enumerate(ended)]}

    images = {"items": [{"role": "data", "position": i, "status": s} for i, s in enumerate(("ok", "quarantined"))]}
    assert unusable_in(images, 2) == 1
    assert unusable_in(searches("ok", "failed", "failed"), 3) == 2
    targets = [
        {"item_id": item, "explanation_id": f"{item}{i}", "status": s}
        for item, i, s in (("a", 0, "failed"), ("a", 1, "ok"), ("b", 0, "failed"), ("b", 1, "failed"))
    ]
    assert unusable_in({"explanations": targets}, 2) == 1
    assert unusable_in(searches("failed", "ok", "failed"), 1) == 0
    assert unusable_in(searches("failed", "failed"), 1) == 1
    assert unusable_in({}, 1) == 0


def test_what_takes_a_process_with_it() -> None:
    assert is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))
    assert is_device_lost(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    for words in ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"):
        for kind in (RuntimeError, torch.AcceleratorError):
            assert is_out_of_memory(kind(words))  # half as many items fit
            assert not is_device_lost(kind(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_device_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_device_lost(BadItem("x"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two logical GPUs."""
    ray.shutdown()
    with Cluster(None, {"num_gpus": 2}):
        POOL[:] = [ray.remote(num_cpus=0, max_concurrency=10)(Anyone).remote() for _ in range(2)]
        yield


class Anyone:
    """A process of virtual workers, which starts slowly; what they are changes from test to test."""

    def become(self, kind: Any, *arguments: Any) -> None:
        self.now = kind(*arguments)

    async def started(self) -> str:
        return str(await self.now.started())

    async def use_classes(self, classes: tuple[str, ...]) -> None:
        pass

    async def do(self, tasks: bytes) -> bytes:
        return bytes(await self.now.do(tasks))

    async def failures(self) -> dict[str, int]:
        return dict(self.now.failed)


POOL: list[Any] = []


def actor(kind: Any, *arguments: Any) -> Any:
    """A process that is such workers from now on."""
    POOL.reverse()
    ray.get(POOL[0].become.remote(kind, *arguments))
    return POOL[0]


def served(made: Any, root: Path, host: Any) -> Workers:
    """Virtual workers, all in one process."""
    return Workers(made, root, False, lambda: Virtual(host), lambda actor: None)


def run(made: Any, root: Path, seconds: float, workers: Workers | None = None) -> tuple[Runner, str]:
    """A run with virtual workers, which take so many seconds for a unit; and what ended it."""
    open_or_create(made, root, {})
    if workers is None:
        host = actor(Host, str(root), seconds)
        workers = served(made, root, host)
    with Progress("small", Store(root), True) as progress:
        runner = Runner(made, root, {}, workers, progress)
        progress.gpu_hours = _gpu_hours(root, workers.share)
        try:
            with _terminable():
                runner.run()
        except LimitReached as error:
            return runner, str(error)
    return runner, ""


def test_a_budget_of_gpu_hours_stops_a_run_cleanly_and_a_higher_one_resumes_it(cluster: None, tmp_path: Path) -> None:
    """15 units of .3 s on one GPU: a second and a half is used up before all are done."""
    made = job(tmp_path, gpus=1, max_gpu_hours=1.5 / 3600)
    root = tmp_path / "run"
    first, said = run(made, root, 0.3)
    assert "max_gpu_hours" in said
    assert 1 <= first.executions < 15
    assert len(Store(root).commits()) - 1 == first.executions  # all that began has ended; one record is the run's own
    second, said = run(job(tmp_path, gpus=1, max_gpu_hours=1.0), root, 0.01)
    assert said == ""
    plans = [planned(made, stage, root, {}, ()) for stage in ("0-inventory", "1-screen")]
    units = [len(list(units_in(Store(root), plan))) for plan in plans]
    assert first.executions + second.executions == sum(units) == 15
    assert Run(root).rows("select count(*) as n, count(distinct item_id) as d from predictions") == [
        {"n": 100, "d": 100}
    ]


def test_what_failed_stays_on_the_budget_however_often_the_run_is_resumed(cluster: None, tmp_path: Path) -> None:
    """Five hours, of which no unit tells: two drivers in a row that may do nothing leave them as they were."""
    made, root = job(tmp_path, gpus=1, max_gpu_hours=5.0), tmp_path / "run"
    open_or_create(made, root, {})
    Store(root).objects.replace(LIVE, json.dumps({"gpu_hours": 5.0, "ended": "Terminated: "}).encode())
    for _ in range(2):
        host = actor(Host, str(root), 0.0)
        with Progress("small", Store(root), True) as progress:
            runner = Runner(made, root, {}, served(made, root, host), progress)
            progress.gpu_hours = _gpu_hours(root, runner.workers.share)
            with pytest.raises(LimitReached, match=r"5\.00 GPU-hours"):
                runner.run()
        assert (live(Store(root)) or {})["gpu_hours"] == 5.0
    assert _gpu_hours(root, 0.0) == 0.0


def test_sigterm_ends_a_run_that_waits_for_a_long_unit(cluster: None, tmp_path: Path) -> None:
    """Ray's compiled code would make a SystemError of it."""
    made, root = job(tmp_path, gpus=1), tmp_path / "run"
    telling = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    telling.start()
    with pytest.raises(Terminated):
        run(made, root, 20.0)
    assert (live(Store(root)) or {})["ended"] == "Terminated: "
    with pytest.raises(SystemError, match="of its own"), _terminable():
        raise SystemError("of its own")


def done(made: Any, root: Path, stage: str) -> None:
    """Commit the units of a stage as a virtual worker does."""
    for unit in units_in(Store(root), planned(made, stage, root, {}, ())):
        Host.__dict__["_commit"](SimpleNamespace(store=Store(root), latencies=[]), unit, 1)


class Flaky(Host):
    """Every unit fails once."""

    async def run(self, unit: Unit, attempt: int) -> Summary:
        if attempt == 1:
            return Summary(unit.unit_id, unit.stage, 0, 0.0, error="ValueError: once")
        return await super().run(unit, attempt)


def test_units_that_fail_once_are_all_done_by_the_other_worker(cluster: None, tmp_path: Path) -> None:
    """To the last one, when nothing else is under way and one of the idle workers is not to have it."""
    made, root = job(tmp_path, gpus=2, retries=1), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(Flaky, str(root), 0.0)
    runner, said = run(made, root, 0.0, served(made, root, host))
    assert said == ""
    assert runner.executions == 2 * 15
    assert Run(root).rows("select count(*) as n from predictions where status = 'ok'") == [{"n": 100}]


def test_a_budget_that_is_used_up_by_the_last_unit_is_no_limit_reached(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert run(job(tmp_path, gpus=1, max_gpu_hours=1.0), root, 0.0)[1] == ""
    made = job(tmp_path, gpus=1, max_gpu_hours=1e-9)
    assert run(made, root, 0.0)[1] == ""


def test_halves_that_another_driver_made_are_done(cluster: None, tmp_path: Path) -> None:
    """It has split a unit that this driver's worker is at: the worker's rows are refused, and the halves remain."""
    made, root = job(tmp_path, gpus=1), tmp_path / "run"
    open_or_create(made, root, {})
    unit = next(units_in(Store(root), planned(made, "0-inventory", root, {}, ())))
    host = actor(Late, str(root), 0.0)
    runner, said = run(made, root, 0.0, served(made, root, host))
    assert said == ""
    assert Store(root).commits()[unit.unit_id].status == "split"
    assert Run(root).rows("select count(*) as n, count(distinct item_id) as d from items") == [{"n": 100, "d": 100}]
    assert runner.executions == 1 + 2 + 14


class Late(Host):
    """Whatever it does, the unit of the inventory was split by another driver just before it commits."""

    async def run(self, unit: Unit, attempt: int) -> Summary:
        if unit.stage == "0-inventory" and "." not in unit.unit_id:
            self.store.commit(unit.unit_id, unit.stage, {}, status="split")
            return Summary(unit.unit_id, unit.stage, 0, 0.0, split=True)
        return await super().run(unit, attempt)


class Suffering(Host):
    """Fails for no fault of the unit: on a node whose device is broken, or as often as `times` says for each unit."""

    def __init__(self, root: str, excuse: str, node: str = "", times: int = 10**9, seconds: float = 0.0) -> None:
        super().__init__(root, seconds)
        self.excuse, self.node, self.times = excuse, node, times
        self.failed: dict[str, int] = {}

    async def started(self) -> str:
        return self.node

    async def run(self, unit: Unit, attempt: int) -> Summary:
        if self.failed.get(unit.unit_id, 0) < self.times:
            self.failed[unit.unit_id] = self.failed.get(unit.unit_id, 0) + 1
            await asyncio.sleep(0.02)
            return Summary(unit.unit_id, unit.stage, 0, 0.0, error="not now", excuse=self.excuse)  # type: ignore[arg-type]
        return await super().run(unit, attempt)


def test_a_node_whose_device_fails_gets_no_more_units_and_none_of_them_is_charged(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers; that of the first node loses its device with every unit. Its fifth unit is its last."""
    made, root = job(tmp_path, gpus=2, retries=0), tmp_path / "run"
    monkeypatch.setattr("pipelines.runner.PAUSE", 0.3)
    broken, sound = actor(Suffering, str(root), "device", "a"), actor(Suffering, str(root), "", "b", 0, 0.1)
    order = chain([broken, sound], repeat(broken))

    def make() -> Virtual:
        return Virtual(sound if workers.left_out else next(order))

    workers = Workers(made, root, False, make, lambda actor: None)
    runner, said = run(made, root, 0.0, workers)
    assert said == ""
    failed = ray.get(broken.failures.remote())
    assert len(failed) == 5
    assert workers.left_out == {"a"}
    assert capsys.readouterr().err.count("node_left_out") == 1
    assert runner.executions == 15 + sum(failed.values())
    assert Run(root).rows("select distinct attempt, status from units") == [{"attempt": 1, "status": "ok"}]
    assert Run(root).rows("select count(*) as n from predictions") == [{"n": 100}]


class Unequipped(Suffering):
    """It cannot load the model."""

    kind = "config"

    async def run(self, unit: Unit, attempt: int) -> Summary:
        return replace(await super().run(unit, attempt), fatal=self.kind)  # type: ignore[arg-type]


class Unmounted(Unequipped):
    """It does not reach the place of the results."""

    kind = "store"


@pytest.mark.parametrize(("kind", "raised"), [(Unequipped, ConfigError), (Unmounted, InfrastructureError)])
def test_what_only_one_node_lacks_ends_no_run_and_what_all_lack_does(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, raised: type[Exception]
) -> None:
    """The node that lacks it fails long before the other one has done anything."""
    monkeypatch.setattr("pipelines.runner.PAUSE", 0.3)
    made, root = job(tmp_path, gpus=2, retries=0), tmp_path / "run"
    open_or_create(made, root, {})
    lacking = actor(kind, str(root), "device", "a")
    with pytest.raises(raised, match="stage 0-inventory: not now"):
        run(made, root, 0.0, served(made, root, lacking))
    assert set(Store(root).commits()) == {"run"}
    sound, hosts = actor(Suffering, str(root), "", "b", 0, 0.4), iter(range(10**9))
    done(made, root, "0-inventory")
    workers = Workers(made, root, False, lambda: Virtual(sound if next(hosts) == 0 else lacking), lambda actor: None)
    _, said = run(made, root, 0.0, workers)
    assert said == ""
    assert ray.get(lacking.failures.remote())
    assert Run(root).rows("select distinct attempt, status from units") == [{"attempt": 1, "status": "ok"}]
    assert Run(root).rows("select count(*) as n from predictions") == [{"n": 100}]


class Alternating(Suffering):
    """It loses its device with every second unit, the first time."""

    async def run(self, unit: Unit, attempt: int) -> Summary:
        if (len(self.latencies) + len(self.failed)) % 2 == 0 and unit.unit_id not in self.failed:
            self.failed[unit.unit_id] = 1
            return Summary(unit.unit_id, unit.stage, 0, 0.0, error="not now", excuse="device")
        return await Host.run(self, unit, attempt)


def test_a_node_on_which_units_are_done_in_between_is_not_left_out(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.runner.PAUSE", 0.01)
    made, root = job(tmp_path, gpus=1, retries=0), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(Alternating, str(root), "device", ray.get_runtime_context().get_node_id())
    workers = served(made, root, host)
    runner, said = run(made, root, 0.0, workers)
    failed = len(ray.get(host.failures.remote()))
    assert failed > 5
    assert (said, workers.left_out, runner.executions) == ("", set(), 15 + failed)
    assert Run(root).rows("select distinct attempt, status from units") == [{"attempt": 1, "status": "ok"}]


def test_a_node_that_is_left_out_gets_no_worker(cluster: None, tmp_path: Path) -> None:
    """The only node there is: what asks for a worker waits, and the GPUs stay free."""
    made, root = job(tmp_path, gpus=2), tmp_path / "run"
    workers = Workers(made, root, grows=True)
    workers.left_out.add(ray.get_runtime_context().get_node_id())
    workers.grow()
    ready, waiting = ray.wait(list(workers.starting), timeout=2.0)
    assert (ready, len(waiting)) == ([], 2)
    assert ray.available_resources()["GPU"] == 2.0
    workers.close()
    workers.left_out.clear()
    workers.grow()
    ready, _ = ray.wait(list(workers.starting), timeout=60.0)
    assert ray.available_resources().get("GPU", 0.0) < 2.0
    assert ray.get(ready[0]) == ray.get_runtime_context().get_node_id()
    workers.close()


def test_a_node_answers_unless_it_is_gone(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone also where the head still takes it for alive, and nobody listens at its port."""
    (node,) = ray.nodes()
    assert answers(node["NodeID"])
    assert not answers("0" * 56)
    monkeypatch.setattr("ray.nodes", lambda: [{**node, "NodeManagerPort": free_port()}])
    assert not answers(node["NodeID"])


def test_where_every_node_loses_its_device_the_run_ends_and_gives_nothing_up(cluster: None, tmp_path: Path) -> None:
    made, root = job(tmp_path, gpus=2, retries=0), tmp_path / "run"
    open_or_create(made, root, {})
    done(made, root, "0-inventory")
    broken = actor(Suffering, str(root), "device", ray.get_runtime_context().get_node_id())
    with pytest.raises(InfrastructureError, match="on every node 5 units in a row have lost their device, "):
        run(made, root, 0.0, served(made, root, broken))
    assert {commit.stage for commit in Store(root).commits().values()} == {"run", "0-inventory"}


class Unlucky(Suffering):
    """Each unit loses its node three times before the rest."""

    async def run(self, unit: Unit, attempt: int) -> Summary:
        summary = await super().run(unit, attempt)
        lost = self.failed[unit.unit_id] <= 3
        return replace(summary, excuse="node") if lost else summary  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "times"), [(Suffering, 8), (Unlucky, 3 + 8)])
def test_data_that_cannot_be_read_for_a_while_costs_no_unit_anything(
    kind: type[Suffering], times: int, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.runner.PAUSE", 0.01)
    made, root = job(tmp_path, gpus=2, retries=0), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(kind, str(root), "data", "", times)
    runner, said = run(made, root, 0.0, served(made, root, host))
    assert said == ""
    assert runner.executions == 15 * (times + 1)
    assert Run(root).rows("select distinct attempt, status from units") == [{"attempt": 1, "status": "ok"}]


def test_data_that_stay_away_end_the_run_and_give_nothing_up(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.runner.PAUSE", 0.01)
    made, root = job(tmp_path, gpus=2, retries=0), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(Suffering, str(root), "data")
    with pytest.raises(InfrastructureError, match="stage 0-inventory: not now"):
        run(made, root, 0.0, served(made, root, host))
    assert set(Store(root).commits()) == {"run"}


class Doubled(Suffering):
    """Of one unit of screening the data are away eight times; then it is slow, and its copies find no data."""

    slow = ""

    async def run(self, unit: Unit, attempt: int) -> Summary:
        if unit.stage == "0-inventory" or unit.unit_id != (self.slow or unit.unit_id):
            return await Host.run(self, unit, attempt)
        self.slow = unit.unit_id
        self.failed[unit.unit_id] = self.failed.get(unit.unit_id, 0) + 1
        if self.failed[unit.unit_id] == 9:
            await asyncio.sleep(2.0)
            return await Host.run(self, unit, attempt)
        return Summary(unit.unit_id, unit.stage, 0, 0.0, error="not now", excuse="data")


def test_a_copy_without_data_ends_no_run_while_the_unit_itself_is_at_work(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.runner.PAUSE", 0.01)
    monkeypatch.setattr("pipelines.pace.SLOW_LEAST", 0.2)
    made, root = job(tmp_path, gpus=2, retries=0), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(Doubled, str(root), "data")
    _, said = run(made, root, 0.0, served(made, root, host))
    assert said == ""
    assert max(ray.get(host.failures.remote()).values()) > 9
    assert Run(root).rows("select distinct attempt, status from units") == [{"attempt": 1, "status": "ok"}]
    assert Run(root).rows("select count(*) as n from predictions") == [{"n": 100}]


class Bad(Host):
    """Finds so many of the first items of screening unusable."""

    def __init__(self, root: str, bad: int) -> None:
        super().__init__(root, 0.0)
        self.bad = bad

    async def run(self, unit: Unit, attempt: int) -> Summary:
        summary = await super().run(unit, attempt)
        if unit.stage == "1-screen":
            failed = sum(int(item_id, 16) < self.bad for _, item_id, _ in unit.payload["items"])
            return replace(summary, failed=failed)
        return summary


@pytest.mark.parametrize(("bad", "stops"), [(30, False), (31, True)])
def test_the_limit_on_unusable_items_is_a_share_of_all_of_them(
    cluster: None, tmp_path: Path, bad: int, stops: bool
) -> None:
    """Whichever come first: all of the first 30 of 100 are bad, and 30 % are allowed."""
    made, root = job(tmp_path, gpus=1, max_quarantined=0.3), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(Bad, str(root), bad)
    _, said = run(made, root, 0.0, served(made, root, host))
    assert ("1-screen: 31 of 100 items cannot be used, more than compute.max_quarantined of 30%" in said) == stops
    assert (said == "") != stops


def test_a_stage_of_which_the_first_items_are_all_unusable_is_not_gone_on_with(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.runner.ALL_FAILED", 20)
    made, root = job(tmp_path, gpus=1, max_quarantined=0.9), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(Bad, str(root), 100)
    _, said = run(made, root, 0.0, served(made, root, host))
    assert "1-screen: not one of the first 20 items, of 100, can be used" in said


class Lagging(Store):
    """A store whose listings lack what is new."""

    def names(self, folder: str) -> list[str]:
        return super().names(folder)[:2] if folder in ("commits", "snapshots") else super().names(folder)


def test_a_stage_ends_with_a_snapshot_that_has_what_a_listing_lacks(tmp_path: Path) -> None:
    """A unit in halves among them; a reader with the same listing sees all."""
    made, root = job(tmp_path), tmp_path / "run"
    store = Store(root)
    plan = planned(made, "0-inventory", root, {}, ())
    units = list(units_in(store, plan))
    one = {"unit_id": "u", "stage": "0-inventory", "attempt": 1, "status": "ok", "items": 1}
    halved, *others = units
    store.commit(halved.unit_id, "0-inventory", {}, status="split")
    whole = {unit.unit_id for unit in [*others, *halved.halves("entries")]}
    for unit in sorted(whole):
        store.commit(unit, "0-inventory", {"units": [{**one, "unit_id": unit}]})
    lagging = Lagging(root)
    assert len(lagging.commits()) == 2
    closed(lagging, plan, "entries")
    assert lagging.commits().keys() == whole | {halved.unit_id}
    store.snapshot()
    assert len(lagging.covered()[0]) == len(whole) + 1
    (root / "commits" / f"{max(whole)}.json").unlink()
    for snapshot in (root / "snapshots").iterdir():
        snapshot.unlink()
    with pytest.raises(StoreError, match=f"{max(whole)}.json is gone"):
        closed(Store(root), plan, "entries")


def test_a_plan_made_anew_from_other_data_is_refused_where_units_of_the_old_one_are_committed(tmp_path: Path) -> None:
    made, root = job(tmp_path), tmp_path / "run"
    store = Store(root)
    before = [unit.unit_id for unit in units_in(store, planned(made, "0-inventory", root, {}, ()))]
    (root / "plan" / "0-inventory.json").unlink()
    again = planned(made, "0-inventory", root, {}, (), [*before, f"{before[0]}.1.0"])
    assert [unit.unit_id for unit in units_in(store, again)] == before
    (root / "plan" / "0-inventory.json").unlink()
    shutil.rmtree(tmp_path / "data")
    data_set(tmp_path / "data", 99)
    with pytest.raises(StoreError, match=r"0-inventory has 1 committed units that its new plan has not.*--new-run"):
        planned(made, "0-inventory", root, {}, (), before[-1:])
    assert plan_of(store, "0-inventory") is None


class Broken:
    """A worker that does not come up."""

    def __init__(self) -> None:
        raise OSError("libcuda.so is missing")

    def started(self) -> str:
        return ""


def test_workers_that_cannot_start_end_the_run_and_quarantine_nothing(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.workers.PAUSE", 0.1)
    made, root = job(tmp_path, workers=1), tmp_path / "run"
    open_or_create(made, root, {})
    workers = Workers(made, root, False, lambda: ray.remote(max_restarts=0)(Broken).remote())
    with pytest.raises(InfrastructureError, match=r"no worker can start: .*libcuda\.so is missing"):
        run(made, root, 0, workers)
    assert set(Store(root).commits()) == {"run"}


class Mortal(Host):
    """Loses its device with the first unit that it is given."""

    lost = False

    async def run(self, unit: Unit, attempt: int) -> Summary:
        if self.lost:
            return await super().run(unit, attempt)
        self.lost = True
        return Summary(unit.unit_id, unit.stage, 0, 0.0, error="gone", excuse="device")


def test_starts_that_fail_end_no_run_so_soon_in_which_workers_have_started_before(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.workers.PAUSE", 0.01)
    made, root = job(tmp_path, workers=1, retries=0), tmp_path / "run"
    open_or_create(made, root, {})
    host = actor(Mortal, str(root), 0.0)
    broken = (ray.remote(num_cpus=0)(Broken).remote() for _ in range(STARTS + 2))
    starts = chain([Virtual(host)], broken, (Virtual(host) for _ in range(2)))
    _, said = run(made, root, 0.0, Workers(made, root, False, lambda: next(starts), lambda actor: None))
    assert said == ""
    assert next(broken, None) is None
    assert Run(root).rows("select count(*) as n from predictions") == [{"n": 100}]


def test_a_machine_with_too_few_gpus_is_refused_and_a_growing_cluster_is_waited_for(
    cluster: None, tmp_path: Path
) -> None:
    made, root = job(tmp_path, gpus=3, start_minutes=0.02), tmp_path / "run"
    with pytest.raises(InfrastructureError, match="asks for 3 GPUs, this machine has 2"):
        Workers(made, root, grows=False)
    asking = job(tmp_path, gpus=8, workers=1, start_minutes=0.02)
    workers = Workers(asking, root, grows=True)
    with pytest.raises(InfrastructureError, match="no worker could start in 0 minutes: each needs 8 GPU"):
        run(asking, root, 0, workers)


def broken(*_: Any) -> Any:
    raise RuntimeError("this process shall not do it")


def test_with_many_workers_stages_are_planned_and_closed_in_a_process_of_their_own(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, here = job(tmp_path, gpus=1), tmp_path / "here"
    run(made, here, 0.0)
    for name in ("units.write_plan", "stages.closed"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipelines.{name}", broken)
            with pytest.raises(RuntimeError, match="shall not"):
                run(made, tmp_path / name, 0.0)
            patch.setattr("pipelines.runner.MANY", 0)
            run(made, tmp_path / name, 0.0)
            for stage in ("0-inventory", "1-screen"):
                assert plan_of(Store(tmp_path / name), stage) == plan_of(Store(here), stage) is not None
            rows = [Run(root).rows("select * from predictions order by all") for root in (here, tmp_path / name)]
            assert rows[0] == rows[1]
            assert len(rows[0]) == 100


def test_what_a_process_of_its_own_raises_ends_the_run_as_it_would_here(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(tmp_path, gpus=1)
    shutil.rmtree(tmp_path / "data")
    said = []
    for many in (32, 0):
        monkeypatch.setattr("pipelines.runner.MANY", many)
        with pytest.raises(DataError) as error:
            run(made, tmp_path / str(many), 0.0)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


SHORT = [{"kind": "screen", "unit_items": 2}]


class Several(Host):
    """Counts the units of each call."""

    def __init__(self, root: str, seconds: float) -> None:
        super().__init__(root, seconds)
        self.failed = {"calls": 0, "units": 0, "most": 0}

    async def do(self, tasks: bytes) -> bytes:
        count = len(pickle.loads(tasks))
        self.failed["calls"] += 1
        self.failed["units"] += count
        self.failed["most"] = max(self.failed["most"], count)
        return await super().do(tasks)


class Alone(Several):
    """Dies of more than one unit."""

    async def do(self, tasks: bytes) -> bytes:
        answer = await super().do(tasks) if len(pickle.loads(tasks)) == 1 else b""
        if not answer:
            raise RuntimeError("the end")
        return answer


class Poisoned(Several):
    """Dies of one image, before anything of its call is committed."""

    async def do(self, tasks: bytes) -> bytes:
        for unit, _ in pickle.loads(tasks):
            if unit.stage == "1-screen" and any(item[1] == f"{37:064x}" for item in unit.payload["items"]):
                raise RuntimeError("poison")
        return await super().do(tasks)


class Hanging(Several):
    """Never ends with more than one unit."""

    async def do(self, tasks: bytes) -> bytes:
        if len(pickle.loads(tasks)) > 1:
            await asyncio.sleep(1000)
        return await super().do(tasks)


class Pausing(Several):
    """Cannot read the data of the second unit of each call, but for one try."""

    async def do(self, tasks: bytes) -> bytes:
        self.begun = 0
        return await super().do(tasks)

    async def run(self, unit: Unit, attempt: int) -> Summary:
        self.begun += 1
        if self.begun == 2:
            return Summary(unit.unit_id, unit.stage, 0, 0.0, error="gone", excuse="data")
        assert self.begun == 1, "a worker goes on though it cannot read"
        return await super().run(unit, attempt)


@pytest.mark.parametrize(
    ("kind", "unusable"), [(Several, []), (Alone, []), (Hanging, []), (Pausing, []), (Poisoned, [f"{37:064x}"])]
)
def test_many_workers_are_given_several_short_units_at_once_and_what_fails_with_others_is_tried_alone(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, unusable: list[str]
) -> None:
    """Without retries: what was lost with others, or never begun, costs a unit nothing."""
    for name, value in {"runner.MANY": 0, "runner.PAUSE": 0.1}.items():
        monkeypatch.setattr(f"pipelines.{name}", value)
    for name in ("FIRST", "LEAST", "SLOW_LEAST"):
        monkeypatch.setattr(f"pipelines.pace.{name}", 2.0)
    made, root = job(tmp_path, SHORT, gpus=1, retries=0, max_quarantined=0.5), tmp_path / "run"
    host = actor(kind, str(root), 0.01)
    runner, said = run(made, root, 0.0, served(made, root, host))
    assert said == ""
    rows = Run(root).rows("select item_id, status from predictions where model_id = 'm' order by item_id")
    assert [row["item_id"] for row in rows] == [f"{position:064x}" for position in range(100)]
    assert [row["item_id"] for row in rows if row["status"] != "ok"] == unusable
    seen = ray.get(host.failures.remote())
    if kind is Several:
        assert runner.executions == seen["units"]
        assert seen["calls"] < seen["units"] / 2
        left = runner.stages.of("1-screen").plan.units - 1  # type: ignore[union-attr]
        assert 2 < seen["most"] <= left // 2  # so that something is left for others
    assert not runner.copies
    assert not runner.running


def test_few_workers_are_given_one_unit_at_once(cluster: None, tmp_path: Path) -> None:
    made, root = job(tmp_path, SHORT, gpus=1), tmp_path / "run"
    host = actor(Several, str(root), 0.01)
    run(made, root, 0.0, served(made, root, host))
    assert ray.get(host.failures.remote())["most"] == 1


def leave() -> None:
    os._exit(1)


def test_a_process_of_its_own_that_dies_each_time_ends_the_run_with_the_reason(cluster: None) -> None:
    with pytest.raises(InfrastructureError, match=r"could not be planned or closed: .*worker died"):
        _result(_apart(leave))


def test_libraries_of_another_version_are_named_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, root = job(tmp_path), tmp_path / "run"
    open_or_create(made, root, {})
    assert other_versions(Store(root)) == []
    others = {**versions(), "torch": "99"}
    monkeypatch.setattr("pipelines.plan.versions", lambda: others)
    assert other_versions(Store(root)) == [f'torch: "{torch.__version__}" -> "99"']


def test_ray_that_cannot_start_is_an_error_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a bare Exception where its own processes are too slow: a busy machine."""

    def late(**_: object) -> None:
        raise Exception("the node timed out during startup")  # as Ray does

    monkeypatch.setattr("ray.init", late)
    with pytest.raises(InfrastructureError, match="cannot reach Ray at an embedded cluster: the node timed out"):
        Cluster(None)
