"""The audit's own score: precision and recall of a run's findings against the planted failure modes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from audit import discovery as d
from audit.errors import ConfigError
from audit.results.sql import Run
from audit.zoo.scenes import EMPTY, Scene
from audit.zoo.world import Mode, World, load_world, scene_at


@dataclass(frozen=True)
class Counts:
    """Of the modes that one source confirmed, how many are planted; and of the planted ones, how many it found.

    natural: of the confirmed ones that are not planted those that are true all the same, by the scenes of the pool: a
    model has weaknesses that nobody planted. false: the others. found: confirmed, or listed as a hypothesis where the
    pool has no scene that could confirm it; the latter are `unconfirmed` too.
    """

    confirmed: int
    true: int
    on_controls: int
    found: tuple[str, ...]
    missed: tuple[str, ...]
    hypotheses: tuple[str, ...]
    unconfirmed: tuple[str, ...]
    natural: tuple[str, ...]
    false: tuple[str, ...]

    @property
    def precision(self) -> float | None:
        """The share that is planted."""
        return self.true / self.confirmed if self.confirmed else None

    @property
    def correct(self) -> float | None:
        """The share that is true, planted or not."""
        return 1 - len(self.false) / self.confirmed if self.confirmed else None

    @property
    def recall(self) -> float | None:
        total = len(self.found) + len(self.missed)
        return len(self.found) / total if total else None

    @property
    def confirmed_recall(self) -> float | None:
        """Without those that nothing could confirm, on either side."""
        total = len(self.found) + len(self.missed) - len(self.unconfirmed)
        return (len(self.found) - len(self.unconfirmed)) / total if total else None

    def as_dict(self) -> dict[str, Any]:
        shares = {name: getattr(self, name) for name in ("precision", "correct", "recall", "confirmed_recall")}
        return {**self.__dict__, **shares}


@dataclass(frozen=True)
class Score:
    """`report`: all that a report lists, whatever found it; `search`: the generative search; `labels`: what labelled
    images alone show, and no search; `screen`: the baseline without search or labels, on the same pool."""

    report: Counts
    search: Counts
    labels: Counts
    screen: Counts

    def by_source(self) -> dict[str, Counts]:
        return dict(self.__dict__)

    def as_dict(self) -> dict[str, Any]:
        return {name: counts.as_dict() for name, counts in self.by_source().items()}

    def print(self, console: Console) -> None:
        table = Table(title="against the planted failure modes", title_justify="left")
        for column in (
            "",
            "confirmed",
            "of them planted",
            "true",
            "on controls",
            "precision",
            "planted found",
            "recall",
        ):
            table.add_column(column, justify="right" if column else "left")
        for name, c in self.by_source().items():
            planted = f"{len(c.found)}/{len(c.found) + len(c.missed)}"
            table.add_row(
                name,
                str(c.confirmed),
                str(c.true),
                str(c.true + len(c.natural)),
                str(c.on_controls),
                _share(c.precision),
                planted,
                _share(c.recall),
            )
        console.print(table)
        console.print("Of labels that are confused with each other the truth says nothing: they are not counted.")
        for name, c in self.by_source().items():
            console.print(f"{name}: found {_list(c.found)}; missed {_list(c.missed)}", highlight=False)
            console.print(f"  planted, as hypotheses: {_list(c.hypotheses)}", highlight=False)
            console.print(f"  true, though not planted: {_list(c.natural)}; false: {_list(c.false)}", highlight=False)


def world_of(run: Run) -> World:
    """The world whose classifiers a run audits. Raises ConfigError where they are of several."""
    numbers = {int(number) for name in _zoo_models(run).values() for number in re.findall(r"^world-(\d+)/", name)}
    if len(numbers) > 1:
        raise ConfigError(
            f"this run audits classifiers of the worlds {sorted(numbers)}: the truth of one is told at a time"
        )
    return load_world(*numbers)


def planted_models(run: Run) -> dict[str, str]:
    """Those of a run's model ids that are classifiers of its world with planted failure modes, and their names."""
    world = world_of(run)
    names = {world.folder_of(name): name for name in world.classifiers}
    return {model_id: names[folder] for model_id, folder in _zoo_models(run).items() if folder in names}


def _zoo_models(run: Run) -> dict[str, str]:
    models = json.loads(run.store.read("job.json") or b"{}")["job"]["models"]
    return {model_id: str(options.get("ref", "")).removeprefix("zoo:") for model_id, options in models.items()}


def score(run: Run) -> Score:
    """Score a run on an embedded world.

    Planted modes count which the run searched: of a pair of models the class that the first is to say and the other
    not, of a neuron its class. Precision is over all modes that are confirmed and about a planted classifier, each
    once against however many others it was found; of the baseline, over those that were searched. Labels that are
    confused with each other are no planted modes and do not count: why a model confuses them is not said. Raises
    ConfigError where no planted classifier ran.
    """
    return score_of(run, run.rows("select * from failure_modes order by failure_mode_id"))


