"""From `audit init` to a search with a Stable Diffusion from the hub: its files, keys and shapes, narrow and random."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from audit.config import load_job
from audit.diffusion.noise import latent
from audit.results.sql import Run
from audit.zoo.export import export
from pipelines.cli import app
from tests.hub_folder import REPOSITORY, REVISION, own_pipeline, publish, stable_diffusion
from tests.in_process import done

CLASSES = ["bird", "car"]
SAMPLES, STEPS = 2, 2


def write_job(data: Path, job: Path) -> None:
    """What `audit init` writes, with the generator and the stages of the search as its comments have them."""
    options = ["--model", "zoo:shortcut-a", "--against", "zoo:reference", "--embedder", "zoo:clip"]
    result = CliRunner().invoke(app, ["init", *options, "--data", str(data), "--job", str(job)])
    assert result.exit_code == 0, result.output
    generator = f"generator: {{loader: diffusers, ref: {REPOSITORY}, revision: {REVISION}, steps: {STEPS}}}\n"
    classes = ", ".join(CLASSES)
    adequacy = f"  - {{kind: adequacy, classes: [{classes}], samples: {SAMPLES}, threshold: 0}}\n"
    numbers = "seeds: 1, steps: 1, cutouts: 1, checkpoint: none"
    search = f"  - {{kind: disagreement, maximise: new, minimise: old, classes: [{CLASSES[0]}], {numbers}}}\n"
    text = job.read_text("utf-8")
    before, stages, after = text.partition("stages:\n")
    screen = next(line for line in after.splitlines(keepends=True) if line.startswith("  - {kind: screen"))
    discover = next(line for line in after.splitlines(keepends=True) if line.startswith("  - {kind: discover"))
    after = after.replace(screen, screen + adequacy + search).replace(discover, "")
    job.write_text(before + generator + stages + after, "utf-8")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Published on the hub."""
    folder = stable_diffusion(tmp_path / "hub")
    publish(monkeypatch, folder, tmp_path / "fetched")
    return folder


def image(run: Run, image_id: str) -> np.ndarray:
    """(height, width, 3) in 0 to 255."""
    (row,) = run.rows("select png from images where image_id = ?", [image_id])
    return np.asarray(Image.open(io.BytesIO(row["png"])), np.float64)


def drawn_by_diffusers(repository: Path, prompt: str, start: torch.Tensor) -> np.ndarray:
    """The library's own pipeline with DDIM, and the paper's guidance of 3."""
    pipeline = own_pipeline(repository)
    drawn = pipeline([prompt], num_inference_steps=STEPS, guidance_scale=3.0, latents=start, output_type="np").images
    return np.asarray(drawn[0], np.float64) * 255


def test_a_generator_from_the_hub_goes_from_init_to_a_search(repository: Path, tmp_path: Path) -> None:
    export("labelled", tmp_path / "data", "folder", limit=20)
    write_job(tmp_path / "data", tmp_path / "job.yaml")
    run = done(load_job(tmp_path / "job.yaml"), tmp_path / "run", 2)

    drawn = run.rows("select subject_id from measurements where name = 'auditable' and value = 1 order by subject_id")
    assert [row["subject_id"] for row in drawn] == CLASSES
    assert len(run.rows("select image_id from images where kind = 'sample'")) == SAMPLES * len(CLASSES)
    (found,) = run.rows("select * from explanations")
    assert (found["method"], found["target_class"], found["status"]) == ("disagreement", CLASSES[0], "ok")
    for score in ("score_before", "score_after", "other_before", "other_after"):
        assert 0 <= found[score] <= 1
    assert found["loss_after"] <= found["loss_before"]
    start = image(run, found["start_image_id"])
    assert start.shape == image(run, found["image_id"]).shape == (512, 512, 3)
    z = latent((4, 64, 64), f"0/disagreement/{CLASSES[0]}/0")[None]
    assert np.abs(start - drawn_by_diffusers(repository, f"a photograph of a {CLASSES[0]}", z)).max() <= 1
