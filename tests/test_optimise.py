"""Algorithm 1 on a generator in float64: gradients, independence of items, the choice of the iterate, bad items."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audit.augment import cutouts
from audit.diffusion import optimise as module
from audit.diffusion.noise import generator_for, latent
from audit.diffusion.optimise import Settings, Variables, optimise, start_from_prompt
from audit.diffusion.sampling import denoise
from tests.gaussian import Gaussian

SETTINGS = Settings(
    steps=4, step_size_latent=0.02, step_size_text=0.05, cutouts=3, cutout_noise=0.01, cutout_size=3, clip=None
)


def brightness(x: Tensor) -> Tensor:
    """A smooth objective over images of any leading shape."""
    weights = torch.linspace(-1, 1, 3, dtype=x.dtype)[:, None, None]
    return (x * weights).mean((-1, -2, -3)) - (x - 0.4).square().mean((-1, -2, -3))


def start(generator: Gaussian, names: list[str]) -> Variables:
    z = torch.stack([latent(generator.latent_shape, name).double() for name in names])
    return start_from_prompt(generator, names, z)


def run(names: list[str], settings: Settings = SETTINGS, objective=brightness):
    generator = Gaussian()
    return optimise(generator, start(generator, names), objective, settings, names)


def test_gradients_of_the_whole_process_equal_finite_differences() -> None:
    """Of the loss through CFG, DDIM, decoder and cutouts, for z_T, C_t and null_t."""
    generator = Gaussian()
    variables = start(generator, ["a"])

    def loss(*tensors: Tensor) -> Tensor:
        x = generator.decode(denoise(generator.eps, generator.levels(), 3.0, *tensors))
        crops = cutouts(x, 3, 3, 0.01, [generator_for("a", "cutouts", 0)])
        return -brightness(crops).mean(1).sum()

    tensors = [v.clone().requires_grad_(True) for v in variables.tensors()]
    gradients = torch.autograd.grad(loss(*tensors), tensors)
    for which, gradient in enumerate(gradients):
        for index in (0, 7, gradient.numel() - 1):
            high, low = ([v.clone() for v in variables.tensors()] for _ in range(2))
            high[which].view(-1)[index] += 1e-5
            low[which].view(-1)[index] -= 1e-5
            slope = (loss(*high) - loss(*low)).item() / 2e-5
            assert gradient.reshape(-1)[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-10)
        assert gradient.abs().max() > 0


def test_first_step_is_adam_then_the_norm_is_restored() -> None:
    """One step, written out: v - lr g / (|g| + 1e-8); z_T back to its first norm; lr of the cosine's start."""
    generator = Gaussian()
    before = start(generator, ["a"])
    tensors = [v.clone().requires_grad_(True) for v in before.tensors()]
    x = generator.decode(denoise(generator.eps, generator.levels(), 3.0, *tensors))
    loss = -brightness(cutouts(x, 3, 3, 0.01, [generator_for("a", "cutouts", 0)])).mean()
    g = torch.autograd.grad(loss, tensors)
    expected = [v - lr * d / (d.abs() + 1e-8) for v, d, lr in zip(before.tensors(), g, (0.02, 0.05, 0.05), strict=True)]
    expected[0] = expected[0] * before.latent.norm() / expected[0].norm()
    result = run(["a"], replace(SETTINGS, steps=1))
    assert result.best_step.tolist() == [1]
    for got, want in zip(result.variables.tensors(), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-9)


def test_the_loss_can_weigh_the_last_predictions() -> None:
    """1/6, 2/6 and 3/6 of the objective on the last three predicted images, each with the same cutouts; the penalty,
    and the choice of the iterate, are the final image's."""
    generator, weights, rates = Gaussian(), (1 / 6, 2 / 6, 3 / 6), (0.002, 0.005, 0.005)

    def penalty(z_0: Tensor, x: Tensor) -> Tensor:
        return 0.1 * z_0.square().flatten(1).mean(1) + x.flatten(1).mean(1)

    before = start(generator, ["a"])
    tensors = [v.clone().requires_grad_(True) for v in before.tensors()]
    z, cond, null = tensors
    pictures = []
    for i, level in enumerate(generator.levels()):
        on_null, on_cond = (generator.eps(z, level.t, text[:, i]) for text in (null, cond))
        eps = on_null + 3.0 * (on_cond - on_null)
        predicted = (z - math.sqrt(1 - level.alpha) * eps) / math.sqrt(level.alpha)
        z = math.sqrt(level.alpha_next) * predicted + math.sqrt(1 - level.alpha_next) * eps
        pictures.append(generator.decode(predicted))
    last = [*pictures[-3:-1], generator.decode(z)]
    loss = penalty(z, last[-1]).sum()
    for weight, picture in zip(weights, last, strict=True):
        crops = cutouts(picture, 3, 3, 0.01, [generator_for("a", "cutouts", 0)])
        loss = loss - weight * brightness(crops).mean()
    g = torch.autograd.grad(loss, tensors)
    expected = [v - lr * d / (d.abs() + 1e-8) for v, d, lr in zip(before.tensors(), g, rates, strict=True)]
    expected[0] = expected[0] * before.latent.norm() / expected[0].norm()
    settings = replace(
        SETTINGS, steps=1, prediction_weights=weights, step_size_latent=rates[0], step_size_text=rates[1]
    )
    result = optimise(generator, before, brightness, settings, ["a"], penalty=penalty)
    assert result.augmented[0].item() == pytest.approx(loss.item(), abs=1e-12)
    whole = (penalty(z, last[-1]) - brightness(last[-1])).item()
    assert result.losses[0].item() == pytest.approx(whole, abs=1e-12)
    assert result.best_step.tolist() == [1]
    for got, want in zip(result.variables.tensors(), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-9)


