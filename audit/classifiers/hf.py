"""Image classifiers in the Hugging Face layout, through `AutoModelForImageClassification`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from audit.classifiers import Classifier, Preprocess, check_network, check_whole, names_for
from audit.config import ClassNames, Frozen
from audit.errors import ModelError
from audit.reference import LOAD_ERRORS, ModelRef, digest_of_folder, model_folder

_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class Options(Frozen):
    ref: ModelRef = Field(description="folder, zoo:<name>, or hub id with a revision")
    revision: str | None = None
    class_names: ClassNames | None = Field(
        None, description="names of the outputs, or 'data'; default: the model's own"
    )


def load(options: Options, data_classes: tuple[str, ...]) -> Classifier:
    """Load safetensors weights; code from the model's repository is never run."""
    from transformers import AutoModelForImageClassification

    folder = model_folder(options.ref, options.revision)
    try:
        network, loaded = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True
        )
    except LOAD_ERRORS as error:
        raise ModelError(f"{options.ref} cannot be loaded as an image classifier with safetensors: {error}") from error
    check_whole(options.ref, loaded["missing_keys"])
    network = network.float().eval().requires_grad_(False)
    own = [network.config.id2label[i] for i in range(network.config.num_labels)]
    names = names_for(options.class_names, own, data_classes, len(own))
    preprocess = preprocess_of(folder)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return network(pixel_values=x).logits

    with torch.no_grad():
        check_network(forward(preprocess(torch.full((1, 3, *preprocess.size), 0.5))), len(names))
    return Classifier(names, preprocess, forward, network)


def preprocess_of(folder: Path) -> Preprocess:
    """What `preprocessor_config.json` says, as differentiable steps. Raises ModelError."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no preprocessor_config.json, so how images enter the model is unknown")
    try:
        raw = json.loads(path.read_text("utf-8"))
        return _preprocess(raw, path)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ModelError(f"{path} cannot be used, so how images enter the model is unknown: {error}") from error


def _preprocess(raw: dict[str, Any], path: Path) -> Preprocess:
    size, crop = raw.get("size"), raw.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size} if raw.get("do_center_crop") else {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if not isinstance(size, dict):
        raise ModelError(f"{path}: 'size' is {size!r}; expected a number, height and width, or shortest_edge")
    resize = size.get("shortest_edge")
    if "crop_pct" in raw and resize is not None:  # ConvNeXt: resize to size / crop_pct, then crop to size
        crop = {"height": resize, "width": resize}
        resize = int(resize / raw["crop_pct"]) if resize < 384 else None
    elif not raw.get("do_center_crop", False) and resize is not None:
        crop = {"height": resize, "width": resize}
    if resize is None:
        crop = crop if raw.get("do_center_crop") and crop else size if "height" in size else crop
    if not isinstance(crop, dict) or not {"height", "width"} <= crop.keys():
        raise ModelError(
            f"{path}: cannot tell the input size from size={raw.get('size')!r}, crop_size={raw.get('crop_size')!r}"
        )
    scale = float(raw.get("rescale_factor", 1 / 255)) * 255 if raw.get("do_rescale", True) else 255.0
    normalise = raw.get("do_normalize", True)
    mean = [m / scale for m in raw.get("image_mean") or (0.0,) * 3] if normalise else [0.0] * 3
    std = [s / scale for s in raw.get("image_std") or (1.0,) * 3] if normalise else [1 / scale] * 3
    mode = _MODES.get(raw.get("resample", 2))
    if mode is None:
        raise ModelError(f"{path}: resample={raw['resample']} is not supported; known: {_MODES}")
    return Preprocess((crop["height"], crop["width"]), resize, tuple(mean), tuple(std), mode)


def digest(options: Options) -> str:
    return digest_of_folder(model_folder(options.ref, options.revision))
