"""Systematic confusions: what a model says instead of the label, over and over, on the labelled images."""

from __future__ import annotations

from collections import Counter

import numpy as np

from audit import discovery as d
from audit.class_names import canonical
from audit.failure_modes.claims import Claim, Group, Material, Mode, Real, described, rates, screened


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
    return [Group(mode) for mode in modes]


def _labels(claim: Claim, naming: Real, testing: Real, fewest: int) -> list[Mode]:
    """Labels of at least `fewest` images of the first half that the model calls the class; tested on the other half."""
    modes = []
    counted = Counter(naming.said[None][naming.wrong(claim)])
    for label, count in sorted(counted.items()):
        if count < fewest:
            continue
        mode = described(claim, label) | {"name": f"labelled {label}", "support": count}
        shows, wrong = testing.said[None] == label, testing.wrong(claim)
        could = testing.said[None] != canonical(claim.class_name)
        together = np.full(int(could.sum()), "", object)  # one stratum: the labels themselves are compared
        facts = d.matched(wrong[could], shows[could], together)
        own = np.flatnonzero((naming.said[None] == label) & naming.wrong(claim))
        mode |= rates(facts) | {"evidence": naming.ids[own].tolist(), "reason": None}
        share = float(shows.mean())
        excess = {"impact": facts.rate - facts.control_rate, "impact_low": facts.low, "impact_high": facts.high}
        modes.append(mode | {"prevalence": share} | {key: share * value for key, value in excess.items()})
    return modes
