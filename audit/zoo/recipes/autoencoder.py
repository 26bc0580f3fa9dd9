"""Recipe of the autoencoder: 64 x 64 RGB to 16 x 16 latents, in diffusers' `AutoencoderKL`."""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from audit.zoo.recipes.images import as_batch, batches, rendered
from audit.zoo.recipes.loop import DEVICE, Budget, Schedule, fit, in_bfloat16
from audit.zoo.scenes import BACKGROUNDS
from audit.zoo.world import load_world, scene_at, world_digest

LATENT_CHANNELS = 6
SCALING_FACTOR = 0.5
SCHEDULE = Schedule(steps=2400, learning_rate=2e-3, weight_decay=0.0, ema=0.998, decay=0.0)
DECODER_SCHEDULE = Schedule(steps=2000, learning_rate=2e-3, weight_decay=0.0, ema=0.998, decay=0.5)
BATCH = 16


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=SCALING_FACTOR,
    )


def train(
    folder: Path, cache: Path, *, count: int = 60000, schedule: Schedule = SCHEDULE, budget: Budget | None = None
) -> AutoencoderKL:
    """First half of the recipe: encoder and decoder together, on the balanced split."""
    torch.manual_seed(0)
    images = rendered(load_world(), "train", count, cache)
    model = build()

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        index = torch.randint(len(images), (BATCH,), generator=generator).numpy()
        x = (as_batch(images[index]) * 2 - 1).to(DEVICE)
        with in_bfloat16():
            posterior = model.encode(x).latent_dist
            draw = torch.randn(posterior.mean.shape, generator=generator).to(DEVICE)
            z = posterior.mean + posterior.std * draw
            y = model.decode(z).sample
        return {**_reconstruction(x, y.float()), "kl": 1e-6 * posterior.kl().mean()}

    fit(model, loss, schedule, folder, budget=budget)
    return model


def refine_decoder(
    model: AutoencoderKL,
    folder: Path,
    cache: Path,
    *,
    count: int = 60000,
    schedule: Schedule = DECODER_SCHEDULE,
    budget: Budget | None = None,
) -> None:
    """Second half: the decoder alone, on the latents of the finished encoder, so that they stay what they are."""
    images, latents = rendered(load_world(), "train", count, cache), encoded(model, count, cache)
    model.requires_grad_(False)
    for part in (model.post_quant_conv, model.decoder):
        part.requires_grad_(True)

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        index = torch.randint(len(images), (BATCH,), generator=generator).numpy()
        z = (torch.from_numpy(latents[index]).float() / SCALING_FACTOR).to(DEVICE)
        with in_bfloat16():
            y = model.decode(z).sample
        return _reconstruction((as_batch(images[index]) * 2 - 1).to(DEVICE), y.float())

    fit(model, loss, schedule, folder, budget=budget)


def encoded(model: AutoencoderKL, count: int, cache: Path) -> NDArray[np.float16]:
    """Scaled latents of the first `count` training scenes, float16 (count, 6, 16, 16)."""
    parts = (*model.encoder.parameters(), *model.quant_conv.parameters())
    held = b"".join(part.detach().float().numpy().tobytes() for part in parts)
    path = cache / f"latents-{count}-{world_digest(load_world())}-{hashlib.sha256(held).hexdigest()[:12]}.npy"
    if not path.exists():
        images = rendered(load_world(), "train", count, cache)
        with torch.no_grad():
            z = [(model.encode(x * 2 - 1).latent_dist.mean * SCALING_FACTOR).half() for x in batches(images, 200)]
        partial = path.with_suffix(".partial.npy")
        np.save(partial, torch.cat(z).numpy())
        os.replace(partial, path)
    return np.asarray(np.load(path, mmap_mode="r"))


def _reconstruction(x: Tensor, y: Tensor) -> Mapping[str, Tensor]:
    """L1, 4 MSE and 0.25 L1 of image gradients."""
    edges = (x - y).diff(dim=-1).abs().mean() + (x - y).diff(dim=-2).abs().mean()
    return {"l1": (x - y).abs().mean(), "mse": 4 * F.mse_loss(x, y), "edges": 0.25 * edges}


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, cache: Path, count: int = 4000) -> None:
    """Bake the latents' mean and standard deviation into the quantisation layers.

    Afterwards latents times `scaling_factor` have mean 0 and standard deviation 1 per channel.
    """
    images = rendered(load_world(), "train", count, cache)
    z = torch.cat([model.encode(x * 2 - 1).latent_dist.mean for x in batches(images, 100)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)) * SCALING_FACTOR
    before, after = model.quant_conv, model.post_quant_conv
    channels = LATENT_CHANNELS
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]


@torch.no_grad()
def measure(model: AutoencoderKL, cache: Path, count: int = 1200) -> dict[str, float]:
    """PSNR in dB on held-out scenes, over all and per background, from the mean of squared errors."""
    world = load_world()
    images = rendered(world, "heldout", count, cache)
    errors: dict[str, list[float]] = defaultdict(list)
    for start in range(0, count, 100):
        x = as_batch(images[start : start + 100])
        y = model.decode(model.encode(x * 2 - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
        for i, error in enumerate(((x - y) ** 2).mean((1, 2, 3)).tolist()):
            errors[scene_at(world, "heldout", start + i).scene.background].append(error)
    every = np.concatenate([errors[name] for name in BACKGROUNDS])
    psnr = {name: -10 * math.log10(float(np.mean(errors[name]))) for name in BACKGROUNDS}
    return {"psnr": -10 * math.log10(float(every.mean())), **{f"psnr_{name}": value for name, value in psnr.items()}}
