"""Guided optimisation: the input of a whole diffusion process, searched by gradient (DiG-IN Algorithm 1).

Many independent searches run side by side in one batch. Everything that one search uses (noise, clipping, norm,
Adam's moments, the choice of the best iterate, the finite mask) is its own, so its result does not depend on the
batch it was in, up to the rounding of batched products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audit.augment import cutouts
from audit.diffusion.checkpoint import CheckpointPolicy as CheckpointPolicy
from audit.diffusion.noise import generator_for
from audit.diffusion.sampling import Steering, predictions
from audit.generators import Generator

Objective = Callable[[Tensor], Tensor]
Penalty = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """Numbers of a search. They default to the paper's Table D.1.

    The form of the clip and the end of the cosine at a tenth are the authors' code's. `cutout_size` is the input
    side of the classifiers. `prediction_weights`: of the last predicted z_0 in the loss, oldest first. The paper's loss
    is that of the final image alone; the authors' code has (1/6, 2/6, 3/6).
    """

    ddim_steps: int = 25
    guidance_scale: float = 3.0
    steps: int = 15
    step_size_latent: float = 0.00025
    step_size_text: float = 0.025
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = 0.05
    cutouts: int = 16
    cutout_noise: float = 0.05
    cutout_size: int = 224
    prediction_weights: tuple[float, ...] = (1.0,)
    checkpoint: CheckpointPolicy = "none"

    def rate(self, step: int) -> float:
        """Factor on both step sizes: a cosine from 1 down to 1/10 over the steps, or 1."""
        if self.schedule == "constant" or self.steps <= 1:
            return 1.0
        return 0.1 + 0.9 * (1 + math.cos(math.pi * step / (self.steps - 1))) / 2


@dataclass(frozen=True)
class Variables:
    """What is optimised: z_T (b, c, h, w), C_t and null_t (b, steps, tokens, dim), one per DDIM step."""

    latent: Tensor
    cond: Tensor
    null: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.latent, self.cond, self.null


@dataclass(frozen=True)
class Result:
    """`start` and `image`: (b, 3, H, W) in [0, 1]; the losses are un-augmented, (steps + 1, b), row 0 is the start.

    `augmented`: (steps, b). `best_step`: (b,), the iterate with the lowest un-augmented loss, which `image` and
    `variables` are. `finite`: (b,), False where a search met NaN or infinity and was frozen.
    """

    start: Tensor
    image: Tensor
    variables: Variables
    losses: Tensor
    augmented: Tensor
    best_step: Tensor
    finite: Tensor


def start_from_prompt(generator: Generator, prompts: Sequence[str], latents: Tensor) -> Variables:
    """Variables of searches that start from prompts: every step has the same condition and null text."""
    steps = len(generator.levels())
    cond, null = generator.embed(prompts), generator.embed([""] * len(prompts))
    return Variables(latents, cond[:, None].repeat(1, steps, 1, 1), null[:, None].repeat(1, steps, 1, 1))


def optimise(
    generator: Generator,
    start: Variables,
    objective: Objective,
    settings: Settings,
    keys: Sequence[object],
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    *,
    penalty: Penalty | None = None,
    steering: Steering | None = None,
) -> Result:
    """Maximise `objective` minus `penalty` over z_T, C_t and null_t through the whole DDIM process.

    `objective` maps images (b, ..., 3, h, w) to (b, ...); it is averaged over cutouts, the same ones for every
    predicted z_0 that `prediction_weights` names. `penalty` maps z_0 (b, c, h, w) and its image (b, 3, H, W) to (b,);
    it never sees cutouts, nor predictions. `keys` seed the cutouts of each item. `on_step(k, images, losses)` sees
    every iterate, 0 to `steps`, without gradients.

    Differs from the paper: the iterate with the lowest un-augmented loss is returned, not the last one; z_T is
    rescaled to its first norm after every step; gradients are clipped to `clip` by their largest entry, per
    variable and item (all three as in the authors' code). The loss is that of the final image, as in the paper, unless
    `prediction_weights` says otherwise.
    """
    levels, scale = generator.levels(), generator.guidance_scale
    variables = Variables(*(v.detach().clone().requires_grad_(True) for v in start.tensors()))
    rates = (settings.step_size_latent, settings.step_size_text, settings.step_size_text)
    adam = torch.optim.Adam([{"params": [v], "lr": r} for v, r in zip(variables.tensors(), rates, strict=True)])
    norm = _norm(variables.latent.detach())
    finite = torch.ones(len(keys), dtype=torch.bool, device=variables.latent.device)
    best: _Best | None = None
    losses, augmented = [], []
    for k in range(settings.steps + 1):
        with torch.set_grad_enabled(k < settings.steps):
            latents = predictions(
                generator.eps,
                levels,
                scale,
                *variables.tensors(),
                len(settings.prediction_weights),
                steering=steering,
                checkpoint=settings.checkpoint,
            )
            z_0 = latents[-1]
            x = generator.decode(z_0).clamp(0, 1)
        with torch.no_grad():
            image = x.detach()
            loss = -objective(image) + (penalty(z_0, image) if penalty else 0)
            finite &= loss.isfinite()
            losses.append(loss.masked_fill(~finite, math.inf))
        best = best.update(k, image, variables, losses[k]) if best else _Best.of(image, variables, losses[k])
        if on_step:
            on_step(k, image, losses[k])
        if k == settings.steps:
            break

        loss = penalty(z_0, x) if penalty else x.new_zeros(len(keys))
        for weight, z in zip(reversed(settings.prediction_weights), reversed(latents), strict=False):
            seen = x if z is z_0 else generator.decode(z).clamp(0, 1)
            draws = [generator_for(key, "cutouts", k) for key in keys]
            crops = cutouts(seen, settings.cutout_size, settings.cutouts, settings.cutout_noise, draws)
            loss = loss - weight * objective(crops).mean(1)
        gradients = torch.autograd.grad(loss.sum(), variables.tensors(), materialize_grads=True)
        augmented.append(loss.detach())
        finite &= loss.detach().isfinite()
        for gradient in gradients:
            finite &= gradient.flatten(1).isfinite().all(1)
        for variable, gradient, axes in zip(variables.tensors(), gradients, _CLIP_AXES, strict=True):
            held = gradient.masked_fill(~_per_item(finite, gradient), 0.0)
            variable.grad = _clipped(held, settings.clip, axes)
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * settings.rate(k)
        before = [variable.detach().clone() for variable in variables.tensors()]
        adam.step()
        with torch.no_grad():
            variables.latent.mul_(norm / _norm(variables.latent))
            for variable, old in zip(variables.tensors(), before, strict=True):
                variable.copy_(torch.where(_per_item(finite, variable), variable, old))
    assert best is not None
    seen = torch.stack(augmented) if augmented else losses[0].new_empty(0, len(keys))
    return Result(best.start, best.image, best.variables, torch.stack(losses), seen, best.step, finite)


# A latent is one variable; each DDIM step's condition is a variable of its own.
_CLIP_AXES = ((1, 2, 3), (2, 3), (2, 3))


@dataclass
class _Best:
    """The best iterate so far, item by item."""

    start: Tensor
    image: Tensor
    variables: Variables
    loss: Tensor
    step: Tensor

    @classmethod
    def of(cls, image: Tensor, variables: Variables, loss: Tensor) -> _Best:
        kept = Variables(*(v.detach().clone() for v in variables.tensors()))
        return cls(
            image, image.clone(), kept, loss.clone(), torch.zeros(len(loss), dtype=torch.long, device=loss.device)
        )

    def update(self, k: int, image: Tensor, variables: Variables, loss: Tensor) -> _Best:
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.step[better] = k
        self.image[better] = image[better]
        for kept, now in zip(self.variables.tensors(), variables.tensors(), strict=True):
            kept.copy_(torch.where(_per_item(better, kept), now.detach(), kept))
        return self


def _clipped(gradient: Tensor, clip: float | None, axes: tuple[int, ...]) -> Tensor:
    """Scale down so that the largest entry over `axes` is at most `clip`."""
    if clip is None:
        return gradient
    return gradient * (clip / gradient.abs().amax(axes, keepdim=True).clamp_min(clip))


def _norm(latent: Tensor) -> Tensor:
    return latent.flatten(1).norm(dim=1)[:, None, None, None]


def _per_item(mask: Tensor, like: Tensor) -> Tensor:
    """(b,) to (b, 1, ...) so that it broadcasts over a variable."""
    return mask.view(-1, *[1] * (like.ndim - 1))
