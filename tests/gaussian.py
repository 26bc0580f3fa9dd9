"""A generator whose answers are known: data N(0, s^2) under the optimal denoiser, all in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audit.generators import Attention, Level


class Gaussian:
    """Latents (c, h, w) of independent N(0, s^2) pixels, shifted by a linear map of the mean condition.

    `decode` is a fixed linear map to 3 channels. float64, no randomness, differentiable in everything.
    """

    guidance_scale = 3.0
    device = torch.device("cpu")

    def __init__(self, s: float = 0.5, steps: int = 6, side: int = 4, pull: float = 0.3) -> None:
        self.s, self.pull = s, pull
        self.latent_shape = (2, side, side)
        alphas = torch.linspace(0.999, 0.01, steps + 1, dtype=torch.float64)
        pairs = zip(alphas.flip(0)[:-1].tolist(), alphas.flip(0)[1:].tolist(), strict=True)
        self._levels = tuple(Level(steps - i, a, b) for i, (a, b) in enumerate(pairs))
        g = torch.Generator().manual_seed(0)
        self.mix = torch.randn((3, 2), generator=g, dtype=torch.float64) * 0.3
        self.words = torch.randn((64, 3, 5), generator=g, dtype=torch.float64)

    def scheduled(self, steps: int, guidance_scale: float) -> Gaussian:
        return self

    def levels(self) -> tuple[Level, ...]:
        return self._levels

    def alpha(self, t: int) -> float:
        return next(level.alpha for level in self._levels if level.t == t)

    def eps(self, z: Tensor, t: int, cond: Tensor, attention: Attention | None = None) -> Tensor:
        """E[eps | z_t] for data N(m, s^2): sqrt(1 - a) (z - sqrt(a) m) / (a s^2 + 1 - a)."""
        a = self.alpha(t)
        mean = self.pull * torch.tanh(cond.mean((1, 2)))[:, None, None, None]
        return (1 - a) ** 0.5 * (z - a**0.5 * mean) / (a * self.s**2 + 1 - a)

    def decode(self, z: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", self.mix.to(z), z).sigmoid()

    def encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self.words[sum(map(ord, prompt)) % 64] for prompt in prompts])
