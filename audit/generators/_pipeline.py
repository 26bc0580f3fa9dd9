"""What a pipeline must be to be used here, found out as early as possible, with errors that name what it lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audit.errors import ModelError
from audit.generators._attention import is_cross

WORKS = (
    "What works: text-to-image pipelines of Stable Diffusion 1.x and 2.x (StableDiffusionPipeline), original or "
    "fine-tuned, in the diffusers layout with safetensors"
)
# What the hub is asked for: no single-file checkpoints, and of each part the one weights file that is loaded.
WANTED = ("*.json", "*.txt", "*/*.safetensors")
UNWANTED = ("*.fp16.safetensors", "*.non_ema.safetensors", "safety_checker/*", "feature_extractor/*")

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def check_folder(ref: str, folder: Path) -> None:
    """Refuse what is no pipeline of a known kind, or lacks a part of it. Raises ModelError."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{ref} has no model_index.json: it is no pipeline in the diffusers layout. {WORKS}")
    try:
        said = json.loads(index.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{index} is no JSON: {error}") from error
    if said.get("_class_name") != "StableDiffusionPipeline":
        raise ModelError(f"{ref} is a {said.get('_class_name')}. {WORKS}")
    for name in _PARTS:
        if not said.get(name) or None in said[name]:
            raise ModelError(f"{ref} has no {name}: its model_index.json names none. {WORKS}")
        if not (folder / name).is_dir():
            raise ModelError(f"{ref} has no {name}: its model_index.json names one, but the folder {name} is not there")
    for name, stem in _WEIGHTS.items():
        _check_weights(ref, folder / name, stem)


def _check_weights(ref: str, folder: Path, stem: str) -> None:
    if (folder / f"{stem}.safetensors").is_file() or (folder / f"{stem}.safetensors.index.json").is_file():
        return
    found = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".ckpt", ".safetensors"))
    hint = f"It holds {', '.join(found) or 'no weights at all'}."
    if any(name.endswith(".safetensors") for name in found):
        hint += f" Rename the one to use to {stem}.safetensors."
    elif found:
        hint += " Pickled weights can run code and are never loaded: save it again with safe_serialization=True."
    raise ModelError(f"{ref} has no {folder.name}/{stem}.safetensors. {hint}")


def check_parts(ref: str, pipeline: Any) -> None:
    """Refuse parts that do not fit one another, or a kind of U-Net that takes more than a prompt. Raises ModelError."""
    for name in _PARTS:
        if getattr(pipeline, name, None) is None:
            raise ModelError(f"{ref} has no {name}. {WORKS}")
    unet, vae = pipeline.unet.config, pipeline.vae.config
    if not any(is_cross(layer) for layer in pipeline.unet.modules()):
        raise ModelError(f"the U-Net of {ref} has no cross-attention, so no prompt can steer it. {WORKS}")
    if (unet.in_channels, unet.out_channels) != (vae.latent_channels, vae.latent_channels):
        raise ModelError(
            f"the U-Net of {ref} maps {unet.in_channels} channels to {unet.out_channels}, but its autoencoder's "
            f"latents have {vae.latent_channels}; inpainting and depth pipelines take more than a latent. {WORKS}"
        )
    for more in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet.get(more) is not None:
            raise ModelError(f"the U-Net of {ref} takes more than a prompt ({more}: {unet[more]}). {WORKS}")
    width, wanted = pipeline.text_encoder.config.hidden_size, unet.cross_attention_dim
    if wanted != width:
        raise ModelError(f"the text encoder of {ref} gives {width} numbers a token, its U-Net takes {wanted}. {WORKS}")
    if pipeline.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"{ref} predicts {pipeline.scheduler.config.prediction_type!r}; known: epsilon, v_prediction. {WORKS}"
        )
