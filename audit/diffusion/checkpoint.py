"""What a DDIM step keeps for the backward pass, and what it computes again: less memory, the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

_T = TypeVar("_T")

# From the fastest and largest to the slowest and smallest.
CheckpointPolicy = Literal["none", "selective", "step"]

# The fused attention of the CPU and of every CUDA backend; older and newer releases lack some.
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_PACKETS = [getattr(torch.ops.aten, name) for name in ("convolution", *_ATTENTION) if hasattr(torch.ops.aten, name)]
# The operators whose outputs `selective` keeps.
EXPENSIVE = [getattr(packet, overload) for packet in _PACKETS for overload in packet.overloads()]


def checkpointed(step: Callable[..., _T], policy: CheckpointPolicy) -> Callable[..., _T]:
    """A DDIM step that keeps everything (`none`), the outputs of expensive operators, or its inputs alone (`step`)."""
    if policy == "none":
        return step
    if policy == "step":
        return partial(checkpoint, step, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, EXPENSIVE)
    return partial(checkpoint, step, use_reentrant=False, context_fn=contexts)
