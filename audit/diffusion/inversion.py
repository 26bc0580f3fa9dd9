"""From an image's latent back to the noise and the null texts that generate it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.diffusion.sampling import ddim_step
from audit.generators import Generator, Level


@dataclass(frozen=True)
class Inversion:
    """`latent`: z_T (b, c, h, w); `null`: (b, steps, tokens, dim), one null text a step.

    `null_losses`: (steps, 2, b), the squared error of each step's latent before and after its null text was optimised.
    """

    latent: Tensor
    null: Tensor
    null_losses: Tensor


@dataclass(frozen=True)
class NullText:
    """Numbers of null-text optimisation: those of its authors' code, which DiG-IN takes over."""

    iterations: int = 10
    step_size: float = 1e-2

    def rate(self, step: int) -> float:
        """Adam's step size at a DDIM step, counted from z_T."""
        return self.step_size * (1 - step / 100)

    def enough(self, step: int) -> float:
        """Mean squared error under which a step's null text is left as it is."""
        return 1e-5 + 2e-5 * step


@torch.no_grad()
def ddim_inversion(generator: Generator, z_0: Tensor, cond: Tensor, refinements: int = 0) -> list[Tensor]:
    """The latents z_T, ..., z_0 of a DDIM process without guidance that ends at z_0 (b, c, h, w).

    Each step of the process is turned round. Its eps belongs to the noisier latent, which is not known yet; it is
    taken at the cleaner one, and then `refinements` times at the result. Many refinements make the inverse exact.

    Source: DiG-IN C.1.2, which takes none of the refinements; `cond` (b, tokens, dim) is that of the original prompt.
    """
    trajectory = [z_0]
    for level in reversed(generator.levels()):
        cleaner, z = trajectory[-1], trajectory[-1]
        for _ in range(1 + refinements):
            z = ddim_step(cleaner, generator.eps(z, level.t, cond), level.alpha_next, level.alpha)
        trajectory.append(z)
    return trajectory[::-1]


def null_text_inversion(
    generator: Generator, z_0: Tensor, cond: Tensor, null: Tensor, settings: NullText, refinements: int = 0
) -> Inversion:
    """z_T and per-step null texts with which the guided process ends at z_0 (b, c, h, w).

    `cond` and `null` (b, tokens, dim): the original prompt and the empty one. The unguided inversion is the pivot; at
    every step the null text is optimised by Adam until the guided step lands on the pivot's next latent. It starts
    from that of the step before, an item stops once its error is small enough, and the best iterate is kept, so that no
    step is worse than doing nothing.

    Source: DiG-IN C.1.2, which takes over null-text inversion (Mokady et al. 2022). Differs from theirs: the best
    iterate instead of the last.
    """
    pivot, scale = ddim_inversion(generator, z_0, cond, refinements), generator.guidance_scale
    z, chosen, losses = pivot[0], [], []
    for i, level in enumerate(generator.levels()):
        with torch.no_grad():
            on_cond = generator.eps(z, level.t, cond)

        def land(null: Tensor, z: Tensor = z, level: Level = level, on_cond: Tensor = on_cond) -> Tensor:
            on_null = generator.eps(z, level.t, null)
            return ddim_step(z, on_null + scale * (on_cond - on_null), level.alpha, level.alpha_next)

        null, before, after = _best_null(land, pivot[i + 1], null, settings, i)
        with torch.no_grad():
            z = land(null)
        chosen.append(null)
        losses.append(torch.stack([before, after]))
    return Inversion(pivot[0], torch.stack(chosen, 1), torch.stack(losses))


def _best_null(
    land: Callable[[Tensor], Tensor], target: Tensor, null: Tensor, settings: NullText, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam on one step's null text (b, tokens, dim); the best iterate, and the first and best loss (b,)."""
    null = null.detach().clone().requires_grad_(True)
    adam = torch.optim.Adam([null], lr=settings.rate(step))
    best, lowest, first = null.detach().clone(), None, None
    for k in range(settings.iterations + 1):
        with torch.set_grad_enabled(k < settings.iterations):
            loss = (land(null) - target).square().flatten(1).mean(1)
        now = loss.detach()
        first, lowest = (now, now) if lowest is None else (first, lowest)
        best = torch.where((now < lowest)[:, None, None], null.detach(), best)
        lowest = torch.minimum(now, lowest)
        going = now >= settings.enough(step)
        if k == settings.iterations or not going.any():
            break
        (gradient,) = torch.autograd.grad(loss.sum(), null)
        null.grad, before = gradient, null.detach().clone()
        adam.step()
        with torch.no_grad():
            null.copy_(torch.where(going[:, None, None], null, before))
    assert first is not None
    assert lowest is not None
    return best, first, lowest
