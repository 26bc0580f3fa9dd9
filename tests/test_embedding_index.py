"""The index proposes what an exact comparison finds, on embeddings made by hand and on those of real images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

from audit import embedding_index, retrieval
from audit.classifiers import Embedder, Preprocess
from audit.embedding_index import index_of
from audit.results.sql import Run
from audit.results.store import Store
from audit.retrieval import retrieve
from pipelines.retrieve import tables

D, IMAGES, TOP = 48, 4000, 20


def embeddings(images: int, seed: int) -> NDArray[np.float32]:
    """Not unit: of some 30 kinds, of which each lies about a direction of its own."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(30, D))
    rows = kinds[rng.integers(0, 30, images)] + 0.7 * rng.normal(size=(images, D))
    return np.asarray(rows * rng.uniform(0.5, 2.0, (images, 1)), np.float32)


def rows_of(vectors: NDArray[np.float32], role: str, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"subject_id": f"{first + k:05d}", "role": role, "name": "embedding", "values": vector.tolist()}
        for k, vector in enumerate(vectors)
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Images 0 ... of the pool in two commits; the first ten of the data set too, and 5 more of it alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vectors = embeddings(IMAGES + 5, 0)
    vectors[7] = 0.0  # has no direction
    store = Store(tmp_path / "run")
    store.create("job.json", b"{}")
    missing = {"subject_id": "none", "role": "pool", "name": "embedding", "values": None}
    made = {"subject_id": "made", "role": "generated", "name": "embedding", "values": vectors[0].tolist()}
    store.commit("a", "1-screen", {"arrays": [*rows_of(vectors[: IMAGES // 2], "pool"), missing, made]})
    store.commit("b", "1-screen", {"arrays": rows_of(vectors[IMAGES // 2 : IMAGES], "pool", IMAGES // 2)})
    data = [*rows_of(vectors[:10], "data"), *rows_of(vectors[IMAGES:], "data", IMAGES)]
    store.commit("c", "1-screen", {"arrays": data})
    return Run(store.root)


def literal(run: Run, query: NDArray[np.float32], roles: set[str], top: int) -> list[str]:
    """By cosine to each stored embedding that has a direction."""
    cosines = {}
    for row in run.rows("select subject_id, role, values from arrays where values is not null"):
        vector = np.array(row["values"], np.float64)
        if row["role"] in roles and vector.any():
            cosines[row["subject_id"]] = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)
    return sorted(cosines, key=lambda name: -cosines[name])[:top]


def test_the_nearest_are_among_what_is_proposed(run: Run) -> None:
    index = index_of(run)
    for number, query in enumerate(embeddings(12, 1)):
        proposed = index.nearest(query.tolist(), ["pool"], TOP)
        assert len(proposed) == len(set(proposed)) == embedding_index.PROPOSED * TOP
        assert set(literal(run, query, {"pool"}, TOP)) <= set(proposed), number
        assert not {"none", "made"} & set(proposed)
        own = index.nearest(query.tolist(), ["data"], TOP)
        assert set(own) == {f"{k:05d}" for k in (*range(10), *range(IMAGES, IMAGES + 5))}


def test_it_is_made_once_until_more_is_committed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index_of(run)
    with monkeypatch.context() as unable:
        unable.setattr(embedding_index, "_make", None)
        assert index_of(Run(run.root)) == first
    new = embeddings(1, 9)
    run.store.commit("d", "1-screen", {"arrays": rows_of(new, "pool", 90_000)})
    run.refresh()
    elsewhere = first.folder.parent / "making-elsewhere"
    elsewhere.mkdir()
    later = index_of(run)
    elsewhere.rmdir()  # what another process makes is left alone
    assert "90000" in later.nearest(new[0].tolist(), ["pool"], 1)
    assert [folder.name for folder in first.folder.parent.iterdir()] == [later.folder.name]


def answers(run: Run, query: NDArray[np.float32], role: retrieval.Role) -> retrieval.Retrieval:
    def texts(given: Any) -> Tensor:
        """Each word of a text counts."""
        return torch.tensor(np.array([query * (1 + len(text)) + len(text) for text in given]))

    embedder = Embedder((), Preprocess((8, 8)), nn.Identity(), nn.Identity(), nn.Identity(), texts, 1.0)
    return retrieve(run, embedder, "two words", role, TOP)


@pytest.mark.parametrize("role", ["pool", "data", "both"])
def test_many_images_are_retrieved_as_few_are(run: Run, role: retrieval.Role, monkeypatch: pytest.MonkeyPatch) -> None:
    items = run.rows("select distinct subject_id as item_id, role from arrays where role <> 'generated'")
    said = [{**item, "model_id": "f", "predicted": "crab", "status": "ok"} for item in items]
    run.store.commit("said", "1-screen", {"items": items, "predictions": said})
    run.refresh()
    query = embeddings(1, 3)[0]
    one_by_one = answers(run, query, role)
    assert not one_by_one.approximate
    monkeypatch.setattr(retrieval, "EXACT", 100)
    by_index = answers(run, query, role)
    assert by_index.approximate
    assert by_index.rows == one_by_one.rows
    every = {"pool": IMAGES, "data": 15, "both": IMAGES + 5}[role]
    assert len(by_index.rows) == min(TOP, every - (role == "data"))  # one has no direction
    assert by_index.images == one_by_one.images == every
    assert by_index.said == one_by_one.said


def test_without_the_package_all_are_compared_and_people_are_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    items = run.rows("select distinct subject_id as item_id, role from arrays where role <> 'generated'")
    run.store.commit("said", "1-screen", {"items": items})
    run.refresh()
    for module in (retrieval, sys.modules["pipelines.retrieve"]):
        monkeypatch.setattr(module, "EXACT", 100)
    assert "Proposed by an index: a few others may be as similar." in list(
        tables(answers(run, embeddings(1, 3)[0], "pool"))
    )
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = answers(run, embeddings(1, 3)[0], "pool")
    assert not found.approximate
    told = [part for part in tables(found) if not isinstance(part, Table)]
    assert told == [r"Compared one by one. With an index this is quicker: pip install 'audit\[index]'"]
