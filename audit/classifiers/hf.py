"""Image classifiers in the Hugging Face layout, through `AutoModelForImageClassification`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from audit.class_names import beginning
from audit.classifiers import Classifier, Preprocess, check_network, check_whole, names_for
from audit.classifiers._heads import one_output, two_classes
from audit.classifiers._image_processor import preprocess_of
from audit.classifiers._preprocessing import digest_with_steps
from audit.config import ClassNames, Frozen
from audit.errors import ModelError
from audit.reference import LOAD_ERRORS, ModelRef, digest_of_folder, model_folder

__all__ = ["Options", "digest", "load", "preprocess_of"]
# What the library raises for a configuration whose keys hold what it does not expect, too.
_LOAD_ERRORS = (*LOAD_ERRORS, TypeError, AttributeError)
# What a network raises that does not take an image of some shape, or wants more than pixels.
_FORWARD_ERRORS = (*_LOAD_ERRORS, IndexError, ArithmeticError, AssertionError)
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


class Options(Frozen):
    ref: ModelRef = Field(description="folder, zoo:<name>, or hub id with a revision")
    revision: str | None = None
    class_names: ClassNames | None = Field(
        None, description="names of the outputs, or 'data'; default: the model's own"
    )


def load(options: Options, data_classes: tuple[str, ...]) -> Classifier:
    """Load safetensors weights; code from the model's repository is never run."""
    folder = model_folder(options.ref, options.revision)
    network, id2label = _network(options, folder, len(data_classes))
    names = _names(options, network.config, id2label, data_classes)
    preprocess = preprocess_of(folder, _channels(network, options.ref))
    with torch.no_grad():
        outputs = _outputs(network, preprocess, folder)
    check_network(outputs, network.config.num_labels)
    single = outputs.shape[1] == 1

    def forward(x: torch.Tensor) -> torch.Tensor:
        logits = network(pixel_values=x).logits
        return two_classes(logits) if single else logits

    return Classifier(names, preprocess, forward, network, warnings=(one_output(options.ref, names),) if single else ())


def _network(options: Options, folder: Path, labels: int) -> tuple[Any, Mapping[Any, Any]]:
    """The network with all its weights, and the names that its config.json gives. Raises ModelError."""
    network, loaded = _loaded(options, folder)
    id2label = network.config.id2label
    if loaded["mismatched_keys"]:
        outputs = _outputs_of_weights(loaded["mismatched_keys"], network.config.num_labels)
        given = labels if options.class_names == "data" else len(options.class_names or id2label)
        if outputs is None or given != max(outputs, 2):
            raise ModelError(_mismatch(options.ref, loaded["mismatched_keys"], outputs, network.config.num_labels))
        network, loaded = _loaded(options, folder, num_labels=outputs)  # so many names as the job or two classes have
        if loaded["mismatched_keys"]:
            raise ModelError(_mismatch(options.ref, loaded["mismatched_keys"], None, outputs))
    check_whole(options.ref, loaded["missing_keys"])
    return network.float().eval().requires_grad_(False), id2label


