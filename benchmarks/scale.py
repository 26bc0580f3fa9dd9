"""The driver at the size of a large cluster: logical GPUs, virtual workers that commit real rows without any model.

    python -m benchmarks.scale --units 1000 10000 100000

A few processes stand for all workers: each holds many, sleeps for a unit's seconds, and commits it as a worker does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from audit.config import Job, parse_job
from audit.methods import Context, Unit, module_of, stage_names, unit_of
from audit.models import Models, digests
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import Summary
from pipelines.errors import LimitReached
from pipelines.plan import open_or_create
from pipelines.progress import Progress
from pipelines.runner import Runner
from pipelines.units import closed, write_plan
from pipelines.workers import Cluster, Workers


class Host:
    """Many virtual workers in one process. Their commits are real, and one after the other."""

    def __init__(self, root: str, seconds: float) -> None:
        self.store, self.seconds = Store(root), seconds
        self.writer = ThreadPoolExecutor(1)
        self.latencies: list[float] = []

    async def started(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def use_classes(self, classes: tuple[str, ...]) -> None:
        pass

    async def do(self, tasks: bytes) -> bytes:
        summaries = []
        for unit, attempt in pickle.loads(tasks):  # noqa: S301 - from this run's driver
            summaries.append(await self.run(unit, attempt))
            if summaries[-1].fatal or summaries[-1].excuse:
                break
        return pickle.dumps(summaries)

    async def run(self, unit: Unit, attempt: int) -> Summary:
        await asyncio.sleep(self.seconds)
        await asyncio.get_running_loop().run_in_executor(self.writer, self._commit, unit, attempt)
        return Summary(unit.unit_id, unit.stage, unit.items, self.seconds)

    def _commit(self, unit: Unit, attempt: int) -> None:
        rows = _items(unit) if unit.stage == "0-inventory" else _predictions(unit)
        row = {"unit_id": unit.unit_id, "stage": unit.stage, "attempt": attempt, "status": "ok", "items": unit.items}
        began = time.monotonic()
        self.store.commit(unit.unit_id, unit.stage, {**rows, "units": [row]}, items=unit.items)
        self.latencies.append(time.monotonic() - began)

    async def told(self) -> list[float]:
        return self.latencies


def _items(unit: Unit) -> dict[str, list[dict[str, Any]]]:
    keys = ("position", "uri", "display_name", "label", "_reason", "caption", "has_mask")
    rows = []
    for entry in unit.payload["entries"]:
        row = dict(zip(keys, entry, strict=True))
        del row["_reason"]
        rows.append({**row, "item_id": f"{row['position']:064x}", "role": "data", "status": "ok"})
    return {"items": rows}


def _predictions(unit: Unit) -> dict[str, list[dict[str, Any]]]:
    base = {"role": "data", "model_id": "m", "status": "ok"}
    return {
        "predictions": [
            {**base, "item_id": item_id, "label": label, "predicted": label, "correct": True, "confidence": 0.5}
            for _, item_id, label in unit.payload["items"]
        ]
    }


class _Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


class Virtual:
    """What the runner takes for an actor."""

    def __init__(self, host: Any) -> None:
        self.started, self.do = _Method(host.started.remote), _Method(host.do.remote)
        self.use_classes = _Method(host.use_classes.remote)


def _leave(actor: Any) -> None:
    """A virtual worker ends with its host."""


def data_set(folder: Path, items: int) -> Path:
    """Parquet files of so many rows, with empty images: nobody decodes them here."""
    folder.mkdir()
    for part, start in enumerate(range(0, items, 1_000_000)):
        count = min(1_000_000, items - start)
        labels = pa.array(np.char.add("class ", (np.arange(start, start + count) % 1000).astype(str)))
        names = pa.array(np.char.add("image ", np.arange(start, start + count).astype(str)))
        table = pa.table({"image": pa.nulls(count, pa.binary()), "label": labels, "name": names})
        pq.write_table(table, folder / f"{part:04d}.parquet", row_group_size=10_000)
    return folder


def planning(job: Job, root: Path, found: dict[str, str], again: Path) -> float:
    """CPU seconds of planning all stages once more, into a store of its own."""
    began = time.process_time()
    for name in stage_names(job):
        plugin, module = module_of(job, name)
        context = Context(job, name, root, Models(job, (), device="cpu"), 1)
        payloads = module.plan(plugin.options, context)
        units = (unit_of(name, plugin, module.VERSION, payload, job, found) for payload in payloads)
        write_plan(Store(again), name, units)
    return time.process_time() - began


def measure(units: int, per_unit: int, gpus: int, seconds: float, hosts: int, folder: Path) -> dict[str, Any]:
    """One run of `units` units of screening of `per_unit` items each, and the inventory before it."""
    items = units * per_unit
    raw = {
        "version": 1,
        "name": "scale",
        "data": {"source": "parquet", "path": str(data_set(folder / "data", items))},
        "models": [{"id": "m", "loader": "hf", "ref": "zoo:reference"}],
        "stages": [{"kind": "screen", "unit_items": per_unit}],
        "compute": {"gpus": gpus, "workers": gpus},
    }
    job = parse_job(raw, folder)
    root = folder / "runs" / "scale"
    found = digests(job)
    open_or_create(job, root, found)
    held = [ray.remote(max_concurrency=1000, num_cpus=0)(Host).remote(str(root), seconds) for _ in range(hosts)]
    made = iter(range(10**9))
    workers = Workers(job, root, False, lambda: Virtual(held[next(made) % hosts]), _leave)
    wall, cpu, own = time.monotonic(), time.process_time(), time.thread_time()
    with Progress("scale", Store(root), True) as progress:
        runner = Runner(job, root, found, workers, progress)
        runner.run()
    wall, cpu, own = time.monotonic() - wall, time.process_time() - cpu, time.thread_time() - own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    latencies = np.array([value for host in held for value in ray.get(host.told.remote())])
    for host in held:
        ray.kill(host)
    store, began = Store(root), time.monotonic()
    for stage in runner.stages.all:
        assert stage.plan is not None
        closed(store, stage.plan, stage.items_key)
    closing = time.monotonic() - began
    began = time.monotonic()
    opened = Run(root)
    opening = time.monotonic() - began
    began = time.monotonic()
    rows = opened.rows("select count(*) as n, count(distinct item_id) as d, avg(confidence) as c from predictions")[0]
    query = time.monotonic() - began
    began = time.monotonic()
    classes = len(opened.rows("select * from accuracy"))
    viewing = time.monotonic() - began
    files = opened.store.files("predictions", (opened.commits or {}).values())
    return {
        "units": runner.executions,
        "items": items,
        "rows": rows["n"],
        "distinct": rows["d"],
        "classes": classes,
        "wall_seconds": wall,
        "units_per_second": runner.executions / wall,
        "driver_cpu_ms_per_unit": 1000 * cpu / runner.executions,
        "of_it_the_loop": 1000 * own / runner.executions,
        "of_it_planning": 1000 * planning(job, root, found, folder / "again") / runner.executions,
        "driver_peak_mib": peak,
        "peak_with_queries_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "commit_p50_ms": 1000 * float(np.quantile(latencies, 0.5)),
        "commit_p95_ms": 1000 * float(np.quantile(latencies, 0.95)),
        "compactions": len(runner.compactions),
        "compaction_longest_seconds": max(runner.compactions, default=0.0),
        "compactions_seconds": sum(runner.compactions),
        "check_of_all_stages_seconds": closing,
        "snapshots": len(opened.store.names("snapshots")),
        "prediction_files": len(files),
        "open_seconds": opening,
        "count_distinct_seconds": query,
        "accuracy_view_seconds": viewing,
        "plan_mib": sum(path.stat().st_size for path in (root / "plan").rglob("*") if path.is_file()) / 2**20,
        "run_mib": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--units", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--items", type=int, default=100, help="in a unit")
    parser.add_argument("--gpus", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=0.1, help="that a virtual worker sleeps over a unit")
    parser.add_argument("--hosts", type=int, default=2, help="processes that hold the virtual workers")
    parser.add_argument("--folder", type=Path, help="where the runs go; default: a temporary folder")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    Cluster(None, {"num_gpus": arguments.gpus})
    found = []
    for units in arguments.units:
        folder = Path(tempfile.mkdtemp(prefix="audit-scale-", dir=arguments.folder))
        try:
            settings = (arguments.items, arguments.gpus, arguments.seconds, arguments.hosts, folder)
            found.append(measure(units, *settings))
        except LimitReached as error:
            sys.exit(str(error))
        finally:
            shutil.rmtree(folder)
        print(json.dumps(found[-1]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
