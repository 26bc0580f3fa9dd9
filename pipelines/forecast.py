"""What a job will take before it runs: items and units of each stage, GPU-hours from a short calibration, disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from audit.artefacts import FOLDER
from audit.class_names import in_order
from audit.config import Job
from audit.datasets import Entry
from audit.errors import AuditError
from audit.labels.matching import DataClasses
from audit.methods import INVENTORY, Counts, Unit, check_order, module_of, stage_names, unit_of
from audit.methods.inventory import payload_of
from audit.models import digests, open_source
from audit.results.store import Store, unique
from audit.worker import Summary, Worker
from pipelines.plan import data_classes, open_or_create
from pipelines.units import planned, units_in, write_plan

IMAGES = 64  # of each role, that a calibration looks at
ITEMS = 4  # that it does of a stage at once; what comes before them loads the models, and is not counted


@dataclass(frozen=True)
class Forecast:
    """Of a stage. `items` at most; `seconds_per_item`, `hours` (of a worker's GPU or core) and `mib`: None where it was
    not calibrated, and `reason` says why.
    """

    stage: str
    items: int
    seconds_per_item: float | None = None
    hours: float | None = None
    mib: float | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(job: Job, calibrate: bool = True, tell: Callable[[str], None] = lambda _: None) -> list[Forecast]:
    """Every stage of a job. Lists the data once; a calibration does a few units of each stage, on this machine. `tell`
    hears what goes on, which takes minutes where models are large.

    What a calibration cannot reach, such as the discovery of modes that no search has found yet, is counted but not
    timed. Raises ConfigError and DataError as a run would.
    """
    check_order(job)
    tell("listing the data")
    counts, sample = _listed(job)
    stages = []
    for name in stage_names(job):
        plugin, module = module_of(job, name)
        stages.append(Forecast(name, module.expected(plugin.options, counts)))
    return _calibrated(job, stages, sample, counts.classes, tell) if calibrate else stages


def _listed(job: Job) -> tuple[Counts, dict[str, list[tuple[int, Entry]]]]:
    """Counts of the data sets, and of each a few entries, of as many labels as there are."""
    sample: dict[str, list[tuple[int, Entry]]] = {}
    total: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for role in ("data", "pool") if job.pool else ("data",):
        by_label: dict[str | None, list[tuple[int, Entry]]] = {}
        for position, entry in enumerate(open_source(job, role).entries()):
            total[role] += 1
            if role == "data" and entry.label is not None:
                labels[entry.label] += 1
            held = by_label.setdefault(entry.label, [])
            if len(held) < IMAGES:
                held.append((position, entry))
        sample[role] = sorted(islice(_in_turn(list(by_label.values())), IMAGES), key=lambda one: one[0])
    return Counts(total["data"], total["pool"], in_order(labels)), sample


def _in_turn(groups: list[list[tuple[int, Entry]]]) -> Iterator[tuple[int, Entry]]:
    """The first of each group, then the second of each, ..."""
    for place in range(max(map(len, groups), default=0)):
        yield from (group[place] for group in groups if place < len(group))


def _calibrated(
    job: Job,
    stages: list[Forecast],
    sample: dict[str, list[tuple[int, Entry]]],
    labels: tuple[str, ...],
    tell: Callable[[str], None],
) -> list[Forecast]:
    """The stages with times and sizes, from a small run in a temporary folder that inherits the job's settings."""
    found: list[Forecast] = []
    declared = open_source(job, "data").classes() or labels  # of all images, not of the few that are tried
    with tempfile.TemporaryDirectory(prefix="audit-plan-") as folder:
        root = Path(folder) / "run"
        known = open_or_create(job, root, digests(job))
        store, classes = Store(root), DataClasses()
        plugin, module = module_of(job, INVENTORY)
        parts = [
            (role, chosen[start : start + IMAGES // 2])
            for role, chosen in sample.items()
            for start in range(0, len(chosen), IMAGES // 2)
        ]
        payloads = (payload_of(role, part, declared) for role, part in parts)
        write_plan(store, INVENTORY, (unit_of(INVENTORY, plugin, module.VERSION, p, job, known) for p in payloads))
        worker = Worker(job, root, classes, job.compute.batch_size)
        with _threads(job) as threads:
            for number, stage in enumerate(stages, 1):
                tell(f"trying {stage.stage} on a few images ({number} of {len(stages)} stages)")
                try:
                    units = list(units_in(store, planned(job, stage.stage, root, known, classes)))
                    few = _few(units, module_of(job, stage.stage)[1])
                    found.append(_timed(stage, few, worker, store, job, threads))
                except AuditError as error:
                    found.append(replace(stage, reason=str(error)))
                if stage.stage == INVENTORY:
                    classes = data_classes(root)
                    worker.use_classes(classes)
    return found


@contextmanager
def _threads(job: Job) -> Iterator[int]:
    """As many threads as a worker of the run would have on this machine."""
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    workers = job.compute.workers if isinstance(job.compute.workers, int) else job.compute.gpus or cores
    threads = max(1, cores // workers)
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


def _few(units: list[Unit], module: Any) -> list[Unit]:
    """Inventory and screening whole, since other stages read what they say; of other stages an item, then a few."""
    key = getattr(module, "ITEMS", None)
    if key is None:
        return units[:2]
    if not getattr(module, "NEEDS", ()):
        return units
    whole = max(units, key=lambda unit: unit.items, default=None)
    if whole is None:
        return []
    listed = whole.payload[key]
    parts = [part for part in (listed[:1], listed[1 : 1 + ITEMS]) if part]
    return [
        replace(whole, unit_id=f"{whole.unit_id}.{i}", text=_with(whole, key, part), items=len(part))
        for i, part in enumerate(parts)
    ]


def _with(unit: Unit, key: str, part: list[Any]) -> str:
    return json.dumps({**unit.payload, key: part})


def _timed(stage: Forecast, units: list[Unit], worker: Worker, store: Store, job: Job, threads: int) -> Forecast:
    before = _artefact_bytes(store)
    summaries = [worker.run(unit) for unit in units]
    for summary in summaries:
        if summary.error:
            return replace(stage, reason=summary.error.strip().splitlines()[-1])
    made = _artefact_bytes(store) - before
    counted = summaries[1:] or ([_again(units[0], summaries[0], worker)] if summaries else [])
    items = sum(summary.items for summary in counted)
    if not items:
        return replace(stage, reason="the calibration's few images gave this stage nothing to do")
    seconds = sum(summary.seconds for summary in counted) / items
    own = [commit for commit in unique(store.commits().values()) if commit.stage == stage.stage]
    size = (made + sum(commit.bytes for commit in own)) / sum(commit.items for commit in own)
    share: float = threads
    if job.compute.gpus:
        share = job.compute.gpus / job.compute.workers if isinstance(job.compute.workers, int) else 1
        share = min(share, 1)
    hours = stage.items * seconds * share / 3600
    return replace(stage, seconds_per_item=seconds, hours=hours, mib=stage.items * size / 2**20)


def _again(unit: Unit, summary: Summary, worker: Worker) -> Summary:
    """A stage's only unit with its models loaded, and none of its artefacts made."""
    shutil.rmtree(worker.store.root.parent / FOLDER, ignore_errors=True)
    began = time.monotonic()
    worker.rows(unit)
    return replace(summary, seconds=time.monotonic() - began)


def _artefact_bytes(store: Store) -> int:
    """Of what lies beside the run, such as inversions, which other runs share."""
    return sum(file.stat().st_size for file in (store.root.parent / FOLDER).rglob("*") if file.is_file())
