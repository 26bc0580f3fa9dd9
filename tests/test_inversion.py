"""Inversion on the Gaussian generator, whose every step is a known line: exact inverses, and null texts that help."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from audit.diffusion.inversion import NullText, _best_null, ddim_inversion, null_text_inversion
from audit.diffusion.noise import latent
from audit.diffusion.sampling import ddim_step, denoise
from audit.generators import Attention, Level
from tests.gaussian import Gaussian


def clean(names: list[str]) -> Tensor:
    return torch.stack([latent((2, 4, 4), name).double() * 0.5 for name in names])


def test_a_step_of_plain_inversion_written_out() -> None:
    """z_t = sqrt(a_t) (z - sqrt(1 - a') e) / sqrt(a') + sqrt(1 - a_t) e with e at the cleaner latent, from the last."""
    generator, z = Gaussian(), clean(["a"])
    cond = generator.embed(["a"])
    expected = [z]
    for level in reversed(generator.levels()):
        now, a, b = expected[-1], level.alpha_next, level.alpha
        e = generator.eps(now, level.t, cond)
        expected.append(math.sqrt(b) * (now - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e)
    got = ddim_inversion(generator, z, cond)
    assert len(got) == len(generator.levels()) + 1
    for mine, theirs in zip(got, reversed(expected), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_one_refinement_takes_eps_once_more_at_what_it_gave() -> None:
    """z_t as above with e at the cleaner latent, then the same formula once more with e at that z_t."""
    generator, z = Gaussian(), clean(["a"])
    cond = generator.embed(["a"])
    for level in reversed(generator.levels()):
        cleaner, a, b = z, level.alpha_next, level.alpha
        for _ in range(2):
            e = generator.eps(z, level.t, cond)
            z = math.sqrt(b) * (cleaner - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e
    assert torch.allclose(ddim_inversion(generator, clean(["a"]), cond, 1)[0], z, atol=1e-12)


@pytest.mark.parametrize("s", [0.5, 1.0, 1.6])
def test_many_steps_invert_the_gaussian_ode(s: float) -> None:
    """For N(0, s^2) the flow keeps z / sqrt(a s^2 + 1 - a): z_T is known from z_0."""
    generator = Gaussian(s=s, steps=3000, pull=0.0)
    z = clean(["a", "b"])
    last, first = generator.levels()[-1].alpha_next, generator.levels()[0].alpha
    growth = math.sqrt((first * s**2 + 1 - first) / (last * s**2 + 1 - last))
    got = ddim_inversion(generator, z, generator.embed(["a", "b"]))[0]
    assert torch.allclose(got, growth * z, rtol=3e-3)


def test_refined_inversion_is_the_exact_inverse() -> None:
    """A Gaussian step is z' = A z + B; the literal inverse (z' - B) / A, step by step, is what refinements reach."""
    generator, z = Gaussian(s=0.9, steps=12), clean(["a", "b"])
    cond = generator.embed(["a", "b"])
    exact = z
    for level in reversed(generator.levels()):
        zero, one = torch.zeros_like(z), torch.ones_like(z)
        b = ddim_step(zero, generator.eps(zero, level.t, cond), level.alpha, level.alpha_next)
        a = ddim_step(one, generator.eps(one, level.t, cond), level.alpha, level.alpha_next) - b
        exact = (exact - b) / a
    plain, refined = (ddim_inversion(generator, z, cond, n)[0] for n in (0, 60))
    assert (plain - exact).abs().max() > 0.01
    assert torch.allclose(refined, exact, atol=1e-10)
    repeated = cond[:, None].repeat(1, 12, 1, 1)
    assert torch.allclose(denoise(generator.eps, generator.levels(), 1.0, refined, repeated, repeated), z, atol=1e-9)


class Steerable(Gaussian):
    """A Gaussian whose mean is any linear map of the condition, so that a null text can put it anywhere."""

    guidance_scale = 3.0

    def eps(self, z: Tensor, t: int, cond: Tensor, attention: Attention | None = None) -> Tensor:
        a = self.alpha(t)
        mean = 0.05 * torch.einsum("btd,td->b", cond, self.words[7])[:, None, None, None]
        return (1 - a) ** 0.5 * (z - a**0.5 * mean) / (a * self.s**2 + 1 - a)


SETTINGS = NullText(iterations=40, step_size=0.02)


def inverted(names: list[str], settings: NullText = SETTINGS):
    generator = Steerable()
    cond, null = generator.embed(names), generator.embed(["nothing"] * len(names))
    return generator, cond, null, null_text_inversion(generator, clean(names), cond, null, settings, 60)


def reconstruction(generator: Gaussian, cond: Tensor, z: Tensor, null: Tensor) -> Tensor:
    repeated = cond[:, None].repeat(1, len(generator.levels()), 1, 1)
    return denoise(generator.eps, generator.levels(), generator.guidance_scale, z, repeated, null)


def test_null_texts_bring_the_guided_process_back_to_the_image() -> None:
    names = ["a", "b", "c"]
    generator, cond, null, found = inverted(names)
    before, after = found.null_losses[:, 0], found.null_losses[:, 1]
    assert found.null_losses.shape == (6, 2, 3)
    assert (after <= before).all()
    assert ((after < before) | (before < 1.2e-4)).all()
    assert (after[0] < before[0]).all()
    plain = reconstruction(generator, cond, found.latent, null[:, None].repeat(1, 6, 1, 1))
    better = reconstruction(generator, cond, found.latent, found.null)
    errors = [(x - clean(names)).square().flatten(1).mean(1) for x in (plain, better)]
    assert (errors[1] < errors[0] / 20).all()
    assert torch.equal(found.latent, ddim_inversion(generator, clean(names), cond, 60)[0])


def test_the_first_null_text_written_out() -> None:
    """Two Adam steps of 1e-2 (1 - 0 / 100) on the error of the first step's latent, from the empty prompt's text."""
    generator, cond, start, found = inverted(["a"], NullText(iterations=2, step_size=1e-2))
    level, pivot = generator.levels()[0], ddim_inversion(generator, clean(["a"]), cond, 60)
    null, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    tried = []
    for k in range(3):
        null.requires_grad_(True)
        on_cond, on_null = (generator.eps(pivot[0], level.t, text) for text in (cond, null))
        eps = on_null + 3.0 * (on_cond - on_null)
        loss = (ddim_step(pivot[0], eps, level.alpha, level.alpha_next) - pivot[1]).square().mean()
        tried.append((loss.item(), null.detach().clone()))
        (g,) = torch.autograd.grad(loss, null)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = m / (1 - 0.9 ** (k + 1)) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
        null = null.detach() - 1e-2 * step
    assert torch.allclose(found.null[:, 0], min(tried, key=lambda pair: pair[0])[1], atol=1e-9)
    assert found.null_losses[0, 0, 0].item() == pytest.approx(tried[0][0], abs=1e-12)
    assert found.null_losses[0, 1, 0].item() == pytest.approx(min(tried)[0], abs=1e-12)


def test_all_null_texts_written_out() -> None:
    """Every step begins with the null text and at the latent that the step before ended with, has a step size and a
    threshold of its own, and keeps its best iterate, which with steps as large as these is often not the last."""
    settings = NullText(iterations=8, step_size=0.3)
    generator, cond, null, found = inverted(["a"], settings)
    pivot = ddim_inversion(generator, clean(["a"]), cond, 60)
    z, kept_last, stopped_early = pivot[0], [], []
    for i, level in enumerate(generator.levels()):
        a, b = level.alpha, level.alpha_next

        def landed(text: Tensor, z: Tensor = z, a: float = a, b: float = b, t: int = level.t) -> Tensor:
            on_cond, on_null = generator.eps(z, t, cond), generator.eps(z, t, text)
            e = on_null + 3.0 * (on_cond - on_null)
            return math.sqrt(b) * (z - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e

        text, m, v, tried = null, torch.zeros_like(null), torch.zeros_like(null), []
        for k in range(9):
            text = text.detach().requires_grad_(True)
            loss = (landed(text) - pivot[i + 1]).square().mean()
            tried.append((loss.item(), text.detach()))
            if loss < 1e-5 + 2e-5 * i:
                break
            (g,) = torch.autograd.grad(loss, text)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            adam = m / (1 - 0.9 ** (k + 1)) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            text = text - 0.3 * (1 - i / 100) * adam
        lowest, null = min(tried, key=lambda pair: pair[0])
        kept_last.append(null is tried[-1][1])
        stopped_early.append(len(tried) < 9)
        assert torch.allclose(found.null[0, i], null[0], atol=1e-8)
        assert found.null_losses[i, :, 0].tolist() == pytest.approx([tried[0][0], lowest], rel=1e-6)
        z = landed(null).detach()
    assert not all(kept_last)
    assert any(stopped_early)


@pytest.mark.parametrize(("error", "moved"), [(1.05e-4, False), (1.15e-4, True)])
def test_each_step_has_a_threshold_of_its_own(error: float, moved: bool) -> None:
    """At step 5 a null text is left as it is under a mean squared error of 1e-5 + 5 * 2e-5 = 1.1e-4; the error of the
    null text itself, as a latent, from 0."""
    null = torch.full((1, 1, 4), math.sqrt(error), dtype=torch.float64)
    best, first, lowest = _best_null(lambda text: text[..., None], torch.zeros(1, 1, 4, 1), null, NullText(), 5)
    assert first.item() == pytest.approx(error)
    assert torch.equal(best, null) != moved
    assert (lowest < first).item() == moved


def test_the_numbers_are_those_of_the_source() -> None:
    settings = NullText()
    assert (settings.iterations, settings.rate(0), settings.rate(10)) == (10, 1e-2, pytest.approx(9e-3))
    assert (settings.enough(0), settings.enough(5)) == (1e-5, pytest.approx(1.1e-4))


def test_an_item_that_is_good_enough_stops_and_does_not_depend_on_its_batch() -> None:
    """Steps so large that going on would move it; alone and in a batch with others that go on it is the same."""
    names = [f"item {i}" for i in range(5)]
    settings = SETTINGS
    _, _, _, together = inverted(names, settings)
    stops = together.null_losses[:, 1] < torch.tensor([settings.enough(i) for i in range(6)])[:, None]
    assert stops.any()
    for i in (0, 3):
        _, _, _, alone = inverted([names[i]], settings)
        assert torch.allclose(alone.null[0], together.null[i], atol=1e-9)
        assert torch.allclose(alone.null_losses[..., 0], together.null_losses[..., i], atol=1e-12)


def test_without_guidance_the_null_text_is_left_alone() -> None:
    generator = Steerable()
    generator.guidance_scale = 1.0
    cond, null = generator.embed(["a"]), generator.embed([""])
    found = null_text_inversion(generator, clean(["a"]), cond, null, NullText(), 40)
    assert torch.equal(found.null, null[:, None].repeat(1, 6, 1, 1))


def test_levels_of_the_test_generator() -> None:
    """The steps run from noise to image, each from where the one before ended."""
    levels = Gaussian().levels()
    assert all(isinstance(level, Level) and level.alpha < level.alpha_next for level in levels)
    assert all(a.alpha_next == b.alpha for a, b in itertools.pairwise(levels))
