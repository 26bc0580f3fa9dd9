"""Generators: one file each. A generator translates its model once into what all methods speak.

Latents are variance preserving: z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps, with a_t the cumulative alpha. Models
that predict something else than eps are translated here and nowhere else. A plugin defines `Options`,
`load(options, device)` and `digest(options)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from audit.config import Job
from audit.results.warnings import RunWarning


@dataclass(frozen=True)
class Level:
    """One DDIM step: from timestep `t` with cumulative alpha `alpha` to the next lower level's `alpha_next`."""

    t: int
    alpha: float
    alpha_next: float


@dataclass(frozen=True)
class Site:
    """A cross-attention layer, and the size of the feature map that looks at the prompt there."""

    name: str
    height: int
    width: int


# Asked at every cross-attention site. It may look at the maps softmax(Q K^T / sqrt d) of the last `count` items of
# the batch, which are computed only then: (count, heads, height * width, tokens), rows sum to 1. It returns None to
# leave the site alone, or maps (m, heads, height * width, tokens) that the last m items use instead of their own.
Attention = Callable[[Site, Callable[[int], Tensor]], Tensor | None]


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

    @property
    def warnings(self) -> tuple[RunWarning, ...]:
        """What is doubtful about its steps."""

    def scheduled(self, steps: int, guidance_scale: float) -> Generator:
        """The same models with so many DDIM steps and this guidance; what the job gives the generator itself stays."""

    def levels(self) -> tuple[Level, ...]:
        """The DDIM steps, from noise to image."""

    def eps(self, z: Tensor, t: int, cond: Tensor, attention: Attention | None = None) -> Tensor:
        """Predicted noise (b, c, h, w) of latents (b, c, h, w) at timestep t under conditions (b, tokens, dim)."""

    def decode(self, z: Tensor) -> Tensor:
        """Noise-free latents to RGB (b, 3, H, W), nominally in [0, 1], not clamped."""

    def encode(self, x: Tensor) -> Tensor:
        """RGB (b, 3, H, W) in [0, 1] to latents, without sampling."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to conditions (b, tokens, dim). The empty prompt is the null text."""

    def positions(self, prompt: str, phrase: str, start: int = 0) -> tuple[tuple[int, ...], ...]:
        """Token positions of each word of a phrase in a prompt, where it first is from character `start` on.

        Raises BadItem where the prompt lacks it, or has it behind the last token that the text tower takes.
        """

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that belong to latents of `latent_shape`."""


def warnings_of(job: Job, gpus: int) -> list[RunWarning]:
    """What a job's generator should be warned of before it runs, on a machine with so many GPUs. Loads nothing."""
    plugin = job.generator
    if plugin is None or job.compute.gpus or not gpus or plugin.dump().get("ref", "").startswith("zoo:"):
        return []
    message = (
        f"the generator {plugin.dump().get('ref', plugin.name)} will run on the CPU, on which one search takes hours: "
        f"compute.gpus is 0, and this machine has {gpus} GPU{'s' * (gpus > 1)}. Set compute: {{gpus: {gpus}}}"
    )
    return [RunWarning("gpu_not_used", message, blocks_gate=False)]
