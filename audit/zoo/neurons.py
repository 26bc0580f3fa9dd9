"""How well a run's `neuron` stages find the units that carry the planted features, and what those units do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from audit import discovery as d
from audit.errors import ConfigError
from audit.neurons import activations, layer_of
from audit.results.sql import Run
from audit.zoo.measure import load
from audit.zoo.recipes.images import batches, rendered
from audit.zoo.world import Mode, World, load_world, scene_at


@dataclass(frozen=True)
class Found:
    """One planted mode: its unit, and what the run says of it.

    auc: of telling held-out scenes that show the feature from the others by the unit's activation. rank: its place
    among the class's suspects. suspects: the class's first five by rank, with their AUC for the feature. verdict and
    triggered are NULL where the run did not search the unit; triggered: the share of searches from other classes
    after which the model says the class and the check does not see it; calls: the share after which it says it.
    """

    mode: str
    kind: str
    model_id: str
    class_name: str
    neuron: int
    auc: float
    rank: int | None
    suspects: dict[int, float]
    verdict: str | None
    searches: int | None
    calls_before: float | None
    calls: float | None
    triggered: float | None

    @property
    def listed(self) -> bool:
        return self.neuron in self.suspects


@dataclass(frozen=True)
class Report:
    found: tuple[Found, ...]

    @property
    def listed(self) -> float:
        """Share of the modes whose unit is among the class's first five suspects."""
        return float(np.mean([one.listed for one in self.found]))

    @property
    def triggering(self) -> float | None:
        """Over the modes of kind background: share of searches from other classes that trigger the class."""
        searched = [one for one in self.found if one.kind == "background" and one.searches]
        hits = sum((one.triggered or 0) * (one.searches or 0) for one in searched)
        return hits / sum(one.searches or 0 for one in searched) if searched else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "listed": self.listed,
            "triggering": self.triggering,
            "modes": [asdict(one) | {"listed": one.listed} for one in self.found],
        }

    def print(self, console: Console) -> None:
        table = Table(title="units of the planted features", title_justify="left")
        for column in (
            "mode",
            "neuron",
            "AUC",
            "rank",
            "AUC of suspects 1-5",
            "verdict",
            "searches",
            "start",
            "called",
            "object absent",
        ):
            table.add_column(column)
        for one in self.found:
            shares = [_share(share) for share in (one.calls_before, one.calls, one.triggered)]
            aucs = " ".join(f"{value:.2f}" for value in one.suspects.values())
            cells = [one.mode, one.neuron, f"{one.auc:.4f}", one.rank or "-", aucs, one.verdict or "not searched"]
            table.add_row(*map(str, [*cells, one.searches or 0, *shares]))
        console.print(table)
        console.print(f"among the first 5 suspects: {self.listed:.0%} of {len(self.found)} modes")
        console.print(f"background modes, called the class without the object: {_share(self.triggering)} of searches")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def measure(run: Run, work: Path, count: int = 3000) -> Report:
    """Compare a run's neurons with the planted modes of the classes that it looked at.

    Raises ConfigError where the run has no neurons of a classifier with planted modes.
    """
    world = load_world()
    models = json.loads(run.store.read("job.json") or b"{}")["job"]["models"]
    planted = {model_id: str(options.get("ref", "")).removeprefix("zoo:") for model_id, options in models.items()}
    rows = run.rows("select * from neurons order by rank nulls last, neuron")
    asked = [
        (mode, model_id)
        for model_id, name in planted.items()
        for mode in world.modes_of(name)
        if any((row["model_id"], row["class_name"]) == (model_id, mode.class_name) for row in rows)
    ]
    if not asked:
        raise ConfigError("this run has no neurons of the world's classifiers for a class with a planted failure mode")
    images = rendered("heldout", count, work)
    units = {model_id: _activations(planted[model_id], images) for _, model_id in asked}
    return Report(tuple(_found(run, mode, model_id, rows, units[model_id], world) for mode, model_id in asked))


@torch.no_grad()
def _activations(name: str, images: Any) -> d.Floats:
    """(n, units) of held-out scenes."""
    model = load(name)
    layer = layer_of(model)
    return torch.cat([activations(model, layer, x)[0] for x in batches(images, 100)]).double().numpy()


def _found(run: Run, mode: Mode, model_id: str, rows: list[dict[str, Any]], units: d.Floats, world: World) -> Found:
    shows = np.array([mode.shown_by(scene_at(world, "heldout", i).scene) for i in range(len(units))])
    auc = d.separation(units[shows], units[~shows])
    assert auc is not None
    best = int(auc.argmax())
    own = [row for row in rows if (row["model_id"], row["class_name"]) == (model_id, mode.class_name)]
    first = [row["neuron"] for row in own if row["rank"] is not None and row["rank"] <= 5]
    row = next((row for row in own if row["neuron"] == best), {})
    called = run.rows(
        "select avg(flipped_before::int) as before, avg(flipped::int) as after from explanations "
        "where method = 'neuron' and arm = 'others' and status = 'ok' "
        "and stage = ? and target_class = ? and neuron = ?",
        [row.get("stage"), mode.class_name, best],
    )[0]
    return Found(
        mode=mode.id,
        kind=mode.kind,
        model_id=model_id,
        class_name=mode.class_name,
        neuron=best,
        auc=float(auc[best]),
        rank=row.get("rank"),
        suspects={neuron: float(auc[neuron]) for neuron in dict.fromkeys(first)},
        verdict=row.get("verdict"),
        searches=row.get("searches"),
        calls_before=called["before"],
        calls=called["after"],
        triggered=row.get("trigger_after"),
    )
