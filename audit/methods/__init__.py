"""Stages of a job: one file each. A stage plans units of work from what is committed, and runs one unit.

A stage's module defines

    Options                          its part of the job file
    VERSION                          raised whenever its numbers change
    plan(options, context)           what its units are, as plain values, from the rows of the stages that it reads
    run(options, payload, context)   one unit: plain values in, rows of tables out

and may define

    NEEDS                            kinds of stages that a job must have before it; it reads their rows
    READS                            further kinds whose rows it reads, where the job has them before it
    ONCE                             True where a job may have it once only
    ITEMS                            key of a payload that lists items which do not depend on one another: a unit that
                                     fails again and again is halved there, down to the item that makes it fail
    expected(options, counts)        how many items its units hold, at most, told before anything ran
    check(options, job)              refuses, before any work, a job in which it cannot run
    lost(options, payload, reason, context)   rows that say of a given-up unit's items why there is nothing on them

A stage sees the rows of the inventory and of the stages that it reads, and no others: what else a job does, and when,
changes nothing for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from types import ModuleType
from typing import Any, TypeVar

from audit import registry
from audit.class_names import resolved
from audit.config import Job, Plugin, digest
from audit.errors import ConfigError, unknown
from audit.locations import Location
from audit.models import ONLY_STORED, Models, can_predict
from audit.results.sql import Run

Payload = dict[str, Any]
INVENTORY = "0-inventory"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Unit:
    """A unit of work: frozen in the plan, identified by everything that changes its numbers.

    `text`: its payload in JSON, as the plan has it; whoever passes it on need not read it.
    """

    unit_id: str
    stage: str
    text: str
    items: int = 1

    @cached_property
    def payload(self) -> Payload:
        return json.loads(self.text)

    def halves(self, key: str) -> list[Unit]:
        """Two units with half the items each, those of `payload[key]`. Their ids follow from this one's."""
        listed = self.payload[key]
        parts = [listed[: len(listed) // 2], listed[len(listed) // 2 :]]
        return [
            Unit(f"{self.unit_id}.{i}", self.stage, json.dumps({**self.payload, key: part}), len(part))
            for i, part in enumerate(parts)
        ]


@dataclass(frozen=True)
class Counts:
    """What is known of a job's data from the listings alone."""

    data: int
    pool: int
    classes: tuple[str, ...]

    def classes_of(self, asked: tuple[str, ...] | str) -> int:
        """How many classes an option `classes` names."""
        return len(chosen_classes(asked, self.classes))


@dataclass
class Context:
    """What a stage may use. `models` loads on first use; `run`: the rows of the stages that this one reads."""

    job: Job
    stage: str
    root: Location
    models: Models
    batch_size: int
    _run: Run | None = field(default=None, repr=False)

    @property
    def run(self) -> Run:
        if self._run is None:
            self._run = Run(self.root, stages={INVENTORY, *reads(self.job, self.stage)})
        return self._run

    def stage_of(self, kind: str) -> str | None:
        """The name of the last stage of a kind before this one, where the job has one."""
        names = stage_names(self.job)
        before = names[: names.index(self.stage)] if self.stage in names else names
        return next((name for name in reversed(before) if name.endswith(f"-{kind}")), None)


def stage_names(job: Job) -> list[str]:
    """'0-inventory', then one name for each stage of the job file, by position and kind."""
    return [f"{i}-{plugin.name}" for i, plugin in enumerate(stages(job))]


def stages(job: Job) -> list[Plugin]:
    """The job's stages after the inventory that every job begins with."""
    from audit.methods.inventory import Options

    return [Plugin(name="inventory", options=Options()), *job.stages]


def module_of(job: Job, stage: str) -> tuple[Plugin, ModuleType]:
    """A stage's options and its method."""
    plugin = dict(zip(stage_names(job), stages(job), strict=True))[stage]
    return plugin, registry.plugin("methods", plugin.name)


def reads(job: Job, stage: str) -> list[str]:
    """The stages before this one whose rows it reads: with them committed, it can be planned."""
    if stage == INVENTORY:
        return []
    names, kinds = stage_names(job), [plugin.name for plugin in stages(job)]
    module = registry.plugin("methods", kinds[names.index(stage)])
    wanted = {"inventory", *getattr(module, "NEEDS", ()), *getattr(module, "READS", ())}
    return [name for name, kind in zip(names[: names.index(stage)], kinds, strict=False) if kind in wanted]


def chunks(items: Iterable[_T], size: int, total: int) -> Iterator[list[_T]]:
    """Consecutive parts of `size` of `total` items; where there are many, the last eighth comes in quarters of it, so
    that no worker is long the last one at work."""
    source = iter(items)
    shrink = total - total // 8 if total >= 8 * size else total
    start = 0
    while chunk := list(islice(source, size if start < shrink else max(1, size // 4))):
        yield chunk
        start += len(chunk)


def check_order(job: Job) -> None:
    """Refuse stages that would find nothing to read, write rows twice, or lack a model. Raises ConfigError."""
    names = [stage.name for stage in job.stages]
    for i, stage in enumerate(job.stages):
        module = registry.plugin("methods", stage.name)
        for needed in getattr(module, "NEEDS", ()):
            if needed not in names[:i]:
                raise ConfigError(f"the stage {stage.name!r} reads what {needed!r} writes: put {needed!r} before it")
        if getattr(module, "ONCE", False) and names.count(stage.name) > 1:
            count = names.count(stage.name)
            raise ConfigError(f"the stage {stage.name!r} is given {count} times; once is enough for a run")
        if hasattr(module, "check"):
            module.check(stage.options, job)


def check_model(job: Job, where: str, asked: str) -> None:
    """Refuse the id of a model that the job lacks, or that cannot be shown an image. Raises ConfigError; `where`: the
    option that names it."""
    if asked not in job.models:
        raise ConfigError(f"{where}: {unknown('model', asked, job.models)}")
    if not can_predict(job.models[asked]):
        raise ConfigError(f"{where}: the model {asked!r} {ONLY_STORED}")


def check_generator(job: Job) -> None:
    """Refuse a job without a generator. Raises ConfigError."""
    if job.generator is None:
        raise ConfigError(
            "these stages need a generator; add to the job file: generator: {loader: diffusers, ref: ...}"
        )


def chosen_classes(asked: tuple[str, ...] | str, known: tuple[str, ...]) -> list[str]:
    """The classes that an option names; 'auto' is all. Raises ConfigError for a class that the data set lacks."""
    if asked == "auto":
        return list(known)
    return [resolved(name, known, ConfigError) for name in ((asked,) if isinstance(asked, str) else asked)]


def searchable_classes(asked: tuple[str, ...] | str, models: Models, model_ids: Sequence[str]) -> list[str]:
    """`chosen_classes` that every one of the models has: 'auto' leaves the others out.

    Raises ConfigError where a model lacks a class that is asked for by name.
    """
    chosen = chosen_classes(asked, models.data_classes)
    for model_id in model_ids:
        names = models.classifier(model_id).class_names
        missing = [name for name in chosen if name not in names]
        if missing and asked != "auto":
            raise ConfigError(f"the model {model_id!r}: {unknown('class', missing[0], names)}")
        chosen = [name for name in chosen if name not in missing]
    return chosen


def check_classes(job: Job, known: tuple[str, ...]) -> None:
    """Refuse a job that names a class which the data set lacks, before any work on it. Raises ConfigError."""
    for stage in job.stages:
        chosen_classes(getattr(stage.options, "classes", "auto"), known)


def unit_of(stage: str, plugin: Plugin, version: int, payload: Payload, job: Job, digests: dict[str, str]) -> Unit:
    """Name a unit by a hash of what decides its numbers; places, workers and batch sizes are no part of it."""
    loaded = {**job.models, "embedder of the job": job.embedder, "generator of the job": job.generator}
    loaded["captioner of the job"] = job.captioner
    settings = {name: _settings(model) for name, model in loaded.items() if model}
    decides = {"stage": stage, "options": plugin.dump(), "version": version, "seed": job.seed, "models": settings}
    text = json.dumps(payload, sort_keys=True)
    unit_id = digest({**decides, "payload": text, "digests": digests})[:32]
    key = getattr(registry.plugin("methods", plugin.name), "ITEMS", None)
    return Unit(unit_id, stage, text, len(payload[key]) if key in payload else 1)


_PLACES = ("ref", "revision", "arguments", "lora", "path", "weights")


def _settings(model: Plugin) -> dict[str, Any]:
    """How a model is used. Where it is, and what it holds, is in its digest."""
    return {name: value for name, value in model.dump().items() if name not in _PLACES}