def test_three_steps_written_out() -> None:
    """Adam with its moments; gradients scaled down to a largest entry of `clip`, for z_T and for the text of each
    DDIM step; step sizes on the cosine 1, .55, .1; other cutouts at every step; z_T back to its first norm."""
    clip, generator = 0.0015, Gaussian()
    now = [v.clone() for v in start(generator, ["a"]).tensors()]
    norm = now[0].norm()
    first, second = ([torch.zeros_like(v) for v in now] for _ in range(2))
    scaled = set()
    for k, rate in enumerate((1.0, 0.55, 0.1)):
        tensors = [v.clone().requires_grad_(True) for v in now]
        x = generator.decode(denoise(generator.eps, generator.levels(), 3.0, *tensors)).clamp(0, 1)
        loss = -brightness(cutouts(x, 3, 3, 0.01, [generator_for("a", "cutouts", k)])).mean()
        for i, gradient in enumerate(torch.autograd.grad(loss, tensors)):
            largest = gradient.abs().amax((1, 2, 3) if i == 0 else (2, 3), keepdim=True)
            scaled |= set((largest > clip).flatten().tolist())
            g = torch.where(largest > clip, gradient * clip / largest, gradient)
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            step = first[i] / (1 - 0.9 ** (k + 1)) / ((second[i] / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            now[i] = now[i] - (0.02, 0.05, 0.05)[i] * rate * step
        now[0] = now[0] * norm / now[0].norm()
    assert scaled == {True, False}
    result = run(["a"], replace(SETTINGS, steps=3, clip=clip))
    assert result.best_step.tolist() == [3]
    for got, want in zip(result.variables.tensors(), now, strict=True):
        assert torch.allclose(got, want, atol=1e-9)


@pytest.mark.parametrize("clip", [None, 0.0015])
def test_an_item_does_not_depend_on_its_batch(clip: float | None) -> None:
    names = [f"item {i}" for i in range(8)]
    settings = replace(SETTINGS, clip=clip)
    together = run(names, settings)
    for i in (0, 5):
        alone = run([names[i]], settings)
        assert torch.allclose(alone.image[0], together.image[i], atol=1e-9)
        assert torch.allclose(alone.losses[:, 0], together.losses[:, i], atol=1e-9)
        for one, many in zip(alone.variables.tensors(), together.variables.tensors(), strict=True):
            assert torch.allclose(one[0], many[i], atol=1e-9)


@pytest.mark.parametrize("checkpoint", ["none", "step"])
def test_without_guidance_the_null_text_is_left_alone(checkpoint: str) -> None:
    """At scale 1 the null text drops out of eps_null + s (eps_cond - eps_null); the others are searched."""
    generator = Gaussian()
    generator.guidance_scale = 1.0
    before = start(generator, ["a", "b"])
    result = optimise(generator, before, brightness, replace(SETTINGS, checkpoint=checkpoint), ["a", "b"])
    assert torch.equal(result.variables.null, before.null)
    assert not torch.allclose(result.variables.cond, before.cond)
    assert (result.losses[-1] < result.losses[0]).all()


def test_checkpointing_changes_nothing() -> None:
    kept = run(["a", "b"], replace(SETTINGS, checkpoint="none"))
    for policy in ("selective", "step"):
        recomputed = run(["a", "b"], replace(SETTINGS, checkpoint=policy))
        assert torch.equal(kept.image, recomputed.image)
        assert torch.equal(kept.augmented, recomputed.augmented)


def test_the_iterate_with_the_lowest_unaugmented_loss_is_returned() -> None:
    """Steps so large that the loss goes up again: the best iterate is neither the first nor the last."""
    settings = replace(SETTINGS, steps=8, step_size_latent=0.6, step_size_text=1.5, schedule="constant")
    names = [f"item {i}" for i in range(6)]
    seen: list[Tensor] = []
    generator = Gaussian()
    result = optimise(
        generator, start(generator, names), brightness, settings, names, lambda k, x, loss: seen.append(x.clone())
    )
    assert result.losses.shape == (9, 6)
    assert torch.equal(result.best_step, result.losses.argmin(0))
    assert any(0 < k < 8 for k in result.best_step.tolist())
    for i, k in enumerate(result.best_step.tolist()):
        assert torch.equal(result.image[i], seen[k][i])
        assert -brightness(result.image[i]).item() == pytest.approx(result.losses[:, i].min().item(), abs=1e-12)
        again = generator.decode(
            denoise(generator.eps, generator.levels(), 3.0, *(v[i : i + 1] for v in result.variables.tensors()))
        )
        assert torch.allclose(again[0], result.image[i], atol=1e-9)
    assert torch.equal(result.start, seen[0])


def test_the_loss_falls_and_the_latent_keeps_its_norm() -> None:
    result = run(["a", "b"], replace(SETTINGS, steps=10))
    assert (result.losses.min(0).values < result.losses[0] - 0.005).all()
    before = start(Gaussian(), ["a", "b"]).latent.flatten(1).norm(dim=1)
    assert torch.allclose(result.variables.latent.flatten(1).norm(dim=1), before)


def test_clipping_is_per_variable_and_item() -> None:
    gradient = torch.tensor([[[[4.0, -8.0]]], [[[0.01, 0.02]]]])
    clipped = module._clipped(gradient, 0.05, (1, 2, 3))
    assert torch.allclose(clipped[0], torch.tensor([[[0.025, -0.05]]]))
    assert torch.equal(clipped[1], gradient[1])
    text = torch.tensor([[[[1.0]], [[0.5]]]])  # one item, two DDIM steps: each step's condition has its own bound
    assert module._clipped(text, 0.1, (2, 3)).flatten().tolist() == pytest.approx([0.1, 0.1])


def test_nan_in_one_item_leaves_the_others_as_they_are() -> None:
    def poisoned(x: Tensor) -> Tensor:
        value = brightness(x)
        if x.ndim == 5 and len(x) == 3:  # crops of the batch of three
            value = value * torch.tensor([1.0, math.nan, 1.0], dtype=value.dtype)[:, None]
        return value

    clean, hit = run(["a", "b", "c"]), run(["a", "b", "c"], objective=poisoned)
    assert hit.finite.tolist() == [True, False, True]
    for i in (0, 2):
        assert torch.equal(clean.image[i], hit.image[i])
        assert torch.equal(clean.losses[:, i], hit.losses[:, i])


@pytest.mark.parametrize("where", ["evaluation", "gradient"])
def test_an_item_that_meets_nan_is_frozen_as_it_was(where: str) -> None:
    """In the second evaluation, or in the gradient of the second step alone: its variables stay finite and stop."""
    calls = 0

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return torch.cat([gradient[:1], gradient[1:2] * math.nan, gradient[2:]])

    def objective(x: Tensor) -> Tensor:
        nonlocal calls
        if x.ndim == 5:
            return brightness(Poison.apply(x) if where == "gradient" and calls == 2 else x)
        calls += 1
        value = brightness(x)
        if where == "evaluation" and calls == 2:
            value[1] = math.nan
        return value

    names = ["a", "b", "c"]
    clean, one_step, hit = run(names), run(names, replace(SETTINGS, steps=1)), run(names, objective=objective)
    assert hit.finite.tolist() == [True, False, True]
    for got, usual in zip(hit.variables.tensors(), clean.variables.tensors(), strict=True):
        assert torch.equal(got[[0, 2]], usual[[0, 2]])
        assert got.isfinite().all()
    assert hit.losses[2:, 1].isinf().all()
    assert hit.image[1].isfinite().all()
    assert hit.best_step[1] == (0 if where == "evaluation" else 1)
    if where == "gradient":
        assert torch.equal(hit.image[1], one_step.image[1])


def test_cosine_runs_from_one_to_a_tenth() -> None:
    settings = Settings(steps=5)
    assert settings.rate(0) == pytest.approx(1.0)
    assert settings.rate(2) == pytest.approx(0.55)
    assert settings.rate(4) == pytest.approx(0.1)


def test_the_default_settings_are_table_d1() -> None:
    table = {"steps": 15, "step_size_text": 0.025, "step_size_latent": 0.00025, "schedule": "cosine", "clip": 0.05}
    table |= {"cutouts": 16, "cutout_noise": 0.05}
    assert {name: getattr(Settings(), name) for name in table} == table
