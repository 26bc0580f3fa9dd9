"""What orchestration costs: the same units by a bare loop and by the driver with one worker, in turn.

    python -m benchmarks.overhead

The work is a fixed amount of arithmetic on one thread, about `--seconds` an item. The bare loop calls the stage on a
unit's images and throws its rows away; the run plans, hands out, commits, and reports. Start-up (Ray, loading,
planning) is not counted: time and CPU are from the end of the first unit of screening to the end of the last.
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

    def run(self) -> tuple[float, int]:
        plan = plan_of(self.store, "1-screen")
        assert plan is not None
        units = list(units_in(self.store, plan))
        plugin, module = module_of(self.job, "1-screen")
        context = Context(self.job, "1-screen", self.root, self.models, 8)
        module.run(plugin.options, units[0].payload, context)  # the first call loads
        began = time.monotonic()
        for unit in units:
            module.run(plugin.options, unit.payload, context)
        return time.monotonic() - began, len(units)


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


def orchestrated(job: Job, root: Path) -> tuple[float, int, float]:
    """Seconds from the end of the first unit of screening to the end of the last, for how many units, and the CPU
    seconds of the driver meanwhile."""
    found = digests(job)
    open_or_create(job, root, found)
    with Progress(job.name, Store(root), True) as progress:
        runner = Runner(job, root, found, Workers(job, root, grows=False), progress)
        runner.pace = timed = Timed()
        runner.run()
    (began, cpu_before), (ended, cpu_after) = timed.ends[0], timed.ends[-1]
    return ended - began, len(timed.ends) - 1, cpu_after - cpu_before


def measure(seconds: float, items: int, pairs: int, folder: Path) -> dict[str, Any]:
    for i in range(items):
        path = folder / "data" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(path)
    (folder / "model.py").write_text(MODEL.format(rounds=rounds_for(seconds)))
    spent = {"bare": 0.0, "run": 0.0, "cpu": 0.0}
    units = {"bare": 0, "run": 0}
    with open(folder / "log", "w", encoding="utf-8") as log:
        for pair in range(pairs):
            path = folder / f"job-{pair}.yaml"
            path.write_text(
                f"version: 1\nname: job-{pair}\ndata: {{source: folder, path: data}}\n"
                "models: [{id: m, loader: python, ref: 'model.py:load', class_names: [a, b], input_size: 8}]\n"
                "stages: [{kind: screen, unit_items: 1}]\ncompute: {workers: 1}\n"
            )
            job, root = load_job(path), folder / "runs" / f"job-{pair}"
            with contextlib.redirect_stderr(log):
                wall, count, cpu = orchestrated(job, root)
            spent["run"], units["run"], spent["cpu"] = spent["run"] + wall, units["run"] + count, spent["cpu"] + cpu
            bare = ray.remote(num_cpus=1)(Bare).remote(job, root)
            wall, count = ray.get(bare.run.remote())
            ray.kill(bare)
            spent["bare"], units["bare"] = spent["bare"] + wall, units["bare"] + count
    own, other = spent["run"] / units["run"], spent["bare"] / units["bare"]
    return {
        "seconds_per_item": other,
        "units": units["run"],
        "overhead": own / other - 1,
        "overhead_ms_per_unit": 1000 * (own - other),
        "driver_cpu_ms_per_unit": 1000 * spent["cpu"] / units["run"],
    }


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
