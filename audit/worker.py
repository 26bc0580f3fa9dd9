"""One unit of work, from plain values to a committed record: what every worker does, with or without Ray."""

from __future__ import annotations

import gc
import os
import platform
import resource
import time
import traceback
from dataclasses import dataclass
from typing import Any, Literal

import torch

from audit import registry, sentences
from audit.config import Job
from audit.errors import ConfigError, DataError, ModelError, StoreError
from audit.labels.matching import Classes, DataClasses
from audit.locations import Location
from audit.memory import is_out_of_memory, settled
from audit.methods import Context, Unit, stage_names, stages
from audit.models import Models
from audit.models.determinism import Conditions, exact
from audit.results.schema import Rows
from audit.results.store import Store


@dataclass(frozen=True)
class Summary:
    """What a worker tells the driver about a unit. `error` is set where it was not committed.

    `failed` of its `items` are rows that say why they cannot be used. `fatal`: it would befall every unit.
    `excuse`: what failed instead of the unit: this process's device, which it cannot use any more, or the data, which
    cannot be read now. With both, a model cannot be loaded, or the place of the results not be reached: by any worker,
    or only from this one's node, which the driver knows.
    `split`: another driver has split the unit meanwhile.
    """

    unit_id: str
    stage: str
    items: int
    seconds: float
    findings: tuple[str, ...] = ()
    failed: int = 0
    error: str | None = None
    fatal: Literal["config", "store"] | None = None
    excuse: Literal["device", "data"] | None = None
    split: bool = False


