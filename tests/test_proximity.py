"""Distances of counterfactuals against literal loops over pixels."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.metrics import proximity as p

Array = NDArray[np.float64]


def images(seed: int, count: int = 3, height: int = 14, width: int = 17) -> Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(seed))


X, Y = images(0), images(1)
MASK = torch.rand((3, 14, 17), generator=torch.Generator().manual_seed(2))


def features(x: Tensor) -> Tensor:
    """Mean and spread of each channel."""
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


PAIRED: list[Callable[[Tensor, Tensor], Tensor]] = [
    p.l1,
    p.l2,
    p.psnr,
    p.ssim,
    p.difference_image,
    lambda x, y: p.perceptual_distance(x, y, features),
]


def elements(x: Tensor) -> list[float]:
    return [float(v) for v in x.reshape(-1)]


def literal_l1(x: Tensor, y: Tensor) -> float:
    return math.fsum(abs(a - b) for a, b in zip(elements(x), elements(y), strict=True)) / x.numel()


def literal_l2(x: Tensor, y: Tensor) -> float:
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(elements(x), elements(y), strict=True)) / x.numel())


def literal_background(x: Tensor, y: Tensor, mask: Tensor) -> float:
    above = below = 0.0
    for channel in range(3):
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                weight = 1 - float(mask[row, column])
                above += weight * (float(x[channel, row, column]) - float(y[channel, row, column])) ** 2
                below += weight
    return math.sqrt(above / below)


def literal_ssim(x: Array, y: Array) -> float:
    """Wang et al. 2004, Eqs. 14-16 and 13, for one channel; the mean over all places of the window (Eq. 17)."""
    offsets = range(-5, 6)
    window = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in offsets] for i in offsets])
    window /= window.sum()
    c1, c2 = (0.01 * 1) ** 2, (0.03 * 1) ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            above = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            values.append(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


def test_l1_and_l2_are_means_over_elements() -> None:
    assert p.l1(X, Y).tolist() == pytest.approx([literal_l1(x, y) for x, y in zip(X, Y, strict=True)])
    assert p.l2(X, Y).tolist() == pytest.approx([literal_l2(x, y) for x, y in zip(X, Y, strict=True)])


@pytest.mark.parametrize("mask", [MASK, MASK[:, None]], ids=["b h w", "b 1 h w"])
def test_background_rmse_weighs_every_pixel_by_what_the_mask_leaves(mask: Tensor) -> None:
    expected = [literal_background(x, y, m) for x, y, m in zip(X, Y, MASK, strict=True)]
    assert p.background_rmse(X, Y, mask).tolist() == pytest.approx(expected)


def test_background_rmse_sees_no_change_under_the_mask() -> None:
    mask = torch.zeros((3, 14, 17))
    mask[:, 4:9, 5:11] = 1
    changed = X.clone()
    changed[:, :, 4:9, 5:11] = Y[:, :, 4:9, 5:11]
    assert p.background_rmse(X, changed, mask).tolist() == [0, 0, 0]
    changed[1, 0, 0, 0] += 0.5
    assert p.background_rmse(X, changed, mask)[1].item() == pytest.approx(0.5 / math.sqrt(3 * (14 * 17 - 30)), rel=1e-6)


def test_background_rmse_of_an_empty_and_of_a_full_mask() -> None:
    """Nothing masked: it is l2. All masked: 0, no NaN, and mask_area says so; the other items keep their value."""
    mask = MASK.clone()
    mask[0], mask[1] = 0, 1
    got = p.background_rmse(X, Y, mask)
    assert got[0].item() == pytest.approx(p.l2(X, Y)[0].item())
    assert got[1].item() == 0
    assert p.mask_area(mask)[1].item() == 1
    assert got[2].item() == pytest.approx(literal_background(X[2], Y[2], MASK[2]))


def test_psnr_is_ten_decibels_for_a_tenth_of_the_power() -> None:
    for mse, decibels in ((1.0, 0.0), (0.1, 10.0), (0.01, 20.0), (1e-4, 40.0)):
        y = torch.full((1, 3, 11, 11), math.sqrt(mse), dtype=torch.float64)
        assert p.psnr(torch.zeros_like(y), y).item() == pytest.approx(decibels)
    assert p.psnr(X, X).tolist() == [p.MOST_DECIBELS] * 3


def test_ssim_is_equation_13_at_every_whole_window() -> None:
    near = (X + 0.1 * Y).clamp(0, 1)
    for other in (Y, near):
        expected = [
            np.mean([literal_ssim(x[c].double().numpy(), y[c].double().numpy()) for c in range(3)])
            for x, y in zip(X, other, strict=True)
        ]
        assert p.ssim(X, other).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_flat_images_is_their_luminance_term() -> None:
    """Without contrast Eq. 13 is (2ab + c1) / (a^2 + b^2 + c1)."""
    a, b = torch.full((1, 3, 12, 12), 0.2), torch.full((1, 3, 12, 12), 0.7)
    expected = (2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4)
    assert p.ssim(a, b).item() == pytest.approx(expected, rel=1e-6)


def test_perceptual_distance_is_one_minus_the_cosine() -> None:
    def literal(x: Tensor, y: Tensor) -> float:
        a, b = features(x[None])[0].tolist(), features(y[None])[0].tolist()
        dot = sum(i * j for i, j in zip(a, b, strict=True))
        return 1 - dot / math.sqrt(sum(i * i for i in a) * sum(j * j for j in b))

    got = p.perceptual_distance(X, Y, features)
    assert got.tolist() == pytest.approx([literal(x, y) for x, y in zip(X, Y, strict=True)], abs=1e-6)
    assert p.perceptual_distance(X, Y, lambda x: torch.zeros((3, 4))).tolist() == [1, 1, 1]


def test_mask_area_is_the_mean_of_the_mask() -> None:
    expected = [math.fsum(elements(mask)) / (14 * 17) for mask in MASK]
    assert p.mask_area(MASK).tolist() == pytest.approx(expected)
    assert p.mask_area(MASK[:, None]).tolist() == pytest.approx(expected)


def test_difference_image_is_grey_where_nothing_changed() -> None:
    """One element brighter by 0.1, one darker by 0.1, one by more than there is room for."""
    x = torch.full((1, 3, 2, 2), 0.5)
    y = x.clone()
    y[0, 0, 0, 0], y[0, 1, 0, 1], y[0, 2, 1, 0] = 0.6, 0.4, 0.9
    shown = p.difference_image(x, y)
    expected = torch.full((1, 3, 2, 2), 0.5)
    expected[0, 0, 0, 0], expected[0, 1, 0, 1], expected[0, 2, 1, 0] = 0.7, 0.3, 1.0
    assert torch.allclose(shown, expected, atol=1e-6)
    assert shown.dtype == torch.float32


def test_equal_images_are_at_no_distance() -> None:
    assert p.l1(X, X).tolist() == p.l2(X, X).tolist() == p.background_rmse(X, X, MASK).tolist() == [0, 0, 0]
    assert p.ssim(X, X).tolist() == pytest.approx([1, 1, 1])
    assert p.perceptual_distance(X, X, features).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    "measure", [p.l1, p.l2, p.psnr, p.ssim, PAIRED[-1], lambda x, y: p.background_rmse(x, y, MASK)]
)
def test_distances_are_symmetric(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert measure(X, Y).tolist() == pytest.approx(measure(Y, X).tolist())


@pytest.mark.parametrize("measure", [p.l1, p.l2, p.psnr])
def test_distances_do_not_ask_where_pixels_are(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    order = torch.randperm(14 * 17, generator=torch.Generator().manual_seed(3))
    moved = [images.flatten(2)[..., order].reshape(images.shape) for images in (X, Y)]
    assert measure(*moved).tolist() == pytest.approx(measure(X, Y).tolist())


@pytest.mark.parametrize("measure", PAIRED)
def test_an_item_does_not_depend_on_its_batch(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    together = measure(X, Y)
    for i in range(3):
        assert torch.allclose(measure(X[i : i + 1], Y[i : i + 1])[0], together[i], rtol=0, atol=1e-9)
    alone = p.background_rmse(X[1:2], Y[1:2], MASK[1:2])
    assert torch.allclose(alone[0], p.background_rmse(X, Y, MASK)[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("measure", PAIRED)
def test_other_shapes_are_refused(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="two batches of one shape"):
        measure(X, Y[:, :, :12])


def test_what_has_no_window_and_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="11 pixels"):
        p.ssim(X[..., :10], Y[..., :10])
    with pytest.raises(ValueError, match="a mask of images"):
        p.background_rmse(X, Y, MASK[:, :7])


def test_importing_the_distances_does_not_import_torchmetrics() -> None:
    """It takes seconds: only who asks for SSIM pays."""
    code = (
        "import sys, audit.metrics.proximity as p; early = 'torchmetrics' in sys.modules; import torch; "
        "x = torch.rand(1, 3, 11, 11); p.ssim(x, x); print(early, 'torchmetrics' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
