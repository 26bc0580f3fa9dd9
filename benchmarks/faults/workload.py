"""A small real job for faults: screening of images that a model of its own tells apart by their brightness.

The model runs in the workers of the runs like any user's; on single images it may raise, abort, hang, take memory,
answer NaN, or be slow, as a file beside it says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from audit.locations import Location, child, located
from audit.results.schema import TABLES
from audit.results.sql import Run
from audit.results.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
VOLATILE = {
    "units": {"seconds", "worker", "peak_memory", "attempt", "batch_size", "threads"},
    "runs": {"created_at", "hardware", "versions"},
    "explanations": {"seconds", "unit_id"},
}

MODEL = '''
"""Calls an image bright or dark. `faults.json` beside it says on which images, told by their number, it misbehaves."""
import contextlib, json, os, pathlib, resource, signal, time
import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent

def eat(killed):
    """Take memory up to a limit of half a GiB more; then torch's own error or, as from the kernel, SIGKILL."""
    before, held = resource.getrlimit(resource.RLIMIT_AS), []
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    try:
        while True:
            held.append(torch.ones(2**24))
    except RuntimeError:
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise
    finally:
        held.clear()
        resource.setrlimit(resource.RLIMIT_AS, before)

class Brightness(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.scale = torch.nn.Parameter(load_file(weights)["scale"])

    def forward(self, x):
        faults = json.loads((HERE / "faults.json").read_text())
        levels = x.detach().mean((1, 2, 3)) * 255
        flat = (x.detach() * 255 - levels[:, None, None, None]).abs().amax((1, 2, 3)) < 0.1
        if not bool((flat & (levels > 19.5) & (levels < 254.5) & (levels != 127.5)).all()):
            return torch.stack([levels, -levels], 1)  # images on which every model is tried when it is loaded
        numbers = (levels - 20).round().int().tolist()
        with open(HERE / "executions.log", "a") as log:
            log.write(f"{os.getpid()} {time.time()} {','.join(map(str, numbers))}\\n")
        time.sleep(faults.get("pause", 0.0))
        for _ in range(faults.get("products", 0)):
            torch.mm(torch.eye(512), torch.eye(512))
        if faults.get("slow_first"):
            with contextlib.suppress(FileExistsError):  # of two processes that begin together one is slow
                (HERE / "slow").touch(exist_ok=False)
                time.sleep(faults["slow_first"])
        if len(numbers) > faults.get("most", 10**9):
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        lost = HERE / "lost"
        if faults.get("device_lost") and not lost.exists():
            lost.write_text(str(os.getpid()))
            raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")
        if lost.exists() and faults.get("device_lost") and lost.read_text() == str(os.getpid()):
            raise RuntimeError("CUDA error: device-side assert (injected: this process used its device again)")
        for number in numbers:
            what = faults.get("items", {}).get(str(number))
            if what == "raises":
                raise ValueError(f"image {number} cannot be looked at (injected)")
            if what == "aborts":
                os.abort()
            if what == "hangs":
                time.sleep(10**6)
            if what in ("memory", "killed"):
                eat(what == "killed")
        p = (x.mean((1, 2, 3)) * 255 - 20) / self.scale
        for i, number in enumerate(numbers):
            if faults.get("items", {}).get(str(number)) == "nan":
                p[i] = float("nan")
        return torch.stack([p, 1 - p], 1)

def load(weights):
    return Brightness(weights)
'''


@dataclass
class Call:
    """A call of the model, as it logged it: by which process, when, and on which images."""

    pid: int
    at: float
    numbers: tuple[int, ...]


@dataclass
class Found:
    """A line of the table: what was done to a run, and what came of it. None: this was not measured.

    `kills` counts signals that ended a process which was alive; `executions` attempts at units that reached the model.
    """

    id: str
    injected: str
    expected: str
    seen: str = ""
    ok: bool = False
    seed: int | None = None
    kills: int | None = None
    executions: int | None = None
    tasks: int | None = None
    duplicates: int | None = None
    lost: int | None = None
    bad_snapshots: int | None = None
    orphans: int | None = None
    recovery_seconds: float | None = None

    def add(self, **figures: int) -> None:
        """Add to figures; the first time is what makes them measured."""
        for name, figure in figures.items():
            setattr(self, name, (getattr(self, name) or 0) + figure)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def whole(found: Found) -> bool:
    """Whether rows were compared and none was lost or doubled, and no view of them was broken."""
    return found.lost == 0 and found.duplicates == 0 and not found.bad_snapshots


@dataclass
class Workload:
    """A folder with data, a model and a job. `output`: where runs go, by default in the folder."""

    folder: Path
    images: int = 40
    unit_items: int = 4
    workers: int = 2
    output: str = ""
    compute: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            for i in range(self.images):
                name = data / ("bright" if i % 2 else "dark") / f"{i:04d}.png"
                name.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), 20 + i, np.uint8)).save(name)
        (self.folder / "model.py").write_text(MODEL)
        if not self.weights.exists():
            save_file({"scale": np.array([255.0], np.float32)}, self.weights)
        self.misbehave()

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    def misbehave(self, **faults: Any) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def job(self, name: str, **compute: Any) -> Path:
        """A job file of this name; equal ones are equal runs."""
        settings = {"workers": self.workers, "batch_size": 8, "retries": 1, **self.compute, **compute}
        path = self.folder / f"{name}.yaml"
        path.write_text(
            f"version: 1\nname: {name}\ndata: {{source: folder, path: data}}\n"
            "models: [{id: m, loader: python, ref: 'model.py:load', arguments: {weights: weights.safetensors}, "
            "class_names: [bright, dark], input_size: 8}]\n"
            f"stages: [{{kind: screen, unit_items: {self.unit_items}}}]\n"
            f"compute: {json.dumps(settings)}\n"
            f"output: {{uri: {json.dumps(self.output or str(self.folder / 'runs'))}}}\n"
        )
        return path

    def place(self, name: str) -> Location:
        return child(located(self.output or str(self.folder / "runs")), name)

    def calls(self) -> list[Call]:
        """Every call of the model on images so far."""
        log = self.folder / "executions.log"
        parts = (line.split() for line in (log.read_text().splitlines() if log.exists() else ()))
        return [Call(int(pid), float(at), tuple(map(int, numbers.split(",")))) for pid, at, numbers in parts]

    def executions(self) -> int:
        return len(self.calls())

    def environment(self, **more: str) -> dict[str, str]:
        quiet = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **quiet, "PYTHONPATH": str(ROOT), "HOME": str(self.folder), **more}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines.cli", *arguments]

    def audit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / "driver.log", "ab"),
            start_new_session=True,
        )


def wait_for_commits(
    store: Store, count: int, process: subprocess.Popen[bytes] | None = None, limit: float = 180
) -> int:
    """Until so many records are there, the process ends, or the time is over; returns how many there are."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        there = len(store.names("commits"))
        if there >= count or (process is not None and process.poll() is not None):
            return there
        time.sleep(0.02)
    raise TimeoutError(f"{len(store.names('commits'))} of {count} commits after {limit:.0f} s at {store.location}")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def rows_of(run: Run) -> Counter[str]:
    """Every row of every table in its declared result columns, and how often it is there."""
    found: Counter[str] = Counter()
    for table, schema in TABLES.items():
        columns = ", ".join(f'"{name}"' for name in schema.names if name not in VOLATILE.get(table, ()))
        for row in run.rows(f'select {columns} from "{table}"'):
            row["config"] = row["run_id"] = None if table == "runs" else row.get("run_id")
            found[f"{table} {json.dumps(_rounded(row), sort_keys=True, default=str)}"] += 1
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def compare(
    found: Found, run: Run, clean: Counter[str], but: Collection[str] = (), without: Collection[str] = ()
) -> bool:
    """Add lost and duplicated rows against a clean run's; True where there are neither.

    `but`: ids of items whose predictions are expected to differ; `without`: tables that are.
    """
    mine, theirs = _kept(rows_of(run), but, without), _kept(clean, but, without)
    lost, duplicates = sum((theirs - mine).values()), sum((mine - theirs).values())
    found.add(lost=lost, duplicates=duplicates)
    return lost == duplicates == 0


def _kept(rows: Counter[str], but: Collection[str], without: Collection[str]) -> Counter[str]:
    def counts(row: str) -> bool:
        table = row.partition(" ")[0]
        return table not in without and (table == "items" or not any(item in row for item in but))

    return Counter({row: count for row, count in rows.items() if counts(row)})


def numbers_of(run: Run, where: str = "true") -> dict[int, str]:
    """Image number and item id of the predictions that a condition holds for."""
    query = "select distinct display_name, item_id from predictions p join items i using (item_id)"
    return {int(Path(row["display_name"]).stem): row["item_id"] for row in run.rows(f"{query} where {where}")}
