"""Stages of a job: one file each. A stage plans units of work from what is committed, and runs one unit.

A stage's module defines

    Options                          its part of the job file
    VERSION                          raised whenever its numbers change
    plan(options, context)           what its units are, as plain values, from the tables committed so far
    run(options, payload, context)   one unit: plain values in, rows of tables out

and may define

    NEEDS                            stages that a job must have before it
    ONCE                             True where a job may have it once only
    check(options, job)              refuses, before any work, a job in which it cannot run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit import registry
from audit.classifiers import canonical
from audit.config import Job, Plugin, digest
from audit.errors import ConfigError, unknown
from audit.models import Models
from audit.results.sql import Run

Payload = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """A unit of work: frozen in the plan, identified by everything that changes its numbers."""

    unit_id: str
    stage: str
    payload: Payload


@dataclass
class Context:
    """What a stage may use. `models` loads on first use; `run`: what was committed when it was first asked for."""

    job: Job
    stage: str
    root: Path
    models: Models
    batch_size: int
    _run: Run | None = field(default=None, repr=False)

    @property
    def run(self) -> Run:
        if self._run is None:
            self._run = Run(self.root)
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
    """Refuse the id of a model that the job lacks. Raises ConfigError; `where`: the option that names it."""
    if asked not in job.models:
        raise ConfigError(f"{where}: {unknown('model', asked, job.models)}")


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
    by_name = {canonical(name): name for name in known}
    names = (asked,) if isinstance(asked, str) else asked
    for name in names:
        if canonical(name) not in by_name:
            raise ConfigError(unknown("class", name, known))
    return [by_name[canonical(name)] for name in names]


def searchable_classes(asked: tuple[str, ...] | str, models: Models, model_ids: Sequence[str]) -> list[str]:
    """`chosen_classes` that every one of the models has: 'auto' leaves the others out.

    Raises ConfigError where a model lacks a class that is asked for by name.
    """
    chosen = chosen_classes(asked, models.data_classes)
    for model_id in model_ids:
        names = models.classifier(model_id).class_names
        known = {canonical(name) for name in names}
        missing = [name for name in chosen if canonical(name) not in known]
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
    return Unit(digest({**decides, "payload": payload, "digests": digests})[:32], stage, payload)


def _settings(model: Plugin) -> dict[str, Any]:
    """How a model is used. Where it is, and what it holds, is in its digest."""
    return {name: value for name, value in model.dump().items() if name not in ("ref", "revision", "arguments", "lora")}
