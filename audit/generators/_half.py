"""Gradients through a network in float16, kept within its range.

A loss that is a mean over thousands of elements has gradients of 1e-6 and less, which float16 rounds to 0. So each
item's gradient is multiplied by a power of two before it enters the network backwards, and divided by it afterwards:
exact, and apart for each item of a batch. bfloat16 and float32 have the range without that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_range(network: Callable[[Tensor, Tensor], Tensor], z: Tensor, cond: Tensor) -> Tensor:
    """`network(z, cond)`, all of (b, ...), whose backward pass scales each item's gradient to a largest entry of 1."""
    scales = _Scales()
    out = network(*(_Entered.apply(x, scales) for x in (z, cond)))  # type: ignore[no-untyped-call]
    left: Tensor = _Left.apply(out, scales)  # type: ignore[no-untyped-call]
    return left


class _Scales:
    """(b,), found when the gradient arrives."""

    found: Tensor

    def of(self, like: Tensor) -> Tensor:
        return self.found.view(-1, *[1] * (like.ndim - 1))


class _Unchanged(torch.autograd.Function):
    """The identity forwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: _Scales) -> Tensor:
        ctx.scales = scales
        return x.view_as(x)


class _Left(_Unchanged):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        largest = gradient.flatten(1).abs().amax(1)
        usable = largest.isfinite() & (largest > 0)
        ctx.scales.found = torch.exp2(-largest.where(usable, 1).log2().round())
        return gradient * ctx.scales.of(gradient), None


class _Entered(_Unchanged):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.scales.of(gradient), None