def score_of(run: Run, found: list[dict[str, Any]]) -> Score:
    """`score` of these failure modes of a run."""
    world, planted = world_of(run), planted_models(run)
    if not planted:
        raise ConfigError("this run audits none of the world's classifiers with planted failure modes")
    searches = run.rows(
        "select distinct model_id, other_model_id, target_class as class_name from explanations "
        "where method in ('disagreement', 'neuron')"
    )
    searched = {claim for row in searches for claim in _claims(row, planted)}
    modes = [mode for mode in world.modes if _claim_of(mode) in searched]
    rows: dict[str, list[dict[str, Any]]] = {"report": [], "search": [], "labels": [], "screen": []}
    for row in found:
        claims = _claims(row, planted)
        if not claims or "{}" not in (row["concept"] or ""):
            continue
        if row["listed"]:
            rows["report"].append(row)
        if row["source"] != "screen" or searched.intersection(claims):
            rows[row["source"]].append(row)
    scenes = Scenes(run, world)
    return Score(*(_counts(own, modes, planted, world, scenes) for own in rows.values()))


def _claims(row: Mapping[str, Any], planted: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    """What a search or a mode is about: a planted classifier, a class, and whether it says that class or misses it."""
    says, misses = planted.get(row["model_id"]), planted.get(row["other_model_id"])
    return [(name, row["class_name"], name is says) for name in (says, misses) if name is not None]


def _claim_of(mode: Mode) -> tuple[str, str, bool]:
    return mode.classifier, mode.class_name, mode.taken_for is None


def planted_mode(row: Mapping[str, Any], world: World, planted: Mapping[str, str]) -> Mode | None:
    """The planted mode that a discovered one is: the concept is its feature, the claim its own, or its other side.

    What is taken for one class is missed in another: that a model misses boats on sand is what "takes sand for crabs"
    means for boats.
    """
    for mode, (name, class_name, says) in product(world.modes, _claims(row, planted)):
        own = (name, class_name, says) == _claim_of(mode)
        blind = mode.taken_for is not None
        other = says is blind and (class_name == mode.taken_for if blind else class_name != mode.class_name)
        if row["concept"] == mode.phrase and name == mode.classifier and (own or other):
            return mode
    return None


class Scenes:
    """The scenes of a run's pool, and what its models say of them."""

    def __init__(self, run: Run, world: World) -> None:
        self.run, self.world = run, world

    @cached_property
    def places(self) -> list[int]:
        rows = self.run.rows("select distinct position from items where role = 'pool' and status = 'ok' order by 1")
        return [row["position"] for row in rows]

    @cached_property
    def scenes(self) -> list[Scene]:
        return [scene_at(self.world, "pool", place).scene for place in self.places]

    def says(self, model_id: str, class_name: str) -> NDArray[np.bool_]:
        rows = self.run.rows(
            "select i.position from items i join predictions p using (item_id, role) where role = 'pool' "
            "and model_id = ? and predicted = ?",
            [model_id, class_name],
        )
        return np.isin(self.places, [row["position"] for row in rows])

    def bear_out(self, row: Mapping[str, Any]) -> bool:
        """Whether a mode is true: on scenes with its feature the model is wrong more often than on others of the same
        objects (`discovery.matched` under .01). By what was drawn, and not by an embedder's eyes."""
        shows = np.array([_has(scene, row["concept"]) for scene in self.scenes], np.bool_)
        objects = np.array([scene.object for scene in self.scenes], object)
        other = objects == row["class_name"]
        if row["other_model_id"] in _zoo_models(self.run):
            other = self.says(row["other_model_id"], row["class_name"])
        wrong = self.says(row["model_id"], row["class_name"]) & ~other
        return bool(len(shows)) and d.matched(wrong, shows, objects).p_value < 0.01


def _has(scene: Scene, concept: str) -> bool:
    """Whether a scene has what a phrase says: '{} on sand', 'red {}', 'striped {}', '{} with a badge', or 'not' so."""
    words = concept.replace("{}", " ").split()
    feature = words[-1]
    has = feature in (scene.background, *(() if scene.object == EMPTY else (scene.colour, scene.pattern)))
    return (has or (feature == "badge" and scene.badge)) is not ("not" in words)


def _counts(
    rows: list[dict[str, Any]], modes: list[Mode], planted: Mapping[str, str], world: World, scenes: Scenes
) -> Counts:
    once = {(*_claims(row, planted), row["concept"]): row for row in rows if row["verdict"] == "confirmed"}
    confirmed = list(once.values())
    matched = [planted_mode(row, world, planted) for row in confirmed]
    supposed = [planted_mode(row, world, planted) for row in rows if row["verdict"] != "confirmed"]
    hypotheses = {mode.id for mode in supposed if mode}
    confirms = {mode.id for mode in matched if mode}
    unconfirmed = {mode.id for mode in modes if mode.pool == 0 and mode.id in hypotheses - confirms}
    found = confirms | unconfirmed
    others = [row for row, mode in zip(confirmed, matched, strict=True) if not mode]
    natural = [scenes.bear_out(row) for row in others]
    words = [f"{row['model_id']}: {row['class_name']} {row['name']}" for row in others]
    return Counts(
        len(confirmed),
        sum(mode is not None for mode in matched),
        sum(row["class_name"] in world.controls and not m for row, m in zip(confirmed, matched, strict=True)),
        tuple(mode.id for mode in modes if mode.id in found),
        tuple(mode.id for mode in modes if mode.id not in found),
        tuple(sorted(hypotheses)),
        tuple(sorted(unconfirmed)),
        tuple(word for word, true in zip(words, natural, strict=True) if true),
        tuple(word for word, true in zip(words, natural, strict=True) if not true),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
