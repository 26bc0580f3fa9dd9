"""Objectives against the literal equations."""

from __future__ import annotations

import math

import pytest
import torch

from audit.augment import cutouts
from audit.diffusion.noise import generator_for
from audit.objectives import disagreement, log_disagreement


def softmax(values: list[float], index: int) -> float:
    return math.exp(values[index]) / sum(map(math.exp, values))


F_LOGITS, G_LOGITS = [[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]], [[0.3, 0.1], [-2.0, 1.5]]


def test_disagreement_is_equation_3() -> None:
    """f and g may have different numbers of classes and the class at different places."""
    f, g = torch.tensor(F_LOGITS), torch.tensor(G_LOGITS)
    got = disagreement(f, g, torch.tensor([0, 2]), torch.tensor([1, 0]))
    expected = [softmax(F_LOGITS[0], 0) - softmax(G_LOGITS[0], 1), softmax(F_LOGITS[1], 2) - softmax(G_LOGITS[1], 0)]
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


def test_log_disagreement_is_log_p_f_plus_log_one_minus_p_g() -> None:
    f, g = torch.tensor(F_LOGITS), torch.tensor(G_LOGITS)
    got = log_disagreement(f, g, torch.tensor([0, 2]), torch.tensor([1, 0]))
    expected = [
        math.log(softmax(F_LOGITS[0], 0)) + math.log(1 - softmax(G_LOGITS[0], 1)),
        math.log(softmax(F_LOGITS[1], 2)) + math.log(1 - softmax(G_LOGITS[1], 0)),
    ]
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_log_form_has_a_gradient_where_the_difference_has_none() -> None:
    f, g = torch.tensor([[-40.0, 0.0]]), torch.tensor([[40.0, 0.0]])
    target = torch.tensor([0])
    for form, least, most in ((disagreement, 0.0, 1e-12), (log_disagreement, 0.5, 2.0)):
        variables = [f.clone().requires_grad_(True), g.clone().requires_grad_(True)]
        gradients = torch.autograd.grad(form(*variables, target, target).sum(), variables)
        for gradient in gradients:
            assert least <= gradient.abs().max().item() <= most


def test_cutouts_pool_squares_of_the_image() -> None:
    """Every crop of an image that is linear in x and y has the mean of its square's centre."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    image = torch.stack([x, y, 0 * x])[None] / 40
    crops = cutouts(image, 10, 200, 0.0, [generator_for("i")])[0]
    assert crops.shape == (200, 3, 10, 10)
    side = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) * 40 / 0.9  # pooled pixels lie 0.9 sides apart
    assert side.min() >= 10 - 1.5
    assert side.max() <= 40 + 1.5
    # side = u^0.3 (40 - 10) + 10 with u uniform has the mean 10 + 30 / 1.3
    assert side.mean().item() == pytest.approx(10 + 30 / 1.3, abs=1.5)
    assert crops[:, 2].abs().max() == 0


def test_cutouts_belong_to_the_item() -> None:
    images = torch.rand((2, 3, 20, 20), generator=torch.Generator().manual_seed(0))
    both = cutouts(images, 8, 4, 0.1, [generator_for("a"), generator_for("b")])
    alone = cutouts(images[1:], 8, 4, 0.1, [generator_for("b")])
    assert torch.equal(both[1], alone[0])


def test_cutout_noise_has_the_asked_deviation() -> None:
    noisy = cutouts(torch.zeros((1, 3, 32, 32)), 32, 16, 0.05, [generator_for("a")])
    assert noisy.std().item() == pytest.approx(0.05, rel=0.02)
