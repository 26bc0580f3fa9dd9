"""A small real job for faults: screening of images that a model of its own tells apart by their brightness.

The model runs in the workers of the runs like any user's; on single images it may raise, abort, hang, take memory,
answer NaN, or be slow, as a file beside it says.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from audit.locations import Location, child, located
from audit.results.schema import TABLES
from audit.results.sql import Run
from audit.results.store import Store

ROOT = Path(__file__).resolve().parent.parent.parent
VOLATILE = {"units": {"seconds", "worker", "peak_memory", "attempt"}, "runs": {"created_at", "hardware", "versions"}}

MODEL = '''
"""Calls an image bright or dark. `faults.json` beside it says on which images, told by their number, it misbehaves."""
import json, os, pathlib, time
import torch

HERE = pathlib.Path(__file__).parent

class Brightness(torch.nn.Module):
    def forward(self, x):
        faults = json.loads((HERE / "faults.json").read_text())
        numbers = (x.mean((1, 2, 3)) * 255 - 20).round().int().tolist()
        if numbers == [108]:  # the grey image on which every model is tried when it is loaded
            return torch.zeros(1, 2)
        with open(HERE / "executions.log", "a") as log:
            log.write(f"{os.getpid()} {len(numbers)} {time.time()}\\n")
        time.sleep(faults.get("pause", 0.0))
        slow = HERE / "slow"
        if faults.get("slow_first") and not slow.exists():
            slow.touch()
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
            if what == "memory":
                raise MemoryError("injected")
        p = (x.mean((1, 2, 3)) * 255 - 20) / 255
        for i, number in enumerate(numbers):
            if faults.get("items", {}).get(str(number)) == "nan":
                p[i] = float("nan")
        return torch.stack([p, 1 - p], 1)

def load():
    return Brightness()
'''


@dataclass
class Found:
    """A line of the table: what was done to a run, and what came of it."""

    id: str
    injected: str
    expected: str
    seen: str = ""
    ok: bool = False
    seed: int = 0
    kills: int = 0
    executions: int = 0
    tasks: int = 0
    duplicates: int = 0
    lost: int = 0
    bad_snapshots: int = 0
    orphans: int = 0
    recovery_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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
        self.misbehave()

    def misbehave(self, **faults: Any) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def job(self, name: str, **compute: Any) -> Path:
        """A job file of this name; equal ones are equal runs."""
        settings = {"workers": self.workers, "batch_size": 8, "retries": 1, **self.compute, **compute}
        path = self.folder / f"{name}.yaml"
        path.write_text(
            f"version: 1\nname: {name}\ndata: {{source: folder, path: data}}\n"
            "models: [{id: m, loader: python, ref: 'model.py:load', class_names: [bright, dark], input_size: 8}]\n"
            f"stages: [{{kind: screen, unit_items: {self.unit_items}}}]\n"
            f"compute: {json.dumps(settings)}\n"
            f"output: {{uri: {json.dumps(self.output or str(self.folder / 'runs'))}}}\n"
        )
        return path

    def place(self, name: str) -> Location:
        return child(located(self.output or str(self.folder / "runs")), name)

    def executions(self) -> int:
        log = self.folder / "executions.log"
        return len(log.read_text().splitlines()) if log.exists() else 0

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


def compare(found: Found, run: Run, clean: Counter[str]) -> bool:
    """Fill in lost and duplicated rows against a clean run; True where there are neither."""
    rows = rows_of(run)
    found.lost = sum((clean - rows).values())
    found.duplicates = sum((rows - clean).values())
    return found.lost == found.duplicates == 0


def picks(seed: int) -> random.Random:
    return random.Random(seed)
