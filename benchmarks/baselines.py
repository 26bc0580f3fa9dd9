"""The same search in three plainer ways, to compare the batched optimiser with.

A  Algorithm 1 as it is written: one item, two calls of the U-Net for guidance, each DDIM step checkpointed.
B  One item, guidance in one call, each block of the U-Net checkpointed: how diffusers' users save memory.
C  One item, guidance in one call, everything kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from audit.augment import cutouts
from audit.diffusion.noise import generator_for
from audit.diffusion.optimise import Objective, Settings, Variables
from audit.diffusion.sampling import denoise
from audit.generators import Level

Process = Callable[[Any, Variables], Tensor]


def literal(generator: Any, variables: Variables) -> Tensor:
    """A: z_T to z_0 (Algorithm 1, Eqs. 13 and 17)."""
    s = generator.guidance_scale

    def step(z: Tensor, cond: Tensor, null: Tensor, level: Level) -> Tensor:
        on_null, on_cond = generator.eps(z, level.t, null), generator.eps(z, level.t, cond)
        eps = on_null + s * (on_cond - on_null)
        z_0 = (z - (1 - level.alpha) ** 0.5 * eps) / level.alpha**0.5
        return level.alpha_next**0.5 * z_0 + (1 - level.alpha_next) ** 0.5 * eps

    z, cond, null = variables.tensors()
    for i, level in enumerate(generator.levels()):
        z = checkpoint(step, z, cond[:, i], null[:, i], level, use_reentrant=False)
    return z


def kept(generator: Any, variables: Variables) -> Tensor:
    """C: z_T to z_0."""
    return denoise(generator.eps, generator.levels(), generator.guidance_scale, *variables.tensors())


def by_block(generator: Any, variables: Variables) -> Tensor:
    """B: z_T to z_0. Inside `checkpointed_blocks` alone it differs from C."""
    return kept(generator, variables)


@contextmanager
def checkpointed_blocks(generator: Any) -> Iterator[None]:
    """Let the U-Net checkpoint its blocks, in forward and backward passes inside the block."""
    generator.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        generator.unet.disable_gradient_checkpointing()


def loss(
    generator: Any,
    process: Process,
    variables: Variables,
    objective: Objective,
    settings: Settings,
    keys: Sequence[object],
    k: int,
) -> Tensor:
    """-objective, averaged over the cutouts of optimisation step k, of each item (b,)."""
    x = generator.decode(process(generator, variables)).clamp(0, 1)
    draws = [generator_for(key, "cutouts", k) for key in keys]
    return -objective(cutouts(x, settings.cutout_size, settings.cutouts, settings.cutout_noise, draws)).mean(1)


def search(
    generator: Any, process: Process, start: Variables, objective: Objective, settings: Settings, keys: Sequence[object]
) -> Tensor:
    """Algorithm 1: the image after all steps (b, 3, H, W). Clipping and the norm of z_T are as in the optimiser."""
    variables = Variables(*(v.detach().clone().requires_grad_(True) for v in start.tensors()))
    rates = (settings.step_size_latent, settings.step_size_text, settings.step_size_text)
    adam = torch.optim.Adam([{"params": [v], "lr": r} for v, r in zip(variables.tensors(), rates, strict=True)])
    norm = variables.latent.detach().flatten(1).norm(dim=1)[:, None, None, None]
    for k in range(settings.steps):
        value = loss(generator, process, variables, objective, settings, keys, k).sum()
        for v, gradient in zip(variables.tensors(), torch.autograd.grad(value, variables.tensors()), strict=True):
            axes = (1, 2, 3) if v is variables.latent else (2, 3)
            largest, clip = gradient.abs().amax(axes, keepdim=True), settings.clip
            v.grad = gradient if clip is None else gradient * (clip / largest.clamp_min(clip))
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * settings.rate(k)
        adam.step()
        with torch.no_grad():
            variables.latent.mul_(norm / variables.latent.flatten(1).norm(dim=1)[:, None, None, None])
    with torch.no_grad():
        return generator.decode(process(generator, variables)).clamp(0, 1)
