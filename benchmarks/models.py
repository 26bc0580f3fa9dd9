"""Networks to measure with: the published architectures of Stable Diffusion with random weights, and a small one.

No number of a benchmark depends on what the weights are, so none are fetched.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, ViTConfig, ViTForImageClassification

from audit.classifiers import Classifier, Preprocess, hf
from audit.generators import diffusers
from audit.generators.diffusers import DiffusersGenerator, Options

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
NOISE |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_VAE: dict[str, Any] = {
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
_TEXT: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77}
# U-Net, text tower, what is predicted, and the height and width of latents.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], str, int]] = {
    "1.5": (
        _UNET | {"cross_attention_dim": 768, "attention_head_dim": 8},
        _TEXT
        | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"hidden_act": "quick_gelu"},
        "epsilon",
        64,
    ),
    "2.1": (
        _UNET | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        _TEXT
        | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
        | {"hidden_act": "gelu"},
        "v_prediction",
        96,
    ),
}


def stable_diffusion(version: str, tokenizer: CLIPTokenizer, side: int | None = None) -> Any:
    """A pipeline on the meta device, without memory. `side`: of the latents; default: the version's own."""
    unet, text, prediction, own = SIZES[version]
    side = side or own
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(**unet, sample_size=side),
            "vae": AutoencoderKL(**_VAE, sample_size=8 * side),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
    return StableDiffusionPipeline(
        **networks,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**NOISE, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def filled(network: nn.Module, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A network on the meta device, given memory and cheap random weights of the usual sizes."""
    network = network.to(dtype).to_empty(device=device)
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            scaled = (block / weight[0].numel() ** 0.5).to(dtype)
            for part in torch.split(weight.view(-1), len(block)):
                part.copy_(scaled[: len(part)])
        for name, buffer in network.named_buffers():
            if not name.endswith("position_ids"):
                raise ValueError(f"what belongs into the buffer {name} is unknown")
            buffer.copy_(torch.arange(buffer.numel(), device=device).view_as(buffer))
    return network


def full_size(tokenizer: CLIPTokenizer, side: int = 64, steps: int = 20, device: str = "cpu") -> DiffusersGenerator:
    """Stable Diffusion 1.5 with its U-Net in bfloat16, the rest in float32, and guidance 3.0."""
    whole = stable_diffusion("1.5", tokenizer, side)
    whole.unet = filled(whole.unet, torch.bfloat16, device)
    whole.vae, whole.text_encoder = (filled(part, torch.float32, device) for part in (whole.vae, whole.text_encoder))
    return DiffusersGenerator(whole, Options(ref="SD 1.5", dtype="bf16", steps=steps, guidance_scale=3.0))


def vision_transformer(names: tuple[str, ...], device: str = "cpu") -> Classifier:
    """A ViT-B/16 for 224 x 224 pixels."""
    with torch.device("meta"):
        network = ViTForImageClassification(ViTConfig(num_labels=len(names)))
    network = filled(network, torch.float32, device).eval().requires_grad_(False)
    preprocess = Preprocess((224, 224), None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Classifier(names, preprocess, lambda x: network(pixel_values=x).logits, network)


def small(steps: int = 10, device: str = "cpu") -> DiffusersGenerator:
    """The embedded world's autoencoder and text tower, and a random U-Net of 64 and 128 channels on 16 x 16 latents."""
    generator = diffusers.load(diffusers.Options(ref="zoo:diffusion", steps=steps, guidance_scale=3.0), device)
    own = generator.unet.config
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=own.in_channels,
        out_channels=own.out_channels,
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        block_out_channels=[64, 128],
        layers_per_block=1,
        cross_attention_dim=own.cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    generator.unet = unet.to(device).eval().requires_grad_(False)
    return generator


def small_classifier(name: str, device: str = "cpu") -> Classifier:
    """One of the embedded world's."""
    loaded = hf.load(hf.Options(ref=f"zoo:{name}"), ())
    loaded.network.to(device)
    return loaded
