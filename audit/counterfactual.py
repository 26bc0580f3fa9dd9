"""Universal visual counterfactual explanations (DiG-IN section 6, appendix C, Algorithm 2), for batches of images.

`prepare` does what belongs to the images alone: inversion, recording, foreground mask. `search` does what belongs to a
target: the prompt edit, the choice of the start, the optimisation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from audit.diffusion.inversion import Inversion, NullText, ddim_inversion, null_text_inversion
from audit.diffusion.optimise import Objective, Result, Settings, Variables, optimise
from audit.diffusion.prompt_to_prompt import (
    Injection,
    Recording,
    Words,
    edited,
    edited_place,
    foreground,
    record,
    remapping,
    resized,
    word_similarity,
)
from audit.diffusion.sampling import denoise
from audit.generators import Generator, Site
from audit.objectives import masked_distance


@dataclass(frozen=True)
class Numbers:
    """Numbers of the method; the defaults are the paper's Table C.1.5, and the authors' code's where it has none.

    `injection`, `blending`: shares of the steps in which recorded maps, and recorded background latents, are carried
    over; the pair with the lowest un-augmented loss is taken, item by item. The paper's share of injection is .8, the
    others are the authors' code's. `map_side`: height of the cross-attention maps that make the mask, a quarter of the
    latents' where None, which is the paper's 16 at 512 pixels; `map_share` and `sharpen`: see `foreground`;
    `threshold`: from where on the mask is 1, and 0 below, where a number is given; in the paper the mask is soft.
    `both_masks`: changes are free where the source is or where the edited prompt puts the target; in the paper, where
    the source is. `null_text`: None leaves the null text as it is, which is DDIM inversion.
    `refinements`: see `ddim_inversion`.
    """

    weight_latent: float = 25.0
    weight_pixel: float = 250.0
    injection: tuple[float, ...] = (0.3, 0.4, 0.5, 0.8)
    blending: tuple[float, ...] = (0.0, 0.3)
    map_side: int | None = None
    map_share: float = 0.5
    sharpen: float = 0.0
    threshold: float | None = None
    both_masks: bool = False
    null_text: NullText | None = field(default_factory=NullText)
    refinements: int = 0
    optimisation: Settings = field(
        default_factory=lambda: Settings(
            ddim_steps=20,
            steps=20,
            step_size_latent=0.001,
            step_size_text=0.01,
            schedule="constant",
            clip=None,
            cutouts=16,
            cutout_noise=0.005,
        )
    )


@dataclass(frozen=True)
class Original:
    """Images and what is known of them before any target: all of (b, ...).

    `image` and `reconstruction` (b, 3, H, W) in [0, 1]; `autoencoded`: decoded right from `latent`; `mask` (b, H, W),
    1 on the object that `names` names in `prompts`; `attention` (b, H, W) in [0, 1], to those names, where the mask is
    made of it.
    """

    image: Tensor
    latent: Tensor
    autoencoded: Tensor
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    variables: Variables
    recording: Recording
    reconstruction: Tensor
    mask: Tensor
    attention: Tensor | None = None

    def rows(self, index: Sequence[int]) -> Original:
        """Some of the items; an item may come more than once. All of them in their order are no copy."""
        if list(index) == list(range(len(self.names))):
            return self
        at = torch.tensor(list(index), device=self.latent.device)
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in chosen.items():
            if isinstance(value, Tensor):
                chosen[name] = value[at]
            elif isinstance(value, tuple):
                chosen[name] = tuple(value[i] for i in index)
        variables = Variables(*(v[at] for v in self.variables.tensors()))
        return Original(**{**chosen, "variables": variables, "recording": self.recording.rows(at)})


def invert(generator: Generator, images: Tensor, prompts: Sequence[str], numbers: Numbers) -> Inversion:
    """z_T and null texts with which the prompts generate the images (b, 3, H, W) again (C.1.2)."""
    with torch.no_grad():
        z_0 = generator.encode(images)
    cond, null = generator.embed(prompts), generator.embed([""] * len(prompts))
    if numbers.null_text is not None:
        return null_text_inversion(generator, z_0, cond, null, numbers.null_text, numbers.refinements)
    steps = len(generator.levels())
    z_t = ddim_inversion(generator, z_0, cond, numbers.refinements)[0]
    return Inversion(z_t, null[:, None].repeat(1, steps, 1, 1), torch.zeros(steps, 2, len(z_t)))


@torch.no_grad()
def prepare(
    generator: Generator,
    images: Tensor,
    prompts: Sequence[str],
    names: Sequence[str],
    inversion: Inversion,
    numbers: Numbers,
    masks: Tensor | None = None,
) -> Original:
    """Reconstruct the images, record how, and find the object (C.1.3, C.1.4). `masks` (b, H, W): the user's own."""
    steps, latent = len(generator.levels()), generator.encode(images)
    cond = generator.embed(prompts)[:, None].repeat(1, steps, 1, 1)
    variables = Variables(inversion.latent, cond, inversion.null)
    recording = record(generator, variables, _wanted(generator, numbers, max(numbers.injection)))
    words = [generator.positions(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    attention = None
    if masks is None:
        attention = _attention(generator, recording, words, images, numbers)
        masks = _mask(attention, numbers)
    decoded = [generator.decode(z).clamp(0, 1) for z in (latent, recording.latents[-1])]
    return Original(
        images, latent, decoded[0], tuple(prompts), tuple(names), variables, recording, decoded[1], masks, attention
    )


def _side(generator: Generator, numbers: Numbers) -> int:
    return numbers.map_side or generator.latent_shape[1] // 4


def _wanted(generator: Generator, numbers: Numbers, injection: float) -> Callable[[int, Site], bool]:
    """Which maps are of use: all in the steps that may be injected, and those that make the mask."""
    steps, side = len(generator.levels()), _side(generator, numbers)
    injected, seen = math.ceil(injection * steps), max(1, int(numbers.map_share * steps))

    def wanted(step: int, site: Site) -> bool:
        return step < injected or (site.height == side and step < seen)

    return wanted


def _attention(
    generator: Generator, recording: Recording, words: Sequence[Words], images: Tensor, numbers: Numbers
) -> Tensor:
    """How much each place attends to the words, at the size of the images: (b, H, W) in [0, 1]."""
    found = foreground(recording, words, _side(generator, numbers), numbers.map_share, numbers.sharpen)
    return resized(found, (images.shape[-2], images.shape[-1]))


def _mask(attention: Tensor, numbers: Numbers) -> Tensor:
    """Where the words' object is, (b, H, W)."""
    return attention if numbers.threshold is None else (attention >= numbers.threshold).to(attention)


@dataclass(frozen=True)
class Found:
    """`result.start` is the prompt edit before any optimisation. `mask` (b, H, W): 1 where changes were free.

    `injection`, `blending` (b,): the chosen shares.
    """

    result: Result
    mask: Tensor
    injection: Tensor
    blending: Tensor


def search(
    generator: Generator,
    original: Original,
    targets: Sequence[str],
    objective: Objective,
    numbers: Numbers,
    keys: Sequence[object],
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Found:
    """Maximise `objective` minus the masked distance of Eq. 5, from the edit of the prompt (Eq. 6, Algorithm 2).

    `targets`: what the source name of each item becomes; `objective`: log p_f(target|x) of images (b, ..., 3, h, w).

    Differs from the paper: the distance in latent space is to E(x), where Algorithm 2 writes z_T's name; how long maps
    are injected, and backgrounds blended, is chosen instead of fixed at 80 % and none (as in the authors' code).
    """
    steps, size = len(generator.levels()), (original.latent.shape[-2], original.latent.shape[-1])
    start, remap, words = _edit(generator, original, targets)
    mask = original.mask

    def steered(injection: Tensor, blending: Tensor) -> Injection:
        small = resized(mask, size)
        return Injection(original.recording, remap, small, (injection * steps).round(), (blending * steps).round())

    def penalty(z_0: Tensor, x: Tensor) -> Tensor:
        in_latents = masked_distance(z_0, original.latent, resized(mask, size), numbers.weight_latent)
        return in_latents + masked_distance(x, original.image, mask, numbers.weight_pixel)

    if numbers.both_masks:
        none = torch.zeros(len(targets), device=mask.device)
        steering = steered(none + numbers.injection[0], none)
        recording = record(generator, start, _wanted(generator, numbers, 0.0), steering)
        mask = torch.maximum(mask, _mask(_attention(generator, recording, words, original.image, numbers), numbers))
    injection, blending = _schedule(generator, start, steered, objective, penalty, numbers)
    steering = steered(injection, blending)
    result = optimise(
        generator, start, objective, numbers.optimisation, keys, on_step, penalty=penalty, steering=steering
    )
    return Found(result, mask, injection, blending)


def _edit(generator: Generator, original: Original, targets: Sequence[str]) -> tuple[Variables, Tensor, list[Words]]:
    """Variables of the edited prompts, what turns recorded maps into theirs (C.1.3), where they name the targets."""
    prompts = [edited(p, n, t) for p, n, t in zip(original.prompts, original.names, targets, strict=True)]
    cond, remaps, words = generator.embed(prompts), [], []
    for i, (name, target) in enumerate(zip(original.names, targets, strict=True)):
        old: Words = generator.positions(original.prompts[i], name)
        place = edited_place(original.prompts[i], name, target)
        new: Words = generator.positions(prompts[i], target, place)
        similarity = word_similarity(original.variables.cond[i, 0], cond[i], old, new)
        words.append(new)
        remaps.append(remapping(old, new, similarity, (name, target), cond.shape[1]))
    repeated = cond[:, None].repeat(1, len(generator.levels()), 1, 1)
    return Variables(original.variables.latent, repeated, original.variables.null), torch.stack(remaps), words


@torch.no_grad()
def _schedule(
    generator: Generator,
    start: Variables,
    steered: Callable[[Tensor, Tensor], Injection],
    objective: Objective,
    penalty: Callable[[Tensor, Tensor], Tensor],
    numbers: Numbers,
) -> tuple[Tensor, Tensor]:
    """The shares of injection and blending (b,), (b,) with the lowest un-augmented loss, item by item."""
    like = start.latent.new_ones(len(start.latent))
    tried = [(a * like, b * like) for a, b in itertools.product(numbers.injection, numbers.blending)]
    if len(tried) == 1:
        return tried[0]
    losses = []
    for injection, blending in tried:
        z_0 = denoise(
            generator.eps,
            generator.levels(),
            generator.guidance_scale,
            *start.tensors(),
            steering=steered(injection, blending),
        )
        x = generator.decode(z_0).clamp(0, 1)
        losses.append((penalty(z_0, x) - objective(x)).nan_to_num(torch.inf))
    best = torch.stack(losses).argmin(0)
    first, second = (torch.stack([pair[k] for pair in tried]) for k in (0, 1))
    return first.gather(0, best[None])[0], second.gather(0, best[None])[0]
