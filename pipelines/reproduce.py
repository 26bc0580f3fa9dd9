"""One explanation once more, on this machine, beside what the run holds of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from audit.errors import ConfigError
from audit.locations import Location
from audit.methods import Unit, module_of
from audit.models import digests
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import Worker
from pipelines.plan import data_classes, differences, job_of
from pipelines.units import plan_of, units_in

Row = dict[str, Any]

TOLERANCE = 1e-2  # of a score, with which two runs count as equal
SCORES = ("score_before", "score_after", "other_before", "other_after", "source_before", "source_after")
SHOWN = (
    *SCORES,
    "activation_before",
    "activation_after",
    "loss_before",
    "loss_after",
    "best_step",
    "flipped",
    "reason",
)


@dataclass(frozen=True)
class Reproduced:
    """An explanation as the run holds it and as it was made now; `images`: PNG bytes of those made now, by id.

    `conditions`: under which it was made then and now, where a run says so; under equal ones, equal bytes are expected.
    """

    stored: Row
    now: Row
    images: dict[str, bytes]
    conditions: tuple[Row, Row] = ({}, {})

    @property
    def outcome(self) -> Literal["equal", "equal up to rounding", "different"]:
        """Equal: with the same start and result, byte for byte. Up to rounding: every score to a hundredth, and the
        same decision."""
        if all(self.stored[key] == self.now.get(key) for key in ("start_image_id", "image_id")):
            return "equal"
        scores = ((self.stored[key], self.now.get(key)) for key in SCORES)
        near = all((a is None) == (b is None) and abs((a or 0) - (b or 0)) <= TOLERANCE for a, b in scores)
        return "equal up to rounding" if near and self.stored["flipped"] == self.now.get("flipped") else "different"

    @property
    def shown(self) -> list[tuple[str, Any, Any]]:
        """What is shown of it: a name, the stored value and the one of now."""
        then, now = self.conditions
        return [(key, self.stored[key], self.now.get(key)) for key in SHOWN] + [(k, then[k], now[k]) for k in then]

    def as_dict(self) -> Row:
        """Plain values for JSON."""
        told = {key: {"stored": stored, "now": now} for key, stored, now in self.shown}
        return {"explanation_id": self.stored["explanation_id"], "outcome": self.outcome, **told}


def reproduce(location: Location, explanation_id: str) -> Reproduced:
    """Make an explanation again with the run's own job. The whole unit of work that it was part of is done, in batches
    and on threads as many as the run had, whatever the job says now.

    Raises ConfigError for an explanation that the run does not have, and where models have other weights now.
    """
    run = Run(location)
    found = run.rows("select * from explanations where explanation_id = ?", [explanation_id])
    if not found:
        raise ConfigError(f"{location} has no explanation {explanation_id!r}; their ids are in the table explanations")
    stored = found[0]
    job, record = job_of(run.store), json.loads(run.store.read("job.json") or b"{}")
    changed = differences(record["digests"], digests(job))
    if changed:
        raise ConfigError("models are others now than when the run was made:\n" + "\n".join(f"  {x}" for x in changed))
    unit = _unit(run.store, stored, getattr(module_of(job, stored["stage"])[1], "ITEMS", None))
    then = _conditions(run, stored["unit_id"])
    compute = {"deterministic": bool(then["deterministic"])} if then else {}
    job = job.model_copy(update={"compute": job.compute.model_copy(update=compute)})
    batch_size = then["batch_size"] if then else job.compute.batch_size
    worker = Worker(job, location, data_classes(location), batch_size, threads=then.get("threads"))
    rows = worker.rows(unit)
    now = next(row for row in rows["explanations"] if row["explanation_id"] == explanation_id)
    images = {row["image_id"]: row["png"] for row in rows.get("images", [])}
    return Reproduced(stored, now, images, (then, worker.conditions(unit.stage).as_dict()) if then else ({}, {}))


def _conditions(run: Run, unit_id: str) -> Row:
    """Under which a unit was computed; empty where the run does not say so, which is of an earlier version then."""
    found = run.rows(
        "select batch_size, device, threads, deterministic from units where unit_id = ? and batch_size is not null",
        [unit_id],
    )
    return found[0] if found else {}


def _unit(store: Store, stored: Row, items_key: str | None) -> Unit:
    """The unit that made an explanation, which may be a half of a planned one."""
    if stored["unit_id"] is None:
        raise ConfigError("the run does not say which unit made this explanation: it is of an earlier version")
    plan = plan_of(store, stored["stage"])
    first, *parts = stored["unit_id"].split(".")
    unit = next((unit for unit in units_in(store, plan) if unit.unit_id == first), None) if plan else None
    if unit is None:
        raise ConfigError(f"the plan of stage {stored['stage']} lacks the unit {first}; 'audit repair' makes it anew")
    for part in parts:
        unit = unit.halves(str(items_key))[int(part)]
    return unit


def write_images(made: Reproduced, folder: Path) -> int:
    """Write the images that were made now, named by what they are; returns how many."""
    folder.mkdir(parents=True)
    named = {key.removesuffix("_image_id"): made.now.get(key) for key in made.stored if key.endswith("image_id")}
    count = 0
    for name, image_id in named.items():
        if image_id in made.images:
            (folder / f"{'result' if name == 'image_id' else name}.png").write_bytes(made.images[image_id])
            count += 1
    return count
