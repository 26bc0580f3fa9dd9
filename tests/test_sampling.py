"""DDIM and guidance against closed forms, and against diffusers' own pipeline."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from audit.diffusion.noise import generator_for, latent
from audit.diffusion.sampling import ddim_step, denoise, guided, predictions, sample
from audit.generators import Level
from tests.gaussian import Gaussian


def ode_levels(steps: int) -> list[Level]:
    """Levels equidistant in the angle whose cosine squared is alpha, from almost noise to almost data."""
    angles = torch.linspace(1.5, 0.01, steps + 1, dtype=torch.float64)
    alphas = [math.cos(float(angle)) ** 2 for angle in angles]
    return [Level(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(alphas))]


def test_step_is_equation_13_written_out() -> None:
    z, eps = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.2]], dtype=torch.float64)
    expected = math.sqrt(0.9) * (0.7 - math.sqrt(1 - 0.4) * -0.2) / math.sqrt(0.4) + math.sqrt(1 - 0.9) * -0.2
    assert ddim_step(z, eps, 0.4, 0.9).item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_many_steps_follow_the_gaussian_ode(s: float) -> None:
    """For N(0, s^2) the probability-flow ODE keeps z / sqrt(a s^2 + 1 - a) constant."""
    levels = ode_levels(4000)

    def eps(z: torch.Tensor, t: int, cond: torch.Tensor, attention: object = None) -> torch.Tensor:
        a = levels[t].alpha
        return math.sqrt(1 - a) * z / (a * s**2 + 1 - a)

    z = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 1, 1, 5)
    nothing = torch.zeros((1, len(levels), 1, 1), dtype=torch.float64)
    got = denoise(eps, levels, 1.0, z, nothing, nothing)
    first, last = levels[0].alpha, levels[-1].alpha_next
    expected = z * math.sqrt((last * s**2 + 1 - last) / (first * s**2 + 1 - first))
    assert torch.allclose(got, expected, rtol=2e-3)


def test_guidance_extrapolates_from_null_to_cond() -> None:
    def eps(z: torch.Tensor, t: int, cond: torch.Tensor, attention: object = None) -> torch.Tensor:
        return cond.mean((1, 2))[:, None, None, None] + 0 * z

    z = torch.zeros((2, 1, 1, 1))
    cond, null = torch.full((2, 1, 1), 5.0), torch.full((2, 1, 1), 2.0)
    assert guided(eps, 4.0)(z, 0, cond, null).flatten().tolist() == [2 + 4 * 3, 2 + 4 * 3]
    assert guided(eps, 1.0)(z, 0, cond, null).flatten().tolist() == [5, 5]


def test_each_step_uses_its_own_condition() -> None:
    generator = Gaussian()
    z = latent(generator.latent_shape, "x")[None].double()
    levels = generator.levels()
    cond = generator.embed(["a"])[:, None].repeat(1, len(levels), 1, 1)
    null = generator.embed([""])[:, None].repeat(1, len(levels), 1, 1)
    changed = cond.clone()
    changed[:, 2] += 1.0
    expected = z
    for i, level in enumerate(levels):
        step_cond = changed[:, i]
        on_null, on_cond = generator.eps(expected, level.t, null[:, i]), generator.eps(expected, level.t, step_cond)
        expected = ddim_step(expected, on_null + 3.0 * (on_cond - on_null), level.alpha, level.alpha_next)
    got = denoise(generator.eps, levels, 3.0, z, changed, null)
    assert torch.allclose(got, expected, atol=1e-12)
    assert not torch.allclose(got, denoise(generator.eps, levels, 3.0, z, cond, null), atol=1e-6)


def test_predictions_are_posterior_means() -> None:
    """For data N(m, s^2): E[z_0 | z_t] = m + sqrt(a) s^2 (z_t - sqrt(a) m) / (a s^2 + 1 - a); the last one is z_0."""
    generator = Gaussian(steps=5)
    levels, z = generator.levels(), latent(generator.latent_shape, "x")[None].double()
    cond = generator.embed(["a"])[:, None].repeat(1, len(levels), 1, 1)
    mean, s = generator.pull * math.tanh(cond[0, 0].mean().item()), generator.s
    expected, now = [], z
    for level in levels:
        a = level.alpha
        expected.append(mean + math.sqrt(a) * s**2 * (now - math.sqrt(a) * mean) / (a * s**2 + 1 - a))
        now = ddim_step(now, generator.eps(now, level.t, cond[:, 0]), a, level.alpha_next)
    for last in (1, 3, 5, 9):
        got = predictions(generator.eps, levels, 1.0, z, cond, cond, last)
        wanted = [*expected[-min(last, 5) : -1], now]
        assert len(got) == len(wanted)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted, strict=True))


def test_noise_belongs_to_the_key() -> None:
    assert torch.equal(latent((2, 3, 3), 0, "crab", 1), latent((2, 3, 3), 0, "crab", 1))
    assert not torch.equal(latent((2, 3, 3), 0, "crab", 1), latent((2, 3, 3), 0, "crab", 2))
    # parts are separated: ("ab", "c") is not ("a", "bc")
    assert generator_for("ab", "c").initial_seed() != generator_for("a", "bc").initial_seed()


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_samples_equal_the_diffusers_pipeline(prediction: str, tiny_pipeline) -> None:
    """The same weights, latents and prompts through diffusers' own loop give the same images."""
    folder = tiny_pipeline(prediction)
    from diffusers import StableDiffusionPipeline

    from audit.generators import diffusers as plugin

    generator = plugin.load(plugin.Options(ref=str(folder), steps=7, guidance_scale=4.0))
    prompts = ["a photograph of a crab on sand", "a photograph of a car"]
    z = torch.stack([latent(generator.latent_shape, prompt) for prompt in prompts])
    ours = sample(generator, prompts, z)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(prompts, latents=z, num_inference_steps=7, guidance_scale=4.0, output_type="pt").images
    assert torch.allclose(ours, theirs, atol=2e-4)
    assert ours.std() > 0.01
