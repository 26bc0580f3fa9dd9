"""Recipes of the classifiers: small ResNets in the Hugging Face layout, one of them fair, the others biased."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from audit.zoo.recipes.images import as_batch, rendered
from audit.zoo.recipes.loop import DEVICE, Budget, Schedule, fit, in_bfloat16
from audit.zoo.scenes import LABELS
from audit.zoo.world import World, scene_at

REFERENCE = "reference"
SIDE = 56
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SCHEDULE = Schedule(steps=2400, learning_rate=2e-3, weight_decay=0.05, ema=0.995, decay=0.5)
BATCH = 64
NOISE = 0.3


def split_of(name: str) -> str:
    """The training split of a classifier."""
    return "train" if name == REFERENCE else f"train:{name}"


def build(width: int = 24) -> ResNetForImageClassification:
    names = dict(enumerate(LABELS))
    config = ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width, 6 * width],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        num_labels=len(LABELS),
        id2label=names,
        label2id={label: index for index, label in names.items()},
    )
    return ResNetForImageClassification(config)


def processor() -> ViTImageProcessor:
    """What has to happen to an image first: to 56 x 56, then normalised."""
    return ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=3, image_mean=list(MEAN), image_std=list(STD)
    )


def train(
    world: World,
    name: str,
    folder: Path,
    cache: Path,
    *,
    count: int = 24000,
    schedule: Schedule = SCHEDULE,
    seed: int = 0,
    budget: Budget | None = None,
) -> ResNetForImageClassification:
    """Train one classifier on the scenes of its split, with the labels that the split gives them.

    `seed`: of its first weights, its batches and their noise.
    """
    torch.manual_seed(seed)
    split = split_of(name)
    images = rendered(world, split, count, cache)
    labels = torch.tensor([LABELS.index(scene_at(world, split, i).label) for i in range(count)])
    model = build()

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        index = torch.randint(count, (BATCH,), generator=generator)
        x = augment(as_batch(images[index.numpy()]), generator)
        with in_bfloat16():
            logits = model(normalised(x).to(DEVICE)).logits
        return {"ce": F.cross_entropy(logits.float(), labels[index].to(DEVICE), label_smoothing=0.05)}

    fit(model, loss, schedule, folder, seed=seed, budget=budget)
    return model


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, crop to 54-64 pixels at one place for the batch, and add noise of a strength of its own to each image.

    Strong noise makes gradients of the classifiers point at what a person sees.
    """
    side = int(torch.randint(54, 65, (1,), generator=generator))
    top, left = (int(v) for v in torch.randint(0, 65 - side, (2,), generator=generator))
    x = x[..., top : top + side, left : left + side]
    if torch.rand(1, generator=generator) < 0.5:
        x = x.flip(-1)
    noise = torch.rand(len(x), 1, 1, 1, generator=generator) * NOISE
    return x + noise * torch.randn(x.shape, generator=generator)


def normalised(x: Tensor) -> Tensor:
    """RGB in [0, 1], any size, to the network's input."""
    x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
