"""Generators: one file each. A generator translates its model once into what all methods speak.

Latents are variance preserving: z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps, with a_t the cumulative alpha. Models
that predict something else than eps are translated here and nowhere else. A plugin defines `Options`,
`load(options, device)` and `digest(options)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One DDIM step: from timestep `t` with cumulative alpha `alpha` to the next lower level's `alpha_next`."""

    t: int
    alpha: float
    alpha_next: float


class Generator(Protocol):
    """What a plugin's `load(options, device)` returns."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""

    @property
    def device(self) -> torch.device:
        """Where latents and conditions belong."""

    @property
    def guidance_scale(self) -> float:
        """s in eps_null + s (eps_cond - eps_null)."""

    def levels(self) -> tuple[Level, ...]:
        """The DDIM steps, from noise to image."""

    def eps(self, z: Tensor, t: int, cond: Tensor) -> Tensor:
        """Predicted noise (b, c, h, w) of latents (b, c, h, w) at timestep t under conditions (b, tokens, dim)."""

    def decode(self, z: Tensor) -> Tensor:
        """Noise-free latents to RGB (b, 3, H, W), nominally in [0, 1], not clamped."""

    def encode(self, x: Tensor) -> Tensor:
        """RGB (b, 3, H, W) in [0, 1] to latents, without sampling."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to conditions (b, tokens, dim). The empty prompt is the null text."""
