"""torchvision's classifiers (extra: `torchvision`): `ref: resnet50, entry: ResNet50_Weights.IMAGENET1K_V2`.

Preprocessing and class names are those of the entry. Its weights are those of the file `weights`, which may have been
trained further, for other classes too; without one, torchvision downloads its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from struct import error as StructError
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from audit.classifiers import Classifier, check_network, check_whole, names_for
from audit.classifiers._eval_transform import FilledCrop, Fitted, eval_transform, mode_of
from audit.classifiers._preprocessing import Preprocess
from audit.classifiers._torchvision import imported
from audit.config import ClassNames, Frozen, LocalPath
from audit.errors import ModelError, unknown
from audit.reference import LOAD_ERRORS, digest_of_file

_INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": False}
# How torchvision builds an architecture for weights of its own, where that is not the default.
_SETTINGS: dict[str, dict[str, bool]] = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


class Options(Frozen):
    ref: str = Field(description="architecture as torchvision names it, such as resnet50")
    entry: str = Field(
        description="torchvision's name of the weights, or of the weights that yours were fine-tuned from, such as "
        "ResNet50_Weights.IMAGENET1K_V2: it decides preprocessing and class names"
    )
    weights: LocalPath | None = Field(
        None, description="state dict, *.safetensors or *.pth (read without running pickled code); default: downloaded"
    )
    class_names: ClassNames | None = Field(
        None, description="names of the outputs, or 'data'; default: the categories of 'entry'"
    )


def load(options: Options, data_classes: tuple[str, ...]) -> Classifier:
    """Build the architecture for the number of outputs that the weights have. Raises ModelError."""
    models = imported("torchvision.models")
    known = models.list_models(module=models)
    if options.ref not in known:
        raise ModelError(f"torchvision: {unknown('classifier', options.ref, known)}")
    entry = _entry(models, options)
    network, count = _network(models, options, _state(options, entry))
    preprocess = _preprocess(entry)
    names = names_for(options.class_names, tuple(map(str, entry.meta["categories"])), data_classes, count)
    with torch.no_grad():
        check_network(network(preprocess(torch.full((1, 3, *preprocess.size), 0.5))), count)
    return Classifier(names, preprocess, network, network)


def digest(options: Options) -> str:
    """Of the file of weights, or of torchvision's name of them, whose address holds a part of their sha256."""
    held = digest_of_file(_file(options.weights)) if options.weights is not None else ""
    return hashlib.sha256(f"{options.ref}\0{options.entry}\0{held}".encode()).hexdigest()


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"no file of weights at {path}")
    return path


def _entry(models: Any, options: Options) -> Any:
    """The entry of torchvision's weights, which must be one of the architecture's."""
    known = {str(entry): entry for entry in models.get_model_weights(options.ref)}
    if options.entry not in known:
        raise ModelError(f"torchvision's {options.ref}: {unknown('entry', options.entry, known)}")
    return known[options.entry]


def _state(options: Options, entry: Any) -> Mapping[str, Tensor]:
    """A state dict: a file's, without a wrapper's name before each key, or what torchvision downloads."""
    try:
        if options.weights is None:
            return entry.get_state_dict(progress=False, check_hash=True)
        path = _file(options.weights)
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (*LOAD_ERRORS, UnpicklingError, EOFError, LookupError, StructError) as error:
        where = options.weights or options.entry
        raise ModelError(f"{where} cannot be loaded as weights (pickled code is never run): {error}") from error
    held = held.get("state_dict", held.get("model", held)) if isinstance(held, dict) else held
    if not isinstance(held, Mapping) or not held or not all(isinstance(one, Tensor) for one in held.values()):
        raise ModelError(f"{options.weights} holds {type(held).__name__}, expected a state dict: tensors by name")
    prefix = "module." if all(key.startswith("module.") for key in held) else ""
    return {key.removeprefix(prefix): value for key, value in held.items()}


def _network(models: Any, options: Options, state: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    """The network, with as many outputs as its last layer has in the weights, and their number."""
    where, settings = options.weights or options.entry, _SETTINGS.get(options.ref, {})
    with torch.device("meta"):
        last = [key for key in models.get_model(options.ref, weights=None).state_dict() if key.endswith(".weight")][-1]
    check_whole(str(where), {last} - state.keys())
    count = len(state[last])
    try:
        network: nn.Module = models.get_model(options.ref, weights=None, num_classes=count, **settings)
        loaded = network.load_state_dict(state, strict=False)
    except LOAD_ERRORS as error:
        raise ModelError(f"{where} does not fit {options.ref}: {error}") from error
    check_whole(str(where), loaded.missing_keys)
    extra = [key for key in loaded.unexpected_keys if not key.lower().startswith("aux")]
    if extra:
        raise ModelError(
            f"{where} holds {extra[0]!r}, which {options.ref} does not have: it belongs to another architecture"
        )
    return network.float().eval().requires_grad_(False), count


def _preprocess(entry: Any) -> Preprocess:
    """What the entry's own transforms do. Raises ModelError for transforms of another kind."""
    made = entry.transforms()
    if type(made).__name__ != "ImageClassification":
        raise ModelError(
            f"torchvision's {entry} has transforms of the kind {type(made).__name__}, which is not for classifiers"
        )
    (crop,), (resize,) = made.crop_size, made.resize_size
    mode = mode_of(made.interpolation.value, f"torchvision's {entry}")
    mean, std = tuple(made.mean), tuple(made.std)
    target = Fitted((resize, resize), "shorter")
    return eval_transform(target, FilledCrop(crop, crop, (0.0,) * 3), mode=mode, mean=mean, std=std)
