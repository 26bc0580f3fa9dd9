"""How far a counterfactual is from its original: one definition of each distance.

Images are RGB float (b, 3, h, w) in [0, 1]; masks are float (b, h, w) or (b, 1, h, w) in [0, 1], 1 = foreground, of
the images' height and width. Values are float64 (b,), one an item, finite for finite images, whatever else is in the
batch. Raises ValueError for shapes that do not belong together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

DIFFERENCE_GAIN = 2.0
MOST_DECIBELS = 100.0
SSIM_WINDOW = 11


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of an element (a channel of a pixel), in [0, 1]."""
    return _difference(x, y).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Root of the mean squared difference of an element, in [0, 1]."""
    return _difference(x, y).square().flatten(1).mean(1).sqrt()


def background_rmse(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """`l2` of the background: squared differences weighted by 1 - mask, divided by the weight; in [0, 1].

    With an empty mask it is `l2`. Where the mask covers everything (`mask_area` is 1) there is no background, and the
    value is 0, which says nothing: a table has NULL and a reason there.
    """
    weights = (1 - _mask(mask, x)).expand(x.shape)
    weighted = (weights * _difference(x, y).square()).flatten(1).sum(1)
    total = weights.flatten(1).sum(1)
    return torch.where(total > 0, weighted / total.where(total > 0, 1), 0).sqrt()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, -20 log10 of `l2`, for the peak 1; at most MOST_DECIBELS.

    Equal images would have infinity; the bound is what a difference of 1e-5 in every element has, far below the
    1/255 of 8-bit files.
    """
    return -20 * l2(x, y).clamp(min=10 ** (-MOST_DECIBELS / 20)).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity in [-1, 1], 1 = equal: the mean over the channels and all positions of the window.

    Source: Wang et al., Image Quality Assessment, 2004, Eqs. 13 and 17, with its Gaussian window of 11 x 11 and
    standard deviation 1.5, K1 = 0.01, K2 = 0.03, L = 1. Only positions where the window lies within the image count, so
    both sides need 11 pixels or more. Differs from the paper: RGB, a channel at a time, instead of grey.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(x.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of {SSIM_WINDOW} pixels or more a side, got {tuple(x.shape)}")
    _difference(x, y)
    _, full = structural_similarity_index_measure(
        x.double(),
        y.double(),
        sigma=1.5,
        kernel_size=SSIM_WINDOW,
        data_range=1.0,
        reduction="none",
        k1=0.01,
        k2=0.03,
        return_full_image=True,
    )
    margin = SSIM_WINDOW // 2
    return full[..., margin:-margin, margin:-margin].flatten(1).mean(1)


def perceptual_distance(x: Tensor, y: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
    """1 - cosine of the features of a network, in [0, 2]; 1 where an item has the features 0.

    `features` maps images to (b, d), such as the `embed_images` of the job's embedder. Values compare within one
    network only.
    """
    _difference(x, y)
    with torch.no_grad():
        return 1 - F.cosine_similarity(features(x).double(), features(y).double(), dim=1)


def mask_area(mask: Tensor) -> Tensor:
    """Share of the image that is foreground, in [0, 1]; a soft mask counts by its values."""
    return mask.double().flatten(1).mean(1)


def difference_image(x: Tensor, y: Tensor) -> Tensor:
    """For people: (b, 3, h, w) in [0, 1], mid grey where nothing changed, brighter where `y` is more than `x`.

    0.5 + DIFFERENCE_GAIN (y - x), cut to [0, 1]: changes of a quarter of the range and more look alike.
    """
    return (0.5 - DIFFERENCE_GAIN * _difference(x, y)).clamp(0, 1).float()


def _difference(x: Tensor, y: Tensor) -> Tensor:
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(f"images are two batches of one shape (b, 3, h, w), got {tuple(x.shape)} and {tuple(y.shape)}")
    return x.double() - y.double()


def _mask(mask: Tensor, x: Tensor) -> Tensor:
    """(b, 1, h, w) for images x."""
    mask = mask[:, None] if mask.ndim == 3 else mask
    if mask.shape != (len(x), 1, *x.shape[-2:]):
        raise ValueError(f"a mask of images {tuple(x.shape)} is (b, h, w) or (b, 1, h, w), got {tuple(mask.shape)}")
    return mask.double()
