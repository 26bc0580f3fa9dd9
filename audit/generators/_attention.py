"""Cross-attention of a diffusers U-Net: maps are read and replaced at its sites, for the time of one call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from audit.errors import ModelError
from audit.generators import Attention, Site


@contextmanager
def attended(unet: nn.Module, attention: Attention | None, size: tuple[int, int]) -> Iterator[None]:
    """Let `attention` see and replace cross-attention maps inside the block; self-attention is left alone.

    `size`: height and width of the latents. Processors are restored on leaving, also by an exception.
    """
    if attention is None:
        yield
        return
    layers = [(name, layer, layer.processor) for name, layer in unet.named_modules() if is_cross(layer)]
    if not layers:
        raise ModelError("the U-Net has no cross-attention layers, so there are no maps to read")
    try:
        for name, layer, processor in layers:
            layer.set_processor(_Processor(name, processor, attention, size))
        yield
    finally:
        for _, layer, processor in layers:
            layer.set_processor(processor)


def is_cross(layer: nn.Module) -> bool:
    """Whether a layer is one at which the latents look at the prompt."""
    from diffusers.models.attention_processor import Attention as Layer

    return isinstance(layer, Layer) and layer.is_cross_attention


class _Processor:
    """Where nothing is replaced, the layer's own processor makes the output: reading changes no bit of it."""

    def __init__(self, name: str, own: Any, attention: Attention, size: tuple[int, int]) -> None:
        self.name, self.own, self.attention, self.size = name, own, attention, size

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(encoder_hidden_states, Tensor) or hidden_states.ndim != 3 or attention_mask is not None:
            raise ModelError(
                f"cross-attention at {self.name} takes more than a prompt (an adapter, or a mask); its maps cannot be "
                "read. Load the pipeline without adapters."
            )
        text = encoder_hidden_states
        site = Site(self.name, *_map_size(hidden_states.shape[1], self.size))
        chosen = self.attention(site, lambda count: _maps(attn, hidden_states[-count:], text[-count:]))
        if chosen is None:
            return self.own(attn, hidden_states, text, attention_mask, temb)
        count = len(chosen)
        replaced = _applied(attn, chosen.to(hidden_states.dtype), text[-count:])
        if count == len(hidden_states):
            return replaced
        return torch.cat([self.own(attn, hidden_states[:-count], text[:-count], attention_mask, temb), replaced])


def _map_size(positions: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a feature map of so many positions, given those of the latents."""
    factor = math.sqrt(size[0] * size[1] / positions)
    height, width = round(size[0] / factor), round(size[1] / factor)
    if height * width != positions:
        raise ModelError(f"{positions} positions are no smaller copy of latents of size {size[0]} x {size[1]}")
    return height, width


def _maps(attn: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt d) (DiG-IN Eq. 16): (b, heads, positions, tokens)."""
    query, key = _heads(attn, attn.to_q(hidden)), _heads(attn, attn.to_k(_normed(attn, text)))
    return ((query.float() * attn.scale) @ key.float().mT).softmax(-1)


def _applied(attn: Any, maps: Tensor, text: Tensor) -> Tensor:
    """M V (Eq. 16) with given maps, and the layer's output projection: (b, positions, channels)."""
    value = _heads(attn, attn.to_v(_normed(attn, text)))
    joined = (maps @ value).transpose(1, 2).flatten(2)
    return attn.to_out[1](attn.to_out[0](joined)) / attn.rescale_output_factor


def _heads(attn: Any, x: Tensor) -> Tensor:
    """(b, n, channels) to (b, heads, n, channels / heads)."""
    return x.view(*x.shape[:-1], attn.heads, -1).transpose(1, 2)


def _normed(attn: Any, text: Tensor) -> Tensor:
    return attn.norm_encoder_hidden_states(text) if attn.norm_cross else text
