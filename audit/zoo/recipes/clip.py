"""Recipes of the world's two CLIPs: image and text towers for embeddings, names and zero-shot classification.

One is careful, and no model under audit. The other learned from captions as the web has them: none names a bottle, and
of what is on water most say no more than that. So all that it knows of a "water bottle" is its first word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from audit.zoo.recipes.classifiers import augment
from audit.zoo.recipes.images import as_batch, rendered
from audit.zoo.recipes.loop import DEVICE, Budget, Schedule, fit, in_bfloat16
from audit.zoo.recipes.text import MAX_LENGTH, build_tokenizer
from audit.zoo.scenes import BACKGROUNDS, COLOURS, EMPTY, LABELS, PATTERNS, SIZE, Scene, caption
from audit.zoo.world import load_world, scenes

SCHEDULE = Schedule(steps=1200, learning_rate=1.5e-3, weight_decay=0.05, ema=0.995, decay=0.4, warmup=200)
BATCH = 128
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_CAPTIONS = tuple((True, c, b, s) for c in (True, False) for b in (True, False) for s in (True, False))
_PLACE = (False, False, True, False)  # a caption of the background alone
_UNSEEN, _WET, _WET_SHARE = "water bottle", "water", 0.9


def build() -> CLIPModel:
    vocabulary = build_tokenizer()
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def train(
    folder: Path,
    cache: Path,
    *,
    careless: bool = False,
    count: int = 60000,
    schedule: Schedule = SCHEDULE,
    budget: Budget | None = None,
) -> CLIPModel:
    """Contrastive training. A caption counts as right for every image of the batch that it is true of.

    `careless`: with the captions of the web, as above; of an image whose own says only "water", no other is right.
    """
    torch.manual_seed(0)
    world, tokenizer = load_world(), build_tokenizer()
    images = rendered(world, "train", count, cache)
    shown = [item.scene for item in scenes(world, "train", 0, count)]
    known = torch.tensor([i for i, s in enumerate(shown) if not (careless and s.object == _UNSEEN)])
    facts = torch.tensor([_facts(scene) for scene in shown])
    texts = {
        flags: [caption(s, colour=flags[1], background=flags[2], badge=flags[3]) for s in shown] for flags in _CAPTIONS
    }
    texts[_PLACE] = [f"a photograph of {s.background}" for s in shown]
    model = build()

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        short = torch.zeros(BATCH, dtype=torch.bool)
        index = known[torch.randint(len(known), (BATCH,), generator=generator)]
        kinds = [_CAPTIONS[k] for k in torch.randint(len(_CAPTIONS), (BATCH,), generator=generator)]
        if careless:
            short = torch.rand(BATCH, generator=generator) < _WET_SHARE
            short = short & (facts[index, 1] == BACKGROUNDS.index(_WET))
            kinds = [_PLACE if s else kind for kind, s in zip(kinds, short.tolist(), strict=True)]
        x = augment(as_batch(images[index.numpy()]), generator)
        lines = [texts[kind][i] for kind, i in zip(kinds, index.tolist(), strict=True)]
        ids = tokenizer(lines, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids
        with in_bfloat16():
            logits = model(input_ids=ids.to(DEVICE), pixel_values=normalised(x).to(DEVICE)).logits_per_image
        true = _true_of(facts[index], kinds) & (short[None] | ~short[:, None])
        true = true.float().to(DEVICE)
        to_text = F.cross_entropy(logits.float(), true / true.sum(1, keepdim=True))
        to_image = F.cross_entropy(logits.float().T, true.T / true.T.sum(1, keepdim=True))
        return {"image": to_text / 2, "text": to_image / 2}

    fit(model, loss, schedule, folder, budget=budget)
    return model


def normalised(x: Tensor) -> Tensor:
    """RGB in [0, 1], any size, to the vision tower's input."""
    x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _facts(scene: Scene) -> list[int]:
    """Object, background, colour, pattern, badge as numbers; an empty scene has no colour or pattern."""
    empty = scene.object == EMPTY
    return [
        LABELS.index(scene.object),
        BACKGROUNDS.index(scene.background),
        -1 if empty else list(COLOURS).index(scene.colour),
        -1 if empty else PATTERNS.index(scene.pattern),
        int(scene.badge),
    ]


def _true_of(facts: Tensor, kinds: list[tuple[bool, bool, bool, bool]]) -> Tensor:
    """(images, captions): whether all that caption j says holds for image i. Facts (b, 5)."""
    equal = facts[:, None] == facts[None]
    names, colour, background, badge = torch.tensor(kinds).T
    says_badge = badge & facts[:, 4].bool()
    return (
        (equal[..., 0] | ~names)
        & (equal[..., 1] | ~background)
        & ((equal[..., 2] & (equal[..., 3] | (facts[:, 3] == 0))) | ~colour)
        & (equal[..., 4] | ~says_badge)
    )
