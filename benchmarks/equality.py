"""One job by one worker in batches of one, and by four in batches of eight: how far their tables are apart.

    python -m benchmarks.equality

The job has every stage that searches. In batches of the same size, runs are equal where no score differs at all. Else
they count as equal where they have the same rows, at least 99 % of the scores differ by no more than 0.01, and at least
99 % of the searches end alike: Adam's first step is the learning rate times the sign of the gradient, so that what is
rounding of a product of matrices in one batch may grow, step by step, in a search whose score is steep.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from audit.config import load_job
from audit.models import digests
from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.export import export
from pipelines.plan import open_or_create
from pipelines.progress import Progress
from pipelines.runner import Runner
from pipelines.workers import Cluster, Workers

JOB = """
version: 1
name: NAME
seed: 3
data: {source: folder, path: labelled}
pool: {source: parquet, path: pool}
models:
  - {id: reference, loader: hf, ref: "zoo:reference"}
  - {id: shortcut-a, loader: hf, ref: "zoo:shortcut-a"}
embedder: {loader: clip, ref: "zoo:clip"}
generator: {loader: diffusers, ref: "zoo:diffusion", steps: 5, guidance_scale: 4.0}
stages:
  - {kind: screen, unit_items: 20, activations: [shortcut-a]}
  - {kind: adequacy, samples: 4, classes: [crab, boat]}
  - {kind: disagreement, maximise: shortcut-a, minimise: reference, classes: [crab, boat], seeds: SEEDS, unit_seeds: 8,
     preset: embedded, start: others, objective: log_probability, steps: 8}
  - {kind: neuron, model: shortcut-a, classes: [crab], neurons: [42], seeds: 4, class_seeds: 1, steps: 6,
     check: reference, preset: embedded}
  - {kind: counterfactual, method: uvce, model: shortcut-a, classes: [crab, boat], per_class: 2, unit_items: 4,
     steps: 5, null_text_steps: 2, injection: [0.5], blending: [0.5], preset: embedded}
  - {kind: discover, vocabulary: ["{} on sand", "{} on water", "{} in the sky", "green {}"]}
