"""Gradient ascent on pixels, without a generator: the baseline that a search on the image manifold is shown beside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def ascend(
    start: Tensor,
    objective: Callable[[Tensor], Tensor],
    steps: int,
    step_size: float,
    radius: float | None = None,
    judge: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Maximise `objective`, images (b, 3, h, w) to (b,), from images (b, 3, h, w) in [0, 1].

    Each item goes `step_size`, an L2 length in pixels' units, along its own normalised gradient, is projected to the
    L2 ball of `radius` around its start where one is given, and clamped to [0, 1]. An item whose gradient is 0 or
    not finite stays where it is. Returns the last iterate or, where `judge` gives images values (b,), of all iterates
    and the start the one with the highest, item by item.
    """
    x = start.detach().clone()
    best, value = x.detach(), judge(x).detach() if judge else None
    for _ in range(steps):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(x).sum(), x)
        norm = _length(gradient)
        moves = norm.isfinite() & (norm > 0)
        step = torch.where(moves, step_size * gradient / norm, torch.zeros_like(gradient))
        x = x.detach() + step
        if radius is not None:
            x = start + _shortened(x - start, radius)
        x = x.clamp(0, 1)
        if judge is not None and value is not None:
            found = judge(x).detach()
            best = torch.where((found > value)[:, None, None, None], x, best)
            value = torch.maximum(found, value)
    return x if judge is None else best


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def _shortened(x: Tensor, longest: float) -> Tensor:
    return x * (longest / _length(x).clamp_min(longest))
