"""What orchestration costs: the same units by a bare loop and by the driver with one worker, in turn.

    python -m benchmarks.overhead

The work is a fixed amount of arithmetic on one thread, about `--seconds` an item. The bare loop calls the stage on a
unit's images and throws its rows away; the run plans, hands out, commits, and reports. Start-up (Ray, loading,
planning) is not counted: time and CPU are from the end of the first unit of screening to the end of the last. The
standard error is that of the ratio of means: on a shared machine it says what the ratio is worth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from audit.config import Job, load_job
from audit.methods import Context, module_of
from audit.models import Models, digests
from audit.results.store import Store
from pipelines.pace import Pace
from pipelines.plan import open_or_create
from pipelines.progress import Progress
from pipelines.runner import Runner
from pipelines.units import plan_of, units_in
from pipelines.workers import Cluster, Workers

MODEL = """
import torch
class Busy(torch.nn.Module):
    def forward(self, x):
        a = torch.eye(256)
        for _ in range({rounds} * len(x)):
            a = a @ a
        return torch.stack([x.mean((1, 2, 3)), a[0, 0] + x.mean((1, 2, 3))], 1)
def load(): return Busy()
"""


class Bare:
    """The loop, in a process like a worker's."""

    def __init__(self, job: Job, root: Path) -> None:
        import torch

        torch.set_num_threads(1)
        self.job, self.store, self.root = job, Store(root), root
        self.models = Models(job, ())

    def run(self) -> list[float]:
        """Seconds of each unit but the first, which loads."""
        plan = plan_of(self.store, "1-screen")
        assert plan is not None
        units = list(units_in(self.store, plan))
        plugin, module = module_of(self.job, "1-screen")
        context = Context(self.job, "1-screen", self.root, self.models, 8)
        ends = []
        for unit in units:
            module.run(plugin.options, unit.payload, context)
            ends.append(time.monotonic())
        return np.diff(ends).tolist()


class Timed(Pace):
    """Notes when units of screening ended, and what CPU time the driver had spent by then."""

    def __init__(self) -> None:
        super().__init__("auto")
        self.ends: list[tuple[float, float]] = []

    def add(self, stage: str, items: int, seconds: float) -> None:
        super().add(stage, items, seconds)
        if stage == "1-screen":
            self.ends.append((time.monotonic(), time.process_time()))


def rounds_for(seconds: float) -> int:
    """How many products of matrices take so long here, on one thread."""
    import torch

    torch.set_num_threads(1)
    a = torch.eye(256)
    began, done = time.monotonic(), 0
    while time.monotonic() - began < 1.0:
        a, done = a @ a, done + 1
    return max(1, round(seconds * done))


def bare(job: Job, root: Path) -> list[float]:
    loop = ray.remote(num_cpus=1)(Bare).remote(job, root)
    seconds = ray.get(loop.run.remote())
    ray.kill(loop)
    return seconds


def orchestrated(job: Job, root: Path) -> tuple[list[float], float]:
    """Seconds from the end of each unit of screening to the end of the next, and the driver's CPU seconds meanwhile."""
    found = digests(job)
    open_or_create(job, root, found)
    with Progress(job.name, Store(root), True) as progress:
        runner = Runner(job, root, found, Workers(job, root, grows=False), progress)
        runner.pace = timed = Timed()
        runner.run()
    ends, cpu = zip(*timed.ends, strict=True)
    return np.diff(ends).tolist(), cpu[-1] - cpu[0]


def measure(seconds: float, items: int, pairs: int, folder: Path) -> dict[str, Any]:
    for i in range(items):
        path = folder / "data" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(path)
    (folder / "model.py").write_text(MODEL.format(rounds=rounds_for(seconds)))
    jobs = [_job(folder, f"job-{pair}") for pair in range(pairs)]
    roots = [folder / "runs" / job.name for job in jobs]
    alone: list[float] = []
    run: list[float] = []
    cpu = 0.0
    with open(folder / "log", "w", encoding="utf-8") as log:
        for pair, (job, root) in enumerate(zip(jobs, roots, strict=True)):
            if pair % 2:  # run, bare; bare, run; run, bare: what changes with the hour falls on both
                alone += bare(jobs[0], roots[0])
            with contextlib.redirect_stderr(log):
                seconds_of_units, cpu_of_run = orchestrated(job, root)
            run, cpu = run + seconds_of_units, cpu + cpu_of_run
            if not pair % 2:
                alone += bare(jobs[0], roots[0])
    own, other = float(np.mean(run)), float(np.mean(alone))
    return {
        "seconds_per_item": other,
        "units": len(run),
        "overhead": own / other - 1,
        "overhead_of_medians": float(np.median(run) / np.median(alone)) - 1,
        "standard_error": float(np.hypot(np.std(run) / own, np.std(alone) / other) / np.sqrt(len(run))),
        "overhead_ms_per_unit": 1000 * (own - other),
        "driver_cpu_ms_per_unit": 1000 * cpu / len(run),
    }


def _job(folder: Path, name: str) -> Job:
    path = folder / f"{name}.yaml"
    path.write_text(
        f"version: 1\nname: {name}\ndata: {{source: folder, path: data}}\n"
        "models: [{id: m, loader: python, ref: 'model.py:load', class_names: [a, b], input_size: 8}]\n"
        "stages: [{kind: screen, unit_items: 1}]\ncompute: {workers: 1}\n"
    )
    return load_job(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="*", default=[0.02, 5.0], help="an item takes, about")
    parser.add_argument("--items", type=int, nargs="*", default=[300, 12])
    parser.add_argument("--pairs", type=int, default=3, help="runs of each kind, in turn")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
    Cluster(None, {"num_cpus": 1})  # so that the run's one worker has one thread, as the bare loop has
    found = []
    for seconds, items in zip(arguments.seconds, arguments.items, strict=True):
        with tempfile.TemporaryDirectory(prefix="audit-overhead-") as folder:
            found.append(measure(seconds, items, arguments.pairs, Path(folder)))
        print(json.dumps(found[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
