"""What a search maximises: functions of class scores, one value per item."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def disagreement(f: Tensor, g: Tensor, target_f: Tensor, target_g: Tensor) -> Tensor:
    """p_f(y|x) - p_g(y|x) from logits (..., classes) and class indices (...) (DiG-IN Eq. 3)."""
    return _probability(f, target_f) - _probability(g, target_g)


def log_disagreement(f: Tensor, g: Tensor, target_f: Tensor, target_g: Tensor) -> Tensor:
    """log p_f(y|x) + log(1 - p_g(y|x)) from logits (..., classes) and class indices (...).

    Differs from the paper: Eq. 3's difference has no gradient where both classifiers are sure; this form has one
    until f says y and g does not. Like any disagreement it can be reached off the images that exist: what it finds
    needs evidence on real ones.
    """
    own = log_probability(f, target_f)
    others = g.scatter(-1, target_g[..., None], -float("inf"))
    return own + others.logsumexp(-1) - g.logsumexp(-1)


def log_probability(logits: Tensor, target: Tensor) -> Tensor:
    """log p_f(y|x) from logits (..., classes) and class indices (...) (DiG-IN Eq. 6)."""
    return F.log_softmax(logits, -1).gather(-1, target[..., None])[..., 0]


def masked_distance(x: Tensor, original: Tensor, mask: Tensor, weight: float) -> Tensor:
    """One term of DiG-IN Eq. 5: weight ||(1 - S) (x - original)||^2 of (b, c, h, w) under masks S (b, h, w), as (b,).

    Differs from the paper: the norm is a mean over elements, not a sum; the weights of its Table C.1.5 belong to means.
    """
    return weight * ((1 - mask[:, None]) * (x - original)).square().flatten(1).mean(1)


DISAGREEMENT = {"probability": disagreement, "log_probability": log_disagreement}


def _probability(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(-1).gather(-1, target[..., None])[..., 0]
