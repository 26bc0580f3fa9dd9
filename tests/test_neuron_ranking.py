"""Neurons ranked for all classes at once: the numbers of the definition, from one reading of the activations."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit import suspects
from audit.check import Check
from audit.findings import neuron_ranking
from audit.findings.neuron_ranking import rankings, stored_activations, tops
from audit.results.sql import Run
from audit.results.store import Store
from audit.screened import screened

CLASSES = ("crab", "boat", "rare", "Sea Lion")
IMAGES, NEURONS = 300, 7
WEIGHTS = {name: np.random.default_rng(i).normal(size=NEURONS) for i, name in enumerate(CLASSES)}


def embedding_of(name: str) -> list[float]:
    return [float(name == other) for other in CLASSES]


def sees(embeddings: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A check that reads the class from an embedding."""
    return np.array([CLASSES[i].lower().replace(" ", "_") for i in embeddings.argmax(1)], object)


def write(root: Path) -> Run:
    """Activations with many ties, in units of mixed order; some images in both roles, some without a check or answer,
    or with activations that were not finite. Of the class `rare` too few for a comparison."""
    rng = np.random.default_rng(0)
    store, rows = Store(root), []
    store.create("job.json", b"{}")
    for i in rng.permutation(IMAGES):
        item = hashlib.sha256(str(i).encode()).hexdigest()
        name = CLASSES[rng.choice(4, p=[0.45, 0.3, 0.02, 0.23])]
        for role in ("data", "pool") if i % 10 == 0 else ("data",) if i % 2 else ("pool",):
            said = name if rng.random() < 0.6 else CLASSES[rng.choice([0, 1, 3])]
            seen = name if rng.random() < 0.8 else CLASSES[rng.choice([0, 1, 3])]
            values = (np.round(rng.random(NEURONS) * 6) + (said == "crab") * np.arange(NEURONS)).tolist()
            key = {"subject_id": item, "role": role}
            answer = {"item_id": item, "role": role, "model_id": "m", "status": "ok", "predicted": said}
            answer |= {"label": name if role == "data" else None}
            if i % 37 == 0:
                answer |= {"status": "failed", "predicted": None, "reason": "not_finite"}
            stored = {**key, "name": "activations", "model_id": "m", "values": values, "shape": [NEURONS]}
            if i % 41 == 0:
                stored |= {"values": None, "reason": "not_finite"}
            embedded = {**key, "name": "embedding", "model_id": "embedder", "values": embedding_of(seen), "shape": [4]}
            arrays = [stored, embedded] if i % 29 else [stored]
            other = {**answer, "model_id": "c", "status": "ok", "predicted": seen}
            rows.append({"predictions": [answer, other] if i % 31 else [answer], "arrays": arrays})
    for start in range(0, len(rows), 45):
        part = rows[start : start + 45]
        tables = {name: [row for one in part for row in one[name]] for name in ("predictions", "arrays")}
        assert store.commit(f"unit{start}", "1-screen", tables, items=len(part))
    return Run(root)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write(tmp_path_factory.mktemp("ranking"))


@pytest.mark.parametrize("block", [1, 3 * IMAGES, 10**9])
@pytest.mark.parametrize("of_real", [sees, "c"])
def test_all_classes_at_once_are_ranked_as_each_by_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch, of_real: Any, block: int
) -> None:
    """The definition holds all activations, and asks SciPy for the U statistic of each class."""
    monkeypatch.setattr(neuron_ranking, "_NUMBERS", block)
    monkeypatch.setattr(neuron_ranking, "_ROWS", 40)
    literal = screened(run, "m", of_real)
    assert literal is not None
    assert 200 < len(literal.ids) < IMAGES - 10
    with stored_activations(run, "m", Check("check", lambda _: [], of_real), None) as stored:
        assert stored is not None
        assert stored.ids.tolist() == literal.ids.tolist()
        assert (literal.activations == stored.of(0, NEURONS).T).all()
        for column in ("labels", "says", "checks"):
            assert getattr(stored, column).tolist() == getattr(literal, column).tolist()
        found = rankings(stored, WEIGHTS)
        highest = tops(stored, [*range(NEURONS), 0, 99], 24)
    for name in CLASSES:
        expected = literal.ranking(WEIGHTS[name], name)
        assert found[name].order.tolist() == expected.order.tolist()
        assert found[name].mean_activation == pytest.approx(expected.mean_activation, rel=1e-13)
        assert found[name].importance == pytest.approx(expected.importance, rel=1e-13)
        assert (found[name].trigger_auc is None) == (expected.trigger_auc is None) == (name == "rare")
        if expected.trigger_auc is not None:
            assert found[name].trigger_auc.tolist() == expected.trigger_auc.tolist()
    assert list(highest) == list(range(NEURONS))
    for neuron, one in highest.items():
        chosen = suspects.top(literal.activations[:, neuron], 24)
        assert one.ids.tolist() == literal.ids[chosen].tolist()
        assert one.activations.tolist() == literal.activations[chosen, neuron].tolist()
        assert one.checks.tolist() == literal.checks[chosen].tolist()


def test_an_auc_is_the_share_of_pairs(run: Run) -> None:
    with stored_activations(run, "m", Check("check", lambda _: [], sees), None) as stored:
        assert stored is not None
        found = rankings(stored, WEIGHTS)["crab"].trigger_auc
        assert found is not None
        lines = stored.of(0, NEURONS)
        half = np.array([int(i[:8], 16) % 2 == 0 for i in stored.ids])
        unseen = half & (stored.checks != "crab")
        ours, others = lines[:, unseen & (stored.says == "crab")], lines[:, unseen & (stored.says != "crab")]
    assert min(ours.shape[1], others.shape[1]) > 5
    pairs = (ours[:, :, None] > others[:, None]) + 0.5 * (ours[:, :, None] == others[:, None])
    assert found == pytest.approx(pairs.mean((1, 2)), rel=1e-12)


def test_without_stored_activations_there_is_nothing_to_rank(run: Run) -> None:
    for model_id, layer in (("other", None), ("m", "layer4")):
        with stored_activations(run, model_id, Check("check", lambda _: [], sees), layer) as stored:
            assert stored is None
