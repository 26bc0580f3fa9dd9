"""The order of classes: a model without names, right on every image, is right on every image in the run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.config import parse_job
from audit.results.sql import Run
from audit.review.warnings import warnings_of
from pipelines.serial import run_serially

COUNT = 12
NAMES = ("zebra", "yak", "xerus", "wolf", "vole", "unau", "tapir", "seal", "ram", "quoll", "puma", "otter")
PERFECT = """
import torch
class Perfect(torch.nn.Module):
    def forward(self, x):
        k = (x.mean((1, 2, 3)) * 255 / 20).round().clamp(0, 11)
        return -(torch.arange(12.0)[None] - k[:, None]).abs() * 5
def model(): return Perfect()
"""


def picture(k: int, i: int) -> bytes:
    """An image of class k: its brightness."""
    pixels = np.full((32, 32, 3), k * 20, np.uint8)
    pixels[0, 0] = i
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def integers(folder: Path) -> dict[str, Any]:
    pq.write_table(table(), folder / "t.parquet")
    return {"source": "parquet", "path": "t.parquet"}


def class_label(folder: Path) -> dict[str, Any]:
    """As Hugging Face's `datasets` writes a ClassLabel, with one name that no image has."""
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table().slice(0, 33).replace_schema_metadata(metadata), folder / "t.parquet")
    return {"source": "parquet", "path": "t.parquet"}


def table() -> pa.Table:
    pairs = [(k, i) for k in range(COUNT) for i in range(3)]
    images = pa.array([picture(*pair) for pair in pairs], pa.binary())
    return pa.table({"image": images, "label": pa.array([k for k, _ in pairs], pa.int64())})


def folders(folder: Path) -> dict[str, Any]:
    for k in range(COUNT):
        (folder / "data" / str(k)).mkdir(parents=True)
        for i in range(3):
            (folder / "data" / str(k) / f"{i}.png").write_bytes(picture(k, i))
    return {"source": "folder", "path": "data"}


def screened(folder: Path, data: dict[str, Any], **model: Any) -> Run:
    (folder / "perfect.py").write_text(PERFECT)
    entry = {"id": "m", "loader": "python", "ref": "perfect.py:model", "input_size": 32, **model}
    raw = {"version": 1, "name": "order", "data": data, "models": [entry], "stages": [{"kind": "screen"}]}
    summaries = run_serially(parse_job(raw, folder), folder / "run")
    assert [summary.error for summary in summaries if summary.error] == []
    return Run(folder / "run")


@pytest.mark.parametrize("data", [integers, class_label, folders])
@pytest.mark.parametrize("names", [{"class_names": "data"}, {}])
def test_a_perfect_model_is_right_on_every_class(tmp_path: Path, data: Any, names: dict[str, Any]) -> None:
    run = screened(tmp_path, data(tmp_path), **names)
    (found,) = run.rows("select avg(correct::int) as accuracy, count(correct) as images from predictions")
    assert found["accuracy"] == 1.0
    assert found["images"] == (33 if data is class_label else 36)
    assert [warning.code for warning in warnings_of(run) if warning.blocks_gate] == []


def test_names_in_another_order_are_doubted(tmp_path: Path) -> None:
    """What sorting integers as text did: right on 0 and 1 alone."""
    run = screened(tmp_path, integers(tmp_path), class_names=sorted(map(str, range(COUNT))))
    (found,) = run.rows("select avg(correct::int) as accuracy from predictions")
    assert found["accuracy"] == pytest.approx(2 / COUNT)
    assert "outputs_permuted" in [warning.code for warning in warnings_of(run) if warning.blocks_gate]


@pytest.mark.parametrize("labels", ["by_position", dict(enumerate(NAMES))])
def test_labels_that_are_numbers_are_matched_as_the_job_says(tmp_path: Path, labels: Any) -> None:
    run = screened(tmp_path, integers(tmp_path), class_names=NAMES, labels=labels)
    assert run.rows("select avg(correct::int) as accuracy from predictions")[0]["accuracy"] == 1.0


def test_pairs_of_a_file_are_part_of_the_run_s_record(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("".join(f"{k},{name}\n" for k, name in enumerate(NAMES)))
    run = screened(tmp_path, integers(tmp_path), class_names=NAMES, labels="pairs.csv")
    assert run.rows("select avg(correct::int) as accuracy from predictions")[0]["accuracy"] == 1.0
    record = json.loads(run.store.read("job.json") or b"")
    assert record["job"]["models"]["m"]["labels"]["0"] == "zebra"
