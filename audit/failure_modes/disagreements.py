"""Disagreements: what one model takes for a class and another does not (DiG-IN section 4)."""

from __future__ import annotations

from itertools import permutations

from audit import discovery as d
from audit.failure_modes.claims import Claim, Group, Material, Mode, ended
from audit.failure_modes.evidence import groups_of, screened

Row = dict[str, str]


def find(material: Material) -> list[Group]:
    """Groups of the successful searches of each class by their shifts; controls: the searches for other classes.

    A search on whose start the models disagree already joins no group: whatever it changed, that is not why. One
    that kept its start is no control either: it shows what no search did.
    """
    found = []
    for row in _searched(material):
        searches = ended(
            material.run,
            "x.stage = ? and x.model_id = ? and x.other_model_id = ?",
            [row["stage"], row["model_id"], row["other_model_id"]],
        )
        if searches is None:
            continue
        shifts = d.shifts(searches.starts, searches.results, material.concepts)
        moved, classes = shifts.any(1), searches.column("target_class")
        new = (searches.column("flipped") & ~searches.column("flipped_before").astype(bool)).astype(bool)
        for name in sorted(set(classes)):
            claim = Claim("disagreement", "search", row["model_id"], row["other_model_id"], name)
            own = classes == name
            found += groups_of(claim, searches.part(own & new & moved), shifts[~own & moved], material, int(own.sum()))
    return found


def screened_alone(material: Material) -> list[Mode]:
    """What screening alone finds in the pool, of all classes and the pairs of models that were searched; where none
    was, of all pairs."""
    if material.pool is None:
        return []
    halves = material.pool.halves()
    searched = {(row["model_id"], row["other_model_id"]) for row in _searched(material)}
    pairs = sorted(searched or permutations(material.models, 2))
    stages = material.screenings()
    return [
        mode | {"found_by": stages}
        for f, g in pairs
        for name in material.classes
        for mode in screened(Claim("disagreement", "screen", f, g, name), *halves, material.options)
    ]


def _searched(material: Material) -> list[Row]:
    return material.run.rows(
        "select distinct stage, model_id, other_model_id from explanations where other_model_id is not null "
        "order by all"
    )
