"""A pipeline from its folder, part by part, refused as early as possible with errors that name what it lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audit.errors import ModelError
from audit.generators._attention import is_cross
from audit.generators._layout import PARTS, STEMS, variant_of
from audit.generators._schedule import ddim, declared
from audit.reference import LOAD_ERRORS

WORKS = (
    "What works: text-to-image pipelines of Stable Diffusion 1.x and 2.x (StableDiffusionPipeline), original or "
    "fine-tuned, in the diffusers layout with safetensors"
)
# What model_index.json may name; every other kind of a part has other inputs, outputs or scales.
_KINDS = {
    "unet": (["diffusers", "UNet2DConditionModel"],),
    "vae": (["diffusers", "AutoencoderKL"],),
    "text_encoder": (["transformers", "CLIPTextModel"],),
    "tokenizer": (["transformers", "CLIPTokenizer"], ["transformers", "CLIPTokenizerFast"]),
}
_TAKES_MORE = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
# Keys of an autoencoder by which latents would be normalised further, with the values that change nothing.
_NORMALISES = {"shift_factor": 0, "latents_mean": 0, "latents_std": 1}
_ERRORS = (*LOAD_ERRORS, TypeError, AttributeError, IndexError, AssertionError, ZeroDivisionError)


def check_index(ref: str, folder: Path) -> None:
    """Refuse what is no pipeline of a known kind, or lacks a part of it. Raises ModelError."""
    index = _index(ref, folder)
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise ModelError(f"{ref} is a {index.get('_class_name')}. {WORKS}")
    for part in PARTS:
        kind = index.get(part)
        if not isinstance(kind, list) or not kind or None in kind:
            raise ModelError(f"{ref} has no {part}: its model_index.json names none. {WORKS}")
        if not (folder / part).is_dir():
            raise ModelError(f"{ref} has no {part}: its model_index.json names one, but the folder {part} is not there")
        if part in _KINDS and kind not in _KINDS[part]:
            raise ModelError(f"the {part} of {ref} is a {kind[-1]}; known: {_KINDS[part][0][1]}. {WORKS}")


def without_weights(ref: str, folder: Path) -> Any:
    """The pipeline that a folder's configuration files describe, on the meta device. Raises ModelError."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    def network(part: str) -> nn.Module:
        at, made = folder / part, {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
        with torch.device("meta"):
            if part in made:
                return made[part].from_config(made[part].load_config(at, local_files_only=True))
            return CLIPTextModel(CLIPTextConfig.from_pretrained(at, local_files_only=True))

    return _assembled(ref, folder, network)


def with_weights(ref: str, folder: Path, variant: str | None) -> Any:
    """The pipeline of a folder in float32. Raises ModelError where the weights are not those of its configuration."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors*")]

    def network(part: str) -> nn.Module:
        loaded: nn.Module
        loaded, found = kinds[part].from_pretrained(
            folder / part,
            variant=variant_of(names, part, variant),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{"dtype" if part == "text_encoder" else "torch_dtype": torch.float32},
        )
        # What a text encoder has beyond this one, such as a projection, is not used by Stable Diffusion either.
        surplus = () if part == "text_encoder" else found["unexpected_keys"]
        _check_complete(ref, part, found["missing_keys"], surplus)
        return loaded

    return _assembled(ref, folder, network)


def _assembled(ref: str, folder: Path, network: Callable[[str], nn.Module]) -> Any:
    """The pipeline of three networks, with a folder's tokenizer, and DDIM over its noise schedule."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    scheduler = declared(ref, folder, _index(ref, folder)["scheduler"][-1])
    try:
        # The pipeline's own class mends what it knows of old configuration files.
        pipeline = StableDiffusionPipeline(
            **{part: network(part) for part in STEMS},
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except _ERRORS as error:
        raise ModelError(f"{ref} cannot be loaded as a Stable Diffusion pipeline: {error}") from error
    pipeline.scheduler = ddim(ref, pipeline.scheduler)
    check_parts(ref, pipeline)
    return pipeline


def check_parts(ref: str, pipeline: Any) -> None:
    """Refuse parts that do not fit one another, or that take or give more than is known here. Raises ModelError."""
    for name in PARTS:
        if getattr(pipeline, name, None) is None:
            raise ModelError(f"{ref} has no {name}. {WORKS}")
    _check_unet(ref, pipeline.unet, pipeline.vae.config, pipeline.text_encoder.config)
    _check_autoencoder(ref, pipeline.vae.config)
    _check_text(ref, pipeline.tokenizer, pipeline.text_encoder.config)
    if pipeline.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"{ref} predicts {pipeline.scheduler.config.prediction_type!r}; known: epsilon, v_prediction. {WORKS}"
        )


def check_finite(ref: str, pipeline: Any) -> None:
    """Refuse networks with a weight that is no number in the precision it is used in. Raises ModelError."""
    for part in STEMS:
        for name, weight in getattr(pipeline, part).named_parameters():
            if not bool(weight.isfinite().all()):
                dtype = str(weight.dtype).removeprefix("torch.")
                raise ModelError(f"the weights of {part} of {ref} hold NaN or infinity in {dtype}, first in {name}")


def latent_side(ref: str, sample_size: Any) -> int:
    """Height and width of latents, from the U-Net's key `sample_size`. Raises ModelError where they are not equal."""
    sizes = sample_size if isinstance(sample_size, list | tuple) else [sample_size]
    known = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not (known and len(sizes) in (1, 2) and len(set(sizes)) == 1):
        raise ModelError(
            f"the U-Net of {ref} has sample_size: {sample_size}; the height and width of latents must be known and "
            "equal. Set it in unet/config.json: 64 for Stable Diffusion 1.x, 64 or 96 for 2.x"
        )
    return int(sizes[0])


def _check_unet(ref: str, unet: nn.Module, vae: Any, text: Any) -> None:
    config: Any = unet.config
    for key in _TAKES_MORE:
        if config.get(key) is not None:
            raise ModelError(f"the U-Net of {ref} takes more than a prompt ({key}: {config[key]}). {WORKS}")
    if config.get("attention_type", "default") != "default":
        raise ModelError(f"the U-Net of {ref} has attention_type: {config.attention_type}. {WORKS}")
    if not any(is_cross(layer) for layer in unet.modules()):
        raise ModelError(f"the U-Net of {ref} has no cross-attention, so no prompt can steer it. {WORKS}")
    if (config.in_channels, config.out_channels) != (vae.latent_channels, vae.latent_channels):
        raise ModelError(
            f"the U-Net of {ref} maps {config.in_channels} channels to {config.out_channels}, but its autoencoder's "
            f"latents have {vae.latent_channels}; inpainting and depth pipelines take more than a latent. {WORKS}"
        )
    width, taken = text.hidden_size, config.cross_attention_dim
    if set(taken if isinstance(taken, list | tuple) else [taken]) != {width}:
        raise ModelError(f"the text encoder of {ref} gives {width} numbers a token, its U-Net takes {taken}. {WORKS}")
    latent_side(ref, config.sample_size)


def _check_autoencoder(ref: str, config: Any) -> None:
    for key, neutral in _NORMALISES.items():
        value = config.get(key)
        values = value if isinstance(value, list | tuple) else [value]
        if value is not None and any(part != neutral for part in values):
            raise ModelError(
                f"the autoencoder of {ref} has {key}: {value}. StableDiffusionPipeline ignores it and other pipelines "
                "do not, so it is unknown with which latents the U-Net was trained. If it was trained without the key, "
                "remove the key from vae/config.json"
            )
    scale = config.scaling_factor
    if not isinstance(scale, int | float) or not math.isfinite(scale) or scale <= 0:
        raise ModelError(f"the autoencoder of {ref} has scaling_factor: {scale}; 0.18215 is Stable Diffusion's own")
    if (config.in_channels, config.out_channels) != (3, 3):
        raise ModelError(
            f"the autoencoder of {ref} maps images of {config.in_channels} channels to {config.out_channels}; RGB has 3"
        )


def _check_text(ref: str, tokenizer: Any, config: Any) -> None:
    if getattr(config, "use_attention_mask", None):
        raise ModelError(f"the text encoder of {ref} has use_attention_mask: true. {WORKS}")
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {ref} has no pad_token or no eos_token in tokenizer_config.json")
    if max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise ModelError(
            f"the tokenizer of {ref} knows {len(tokenizer)} tokens, its text encoder has embeddings of "
            f"{config.vocab_size}: they belong to different models"
        )


def _check_complete(ref: str, part: str, missing: Any, surplus: Any) -> None:
    for keys, verb in ((missing, "lack"), (surplus, "hold")):
        if keys:
            first, more = sorted(keys)[:3], f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(
                f"the weights of {part} of {ref} {verb} {', '.join(first)}{more}, which {part}/config.json "
                f"{'asks for' if verb == 'lack' else 'does not have'}: they belong to another network, or are "
                "incomplete"
            )


def _index(ref: str, folder: Path) -> dict[str, Any]:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{ref} has no model_index.json: it is no pipeline in the diffusers layout. {WORKS}")
    try:
        found = json.loads(index.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{index} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{index} is not a JSON object, but a {type(found).__name__}")
    return found
