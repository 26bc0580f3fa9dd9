"""What ranking the neurons of a layer takes: seconds and memory, for all classes of a data set.

    python -m benchmarks.ranking --images 20000 --neurons 2048 --classes 1000

A run with random activations, answers and checks is written; no model is loaded. A process of its own ranks the neurons
of all classes and looks up the images with the highest activations of the first five of each class, as the plan of a
stage `neuron` does. `--one-class`: what it takes to rank them for a single class by the definition, which holds all
activations at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from audit.check import Check
from audit.findings.neuron_ranking import rankings, stored_activations, tops
from audit.results.sql import Run
from audit.results.store import Store
from audit.screened import screened
from audit.suspects import top

UNIT = 500


def write(root: Path, images: int, neurons: int, classes: int) -> None:
    """A run in which two models say the true class of eight images in ten."""
    rng, store = np.random.default_rng(0), Store(root)
    store.create("job.json", b"{}")
    for start in range(0, images, UNIT):
        predictions: list[dict[str, Any]] = []
        arrays: list[dict[str, Any]] = []
        for i in range(start, min(start + UNIT, images)):
            item = hashlib.sha256(str(i).encode()).hexdigest()
            for model_id in ("model", "check"):
                says = f"class {i % classes if rng.random() < 0.8 else rng.integers(classes)}"
                row = {"item_id": item, "role": "data", "model_id": model_id, "label": f"class {i % classes}"}
                predictions.append({**row, "predicted": says, "status": "ok"})
            values = rng.random(neurons).astype(np.float32).tolist()
            row = {"subject_id": item, "role": "data", "name": "activations", "model_id": "model"}
            arrays.append({**row, "values": values, "shape": [neurons]})
        store.commit(f"unit-{start}", "1-screen", {"predictions": predictions, "arrays": arrays}, items=UNIT)


def _all_classes(root: Path, neurons: int, classes: int) -> None:
    weights = {f"class {i}": np.random.default_rng(i).normal(size=neurons) for i in range(classes)}
    with stored_activations(Run(root), "model", Check("check", lambda _: [], "check"), None) as stored:
        assert stored is not None
        found = rankings(stored, weights)
        tops(stored, [neuron for one in found.values() for neuron in one.order[:5].tolist()], 24)


def _one_class(root: Path, neurons: int, classes: int) -> None:  # noqa: ARG001
    found = screened(Run(root), "model", "check")
    assert found is not None
    ranking = found.ranking(np.random.default_rng(0).normal(size=neurons), "class 0")
    top(found.activations[:, ranking.order[0]], 24)


def _measured(work: Any, answers: Any, *arguments: Any) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    work(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.put({"seconds": time.monotonic() - began, "peak_gib": peak / 2**20, "before_gib": before / 2**20})


def measure(one_class: bool, root: Path, neurons: int, classes: int) -> dict[str, float]:
    """Seconds and peak of memory of a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    work = _one_class if one_class else _all_classes
    process = context.Process(target=_measured, args=(work, answers, root, neurons, classes))
    process.start()
    found: dict[str, float] = answers.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--neurons", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--one-class", action="store_true", help="rank one class by the definition too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        write(root, given.images, given.neurons, given.classes)
        found = {"all classes": measure(False, root, given.neurons, given.classes)}
        if given.one_class:
            found["one class by the definition"] = measure(True, root, given.neurons, given.classes)
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
