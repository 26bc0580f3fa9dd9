"""`audit validate`: models are loaded and shown an image, images are read, and nothing that fails in a run is fine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from audit.errors import AuditError, ConfigError, DataError, ModelError
from audit.models.small_images import small_images
from pipelines.cli import app
from pipelines.validation import Validation, validate
from pipelines.validation_text import lines, mapping

# Two outputs: three times the mean of the red channel, and of the blue one.
MODEL = """
import torch
class Colours(torch.nn.Module):
    def forward(self, x):
        return 3 * torch.stack([x[:, 0].mean((1, 2)), x[:, 2].mean((1, 2))], 1)
def load(): return Colours()
def wrong_shape(): return torch.nn.Sequential(Colours(), torch.nn.Flatten(0))
def three(): return torch.nn.Sequential(Colours(), torch.nn.Linear(2, 3))
class Single(Colours):
    def forward(self, x):
        return super().forward(x).reshape(1, -1)
class Fails(Colours):
    def forward(self, x):
        if x.std() > 0.01:
            raise ZeroDivisionError("only grey images")
        return super().forward(x)
class Infinite(Colours):
    def forward(self, x):
        return super().forward(x) / (x.std() < 0.01)
class Random(Colours):
    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), 2)
"""
JOB = """
version: 1
name: {name}
data: {{source: folder, path: data}}
models: [{{id: m, loader: python, ref: 'model.py:{function}', input_size: {size}}}]
stages: [{{kind: screen}}]
output: {{uri: {folder}/runs}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three blue and two red images of 40 x 30, every second row darker, and a model of the two colours."""
    for label, colour, count in (("blue", (10, 20, 240), 3), ("red", (250, 20, 10), 2)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((30, 40, 3), colour, np.uint8)
            pixels[::2] //= 2
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def job(folder: Path, function: str = "load", size: int = 24, edit: Any = str) -> Path:
    path = folder / "job.yaml"
    path.write_text(edit(JOB.format(name="shown", function=function, size=size, folder=folder)))
    return path


def checked(folder: Path, **given: Any) -> Validation:
    return validate(job(folder, **given))


def test_every_model_is_shown_an_image_and_its_answer_is_the_models_own(folder: Path) -> None:
    found = checked(folder)
    (model,), (data,) = found.models, found.sources
    assert (data.images, data.classes, data.unlabelled, data.refused) == (5, {"blue": 3, "red": 2}, 0, {})
    assert set(data.sides) == {30}
    assert (model.image, model.label) == ("blue/0.png", "blue")
    assert model.outputs == ("blue", "red")
    assert model.named_by_data
    pixels = np.asarray(Image.open(folder / "data" / "blue" / "0.png"), np.float64) / 255
    assert (model.entered.height, model.entered.width) == (24, 24)
    assert model.entered.mean == pytest.approx(pixels.mean(), abs=0.01)
    assert model.entered.least == pytest.approx(pixels.min(), abs=0.02)
    red, blue = np.exp(3 * pixels[..., 0].mean()), np.exp(3 * pixels[..., 2].mean())
    # The order of the data's classes, blue before red, is not the model's: the first output is the red one.
    assert dict(model.top) == {
        "blue": pytest.approx(red / (red + blue), abs=0.01),
        "red": pytest.approx(blue / (red + blue), abs=0.01),
    }
    assert model.top[0][0] == "red"
    assert found.warnings == found.notes == ()
    text = "\n".join(lines(found))
    assert "outputs   0 blue, 1 red (named after the data's classes)" in text
    assert "enters as 24 x 24 pixels" in text
    assert f"red {model.top[0][1]:.1%}" in text


def test_json_has_all_of_it(folder: Path) -> None:
    done = CliRunner().invoke(app, ["validate", str(job(folder, size=100)), "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["job"], told["models"], told["stages"]) == ("shown", ["m"], ["0-inventory", "1-screen"])
    assert told["data"][0]["classes"] == {"blue": 3, "red": 2}
    assert told["loaded"][0]["outputs"] == ["blue", "red"]
    assert told["loaded"][0]["entered"]["width"] == 100
    assert [warning["code"] for warning in told["warnings"]] == ["small_images"]


@pytest.mark.parametrize(("size", "warned"), [(60, False), (61, True), (224, True), (16, False)])
def test_images_much_smaller_than_the_input_are_told(folder: Path, size: int, warned: bool) -> None:
    found = checked(folder, size=size)
    assert [warning.code for warning in found.warnings] == ["small_images"] * warned
    if warned:
        assert "30 pixels" in found.warnings[0].message
        assert f"{size} x {size}" in found.warnings[0].message
        assert "input_size" in found.warnings[0].message


def test_the_median_of_the_shorter_sides_counts() -> None:
    assert small_images("m", (64, 64), [10, 10, 40, 40, 40]) is None
    assert small_images("m", (64, 200), [32]) is None  # the shorter side of the input, too
    assert small_images("m", (200, 64), [31]) is not None
    found = small_images("m", (64, 64), [10, 10, 10, 40, 40], "pool")
    assert found is not None
    assert (found.code, found.model_id, found.role, found.blocks_gate) == ("small_images", "m", "pool", False)
    assert small_images("m", (64, 64), []) is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("Fails", "ZeroDivisionError: only grey images"),
        ("Single", r"for 8 images it returns .* of shape \(1, 16\)"),
        ("Infinite", "NaN or infinity"),
        ("wrong_shape", "logits of shape"),
        ("three", "3 outputs"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_a_model_that_would_fail_in_the_run_fails_here(folder: Path, function: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        checked(folder, function=function)
    done = CliRunner().invoke(app, ["validate", str(job(folder, function))])
    assert done.exit_code == 2
    assert "fine" not in done.stdout


def test_a_model_that_answers_differently_each_time_is_told_of(folder: Path) -> None:
    torch.manual_seed(0)
    (warning,) = checked(folder, function="Random").warnings
    assert (warning.code, warning.model_id, warning.blocks_gate) == ("unstable_output", "m", True)
    done = CliRunner().invoke(app, ["validate", str(job(folder, "Random"))])
    assert done.exit_code == 0
    assert "fine" not in done.stdout
    assert "will not pass. Next: audit run" in " ".join(done.stdout.split())
    assert "another output for an image alone" in " ".join(done.stderr.split())


def test_images_that_cannot_be_read_are_counted_or_refused(folder: Path) -> None:
    for name in ("blue/0.png", "blue/1.png"):
        (folder / "data" / name).write_bytes(b"nothing")
    found = checked(folder)
    assert found.sources[0].refused == {"unidentified": 2}
    assert found.models[0].image == "blue/2.png"
    assert [(warning.code, warning.items) for warning in found.warnings] == [("unusable_images", 2)]
    for path in (folder / "data").glob("*/*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(
        DataError, match=r"none of 5 tested images of the data .* unidentified \(5\); for example 'blue/0.png'"
    ):
        checked(folder)


def test_a_pool_is_read_too(folder: Path) -> None:
    def with_pool(text: str) -> str:
        return f"{text}pool: {{source: folder, path: pool}}\n"

    with pytest.raises(AuditError, match="pool"):
        checked(folder, edit=with_pool)
    (folder / "pool").mkdir()
    (folder / "pool" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="of the pool"):
        checked(folder, edit=with_pool)
    os.replace(folder / "data" / "red" / "0.png", folder / "pool" / "b.png")
    assert checked(folder, edit=with_pool).sources[1].refused == {"unidentified": 1}


def test_data_without_labels_are_told_of(folder: Path) -> None:
    (folder / "flat").mkdir()
    os.replace(folder / "data" / "red" / "0.png", folder / "flat" / "0.png")
    names = "input_size: 24, class_names: [red, blue]"
    found = checked(folder, edit=lambda text: text.replace("path: data", "path: flat").replace("input_size: 24", names))
    assert "no_label_column" in [warning.code for warning in found.warnings]
    assert found.models[0].top[0][0] == "red"
    assert not found.models[0].named_by_data


def test_a_class_that_the_data_lack_is_refused(folder: Path) -> None:
    text = "stages: [{kind: screen}, {kind: adequacy, classes: [green]}]\n"
    text += "generator: {loader: diffusers, ref: 'zoo:diffusion'}"
    with pytest.raises(ConfigError, match="unknown class 'green'"):
        checked(folder, edit=lambda job: job.replace("stages: [{kind: screen}]", text))


def test_many_outputs_are_shown_by_their_ends() -> None:
    assert mapping([f"c{number}" for number in range(8)]) == ", ".join(f"{n} c{n}" for n in range(8))
    assert mapping([f"c{n}" for n in range(1000)]) == "0 c0, 1 c1, 2 c2, 3 c3, 4 c4, 5 c5, ..., 998 c998, 999 c999"


def test_rows_of_a_file_of_predictions_are_compared_with_the_listing(folder: Path) -> None:
    """Five images, four of which have a row; and a row of no image."""

    def stored(text: str) -> str:
        return text.replace("loader: python, ref: 'model.py:load', input_size: 24", "loader: predictions, path: p.csv")

    rows = "image,predicted\nblue/0.png,blue\nblue/1.png,blue\nblue/2.png,red\nred/0.png,red\n"
    (folder / "p.csv").write_text(f"{rows}red/7.png,red\n")
    found = {one.code: one for one in checked(folder, edit=stored).warnings}
    assert found.keys() == {"no_prediction", "unused_predictions"}
    assert (found["no_prediction"].items, found["no_prediction"].blocks_gate) == (1, True)
    assert "without a prediction: 1, such as 'red/1.png'" in found["no_prediction"].message
    assert "'red/7.png'" in found["unused_predictions"].message
    (folder / "p.csv").write_text("image,predicted\ngreen/0.png,blue\nred/0.tif,red\n")
    with pytest.raises(ModelError, match="no row belongs to an image of the data"):
        checked(folder, edit=lambda text: stored(text).replace("path: p.csv", "path: p.csv, match: path"))
    (folder / "p.csv").write_text(f"{rows}red/1.png,red\n")
    assert checked(folder, edit=stored).warnings == ()