compute: {workers: WORKERS, batch_size: BATCH}
"""
# What tells a row of a table, whatever its numbers are; ids of images are told by the search that they belong to.
KEYS = {
    "items": ("role", "position", "item_id", "status"),
    "predictions": ("item_id", "role", "model_id", "label", "status"),
    "explanations": ("explanation_id", "stage", "method", "prompt", "seed", "source_class", "target_class", "status"),
    "traces": ("explanation_id", "step"),
    "arrays": ("subject_id", "role", "name", "model_id", "shape"),
    "measurements": ("subject_id", "stage", "name", "key", "unit"),
    "neurons": ("neuron_id", "rank", "verdict"),
    "failure_modes": ("failure_mode_id", "name", "verdict"),
    "artefacts": ("artefact_id", "kind", "item_id", "prompt"),
}
SCORES = {
    "predictions": ("confidence",),
    "explanations": ("score_before", "score_after", "other_before", "other_after", "source_before", "source_after"),
    "traces": ("score", "other_score", "source_score"),
}
ENDS = {"explanations": ("flipped", "flipped_before", "seen_before", "seen_after"), "predictions": ("predicted",)}


def names_of_images(run: Run) -> dict[str, list[str]]:
    """What each made image is, in words that do not follow from its bytes."""
    columns = [
        row["column_name"] for row in run.rows("describe explanations") if row["column_name"].endswith("image_id")
    ]
    names = defaultdict(list)
    for row in run.rows(f"select explanation_id, item_id, {', '.join(columns)} from explanations"):
        for column in columns:
            if row[column] is not None and row[column] != row["item_id"]:
                names[row[column]].append(f"{column} of {row['explanation_id']}")
    return names


def rows_by_key(run: Run, table: str) -> dict[str, list[dict[str, Any]]]:
    names = names_of_images(run)
    samples = {row["image_id"] for row in run.rows("select image_id from images where kind = 'sample'")}
    columns = sorted({*KEYS[table], *SCORES.get(table, ()), *ENDS.get(table, ())})
    found = defaultdict(list)
    for row in run.rows(f'select {", ".join(columns)} from "{table}"'):
        subject = next((column for column in ("item_id", "subject_id") if column in row), "")
        named = names.get(row[subject], [row[subject]]) if subject else [None]
        for name in ["a sample"] if subject and row[subject] in samples else named:
            key = [name if column == subject else row[column] for column in KEYS[table]]
            found[json.dumps(key, default=str)].append(row)
    return found


def compare(one: Run, other: Run) -> dict[str, Any]:
    """How two runs differ. `rows`: of each table; `only`: keys of rows that one of them has more often."""
    rows, only, ends = {}, Counter[str](), Counter[bool]()
    apart: list[tuple[float, str, str, str]] = []
    for table in KEYS:
        mine, others = rows_by_key(one, table), rows_by_key(other, table)
        rows[table] = sum(len(found) for found in mine.values())
        for key in mine.keys() | others.keys():
            a, b = mine.get(key, []), others.get(key, [])
            only[table] += abs(len(a) - len(b))
            if len(a) == len(b) == 1:
                for column in SCORES.get(table, ()):
                    x, y = a[0][column], b[0][column]
                    only[table] += (x is None) != (y is None)
                    apart += [] if x is None or y is None else [(abs(x - y), table, column, key)]
                ends.update(a[0][column] == b[0][column] for column in ENDS.get(table, ()))
    close = sum(difference <= 1e-2 for difference, *_ in apart) / max(1, len(apart))
    alike = ends[True] / max(1, ends.total())
    return {
        "rows": rows,
        "only": dict(only),
        "scores_compared": len(apart),
        "scores_close": close,
        "furthest": sorted(apart, reverse=True)[:5],
        "ends_compared": ends.total(),
        "ends_alike": alike,
        "equal": not only.total() and close >= 0.99 and alike >= 0.99,
        "identical": not only.total() and max(apart)[0] == 0.0 and alike == 1.0,
    }


def run(folder: Path, workers: int, batch: int, seeds: int) -> Run:
    name = f"{workers}-in-{batch}"
    file = folder / f"{name}.yaml"
    settings = {"NAME": name, "WORKERS": workers, "BATCH": batch, "SEEDS": seeds}
    text = JOB
    for word, value in settings.items():
        text = text.replace(word, str(value))
    file.write_text(text)
    job, root = load_job(file), folder / name / name  # artefacts lie beside the runs: each makes its own
    found = digests(job)
    open_or_create(job, root, found)
    with (
        Cluster(None, {"num_cpus": workers}),
        open(folder / "log", "a", encoding="utf-8") as log,
        contextlib.redirect_stderr(log),
        Progress(name, Store(root), True) as progress,
    ):
        Runner(job, root, found, Workers(job, root, grows=False), progress).run()
    return Run(root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equality", description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="searches for a class")
    parser.add_argument("--folder", type=Path, help="where the runs stay; default: a temporary folder")
    arguments = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
    with tempfile.TemporaryDirectory(prefix="audit-equality-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        export("labelled", folder / "labelled", "folder", 120)
        export("pool", folder / "pool", "parquet", 600)
        asked = ((1, 1), (1, 8), (4, 8))
        one, same, other = (run(folder, workers, batch, arguments.seeds) for workers, batch in asked)
        by = "select count(distinct worker) as n from units where worker is not null"
        found = {"1 in 1 and 4 in 8": compare(one, other), "1 in 8 and 4 in 8": compare(same, other)}
        found["workers"] = {
            str(pair): made.rows(by)[0]["n"] for pair, made in zip(asked, (one, same, other), strict=True)
        }
    print(json.dumps(found, indent=1))
    return 0 if found["1 in 1 and 4 in 8"]["equal"] and found["1 in 8 and 4 in 8"]["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
