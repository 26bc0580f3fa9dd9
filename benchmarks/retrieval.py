"""Images by words among a million: comparing all one by one against an index that proposes some.

    python -m benchmarks.retrieval

Embeddings are made up: of 2,000 kinds that lie about directions of their own, in the 512 dimensions of CLIP ViT-B. Each
query is timed as `audit retrieve` asks it, without the text model; making the index and reading it anew are told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from audit import retrieval
from audit.classifiers import Embedder, Preprocess
from audit.embedding_index import index_of
from audit.results.sql import Run
from audit.results.store import Store

D, KINDS, UNIT = 512, 2_000, 1_000
TOP = 40


def make(root: Path, images: int) -> None:
    """A run of screened images in units of UNIT, with what one model says of them."""
    store, rng = Store(root), np.random.default_rng(0)
    store.create("job.json", b"{}")
    kinds = rng.normal(size=(KINDS, D))
    for unit in range(images // UNIT):
        vectors = kinds[rng.integers(0, KINDS, UNIT)] + rng.normal(size=(UNIT, D))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        ids = [rng.bytes(32).hex() for _ in range(UNIT)]
        rows = {
            "arrays": [
                {"subject_id": item_id, "role": "pool", "name": "embedding", "values": vector.tolist()}
                for item_id, vector in zip(ids, vectors, strict=True)
            ],
            "items": [{"item_id": item_id, "role": "pool", "position": k} for k, item_id in enumerate(ids)],
            "predictions": [
                {"item_id": item_id, "role": "pool", "model_id": "f", "predicted": f"c{k % 10}", "status": "ok"}
                for k, item_id in enumerate(ids)
            ],
        }
        store.commit(f"u{unit:05d}", "1-screen", rows)


def measure(root: Path, queries: int) -> dict[str, Any]:
    """Seconds of queries with and without the index, asked in turn, and the share of the nearest that it finds."""
    rng = np.random.default_rng(1)
    run = Run(root)
    vectors = rng.normal(size=(queries, D)).astype(np.float32)
    given = {str(number): vector for number, vector in enumerate(vectors)}

    def texts(words: Sequence[str]) -> torch.Tensor:
        return torch.tensor(np.array([given[word] for word in words]))

    embedder = Embedder((), Preprocess((8, 8)), nn.Identity(), nn.Identity(), nn.Identity(), texts, 1.0)
    began = time.monotonic()
    index = index_of(run)
    made = time.monotonic() - began
    seconds: dict[bool, list[float]] = {True: [], False: []}
    shares = []
    for word in given:
        found = {}
        for by_index in (True, False):
            retrieval.EXACT = 0 if by_index else 10**12
            began = time.monotonic()
            answer = retrieval.retrieve(run, embedder, word, "pool", TOP)
            seconds[by_index].append(time.monotonic() - began)
            found[by_index] = {row["item_id"] for row in answer.rows}
            images = answer.images
        shares.append(len(found[True] & found[False]) / TOP)
    return {
        "images": images,
        "index_made_in_seconds": made,
        "index_mib": sum(file.stat().st_size for file in index.folder.iterdir()) / 2**20,
        "seconds_by_index": seconds[True],
        "seconds_one_by_one": seconds[False],
        "ratio_of_medians": median(seconds[False]) / median(seconds[True]),
        "recall": float(np.mean(shares)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="audit-retrieval-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        make(Path(folder) / "run", given.images)
        print(json.dumps(measure(Path(folder) / "run", given.queries), indent=1))


if __name__ == "__main__":
    main()
