"""Prompt-to-prompt: what one process recorded is carried over into another with a changed prompt.

Source: DiG-IN C.1.3 and C.1.4, after Hertz et al. 2022.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from audit.diffusion.optimise import Variables
from audit.diffusion.sampling import Steering, denoise
from audit.errors import BadItem, ModelError
from audit.generators import Attention, Generator, Site

# Of the weights between words: the cosines of two words of a prompt differ by tenths.
TEMPERATURE = 0.1

Words = tuple[tuple[int, ...], ...]


@dataclass
class Recording:
    """A process as it went: latents z_T to z_0, each (b, c, h, w), and its conditional cross-attention maps.

    `maps[step][site]`: (b, heads, height * width, tokens), in the order of `sites`.
    """

    latents: list[Tensor] = field(default_factory=list)
    maps: list[dict[str, Tensor]] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)

    def rows(self, index: Tensor) -> Recording:
        """The recording of some of its items (n,), which may repeat."""
        maps = [{name: value[index] for name, value in step.items()} for step in self.maps]
        return Recording([z[index] for z in self.latents], maps, self.sites)


@torch.no_grad()
def record(
    generator: Generator,
    variables: Variables,
    wanted: Callable[[int, Site], bool] = lambda step, site: True,  # noqa: ARG005
    steering: Steering | None = None,
) -> Recording:
    """Run a process, and keep its latents and the maps that its conditional branch uses, where they are wanted."""
    recorder = _Recorder(len(variables.latent), wanted, steering)
    recorder.kept.latents.append(variables.latent)
    denoise(generator.eps, generator.levels(), generator.guidance_scale, *variables.tensors(), steering=recorder)
    return recorder.kept


class _Recorder:
    """Steering that changes nothing, or what another one does."""

    def __init__(self, items: int, wanted: Callable[[int, Site], bool], steering: Steering | None) -> None:
        self.items, self.wanted, self.steering, self.kept = items, wanted, steering, Recording()

    def attention(self, step: int) -> Attention:
        replace = self.steering.attention(step) if self.steering else None
        maps: dict[str, Tensor] = {}
        self.kept.maps.append(maps)

        def keep(site: Site, own: Callable[[int], Tensor]) -> Tensor | None:
            replaced = replace(site, own) if replace else None
            self.kept.sites[site.name] = site
            if self.wanted(step, site):
                maps[site.name] = own(self.items) if replaced is None else replaced
            return replaced

        return keep

    def latent(self, step: int, z: Tensor) -> Tensor:
        z = self.steering.latent(step, z) if self.steering else z
        self.kept.latents.append(z)
        return z


def foreground(
    recording: Recording, words: Sequence[Words], side: int, share: float = 0.5, sharpen: float = 0.0
) -> Tensor:
    """Where the words' object is: (b, side, side) in [0, 1], 1 at the strongest place.

    Mean over a share of the steps, the noisiest first (the paper's half), sites with maps of height `side`, heads, and
    all tokens of the words (DiG-IN C.1.4). `sharpen`: the authors' code subtracts 0.3, rescales and takes the root; 0
    is the paper.
    """
    sites = [name for name, site in recording.sites.items() if site.height == side]
    if not sites:
        known = sorted({site.height for site in recording.sites.values()})
        raise ModelError(f"no cross-attention maps of height {side}; this generator has {known}: choose with map_side")
    steps = recording.maps[: max(1, int(share * len(recording.maps)))]
    mean = torch.stack([step[name].mean(1) for step in steps for name in sites]).mean(0)
    tokens = [[token for word in item for token in word] for item in words]
    mask = torch.stack([item[:, at].mean(-1) for item, at in zip(mean, tokens, strict=True)])
    mask = mask / mask.amax(1, keepdim=True)
    if sharpen:
        mask = ((mask - sharpen).clamp_min(0) / (1 - sharpen)).sqrt()
    width = recording.sites[sites[0]].width
    return mask.view(len(mask), side, width)


def resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (b, h, w) to (b, *size), bilinear."""
    return F.interpolate(mask[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def name_in(prompt: str, name: str) -> re.Match[str] | None:
    """The first place where a prompt has a name as whole words; group 1 is an article before it."""
    return re.search(rf"(\ban? +)?(?<!\w){re.escape(name)}(?!\w)", prompt, re.IGNORECASE)


def edited(prompt: str, source: str, target: str) -> str:
    """The prompt with its first `source` replaced; an article before it is made to fit.

    Differs from the paper: Algorithm 2 replaces all; attention maps are carried over at one place, so one is replaced.
    Raises BadItem where the prompt does not name the source.
    """
    found = name_in(prompt, source)
    if not found:
        raise BadItem("class_not_in_caption", f"{source!r} is not in {prompt!r}")
    article = ("an " if target[:1].lower() in "aeiou" else "a ") if found[1] else ""
    return f"{prompt[: found.start()]}{article}{target}{prompt[found.end() :]}"


def edited_place(prompt: str, source: str, target: str) -> int:
    """The character at which `target` begins in the edited prompt."""
    whole = edited(prompt, source, target)
    found = name_in(prompt, source)
    assert found is not None
    return len(whole) - len(prompt) + found.end() - len(target)


def remapping(source: Words, target: Words, similarity: Tensor, names: tuple[str, str], tokens: int) -> Tensor:
    """How maps of one prompt become maps of another that differs in one name: (tokens, tokens), rows sum to 1.

    `source`, `target`: token positions of each word of the name in its prompt; `similarity` (source words, target
    words): cosines. A token before the name stays, one after it moves along with the name's length. Each word of the
    new name gets a weighted average of the old words' maps, more of those of more similar words (a softmax of the
    cosines at `TEMPERATURE`, over the old words), the map of an equal word alone; every token of a word gets its share.
    So no new word is left without attention. Each old word's weights are then scaled to sum to 1, so that maps that sum
    to 1 still do. The attention of a word of which no new one wants any goes to all of them by similarity.

    Source: DiG-IN C.1.3. Differs from the paper, which does not say how its average keeps the sum; from the authors'
    code: weights grow with similarity, not with distance, and all tokens of a word get them.
    """
    old, new = [t for word in source for t in word], [t for word in target for t in word]
    first, shift = old[0], len(new) - len(old)
    matrix = torch.zeros(tokens, tokens, dtype=similarity.dtype, device=similarity.device)
    for token in range(tokens):
        if token < first:
            matrix[token, token] = 1
        elif token > old[-1]:
            matrix[token, min(token + shift, tokens - 1)] = 1
    weights = _word_weights(similarity, *(name.lower().split() for name in names))
    for i, word in enumerate(source):
        for j, other in enumerate(target):
            spread = _spread(len(word), len(other)).to(weights)
            matrix[word[0] : word[-1] + 1, other[0] : other[-1] + 1] = weights[i, j] * spread
    return matrix


def _word_weights(similarity: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """Which share of each old word's attention each new word gets: (source words, target words), rows sum to 1."""
    weights = (similarity / TEMPERATURE).softmax(0)
    for j, word in enumerate(new):
        if word in old:
            weights[:, j] = F.one_hot(torch.tensor(old.index(word)), len(old)).to(weights)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp_min(1e-12), (similarity / TEMPERATURE).softmax(1))


def _spread(old: int, new: int) -> Tensor:
    """Tokens of one word to those of another: one to one where they are as many, else each to all alike."""
    return torch.eye(old) if old == new else torch.full((old, new), 1 / new)


def word_similarity(source: Tensor, target: Tensor, old: Words, new: Words) -> Tensor:
    """Cosines (source words, target words) of words in two conditions (tokens, dim); a word is its tokens' mean."""
    means = [
        torch.stack([cond[list(word)].mean(0) for word in words]) for cond, words in ((source, old), (target, new))
    ]
    first, second = (F.normalize(mean, dim=-1) for mean in means)
    return first @ second.T


@dataclass(frozen=True)
class Injection:
    """Steering: a recording's maps in place of the process's own, and its latents in the background.

    `remap` (b, tokens, tokens) turns recorded maps into maps of the new prompt; `maps_until`, `blend_until` (b,): in
    how many of the first steps maps are injected, and latents blended; `mask` (b, h, w): 1 on the foreground.
    """

    recording: Recording
    remap: Tensor
    mask: Tensor
    maps_until: Tensor
    blend_until: Tensor

    def attention(self, step: int) -> Attention | None:
        active = self.maps_until > step
        if not active.any():
            return None

        def inject(site: Site, own: Callable[[int], Tensor]) -> Tensor:
            recorded = self.recording.maps[step][site.name] @ self.remap[:, None].to(own_dtype)
            if active.all():
                return recorded
            return torch.where(active[:, None, None, None], recorded, own(len(recorded)))

        own_dtype = next(iter(self.recording.maps[step].values())).dtype
        return inject

    def latent(self, step: int, z: Tensor) -> Tensor:
        active = self.blend_until > step
        if not active.any():
            return z
        mask = torch.where(active[:, None, None], self.mask, torch.ones_like(self.mask))[:, None]
        return mask * z + (1 - mask) * self.recording.latents[step + 1]
