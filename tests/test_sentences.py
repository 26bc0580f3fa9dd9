"""Findings in words, for every kind of failure mode, with and without a second model."""

from __future__ import annotations

from typing import Any

import pytest

from audit import sentences
from audit.results.schema import TABLES

MODE: dict[str, Any] = dict.fromkeys(TABLES["failure_modes"].names)
MODE |= {"kind": "disagreement", "source": "search", "verdict": "confirmed", "model_id": "v", "class_name": "crab"}
MODE |= {"name": "on sand", "support": 3, "seeds": 8}
RATES = {"evidence_rate": 0.8, "control_rate": 0.1, "evidence_images": 20}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"other_model_id": "w", **RATES},
            "3 of 8 searches ended in images that v takes for crab and w does not. What they gained: on sand. Of 20 "
            "real images that are on sand the models disagree on 80%, of others of the same classes on 10%.",
        ),
        (
            {"kind": "confusion", "source": "labels", **RATES},
            "3 labelled images are alike that v wrongly takes for crab. What they share: on sand. Of 20 real images "
            "that are on sand it happens on 80%, of others of the same classes on 10%.",
        ),
        (
            {"kind": "confusion", "source": "labels", "concept": "car", "name": "labelled car", **RATES},
            "v says crab on 3 images labelled car. Of 20 real images that are labelled car it happens on 80%, "
            "of those with other labels on 10%.",
        ),
        (
            {"other_model_id": "w", "seeds": None, **RATES, "control_rate": None},
            "3 searches ended in images that v takes for crab and w does not. What they gained: on sand.",
        ),
        (
            {"source": "screen", "other_model_id": "w", "seeds": None, **RATES},
            "3 images of the pool are alike that v takes for crab and w does not. What they share: on sand. Of 20 real "
            "images that are on sand the models disagree on 80%, of others of the same classes on 10%.",
        ),
        (
            {"kind": "neuron"},
            "A neuron of v that speaks for crab answers to something else: on sand. 3 of 8 searches show it.",
        ),
        ({"kind": "flip"}, "v decides for crab on 3 images of which only this was changed: on sand."),
    ],
)
def test_a_sentence_says_what_was_found(columns: dict[str, Any], words: str) -> None:
    assert sentences.sentence({**MODE, **columns}) == words
    name = columns.get("name", "on sand")
    assert sentences.claim({**MODE, **columns}) == f"v says “crab” for what is {name}"


def test_a_claim_is_about_the_model_at_fault() -> None:
    blind = {**MODE, "model_id": "reference", "other_model_id": "v", "at_fault": "v", "class_name": "fish"}
    assert sentences.claim({**blind, "name": "not on water"}) == "v misses “fish” in what is not on water"
    assert sentences.claim({**MODE, "at_fault": "v"}) == "v says “crab” for what is on sand"


def test_what_figures_count_follows_from_where_a_mode_is_from() -> None:
    confusion = {**MODE, "kind": "confusion", "source": "labels", "concept": "{} on sand"}
    assert [sentences.support(mode) for mode in (MODE, confusion)] == ["searches that show it", "images that show it"]
    assert sentences.control(MODE) == sentences.control(confusion) == "others of the same classes"
    assert sentences.control({**confusion, "concept": "car"}) == "those with other labels"
    assert [sentences.evidence(mode) for mode in (MODE, confusion)] == [
        "real image on which the models disagree",
        "real image that it befalls",
    ]


def test_certainty_says_what_is_known_with_its_interval() -> None:
    assert sentences.certainty(MODE) == ""
    effect = {"effect": 1.74, "effect_low": 0.91, "effect_high": 2.6}
    assert sentences.certainty({**MODE, **effect}) == (
        "The shift is 1.7 standard deviations of the controls (95 %: 0.9 to 2.6)."
    )
    known = {**RATES, "evidence_images": 1268, "control_images": 20, "excess_low": 0.61, "excess_high": 0.789}
    known |= {"p_corrected": 0.00012, "impact": 0.0123, "impact_low": 0.01, "impact_high": 0.0151}
    assert sentences.certainty({**MODE, **known}) == (
        "It happens to 80.0% of 1,268 real images that show it and to 10.0% of 20 others of the same classes "
        "(difference, 95 %: 61.0% to 78.9%; p = 0.0001, corrected for all that were asked). "
        "Impact on all: 1.23% (95 %: 1.00% to 1.51%)."
    )
    assert "(95 %" not in sentences.certainty({**MODE, "effect": 1.0})
    assert [sentences.p_value(p) for p in (0.0, 1e-301, 0.0123, 1.0)] == ["< 1e-300", "< 1e-300", "= 0.01", "= 1"]