class Worker:
    """Runs units of one job. Models are loaded when a unit first needs them, and kept."""

    def __init__(
        self,
        job: Job,
        root: Location,
        classes: Classes,
        batch_size: int | Literal["auto"],
        sharing: int = 1,
        threads: int | None = None,
    ) -> None:
        """`sharing`: how many workers share a GPU or, without GPUs, the machine's memory. `threads`: of torch, by
        default as many as the process has. A job that is to be deterministic takes batches of one on one thread."""
        self.job, self.root, self.sharing, self.threads = job, root, sharing, threads
        self.batch_size = 1 if job.compute.deterministic else batch_size
        self.store = Store(root)
        self.models = Models(job, classes)
        self.stages = dict(zip(stage_names(job), stages(job), strict=True))
        self._settled: dict[str, tuple[Any, int]] = {}
        self._contexts: dict[str, Context] = {}  # a stage's units read the same rows, which are all committed

    def use_classes(self, classes: DataClasses) -> None:
        """The classes of the data set, which are known once the inventory is committed."""
        if classes != self.models.classes:
            self.models = Models(self.job, classes)
            self._contexts.clear()

    def run(self, unit: Unit, attempt: int = 1) -> Summary:
        """Run and commit a unit. An exception becomes a summary: the driver decides whether to try again.

        `attempt`: how often the driver has now tried this unit, from 1.
        """
        began = time.monotonic()
        error: dict[str, Any]
        try:
            rows = self.rows(unit)
            seconds = time.monotonic() - began
            failed = unusable_in(rows, unit.items)
            rows["units"] = [
                {
                    "unit_id": unit.unit_id,
                    "stage": unit.stage,
                    "attempt": attempt,
                    "worker": f"{platform.node()}/{os.getpid()}",
                    "status": "ok",
                    "items": unit.items,
                    "seconds": seconds,
                    "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                    **self.conditions(unit.stage).as_dict(),
                }
            ]
            if not self.store.commit(unit.unit_id, unit.stage, rows, items=unit.items, failed=failed):
                first = self.store.record(f"commits/{unit.unit_id}.json")
                if first is not None and first.status == "split":
                    return Summary(unit.unit_id, unit.stage, 0, seconds, split=True)
            return Summary(unit.unit_id, unit.stage, unit.items, seconds, findings_in(rows), failed)
        except ConfigError as refused:
            error = {"error": str(refused), "fatal": "config"}
        except ModelError as refused:
            error = {"error": str(refused), "fatal": "config", "excuse": "device"}
        except StoreError as refused:
            error = {"error": str(refused), "fatal": "store", "excuse": "device"}
        except DataError as refused:
            error = {"error": str(refused), "excuse": "data"}
        except Exception as raised:  # noqa: BLE001 - whatever a unit does, the job goes on
            lost = is_device_lost(raised)
            error = {"error": traceback.format_exc(limit=-4), "excuse": "device" if lost else None}
        return Summary(unit.unit_id, unit.stage, 0, time.monotonic() - began, **error)

    def conditions(self, stage: str) -> Conditions:
        """How units of a stage are computed, of which one has run."""
        with exact(self.job.compute.deterministic, self.threads):
            return Conditions.now(self._settled[stage][1], self.models.device)

    def rows(self, unit: Unit) -> Rows:
        """What the stage makes of a unit, which is not committed here. Where the device's memory is too small, half as
        many items at a time are tried, which changes results by rounding alone; the smaller batch stays."""
        with exact(self.job.compute.deterministic, self.threads):
            return self._rows(unit)

    def _rows(self, unit: Unit) -> Rows:
        plugin = self.stages[unit.stage]
        if unit.stage not in self._settled:
            self._settled[unit.stage] = settled(plugin.options, self.models, self.batch_size, self.sharing)
        while True:
            options, batch_size = self._settled[unit.stage]
            if unit.stage not in self._contexts:
                self._contexts[unit.stage] = Context(self.job, unit.stage, self.root, self.models, batch_size)
            context = self._contexts[unit.stage]
            context.batch_size = batch_size
            try:
                rows: Rows = registry.plugin("methods", plugin.name).run(options, unit.payload, context)
                return rows | {"explanations": [{**x, "unit_id": unit.unit_id} for x in rows.get("explanations", [])]}
            except RuntimeError as error:
                if batch_size == 1 or not is_out_of_memory(error):
                    raise
            self._settled[unit.stage] = options, batch_size // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_device_lost(error: Exception) -> bool:
    """Whether the process has to go with its device: after most errors of CUDA, but not too little memory, every later
    call fails too."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or str(error).startswith(("CUDA error", "CUDA driver error"))


def unusable_in(rows: Rows, items: int) -> int:
    """How many of a unit's items have rows that say why there is nothing on them.

    Images of the data sets that cannot be used, and searches, or images with all of their counterfactuals, that failed.
    Where the unit's searches are no items of their own, as those of a neuron, all of them have to.
    """
    searched: dict[str, bool] = {}
    for row in rows.get("explanations", []):
        item = row.get("item_id") or row["explanation_id"]
        searched[item] = searched.get(item, False) or row["status"] == "ok"
    failed = list(searched.values()).count(False)
    if len(searched) != items:
        failed = items if failed and failed == len(searched) else 0
    images = {("item", row["role"], row["position"]) for row in rows.get("items", []) if row["status"] != "ok"}
    images |= {
        ("prediction", row["role"], row["item_id"])
        for row in rows.get("predictions", [])
        if row["status"] != "ok" and row["role"] != "generated"
    }
    return len(images) + failed


def findings_in(rows: Rows) -> tuple[str, ...]:
    """What a person who watches the run wants to hear of a unit: how its searches ended, which modes were found."""
    found = []
    searches = [x for x in rows.get("explanations", []) if x.get("other_model_id")]
    for f, g, name in sorted({(x["model_id"], x["other_model_id"], x["target_class"]) for x in searches}):
        own = [x for x in searches if (x["model_id"], x["other_model_id"], x["target_class"]) == (f, g, name)]
        ended = sum(bool(x.get("flipped")) for x in own)
        found.append(f"{f} says {name} and {g} does not: {ended} of {len(own)} searches")
    found += [str(m["reason"]) for m in rows.get("measurements", []) if m["name"] == "auditable" and m["value"] == 0]
    found += [
        f"{n['model_id']}, neuron {n['neuron']} for {n['class_name']}: {n['verdict']}" for n in rows.get("neurons", [])
    ]
    for mode in rows.get("failure_modes", []):
        if mode["listed"]:
            found.append(f"{sentences.claim(mode)}: {mode['verdict']}")
    return tuple(found)
