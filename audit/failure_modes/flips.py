"""Decision flips: what changed on real images when a counterfactual turned the decision and not the object."""

from __future__ import annotations

import numpy as np

from audit import discovery as d
from audit.failure_modes.claims import EMBEDDER, Claim, Group, Material, Searches, ended
from audit.failure_modes.evidence import groups_of


def find(material: Material) -> list[Group]:
    """Counterfactuals on which the embedder sees the same object before and after, grouped by what they changed.

    Where that object is what the model said before, something that was added made it say another class; where it is
    what the model says afterwards, something that was taken away had. Where a label says that
    the embedder is wrong, nothing is found; nor of a decision that had turned before anything was changed, nor of one
    between two phrases (option `attribute`): of those screening has no answers that real images could be asked for.
    """
    counterfactuals = ended(
        material.run,
        "x.method <> 'neuron' and x.item_id is not null and x.flipped and not coalesce(x.flipped_before, false)",
        [],
    )
    if counterfactuals is None or not callable(material.check.of_real):
        return []
    before, after = (
        material.check.of_real(x.astype(np.float32)) for x in (counterfactuals.starts, counterfactuals.results)
    )
    said, says = (counterfactuals.column(column) for column in ("source_class", "target_class"))
    labels = {
        row["item_id"]: row["label"]
        for row in material.run.rows(
            "select item_id, any_value(label) as label from items where label is not null group by 1"
        )
    }
    items = zip(counterfactuals.column("item_id"), before, strict=True)
    truth = np.array([labels.get(item_id, seen) for item_id, seen in items], object)
    same = (before == after) & (before == truth)
    same &= d.shifts(counterfactuals.starts, counterfactuals.results, material.concepts).any(1)
    added = counterfactuals.part(same & (truth == said))
    taken = counterfactuals.part(same & (truth == says)).turned()
    return _by_class(added, "target_class", material) + _by_class(taken, "source_class", material)


def _by_class(searches: Searches, column: str, material: Material) -> list[Group]:
    """Groups of the searches of each model and class, which is what it is misled to; controls: those of its others."""
    found = []
    shifts = d.shifts(searches.starts, searches.results, material.concepts)
    models, classes = searches.column("model_id"), searches.column(column)
    for model_id, name in sorted({(row["model_id"], row[column]) for row in searches.rows}):
        own = (models == model_id) & (classes == name)
        claim = Claim("flip", "search", model_id, EMBEDDER, name)
        controls = shifts[(models == model_id) & ~own]
        found += groups_of(claim, searches.part(own), controls, material, int(own.sum()))
    return found