def _loaded(options: Options, folder: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForImageClassification

    try:
        return AutoModelForImageClassification.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_network` refuses them, and says which
            **changes,
        )
    except _LOAD_ERRORS as error:
        found = _wrong_names(folder) or str(error).rstrip(".") + _advice(folder)
        raise ModelError(f"{_unloadable(options.ref)}: {found}") from error


def _unloadable(ref: str) -> str:
    return f"{ref} cannot be loaded as an image classifier with safetensors"


def _outputs_of_weights(mismatched: Sequence[Any], count: int) -> int | None:
    """How many outputs the weights have, where nothing but their count keeps them from fitting `count` outputs."""
    shapes = [(tuple(held), tuple(asked)) for _, held, asked in mismatched]
    if any(held[1:] != asked[1:] or asked[:1] != (count,) for held, asked in shapes):
        return None
    outputs = {held[0] for held, _ in shapes}
    return outputs.pop() if len(outputs) == 1 else None


def _mismatch(ref: str, mismatched: Sequence[Any], outputs: int | None, count: int) -> str:
    if outputs is not None:
        return (
            f"{_unloadable(ref)}: its weights have {outputs} outputs, but id2label in its config.json has {count} "
            "names. Set class_names to one name per output, in the order of the outputs"
        )
    name, held, asked = sorted(mismatched, key=str)[0]
    return (
        f"{_unloadable(ref)}: {name} has the shape {tuple(held)} in the weights, but {tuple(asked)} by its "
        "config.json: the weights belong to another architecture"
    )


def _advice(folder: Path) -> str:
    """What would help where there are no weights, by what the folder holds."""
    held = [name for name in _PICKLED if (folder / name).is_file()]
    if not list(folder.glob("*.safetensors")) and held:
        return (
            f". The folder holds {held[0]} instead, which is not read because loading it may run code. If you "
            'trust it, convert it once: python -c "from transformers import AutoModelForImageClassification as A; '
            f"A.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
        )
    return ""


def _wrong_names(folder: Path) -> str:
    """What is wrong with id2label in config.json; '' if nothing is."""
    try:
        names = json.loads((folder / "config.json").read_text("utf-8")).get("id2label")
    except (OSError, ValueError, AttributeError):
        return ""
    if names is None or (isinstance(names, dict) and all(key.strip().isdecimal() for key in names)):
        return ""
    found = f"the keys {beginning(list(names))}" if isinstance(names, dict) else f"a {type(names).__name__}"
    return (
        f"id2label in its config.json has {found}; expected an object from the number of each output to its name, "
        'such as {"0": "cat"}'
    )


def _channels(network: nn.Module, ref: str) -> int:
    """How many channels the network's first convolution takes."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first else getattr(network.config, "num_channels", 3)
    if channels not in (1, 3):
        raise ModelError(f"{ref} takes images of {channels} channels; an audit shows RGB (3) or grey (1) images")
    return int(channels)


def _outputs(network: nn.Module, preprocess: Preprocess, folder: Path) -> torch.Tensor:
    """The network's logits for a grey image. Raises ModelError where it does not take what its processor gives."""
    x = preprocess(torch.full((1, 3, *preprocess.size), 0.5))
    try:
        logits = network(pixel_values=x).logits
        if not isinstance(logits, torch.Tensor):
            raise TypeError(f"its logits are {type(logits).__name__}")
    except _FORWARD_ERRORS as error:
        size = getattr(network.config, "image_size", None)
        known = f"; config.json says image_size {size}" if size else ""
        raise ModelError(
            f"the model in {folder} does not accept its image processor's output, {tuple(x.shape[1:])}{known}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        ) from error
    return logits


def _names(options: Options, config: Any, id2label: Mapping[Any, Any], data_classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes, two where the model has one output. Raises ModelError for heads of another kind."""
    if config.problem_type == "regression":
        raise ModelError(f"{options.ref} is a regression (problem_type in config.json): its outputs are not classes")
    if config.problem_type == "multi_label_classification":
        raise ModelError(
            f"{options.ref} is a multi-label model (problem_type in config.json): its classes do not exclude each "
            "other, but an audit compares one label with one predicted class. To audit a single class, use loader: "
            "python with a module that returns the output of this class as (b, 1), and class_names: [not it, it]"
        )
    if config.num_labels == 1:
        return _two_names(options, id2label, data_classes)
    own = own_names(id2label, config.num_labels, options.ref) if options.class_names is None else []
    return names_for(options.class_names, own, data_classes, config.num_labels)


def _two_names(options: Options, id2label: Mapping[Any, Any], data_classes: Sequence[str]) -> tuple[str, ...]:
    what = f"{options.ref} has one output: either the log-odds of the second of two classes, or a regression"
    if options.class_names is None and len(id2label) != 2:
        raise ModelError(f"{what}. In the first case, give class_names: [negative, positive]")
    own = own_names(id2label, 2, options.ref) if options.class_names is None else []
    try:
        return names_for(options.class_names, own, data_classes, 2)
    except ModelError as error:
        raise ModelError(f"{what}. In the first case, give class_names: [negative, positive] ({error})") from error


def own_names(id2label: Mapping[Any, Any], count: int, ref: str) -> list[str]:
    """The names that a model gives its outputs, as text of one line. Raises ModelError where an output has none."""
    names = [" ".join(str(id2label[i]).split()) if id2label.get(i) is not None else "" for i in range(count)]
    without = [i for i, name in enumerate(names) if not name]
    if without:
        some = ", ".join(map(str, without[:5])) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        raise ModelError(
            f"{ref} has {count} outputs, and id2label in its config.json has no name for output {some}. Give "
            "class_names: one name per output, in the order of the outputs"
        )
    return names


def digest(options: Options) -> str:
    return digest_with_steps(digest_of_folder(model_folder(options.ref, options.revision)))
