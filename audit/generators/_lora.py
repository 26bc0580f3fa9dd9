"""LoRA weights, added into a pipeline's own: W becomes W + scale (alpha / rank) B A, and the adapter is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from audit.errors import ModelError
from audit.reference import LOAD_ERRORS

_NAME = "adapter"


def lora_file(path: Path) -> Path:
    """The safetensors file that `lora` names, itself or by its folder. Raises ModelError."""
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not path.exists():
        raise ModelError(f"lora: nothing is at {path}")
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if len(found) != 1:
        here = ", ".join(p.name for p in found) or "none here"
        raise ModelError(f"lora: {path} is to be a safetensors file, or a folder with one such file; {here}")
    return found[0]


def fuse(pipeline: Any, file: Path, scale: float) -> None:
    """Add a LoRA into the U-Net and, where it has a part for it, the text encoder. Both should be in float32.

    Raises ModelError where it is no LoRA for this pipeline, or any layer of it has no place there.
    """
    try:
        import peft  # noqa: F401 - diffusers needs it for adapters
    except ImportError as error:
        raise ModelError("lora needs the package peft; install it with: pip install 'audit[lora]'") from error
    try:
        state = pipeline.lora_state_dict(str(file.parent), weight_name=file.name, use_safetensors=True)[0]
        pipeline.load_lora_weights(
            str(file.parent), weight_name=file.name, use_safetensors=True, adapter_name=_NAME, local_files_only=True
        )
    except LOAD_ERRORS as error:
        raise ModelError(f"{file} cannot be loaded as a LoRA of this pipeline: {error}") from error
    given, placed = _layers(state), _placed(pipeline.unet) + _placed(pipeline.text_encoder)
    if not given or placed != given:
        raise ModelError(
            f"{file} has {given} LoRA layers, of which {placed} have a place in this pipeline: it was made for another "
            "model. A LoRA belongs to the kind of Stable Diffusion, 1.x or 2.x, that it was trained on."
        )
    pipeline.fuse_lora(lora_scale=scale, adapter_names=[_NAME])
    pipeline.unload_lora_weights()


def _layers(state: dict[str, Any]) -> int:
    """Layers of a LoRA, by their first matrices: as in peft, in diffusers, or in kohya's layout."""
    return sum(key.endswith(("lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight")) for key in state)


def _placed(network: nn.Module) -> int:
    return sum(_NAME in getattr(module, "lora_A", ()) for module in network.modules())
