"""DDIM with classifier-free guidance: z_T to z_0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from audit.diffusion.checkpoint import CheckpointPolicy, checkpointed
from audit.generators import Attention, Generator, Level


class Denoiser(Protocol):
    """`Generator.eps`."""

    def __call__(self, z: Tensor, t: int, cond: Tensor, attention: Attention | None = None) -> Tensor: ...


class GuidedDenoiser(Protocol):
    """A denoiser that takes a condition and a null text. `attention`: its batch's last half is the condition's."""

    def __call__(self, z: Tensor, t: int, cond: Tensor, null: Tensor, attention: Attention | None = None) -> Tensor: ...


class Steering(Protocol):
    """What acts on a process besides its text, step by step; `step` counts from 0 at z_T."""

    def attention(self, step: int) -> Attention | None:
        """What looks at, or replaces, cross-attention maps of the conditional branch at a step."""

    def latent(self, step: int, z: Tensor) -> Tensor:
        """The latents (b, c, h, w) after a step, as they go on."""


def predicted(z: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """z_0 as a noise level with this eps predicts it (DiG-IN Eq. 14)."""
    return (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5


def ddim_step(z: Tensor, eps: Tensor, alpha: float, alpha_next: float) -> Tensor:
    """One deterministic DDIM step (DiG-IN Eq. 13): predict z_0, then go to the next level along the same eps."""
    return alpha_next**0.5 * predicted(z, eps, alpha) + (1 - alpha_next) ** 0.5 * eps


def guided(eps: Denoiser, scale: float) -> GuidedDenoiser:
    """Classifier-free guidance in one call: eps_null + s (eps_cond - eps_null). Scale 1 is eps_cond, at half the cost.

    Differs from the paper: Eq. 17 writes eps_cond + w (eps_cond - eps_null), which is s = w + 1. The tables'
    guidance scale of 3.0 is s.
    """

    def eps_hat(z: Tensor, t: int, cond: Tensor, null: Tensor, attention: Attention | None = None) -> Tensor:
        if scale == 1:
            return eps(z, t, cond, attention)
        on_null, on_cond = eps(torch.cat([z, z]), t, torch.cat([null, cond]), attention).chunk(2)
        return on_null + scale * (on_cond - on_null)

    return eps_hat


def denoise(
    eps: Denoiser,
    levels: Sequence[Level],
    scale: float,
    z: Tensor,
    cond: Tensor,
    null: Tensor,
    *,
    steering: Steering | None = None,
    checkpoint: CheckpointPolicy = "none",
) -> Tensor:
    """Latents z_T (b, c, h, w) to z_0, with per-step conditions (b, steps, tokens, dim).

    `checkpoint`: which activations of a step are computed again in the backward pass. Gradients do not depend on it.
    """
    return predictions(eps, levels, scale, z, cond, null, 1, steering=steering, checkpoint=checkpoint)[-1]


def predictions(
    eps: Denoiser,
    levels: Sequence[Level],
    scale: float,
    z: Tensor,
    cond: Tensor,
    null: Tensor,
    last: int,
    *,
    steering: Steering | None = None,
    checkpoint: CheckpointPolicy = "none",
) -> list[Tensor]:
    """`denoise`, and before its z_0 what the steps before the final one predict for it: `last` latents in all.

    With fewer steps than `last`, one for each step.
    """
    eps_hat = guided(eps, scale)

    def step(z: Tensor, cond: Tensor, null: Tensor, i: int) -> tuple[Tensor, Tensor]:
        level, attention = levels[i], steering.attention(i) if steering else None
        noise = eps_hat(z, level.t, cond, null, attention)
        return ddim_step(z, noise, level.alpha, level.alpha_next), predicted(z, noise, level.alpha)

    run = checkpointed(step, checkpoint) if torch.is_grad_enabled() else step
    found = []
    for i in range(len(levels)):
        z, z_0 = run(z, cond[:, i], null[:, i], i)
        if steering:
            z = steering.latent(i, z)
        if i >= len(levels) - last:
            found.append(z_0)
    return [*found[:-1], z]


@torch.no_grad()
def sample(generator: Generator, prompts: Sequence[str], z: Tensor) -> Tensor:
    """Images (b, 3, H, W) in [0, 1] for prompts and latents z_T (b, c, h, w)."""
    levels = generator.levels()
    repeat = (1, len(levels), 1, 1)
    cond = generator.embed(prompts)[:, None].repeat(repeat)
    null = generator.embed([""] * len(prompts))[:, None].repeat(repeat)
    return generator.decode(denoise(generator.eps, levels, generator.guidance_scale, z, cond, null)).clamp(0, 1)
