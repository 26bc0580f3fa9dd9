"""The shipped models are what their cards say, and their recipes run, stop and resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.classifiers import hf
from audit.generators import diffusers
from audit.reference import local_folder
from audit.zoo import measure
from audit.zoo.recipes.loop import Budget, Schedule, Unfinished, fit
from audit.zoo.recipes.train import ORDER, train
from audit.zoo.scenes import LABELS
from audit.zoo.world import load_world

SHIPPED = ("diffusion", "clip", "reference", "shortcut-a", "shortcut-b")
WORLD = load_world()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def test_the_weights_are_small_and_each_has_a_card() -> None:
    files = [f for name in SHIPPED for f in local_folder(f"zoo:{name}").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 25e6
    assert max(f.stat().st_size for f in files) <= 15e6
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    for name in SHIPPED:
        card = (local_folder(f"zoo:{name}") / "README.md").read_text("utf-8")
        for part in ("Recipe:", "Time:", "Data:", "Licence:", "Measured"):
            assert part in card


def test_the_planted_modes_are_as_strong_as_the_truth_table_says(cache: Path) -> None:
    """Measured again, on the first scenes of the held-out split."""
    truth = json.loads(measure.TRUTH.read_text("utf-8"))
    again = measure.truth_table(WORLD, cache, 700)
    assert [m["id"] for m in truth["modes"]] == [m.id for m in WORLD.modes]
    for told, seen in zip(truth["modes"], again["modes"], strict=True):
        margin = 3 * 0.5 / np.sqrt(seen["scenes"])
        assert abs(told["strength"] - seen["strength"]) <= margin, told["id"]
        assert seen["strength"] >= 0.4
        assert seen["reference"] <= 0.05
        assert seen["without_feature"] <= 0.05
    for control in again["controls"]:
        assert control["called_without_it"] <= 0.02
    for accuracy in again["accuracy"].values():
        assert accuracy["labelled"] >= 0.96
    assert again["accuracy"]["reference"]["heldout"] >= 0.97


def test_the_generator_obeys_and_the_autoencoder_keeps_detail(cache: Path) -> None:
    quality = measure.generator_quality(cache, samples=1)
    assert quality["psnr"] >= 28
    assert quality["class_obeyed"] >= 0.8  # 54 samples: the card's figure is from more
    assert quality["background_obeyed"] >= 0.9


def test_nothing_relies_on_the_constants_of_stable_diffusion() -> None:
    generator = diffusers.load(diffusers.Options(ref="zoo:diffusion"))
    assert generator.latent_shape[0] != 4
    assert generator.vae.config.scaling_factor not in (1.0, 0.18215)


def test_clip_tells_objects_and_places_apart(cache: Path) -> None:
    quality = measure.clip_quality(WORLD, cache, 300)
    assert quality["zero_shot_class"] >= 0.95
    assert quality["zero_shot_background"] >= 0.95


def test_every_recipe_runs_and_its_result_loads(tmp_path: Path) -> None:
    """A shortened training of every model, through the command's own function. It leaves the package alone."""
    train("all", tmp_path, short=True)
    weights = tmp_path / "short" / "weights"
    assert {p.name for p in weights.iterdir()} == set(SHIPPED)
    assert set(ORDER) - {"autoencoder"} == set(SHIPPED)
    for name in ("reference", "shortcut-a", "shortcut-b"):
        assert hf.load(hf.Options(ref=str(weights / name)), ()).class_names == LABELS
    generator = diffusers.load(diffusers.Options(ref=str(weights / "diffusion"), steps=2))
    z = torch.zeros((1, *generator.latent_shape))
    assert generator.decode(generator.eps(z, 500, generator.embed(["a crab"]))).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("micro", [1, 2])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, micro: int) -> None:
    schedule = Schedule(steps=8, learning_rate=0.05, warmup=2, micro_batches=micro)

    def trained(folder: str, budgets: list[Budget]) -> dict[str, Tensor]:
        for budget in budgets:
            torch.manual_seed(3)
            model = torch.nn.Linear(4, 2)

            def loss(generator: torch.Generator, model: torch.nn.Module = model) -> Mapping[str, Tensor]:
                x = torch.randn((16, 4), generator=generator)
                return {"mse": (model(x) - x[:, :2]).square().mean()}

            expected = pytest.raises(Unfinished, match="of 8") if budget.seconds == 0 else nullcontext()
            with expected:
                fit(model, loss, schedule, tmp_path / folder, budget=budget, report=lambda line: None)
        return model.state_dict()

    straight = trained("a", [Budget()])
    fit_twice = trained("b", [Budget(seconds=0), Budget(checkpoint_every=3), Budget()])
    for name, value in straight.items():
        assert torch.equal(value, fit_twice[name])


def test_a_training_that_ran_out_of_time_writes_no_weights(tmp_path: Path) -> None:
    with pytest.raises(Unfinished, match="stopped at step 0 of 4"):
        train("reference", tmp_path / "work", tmp_path / "weights", minutes=1e-9, short=True)
    assert not (tmp_path / "weights").exists()
    train("reference", tmp_path / "work", tmp_path / "weights", short=True)
    assert hf.load(hf.Options(ref=str(tmp_path / "weights" / "reference")), ()).class_names == LABELS


def test_an_interrupted_step_resumes_from_the_last_checkpoint(tmp_path: Path) -> None:
    """A crash in step 6 with a checkpoint at 4: the rest is done again, with the same result."""
    schedule = Schedule(steps=8, learning_rate=0.05, warmup=2)
    calls = 0

    def run(crash_at: int, folder: str) -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = torch.nn.Linear(4, 2)

        def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
            nonlocal calls
            calls += 1
            if calls == crash_at:
                raise KeyboardInterrupt
            x = torch.randn((16, 4), generator=generator)
            return {"mse": (model(x) - x[:, :2]).square().mean()}

        fit(model, loss, schedule, tmp_path / folder, budget=Budget(checkpoint_every=4), report=lambda line: None)
        return model.state_dict()

    with pytest.raises(KeyboardInterrupt):
        run(6, "crashed")
    resumed = run(-1, "crashed")
    assert calls == 6 + 4
    calls = 0
    straight = run(-1, "straight")
    for name, value in straight.items():
        assert torch.equal(value, resumed[name])
