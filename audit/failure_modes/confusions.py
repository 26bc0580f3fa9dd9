"""Systematic confusions: what a model says instead of the label, over and over, on the labelled images."""

from __future__ import annotations

from collections import Counter

import numpy as np

from audit.failure_modes.claims import Claim, Group, Material, Mode, Real
from audit.failure_modes.evidence import asked, described, screened


def find(material: Material) -> list[Group]:
    """For each model and class: groups of the images that it wrongly calls the class, and labels that it calls so."""
    if material.data is None:
        return []
    naming, testing = material.data.halves()
    modes: list[Mode] = []
    for model_id in material.models:
        for name in material.classes:
            claim = Claim("confusion", "labels", model_id, None, name)
            modes += screened(claim, naming, testing, material.options)
            modes += _labels(claim, naming, testing, material.options.smallest_group)
    stages = material.screenings()
    return [Group(mode | {"found_by": stages}) for mode in modes]


def _labels(claim: Claim, naming: Real, testing: Real, fewest: int) -> list[Mode]:
    """Labels of at least `fewest` images of the first half that the model calls the class; tested on the other half."""
    modes = []
    counted = Counter(naming.said[None][naming.wrong(claim)])
    for label, count in sorted(counted.items()):
        if count < fewest:
            continue
        mode = described(claim, label) | {"name": f"labelled {label}", "support": count, "reason": None}
        labels = testing.said[None]
        among = np.asarray(labels != claim.class_name)
        together = np.full(len(labels), "", object)  # one stratum: labels themselves are compared
        towards = naming.embeddings[(naming.said[None] == label) & naming.wrong(claim)].mean(0)
        modes.append(mode | asked(claim, np.asarray(labels == label), among, together, towards, testing))
    return modes
