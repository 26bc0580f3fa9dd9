"""Recipe of the latent diffusion model: U-Net and text tower together, in Stable Diffusion's folder layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from audit.zoo.recipes.autoencoder import LATENT_CHANNELS, encoded
from audit.zoo.recipes.loop import DEVICE, Budget, Schedule, fit, in_bfloat16
from audit.zoo.recipes.text import MAX_LENGTH, build_tokenizer
from audit.zoo.scenes import Scene, caption
from audit.zoo.world import load_world, scenes

SCHEDULE = Schedule(
    steps=8000, learning_rate=1.2e-3, weight_decay=0.01, ema=0.998, decay=0.27, warmup=200, micro_batches=2
)
BATCH = 32  # of a micro-batch
NULL_TEXT_RATE = 0.1
_NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class TextToLatent(nn.Module):
    """The two networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        vocabulary = build_tokenizer()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_LENGTH,
                bos_token_id=vocabulary.bos_token_id,
                eos_token_id=vocabulary.eos_token_id,
                pad_token_id=vocabulary.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(48, 96, 160),
            layers_per_block=1,
            cross_attention_dim=64,
            attention_head_dim=(2, 3, 5),  # diffusers reads this as the number of heads
            norm_num_groups=16,
        )
        self.unet.set_attn_processor(AttnProcessor())  # trains a third faster on CPU than the fused one


def train(
    folder: Path,
    cache: Path,
    autoencoder: AutoencoderKL,
    *,
    count: int = 60000,
    schedule: Schedule = SCHEDULE,
    budget: Budget | None = None,
) -> TextToLatent:
    """Train with v-prediction on the latents of the balanced split; captions leave things out at random."""
    torch.manual_seed(0)
    latents = encoded(autoencoder, count, cache)
    world, tokenizer = load_world(), build_tokenizer()
    shown = [item.scene for item in scenes(world, "train", 0, count)]
    model = TextToLatent()
    noise = DDPMScheduler(**_NOISE, prediction_type="v_prediction")

    def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
        index = torch.randint(len(latents), (BATCH,), generator=generator).numpy()
        z = torch.from_numpy(latents[index]).float()
        ids = _tokens(tokenizer, [prompt(shown[i], generator) for i in index])
        t = torch.randint(1000, (BATCH,), generator=generator)
        eps = torch.randn(z.shape, generator=generator)
        noisy, target = noise.add_noise(z, eps, t), noise.get_velocity(z, eps, t)
        noisy, t, ids, target = (x.to(DEVICE) for x in (noisy, t, ids, target))
        with in_bfloat16():
            v = model.unet(noisy, t, model.text(ids).last_hidden_state).sample
        return {"v": F.mse_loss(v.float(), target)}

    fit(model, loss, schedule, folder, budget=budget)
    return model


def prompt(scene: Scene, generator: torch.Generator) -> str:
    """A caption that says everything, leaves out colour, place or badge, or says nothing (for guidance)."""
    draw = torch.rand(4, generator=generator).tolist()
    if draw[0] < NULL_TEXT_RATE:
        return ""
    return caption(scene, colour=draw[1] < 0.5, background=draw[2] < 0.7, badge=draw[3] < 0.85)


def _tokens(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    return tokenizer(list(texts), padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids


def pipeline(model: TextToLatent, autoencoder: AutoencoderKL) -> StableDiffusionPipeline:
    """Both parts as a pipeline that `save_pretrained` writes in Stable Diffusion's layout."""
    scheduler = DDIMScheduler(
        **_NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.text,
        tokenizer=build_tokenizer(),
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
