"""Spurious neurons: a unit of a model that something else than the class's object raises (DiG-IN section 5)."""

from __future__ import annotations

import numpy as np

from audit import discovery as d
from audit.failure_modes.claims import Claim, Group, Material, ended
from audit.failure_modes.evidence import groups_of

VERDICTS = ("harmful", "spurious")


def find(material: Material) -> list[Group]:
    """Of each neuron that its stage did not find to be a core one: groups of the searches that raised it.

    Searches from other classes that ended in images which the model calls the class and the check does not; controls:
    the searches of other neurons and classes.
    """
    neurons = material.run.rows(
        "select * from neurons where list_contains(?::varchar[], verdict) order by neuron_id", [list(VERDICTS)]
    )
    searches = ended(material.run, "x.method = 'neuron' and x.arm = 'others'", [])
    if searches is None:
        return []
    shifts = d.shifts(searches.starts, searches.results, material.concepts)
    found = []
    moved: d.Bools = np.asarray(shifts.any(1))
    for neuron in neurons:
        own: d.Bools = np.ones(len(searches.rows), np.bool_)
        for column, key in (("stage", "stage"), ("model_id", "model_id"), ("target_class", "class_name")):
            own &= searches.column(column) == neuron[key]
        own &= (searches.column("neuron") == neuron["neuron"]) & (searches.column("layer") == neuron["layer"])
        misled = searches.column("flipped").astype(bool) & ~searches.column("seen_after").astype(bool)
        claim = Claim("neuron", "search", neuron["model_id"], neuron["check_id"], neuron["class_name"])
        part, controls = searches.part(own & moved & misled), shifts[~own & moved]
        for group in groups_of(claim, part, controls, material, int((own & moved).sum())):
            group.mode["neurons"] = [neuron["neuron_id"]]
            found.append(group)
    return found
