"""How well a run's `neuron` stages find the units that carry the planted features, and what those units do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from audit import discovery as d
from audit.check import zero_shot
from audit.classifiers import Classifier
from audit.errors import ConfigError
from audit.neurons import activations, layer_of
from audit.results.sql import Run
from audit.screened import Screened, screened
from audit.zoo.measure import load, load_clip
from audit.zoo.recipes.images import batches, rendered
from audit.zoo.scenes import LABELS
from audit.zoo.score import planted_models, world_of
from audit.zoo.world import Mode, World, scene_at

PROMPT = "a photograph of a {}"


@dataclass(frozen=True)
class Found:
    """One planted mode: its unit, and what the run says of it.

    auc: of telling held-out scenes that show the feature from the others by the unit's activation. rank: its place
    among the class's suspects. suspects: the first five with their AUC for the feature. `verdict`, `searches` and the
    shares are None where the run did not search the unit. called: searches from other classes after which the model
    says the class; triggered: those where, besides, the check does not see it.
    """

    mode: str
    kind: str
    model_id: str
    class_name: str
    neuron: int
    auc: float
    rank: int
    suspects: dict[int, float]
    verdict: str | None
    searches: int | None
    triggered_before: float | None
    triggered: float | None
    called: float | None

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
        heads = ("mode", "neuron", "AUC", "rank", "AUC of suspects 1-5", "verdict", "searches")
        for column in (*heads, "start, object absent", "object absent", "called"):
            table.add_column(column)
        for one in self.found:
            shares = [_share(share) for share in (one.triggered_before, one.triggered, one.called)]
            aucs = " ".join(f"{value:.2f}" for value in one.suspects.values())
            cells = [one.mode, one.neuron, f"{one.auc:.4f}", one.rank, aucs, one.verdict or "not searched"]
            table.add_row(*map(str, [*cells, one.searches or 0, *shares]))
        console.print(table)
        console.print(f"among the first 5 suspects: {self.listed:.0%} of {len(self.found)} modes")
        console.print(f"background modes, called the class without the object: {_share(self.triggering)} of searches")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def measure(run: Run, work: Path, count: int = 3000) -> Report:
    """Compare what a run stored of units with the planted modes of the classifiers whose activations it stored.

    Ranks come from the run's screening pass, with the world's CLIP as the check. Raises ConfigError where the run
    stored no activations of a classifier with planted modes.
    """
    world = world_of(run)
    check = zero_shot(load_clip(), LABELS, PROMPT)
    found: list[Found] = []
    for model_id, name in planted_models(run).items():
        modes = world.modes_of(name)
        stored = screened(run, model_id, check.of_real) if modes else None
        if stored is not None:
            model = load(name, world)
            units = _activations(model, rendered(world, "heldout", count, work))
            found += [_found(run, mode, model_id, model, stored, units, world) for mode in modes]
    if not found:
        raise ConfigError(
            "this run stored no activations of the world's classifiers with planted failure modes; "
            "add to its screen stage: activations: [<model ids>]"
        )
    return Report(tuple(found))


@torch.no_grad()
def _activations(model: Classifier, images: Any) -> d.Floats:
    """(n, units) of uint8 images (n, h, w, 3)."""
    layer = layer_of(model)
    return torch.cat([activations(model, layer, x)[0] for x in batches(images, 100)]).double().numpy()


def _found(
    run: Run, mode: Mode, model_id: str, model: Classifier, stored: Screened, units: d.Floats, world: World
) -> Found:
    shows = np.array([mode.shown_by(scene_at(world, "heldout", i).scene) for i in range(len(units))])
    auc = d.auc(units[shows], units[~shows])
    weight = layer_of(model).weight
    assert auc is not None
    assert weight is not None
    best = int(auc.argmax())
    order = stored.ranking(weight[model.index_of(mode.class_name)].double().numpy(), mode.class_name).order.tolist()
    searched = run.rows(
        "select any_value(n.verdict) as verdict, any_value(n.searches) as searches, "
        "any_value(n.trigger_before) as triggered_before, any_value(n.trigger_after) as triggered, "
        "avg(x.flipped::int) as called from neurons n join explanations x on x.stage = n.stage "
        "and x.neuron = n.neuron and x.target_class = n.class_name and x.method = 'neuron' and x.arm = 'others' "
        "and x.status = 'ok' where n.model_id = ? and n.class_name = ? and n.neuron = ? and n.searches > 0 "
        "group by n.neuron_id order by searches desc limit 1",
        [model_id, mode.class_name, best],
    )
    nothing = dict.fromkeys(("verdict", "searches", "triggered_before", "triggered", "called"))
    return Found(
        mode=mode.id,
        kind=mode.kind,
        model_id=model_id,
        class_name=mode.class_name,
        neuron=best,
        auc=float(auc[best]),
        rank=order.index(best) + 1,
        suspects={neuron: float(auc[neuron]) for neuron in order[:5]},
        **(searched[0] if searched else nothing),
    )
