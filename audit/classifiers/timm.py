"""timm's classifiers (extra: `timm`): a folder as timm saves it for the hub, or a hub id with a pinned revision.

The folder holds `config.json`, with `architecture` and `pretrained_cfg`, and `model.safetensors`. Preprocessing is what
timm's own evaluation transform does with the model's data configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, ValidationInfo
from safetensors.torch import load_file
from torch import nn

from audit.classifiers import Classifier, check_network, check_whole, names_for
from audit.classifiers._eval_transform import FilledCrop, Fit, Fitted, eval_transform, mode_of
from audit.classifiers._preprocessing import Preprocess
from audit.classifiers._torchvision import imported
from audit.config import Frozen, Names
from audit.errors import ModelError
from audit.name_lists import names_or_data
from audit.reference import LOAD_ERRORS, ModelRef, digest_of_folder, model_folder

_WEIGHTS = "model.safetensors"
_FITS: Mapping[str, Fit] = {"center": "shorter", "squash": "exact", "border": "contain"}


def _names_or_set(value: Any, info: ValidationInfo) -> Any:
    """The name of a set that timm knows, 'data', or names."""
    if isinstance(value, str) and value.startswith("imagenet-"):
        return value
    return names_or_data(value, (info.context or {}).get("folder", Path()))


class Options(Frozen):
    ref: ModelRef = Field(description="folder, or hub id with a revision")
    revision: str | None = None
    class_names: Annotated[str | Names, BeforeValidator(_names_or_set)] | None = Field(
        None,
        description="names of the outputs; 'data'; or a set of timm's, such as imagenet-1k; default: the model's own",
    )


def load(options: Options, data_classes: tuple[str, ...]) -> Classifier:
    """Load safetensors weights; code from the model's repository is never run. Raises ModelError."""
    timm = imported("timm")
    folder = model_folder(options.ref, options.revision)
    config = _config(folder, options.ref)
    network = _network(timm, folder, options.ref)
    preprocess = preprocess_of(imported("timm.data").resolve_model_data_config(network), options.ref)
    names = _names(options, config, data_classes, network.num_classes)
    with torch.no_grad():
        check_network(network(preprocess(torch.full((1, 3, *preprocess.size), 0.5))), len(names))
    return Classifier(names, preprocess, network, network)


def digest(options: Options) -> str:
    return digest_of_folder(model_folder(options.ref, options.revision))


def _config(folder: Path, ref: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ModelError(
            f"{ref} is no folder of timm's: its config.json names no 'architecture'. For a model of transformers, use "
            "loader: hf"
        )
    if not (folder / _WEIGHTS).is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise ModelError(f"{ref} has no {_WEIGHTS}; it holds {there}. Weights in other forms are not read")
    return config


def _network(timm: ModuleType, folder: Path, ref: str) -> Any:
    """The architecture with all of its weights from the file."""
    try:
        network: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
        loaded = network.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
    except (*LOAD_ERRORS, TypeError, AttributeError, AssertionError) as error:
        raise ModelError(f"{ref} cannot be loaded as a classifier of timm: {error}") from error
    check_whole(ref, loaded.missing_keys)
    extra = [key for key in loaded.unexpected_keys if key.rpartition(".")[2] in ("weight", "bias")]
    if extra:
        raise ModelError(
            f"{ref} holds {extra[0]!r}, which its architecture does not have: its config.json belongs to another model"
        )
    if network.num_classes < 1:
        raise ModelError(f"{ref} has no head: its config.json says num_classes {network.num_classes}")
    assert isinstance(network, nn.Module)
    return network.float().eval().requires_grad_(False)


def preprocess_of(data_config: Mapping[str, Any], ref: str) -> Preprocess:
    """timm's evaluation transform for a data configuration, as `timm.data.resolve_model_data_config` gives it.

    Raises ModelError naming the key that is not supported.
    """
    channels, height, width = data_config["input_size"]
    mean, std = tuple(map(float, data_config["mean"])), tuple(map(float, data_config["std"]))
    if channels != 3 or len(mean) != 3 or len(std) != 3:
        raise ModelError(f"{ref}: input_size {data_config['input_size']} is no RGB; 3 channels are supported")
    crop_mode = data_config["crop_mode"] or "center"
    if crop_mode not in _FITS:
        raise ModelError(f"{ref}: crop_mode {crop_mode!r} is not supported; known: {', '.join(_FITS)}")
    scale = tuple(math.floor(side / data_config["crop_pct"]) for side in (height, width))
    fit = _FITS[crop_mode] if scale[0] == scale[1] or crop_mode != "center" else "cover"
    fill = tuple(round(255 * value) / 255 for value in mean) if crop_mode == "border" else (0.0, 0.0, 0.0)
    mode = mode_of(data_config["interpolation"], ref)
    target, crop = Fitted((scale[0], scale[1]), fit), FilledCrop(height, width, fill)
    return eval_transform(target, crop, mode=mode, mean=mean, std=std)


def _names(options: Options, config: dict[str, Any], data_classes: tuple[str, ...], count: int) -> tuple[str, ...]:
    asked = options.class_names
    if isinstance(asked, str) and asked.startswith("imagenet-"):
        return names_for(_subset(asked), (), data_classes, count)
    own = _own_names(config, data_classes, count, options.ref)
    if not own and not asked:
        raise ModelError(
            f"{options.ref} names no classes: its config.json has no label_names. Set class_names to one name per "
            "output in their order, to 'data', or to imagenet-1k if these are its outputs"
        )
    return names_for(asked, own, data_classes, count)


def _subset(name: str) -> tuple[str, ...]:
    """The descriptions of a set of ImageNet's classes that timm knows, in its order."""
    try:
        info = imported("timm.data").ImageNetInfo(name)
    except (AssertionError, OSError, LookupError, ValueError) as error:
        raise ModelError(f"class_names: {name!r} is no set that timm knows; one is imagenet-1k") from error
    ids = info.label_names()
    return _unique([info.label_name_to_description(one) for one in ids], ids)


def _own_names(config: dict[str, Any], data_classes: Sequence[str], count: int, ref: str) -> tuple[str, ...]:
    """`label_names` where the data set uses them or nothing describes them, else `label_descriptions`."""
    pretrained = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or pretrained.get("label_names") or config.get("labels") or ()
    if isinstance(names, dict):
        lacking = [i for i in range(count) if str(i) not in names]
        if lacking:
            raise ModelError(f"{ref}: label_names has no name for the output {lacking[0]}; set class_names")
        names = [names[str(i)] for i in range(count)]
    described = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
    if set(names) & set(data_classes) or not all(name in described for name in names):
        return tuple(map(str, names))
    return _unique([str(described[name]) for name in names], list(map(str, names)))


def _unique(descriptions: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """Equal descriptions, as those of ImageNet's two cranes, with their ids."""
    pairs = zip(descriptions, ids, strict=True)
    return tuple(f"{text} ({name})" if descriptions.count(text) > 1 else text for text, name in pairs)
