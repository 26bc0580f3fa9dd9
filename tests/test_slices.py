"""A failure mode's real images as a data set: byte for byte, in order, and readable as the source of a job."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from audit.datasets import folder
from audit.errors import ConfigError
from audit.results.sql import Run
from audit.slices import Slice, _images, write_slice
from pipelines.cli import app
from tests.audited import audited, mode, said

FORMATS = {"one.png": "PNG", "two.jpg": "JPEG", "three": "WEBP", "gone.png": "PNG", "changed.png": "PNG"}


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, bytes]:
    """Images by name, in a folder."""
    made = {}
    (tmp_path / "pool").mkdir()
    for shade, (name, kind) in enumerate(FORMATS.items()):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * shade, 0, 0)).save(buffer, kind)
        made[name] = buffer.getvalue()
        (tmp_path / "pool" / name).write_bytes(made[name])
    return made


@pytest.fixture
def run(tmp_path: Path, pool: dict[str, bytes]) -> Run:
    ids = {name: hashlib.sha256(data).hexdigest() for name, data in pool.items()}
    shown = mode("crab", "on sand")
    shown["evidence"] = [ids[name] for name in ("two.jpg", "gone.png", "three", "changed.png", "one.png")]
    guess = mode("crab", "red", "hypothesis")
    answers = said("pool", "v", dict.fromkeys(ids.values(), "crab"))
    answers += said("pool", "reference", {ids["two.jpg"]: "boat", ids["three"]: "bird"})
    made = audited(tmp_path / "run", [shown, guess], answers, pool=tmp_path / "pool")
    items = [{"item_id": i, "role": "pool", "uri": name, "status": "ok"} for name, i in ids.items()]
    made.store.commit("items", "0-inventory", {"items": items})
    (tmp_path / "pool" / "gone.png").unlink()
    (tmp_path / "pool" / "changed.png").write_bytes(pool["one.png"])
    return Run(made.location)


def test_the_images_come_as_they_are_nearest_first(run: Run, pool: dict[str, bytes], tmp_path: Path) -> None:
    assert write_slice(run, "crab on sand", tmp_path / "slice") == Slice(3, 2)
    with (tmp_path / "slice" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["uri"], row["says"], row["suggested_label"]) for row in rows]
    assert told == [("two.jpg", "crab", "boat"), ("three", "crab", "bird"), ("one.png", "crab", "")]
    assert [Path(row["file_name"]).suffix for row in rows] == [".jpg", ".webp", ".png"]
    assert len(list((tmp_path / "slice").iterdir())) == 4
    for row in rows:
        data = (tmp_path / "slice" / row["file_name"]).read_bytes()
        assert data == pool[row["uri"]]
        assert hashlib.sha256(data).hexdigest() == row["item_id"]


def test_a_slice_is_a_data_set_for_a_job(run: Run, tmp_path: Path) -> None:
    write_slice(run, "crab on sand", tmp_path / "slice")
    source = folder.open_source(folder.Options(path=tmp_path / "slice"))
    entries = list(source.entries())
    assert [entry.label for entry in entries] == [None, None, None]  # nobody has checked what the other model says
    assert all(source.read([entry.uri for entry in entries]))


def test_labels_of_the_data_set_are_labels_of_the_slice(run: Run, pool: dict[str, bytes], tmp_path: Path) -> None:
    known = hashlib.sha256(pool["three"]).hexdigest()
    answers = [{**row, "label": "cat"} for row in said("data", "v", {known: "crab"})]
    item = {"item_id": known, "role": "data", "uri": str(tmp_path / "pool" / "three"), "status": "ok", "label": "cat"}
    run.store.commit("labelled", "0-inventory", {"items": [item], "predictions": answers})
    rows = _images(Run(run.location), run.rows("select * from failure_modes where verdict = 'confirmed'")[0])
    told = {row["item_id"]: (row["role"], row["label"], row["suggested_label"]) for row in rows}
    assert told[known] == ("data", "cat", "cat")
    assert told[hashlib.sha256(pool["two.jpg"]).hexdigest()] == ("pool", None, "boat")


def test_what_has_no_images_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a hypothesis without real images"):
        write_slice(run, "crab red", tmp_path / "slice")
    with pytest.raises(ConfigError, match=r"unknown failure mode 'crab on sandy'\. Did you mean 'crab on sand'"):
        write_slice(run, "crab on sandy", tmp_path / "slice")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="exists; name another folder"):
        write_slice(run, "crab on sand", tmp_path / "mine")
    assert not (tmp_path / "slice").exists()


def test_the_command_says_what_is_gone(run: Run, tmp_path: Path) -> None:
    shell = CliRunner()
    told = shell.invoke(app, ["slice", str(run.root), "crab on sand", str(tmp_path / "a"), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == {"folder": str(tmp_path / "a"), "images": 3, "gone": 2}
    words = shell.invoke(app, ["slice", str(run.root), "crab on sand", str(tmp_path / "b")])
    assert "wrote 3 images" in words.output
    assert "2 more are gone from their data set" in words.output
