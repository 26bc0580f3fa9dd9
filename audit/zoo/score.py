"""The audit's own score: precision and recall of a run's findings against the planted failure modes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from audit.errors import ConfigError
from audit.results.sql import Run
from audit.zoo.world import Mode, World, load_world


@dataclass(frozen=True)
class Counts:
    """Of the modes that one source confirmed, how many are planted; and of the planted ones, how many it found."""

    confirmed: int
    true: int
    on_controls: int
    found: tuple[str, ...]
    missed: tuple[str, ...]
    hypotheses: tuple[str, ...]
    false: tuple[str, ...]

    @property
    def precision(self) -> float | None:
        return self.true / self.confirmed if self.confirmed else None

    @property
    def recall(self) -> float | None:
        total = len(self.found) + len(self.missed)
        return len(self.found) / total if total else None


@dataclass(frozen=True)
class Score:
    """`search`: the generative search; `screen`: the screen-only baseline on the same pool."""

    search: Counts
    screen: Counts

    def as_dict(self) -> dict[str, Any]:
        return {
            name: {**counts.__dict__, "precision": counts.precision, "recall": counts.recall}
            for name, counts in (("search", self.search), ("screen", self.screen))
        }

    def print(self, console: Console) -> None:
        table = Table(title="against the planted failure modes", title_justify="left")
        for column in ("", "confirmed", "of them planted", "on controls", "precision", "planted found", "recall"):
            table.add_column(column, justify="right" if column else "left")
        for name, c in (("search", self.search), ("screen only", self.screen)):
            planted = f"{len(c.found)}/{len(c.found) + len(c.missed)}"
            table.add_row(
                name, str(c.confirmed), str(c.true), str(c.on_controls), _share(c.precision), planted, _share(c.recall)
            )
        console.print(table)
        for name, c in (("search", self.search), ("screen only", self.screen)):
            console.print(f"{name}: found {_list(c.found)}; missed {_list(c.missed)}", highlight=False)
            console.print(f"  planted, as hypotheses: {_list(c.hypotheses)}; false: {_list(c.false)}", highlight=False)


def planted_models(run: Run) -> dict[str, str]:
    """Those of a run's model ids that are classifiers of the world with planted failure modes, and their names."""
    models = json.loads(run.store.read("job.json") or b"{}")["job"]["models"]
    named = {model_id: str(options.get("ref", "")).removeprefix("zoo:") for model_id, options in models.items()}
    return {model_id: name for model_id, name in named.items() if name in load_world().classifiers}


def score(run: Run) -> Score:
    """Score a run on the embedded world. Modes count, planted or found, whose classifier and class the run searched.

    A planted mode is found when it is confirmed or, where the pool has no scene that could confirm it, when it is
    listed as a hypothesis. Precision is over confirmed modes. Raises ConfigError where no planted classifier ran.
    """
    world = load_world()
    planted = planted_models(run)
    if not planted:
        raise ConfigError("this run audits none of the world's classifiers with planted failure modes")
    searched = {
        (planted[row["model_id"]], row["target_class"])
        for row in run.rows("select distinct model_id, target_class from explanations where method = 'disagreement'")
        if row["model_id"] in planted
    }
    modes = [mode for mode in world.modes if (mode.classifier, mode.class_name) in searched]
    found = run.rows("select * from failure_modes order by failure_mode_id")
    rows = [row for row in found if (planted.get(row["model_id"]), row["class_name"]) in searched]
    return Score(*(_counts([r for r in rows if r["source"] == s], modes, planted, world) for s in ("search", "screen")))


def planted_mode(row: Mapping[str, Any], modes: list[Mode], planted: Mapping[str, str]) -> Mode | None:
    """The planted mode that a discovered one is: same classifier, same class, and the concept is the feature."""
    found = (planted.get(row["model_id"]), row["class_name"], row["concept"])
    return next((mode for mode in modes if (mode.classifier, mode.class_name, mode.phrase) == found), None)


def _counts(rows: list[dict[str, Any]], modes: list[Mode], planted: Mapping[str, str], world: World) -> Counts:
    confirmed = [row for row in rows if row["verdict"] == "confirmed"]
    matched = [planted_mode(row, modes, planted) for row in confirmed]
    supposed = [planted_mode(row, modes, planted) for row in rows if row["verdict"] != "confirmed"]
    hypotheses = {mode.id for mode in supposed if mode}
    found = {mode.id for mode in matched if mode} | {m.id for m in modes if m.pool == 0 and m.id in hypotheses}
    return Counts(
        len(confirmed),
        sum(mode is not None for mode in matched),
        sum(row["class_name"] in world.controls for row in confirmed),
        tuple(mode.id for mode in modes if mode.id in found),
        tuple(mode.id for mode in modes if mode.id not in found),
        tuple(sorted(hypotheses)),
        tuple(
            f"{r['model_id']}: {r['class_name']} {r['name']}" for r, m in zip(confirmed, matched, strict=True) if not m
        ),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
