"""A folder with every file and key of a Stable Diffusion 1.5 repository on the hub, with narrow random networks.

The names of files, configuration keys and weights are the repository's; channel counts, widths and the vocabulary are
small. Weights are float32 in the plain files, rounded to float16 in the fp16 files, and others in the non_ema files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from audit.zoo.recipes.text import build_tokenizer

REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
DOWN, UP = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": DOWN,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": UP,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
TOKENIZER: dict[str, Any] = {
    "add_prefix_space": False,
    "bos_token": "<|startoftext|>",
    "do_lower_case": True,
    "eos_token": "<|endoftext|>",
    "errors": "replace",
    "model_max_length": 77,
    "name_or_path": "openai/clip-vit-large-patch14",
    "pad_token": "<|endoftext|>",
    "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": "<|endoftext|>",
}
NARROW: dict[str, dict[str, Any]] = {
    "unet": {
        "attention_head_dim": 2,
        "block_out_channels": [8, 16, 16, 16],
        "cross_attention_dim": 32,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
    "vae": {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "projection_dim": 32,
        "vocab_size": len(build_tokenizer()),
    },
}
OTHERS = (
    ".gitattributes",
    "README.md",
    "v1-5-pruned-emaonly.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "v1-inference.yaml",
    "safety_checker/model.fp16.safetensors",
    "safety_checker/model.safetensors",
    *(f"{part}/pytorch_model{form}.bin" for part in ("safety_checker", "text_encoder") for form in ("", ".fp16")),
    *(f"{part}/diffusion_pytorch_model{form}.bin" for part in ("unet", "vae") for form in ("", ".fp16")),
    "unet/diffusion_pytorch_model.non_ema.bin",
)
FEATURES: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), "utf-8")


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text("utf-8")), **values})


def write_configs(folder: Path, *, full_size: bool = False) -> None:
    """Everything but weights. `full_size`: with the repository's own numbers, else narrow."""
    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    write_json(folder / "feature_extractor/preprocessor_config.json", FEATURES)
    write_json(folder / "safety_checker/config.json", {"architectures": ["StableDiffusionSafetyChecker"]})
    for part, config in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
        write_json(folder / part / "config.json", config if full_size else config | NARROW[part])
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not to be read")
    if not full_size:
        write_tokenizer(folder / "tokenizer")


def write_tokenizer(folder: Path) -> None:
    """The small world's vocabulary in the four files that CLIP's tokenizer has on the hub."""
    model = json.loads(build_tokenizer().backend_tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
    write_json(folder / "tokenizer_config.json", TOKENIZER)
    special = {key: TOKENIZER[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    write_json(folder / "special_tokens_map.json", special)


def stable_diffusion(folder: Path, variants: Iterable[str] = ("", "fp16", "non_ema")) -> Path:
    """The whole repository. `variants`: the safetensors that there are; '' are the plain ones. Pickles always are."""
    write_configs(folder)
    for part, network in networks(folder).items():
        state = hub_names(part, network.state_dict())
        for variant in variants:
            _write_weights(folder / part, STEMS[part], state, variant)
    return folder


def networks(folder: Path, seed: int = 0) -> dict[str, nn.Module]:
    """The three networks of a folder's configurations, with random weights."""
    torch.manual_seed(seed)
    text = json.loads((folder / "text_encoder/config.json").read_text("utf-8"))
    return {
        "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
        "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
    }


def hub_names(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they had when Stable Diffusion 1.5 was published."""
    if part == "text_encoder":
        named = {f"text_model.{name}": weight for name, weight in state.items()}
        return named | {"text_model.embeddings.position_ids": torch.arange(TEXT["max_position_embeddings"])[None]}
    if part == "unet":
        return dict(state)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    named = {}
    for name, weight in state.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        named[name] = weight
    return named


def _write_weights(folder: Path, stem: str, state: dict[str, Tensor], variant: str) -> None:
    if variant == "non_ema" and folder.name != "unet":
        return
    if variant:
        kept = {"fp16": lambda w: w.half() if w.is_floating_point() else w, "non_ema": lambda w: w + 1}[variant]
        state = {name: kept(weight) for name, weight in state.items()}
    save_file(
        {name: weight.contiguous() for name, weight in state.items()},
        folder / f"{stem}{variant and f'.{variant}'}.safetensors",
        metadata={"format": "pt"},
    )


def serve(repository: Path, cache: Path) -> Callable[..., str]:
    """What takes the place of `huggingface_hub.snapshot_download`: the same choice of files, copied from a folder."""

    def snapshot_download(
        repo_id: str, *, revision: str, allow_patterns: Sequence[str], ignore_patterns: Sequence[str]
    ) -> str:
        assert (repo_id, revision) == (REPOSITORY, REVISION)
        kept = filter_repo_objects(names(repository), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for name in kept:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, cache / name)
        return str(cache)

    return snapshot_download


def publish(monkeypatch: Any, repository: Path, cache: Path) -> Path:
    """Let the hub serve a folder as `REPOSITORY` at `REVISION`; returns the folder that downloads go to."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve(repository, cache))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda ref, *, revision: names(repository))
    return cache


def names(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def own_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The library's own pipeline of a folder, with DDIM in the folder's schedule."""
    pipeline = StableDiffusionPipeline(
        **{part: network.eval() for part, network in networks(folder).items()},
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
