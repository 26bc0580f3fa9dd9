"""A finished run as large as one wants, for the report to be tried on: made-up numbers, real pictures, whole commits.

Its rows lie in merged commits and a snapshot, as compaction leaves a run of that size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from audit.config import parse_job
from audit.decode import encode_png, encode_thumbnail
from audit.results.compaction import TARGET, group_rows
from audit.results.schema import TABLES
from audit.results.store import Commit, File, Store
from audit.zoo.scenes import render
from audit.zoo.world import load_world, scenes
from benchmarks.faults.workload import ROOT

MODELS = ("resnet", "vit", "clip")
CLASSES = 200
UNIT = 64  # explanations that a unit made
STAGES = ("0-inventory", "1-screen", "2-disagreement", "3-counterfactual", "4-discover")
KINDS = ("disagreement", "disagreement", "disagreement", "confusion", "neuron", "flip")
PAGE = 200_000  # rows that are made at a time


def make(root: Path, explanations: int, images: int, modes: int, items: int) -> None:
    """Write such a run. `images` are kept as PNG and thumbnail; the data and the pool have `items` images each."""
    rng = np.random.default_rng(0)
    store = Store(root)
    _job(store)
    made: list[str] = []
    commits = list(_pictures(store, images, made))
    ids = np.array(made)
    commits += _screened(store, items, ids, rng)
    commits += _explained(store, explanations, ids, rng)
    commits.append(_discovered(store, explanations, modes, items, ids, rng))
    whole = [_renamed(commit, number) for number, commit in enumerate(commits)]
    for commit in whole:  # as runs keep them beside the snapshot; readers list them, and read them no more
        for unit in commit.units:
            (root / "commits").mkdir(exist_ok=True)
            (root / "commits" / f"{unit}.json").touch()
    store.publish(whole, 1)
    for stage in STAGES:
        own = [commit for commit in whole if commit.stage == stage]
        body = {"units": sum(len(c.units) for c in own), "items": sum(c.items for c in own), "parts": []}
        store.create(f"plan/{stage}.json", json.dumps(body).encode())


def explanation_id(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def mode_id(number: int) -> str:
    return hashlib.blake2b(f"mode {number}".encode(), digest_size=16).hexdigest()


def item_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _job(store: Store) -> None:
    raw: dict[str, Any] = {
        "version": 1,
        "name": "large",
        "data": {"source": "folder", "path": "."},
        "models": [{"id": name, "loader": "hf", "ref": "zoo:reference"} for name in MODELS],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "stages": [{"kind": "screen"}, {"kind": "discover"}],
    }
    numbers = parse_job(raw, ROOT).numbers()
    numbers["stages"] = [{"plugin": stage.partition("-")[2]} for stage in STAGES[1:]]
    record = {"job": numbers, "compute": {}, "digests": {}}
    store.create("job.json", json.dumps(record).encode())


def _classes() -> np.ndarray[Any, Any]:
    return np.array([f"class {number:03}" for number in range(CLASSES)])


def _commit(store: Store, stage: str, tables: dict[str, pa.Table], units: int, items: int) -> Commit:
    """One merged commit of so many units. Columns that a table lacks are NULL."""
    name = f"{stage}-{hashlib.sha256(repr([t.num_rows for t in tables.values()]).encode()).hexdigest()[:8]}"
    name += f"-{len(store.names(f'data/{next(iter(tables))}'))}"
    files: dict[str, File] = {
        table: store.write(name, table, _full(table, content), group_rows(table)) for table, content in tables.items()
    }
    return Commit(tuple(map(str, range(units))), stage, "0", "ok", files, items)


def _renamed(commit: Commit, number: int) -> Commit:
    """With ids of units that no other commit has."""
    units = tuple(explanation_id(number * 10**7 + i) for i in range(len(commit.units)))
    return Commit(tuple(sorted(units)), commit.stage, "0", "ok", commit.files, commit.items)


def _full(table: str, content: pa.Table) -> pa.Table:
    rows = content.num_rows
    columns = [
        content[field.name].cast(field.type) if field.name in content.column_names else pa.nulls(rows, field.type)
        for field in TABLES[table]
    ]
    return pa.table(columns, schema=TABLES[table])


def _repeated(text: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(text), rows)


def _pictures(store: Store, images: int, made: list[str]) -> Iterator[Commit]:
    """Scenes of the embedded world, each another by a few of its pixels, in files of the size that compaction makes.

    Their ids are put into `made`.
    """
    drawn = [render(one.scene).image for one in scenes(load_world(), "labelled", 0, min(images, 500))]
    pictures = [np.asarray(one * 255, np.uint8) if one.dtype != np.uint8 else one for one in drawn]
    small = [encode_thumbnail(one) for one in pictures]
    rows: dict[str, list[Any]] = {"image_id": [], "kind": [], "width": [], "height": [], "png": [], "thumbnail": []}
    size = 0
    for number in range(images):
        picture = pictures[number % len(pictures)].copy()
        picture[0, :4] = np.frombuffer(number.to_bytes(12, "big"), np.uint8).reshape(4, 3)
        png = encode_png(picture)
        kind = ("start", "generated")[number % 2]
        thumbnail = small[number % len(small)]
        values = (hashlib.sha256(png).hexdigest(), kind, picture.shape[1], picture.shape[0], png, thumbnail)
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value)
        size += len(png) + len(thumbnail)
        if size > TARGET or number == images - 1:
            made.extend(rows["image_id"])
            yield _commit(store, "2-disagreement", {"images": pa.table(rows)}, -(-len(rows["png"]) // UNIT), 0)
            rows, size = {name: [] for name in rows}, 0


def _screened(store: Store, items: int, ids: np.ndarray[Any, Any], rng: np.random.Generator) -> Iterator[Commit]:
    """The inventory and what every model says of data, pool and generated images."""
    names = _classes()
    for role in ("data", "pool"):
        first = 0 if role == "data" else items
        keys = [item_id(first + number) for number in range(items)]
        label = names[rng.integers(0, CLASSES, items)]
        bad = rng.random(items) < 0.001
        table = {"item_id": keys, "role": _repeated(role, items), "position": np.arange(items)}
        table |= {
            "display_name": [f"{role} {n}.png" for n in range(items)],
            "status": np.where(bad, "quarantined", "ok"),
        }
        table |= {"label": pa.array(label) if role == "data" else pa.nulls(items, pa.string())}
        table |= {"reason": pa.array(np.where(bad, "the file ends early", ""), mask=~bad)}
        yield _commit(store, "0-inventory", {"items": pa.table(table)}, max(1, items // 1000), items)
        yield _commit(
            store, "1-screen", {"predictions": _said(keys, role, label, names, rng)}, max(1, items // 256), items
        )
    yield _commit(
        store,
        "2-disagreement",
        {"predictions": _said(list(ids), "generated", names[rng.integers(0, CLASSES, len(ids))], names, rng)},
        1,
        0,
    )


def _said(keys: list[str], role: str, label: Any, names: Any, rng: np.random.Generator) -> pa.Table:
    parts = []
    rows = len(keys)
    for place, model in enumerate(MODELS):
        right = rng.random(rows) < 0.9 - 0.05 * place
        said = np.where(right, label, names[rng.integers(0, CLASSES, rows)])
        table = {"item_id": keys, "role": _repeated(role, rows), "model_id": _repeated(model, rows), "predicted": said}
        table |= {"confidence": rng.random(rows), "status": _repeated("ok", rows)}
        if role == "data":
            table |= {"label": label, "correct": said == label}
        parts.append(pa.table(table))
    return pa.concat_tables(parts)


def _explained(store: Store, total: int, ids: np.ndarray[Any, Any], rng: np.random.Generator) -> Iterator[Commit]:
    """Searches for disagreement and, three in ten, counterfactuals; some of the former with traces."""
    names = _classes()
    searches = total * 7 // 10
    for stage, first, last in (("2-disagreement", 0, searches), ("3-counterfactual", searches, total)):
        for begin in range(first, last, PAGE):
            rows = min(PAGE, last - begin)
            keys = [explanation_id(number) for number in range(begin, begin + rows)]
            edit = stage == "3-counterfactual"
            start = rng.integers(0, len(ids) - 1, rows)
            failed = rng.random(rows) < 0.002
            target, source = names[rng.integers(0, CLASSES, rows)], names[rng.integers(0, CLASSES, rows)]
            model, other = rng.integers(0, 3, rows), rng.integers(1, 3, rows)
            table = {"explanation_id": keys, "stage": _repeated(stage, rows), "unit_id": _repeated("0" * 32, rows)}
            table |= {
                "method": _repeated("uvce" if edit else "disagreement", rows),
                "seed": np.arange(begin, begin + rows),
            }
            table |= {"prompt": [f"a photograph of a {name}" for name in source], "source_class": source}
            table |= {"target_class": target, "model_id": np.array(MODELS)[model], "seconds": rng.random(rows)}
            table |= {name: rng.random(rows).round(3 if name == "score_after" else 17) for name in _SCORES}
            table |= {"flipped": rng.random(rows) < 0.6, "best_step": np.full(rows, 20)}
            table |= {"status": np.where(failed, "failed", "ok")}
            table |= {"reason": pa.array(np.where(failed, "the gradient is not finite", ""), mask=~failed)}
            table |= {"start_image_id": ids[start], "image_id": ids[start + 1]}
            if edit:
                images = ("edit_image_id", "difference_image_id", "mask_image_id", "reconstruction_image_id")
                table |= {name: ids[rng.integers(0, len(ids), rows)] for name in images}
            else:
                table["other_model_id"] = np.array(MODELS)[(model + other) % 3]
            tables = {"explanations": pa.table(table)}
            if edit:
                tables["measurements"] = _measured(keys, rng)
            elif begin == 0:
                tables["traces"] = _traced(keys[:5000], rng)
            yield _commit(store, stage, tables, -(-rows // UNIT), rows)


_SCORES = ("score_before", "score_after", "other_before", "other_after", "source_before", "source_after")


def _measured(keys: list[str], rng: np.random.Generator) -> pa.Table:
    parts = []
    for name, key in (("background_rmse", "result"), ("background_rmse", "autoencoder"), ("flipped", "edit")):
        value = rng.random(len(keys))
        table = {
            "subject_id": keys,
            "stage": _repeated("3-counterfactual", len(keys)),
            "name": _repeated(name, len(keys)),
        }
        parts.append(
            pa.table(table | {"key": _repeated(key, len(keys)), "value": np.round(value) if key == "edit" else value})
        )
    return pa.concat_tables(parts)


def _traced(keys: list[str], rng: np.random.Generator) -> pa.Table:
    steps = 21
    table = {"explanation_id": np.repeat(keys, steps), "step": np.tile(np.arange(steps), len(keys))}
    return pa.table(table | {name: rng.random(steps * len(keys)) for name in ("loss", "score", "other_score")})


def _discovered(
    store: Store, explanations: int, modes: int, items: int, ids: np.ndarray[Any, Any], rng: np.random.Generator
) -> Commit:
    """Failure modes of all kinds, neurons, reviews of some, what adequacy says of classes, and the run's own row."""
    names = _classes()
    rows = []
    for number in range(modes):
        kind = KINDS[number % len(KINDS)]
        model = MODELS[int(rng.integers(3))]
        sure = bool(rng.random() < 0.3)
        row: dict[str, Any] = {"failure_mode_id": mode_id(number), "kind": kind, "source": "search", "listed": True}
        row |= {
            "model_id": model,
            "class_name": str(rng.choice(names)),
            "name": f"thing {number % 97}",
            "concept": f"{{}} {number % 97}",
        }
        row |= {"verdict": "confirmed" if sure else "hypothesis", "support": int(rng.integers(2, 60)), "seeds": 64}
        if kind == "disagreement":
            row["other_model_id"] = MODELS[(MODELS.index(model) + 1) % 3]
        if kind != "flip":
            row |= {"effect": float(rng.gamma(2.0)), "effect_low": 0.1, "effect_high": 9.0}
            row["exemplars"] = [explanation_id(int(n)) for n in rng.integers(0, explanations * 7 // 10, 6)]
        if not sure:
            row["reason"] = "the pool has no such images"
        if sure or number % 2:
            row |= {
                "evidence_rate": float(rng.random()),
                "control_rate": 0.1,
                "evidence_images": 20,
                "control_images": 20,
            }
            row |= {"impact": round(float(rng.random() / 20), 4), "impact_low": 0.0, "impact_high": 0.1}
            row["evidence"] = [str(one) for one in rng.choice(ids, 12)] + [
                item_id(items + int(n)) for n in rng.integers(0, items, 88)
            ]
            row["showing"] = row["evidence"]
        rows.append(row)
    neurons = [
        {"neuron_id": mode_id(-1 - number), "stage": "2-neuron", "model_id": MODELS[number % 3], "neuron": number}
        | {
            "class_name": str(names[number % CLASSES]),
            "layer": "input of fc",
            "verdict": "spurious",
            "rank": number % 5,
        }
        | {"reason": "it shows something else", "check_id": "embedder", "top_items": [], "top_activations": []}
        for number in range(CLASSES * 3)
    ]
    reviews = [
        {"subject_id": mode_id(int(n)), "verdict": ("bug", "expected")[int(n) % 2], "reviewer": "Ada"}
        | {"reviewed_at": datetime(2026, 1, 1 + i % 28, i % 24, tzinfo=UTC)}
        for i, n in enumerate(rng.integers(0, modes, max(1, modes // 10)))
    ]
    measured = [
        {"subject_id": str(name), "name": what, "value": float(rng.random()) if what != "auditable" else 1.0}
        for name in names
        for what in ("agreement", "kid", "auditable")
    ]
    run = {"run_id": "large", "name": "large", "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    tables = {"failure_modes": rows, "neurons": neurons, "reviews": reviews, "measurements": measured, "runs": [run]}
    made = {name: pa.Table.from_pylist(listed, schema=TABLES[name]) for name, listed in tables.items()}
    return _commit(store, "4-discover", made, 1, modes)
