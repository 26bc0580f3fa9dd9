"""One unit of work, from plain values to a committed record: what every worker does, with or without Ray."""

from __future__ import annotations

import os
import platform
import resource
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from audit import registry
from audit.config import Job
from audit.errors import ConfigError, ModelError, StoreError
from audit.memory import settled
from audit.methods import Context, Unit, stage_names, stages
from audit.models import Models
from audit.results.schema import Rows
from audit.results.store import Store


@dataclass(frozen=True)
class Summary:
    """What a worker tells the driver about a unit. `error` is set where it was not committed."""

    unit_id: str
    stage: str
    items: int
    seconds: float
    findings: tuple[str, ...] = ()
    error: str | None = None
    fatal: Literal["config", "store"] | None = None


class Worker:
    """Runs units of one job. Models are loaded when a unit first needs them, and kept."""

    def __init__(
        self, job: Job, root: Path, data_classes: tuple[str, ...], batch_size: int | Literal["auto"], sharing: int = 1
    ) -> None:
        """`sharing`: how many workers share a GPU or, without GPUs, the machine's memory."""
        self.job, self.root, self.batch_size, self.sharing = job, root, batch_size, sharing
        self.models = Models(job, data_classes)
        self.stages = dict(zip(stage_names(job), stages(job), strict=True))
        self._settled: dict[str, tuple[Any, int]] = {}

    def run(self, unit: Unit, attempt: int = 1) -> Summary:
        """Run and commit a unit. An exception becomes a summary: the driver decides whether to try again.

        `attempt`: how often the driver has now tried this unit, from 1.
        """
        began = time.monotonic()
        plugin = self.stages[unit.stage]
        try:
            if unit.stage not in self._settled:
                self._settled[unit.stage] = settled(plugin.options, self.models, self.batch_size, self.sharing)
            options, batch_size = self._settled[unit.stage]
            context = Context(self.job, unit.stage, self.root, self.models, batch_size)
            rows = registry.plugin("methods", plugin.name).run(options, unit.payload, context)
            seconds = time.monotonic() - began
            rows["units"] = [
                {
                    "unit_id": unit.unit_id,
                    "stage": unit.stage,
                    "attempt": attempt,
                    "worker": f"{platform.node()}/{os.getpid()}",
                    "status": "ok",
                    "items": items_in(unit),
                    "seconds": seconds,
                    "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                }
            ]
            Store(self.root).commit(unit.unit_id, unit.stage, rows)
        except (ConfigError, ModelError) as error:
            return Summary(unit.unit_id, unit.stage, 0, time.monotonic() - began, error=str(error), fatal="config")
        except StoreError as error:
            return Summary(unit.unit_id, unit.stage, 0, time.monotonic() - began, error=str(error), fatal="store")
        except Exception:  # noqa: BLE001 - the one broad except: whatever a unit does, the job goes on
            return Summary(unit.unit_id, unit.stage, 0, time.monotonic() - began, error=traceback.format_exc(limit=-4))
        return Summary(unit.unit_id, unit.stage, items_in(unit), seconds, findings_in(rows))


def items_in(unit: Unit) -> int:
    """How many items a unit holds: images, seeds, or the unit itself."""
    return next((len(unit.payload[key]) for key in ("items", "entries", "seeds") if key in unit.payload), 1)


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
        if mode["source"] == "search":
            found.append(f"{mode['model_id']} says {mode['class_name']}, {mode['name']}: {mode['verdict']}")
    return tuple(found)
