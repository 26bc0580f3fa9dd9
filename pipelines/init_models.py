"""Choose the loader for a model: a folder, a hub id, file.py:function, a name of a library, or a table."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit import registry
from audit.errors import ConfigError, ModelError, unknown
from audit.reference import local_folder, model_folder
from pipelines.init_hub import pinned

Option = tuple[str, str | int]

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl", ".h5", ".keras", ".onnx", ".tflite", ".pb")
TABLES = (".csv", ".tsv", ".parquet")
WORKS = (
    "What works: a folder in the layout of transformers or timm; a hub id as user/name; zoo:<name>; file.py:function; "
    "torchvision:ResNet50_Weights.IMAGENET1K_V2; or a table of predictions, *.csv or *.parquet"
)
_SIZE_NAMES = re.compile(r"(?i)(input|image|img)_?(size|resolution|side|dim)|resolution|crop_size")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Model:
    """A model of a job file. `names`: the model's own names of its outputs, if any. `by_data`: whether the outputs have
    the names of the data's classes. `note`: a comment on the choice, or on what to fill in."""

    loader: str
    options: tuple[Option, ...]
    names: tuple[str, ...] = ()
    by_data: bool = False
    note: str = ""


def model_of(text: str) -> Model:
    """The loader for a classifier. Imports no code and loads no weights.

    Raises ConfigError or ModelError with a list of what works.
    """
    if text.startswith("zoo:"):
        return _folder(text, local_folder(text))
    if text.startswith("torchvision:"):
        return _torchvision(text.removeprefix("torchvision:"))
    if text.startswith("timm:"):
        return _on_hub(text.removeprefix("timm:"), "timm")
    if ".py:" in text:
        return _python(text)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(str(path.resolve()), path)
    if path.is_file():
        return _file(path)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        return Model("python", (("ref", text),), by_data=True, note="a module that Python imports by its name")
    if _HUB_ID.fullmatch(text) and not text.startswith(".") and not path.parent.exists():
        return _on_hub(text)
    raise ConfigError(f"no model at {text}. {WORKS}")


def clip_of(text: str) -> Model:
    """A CLIP model, for an embedder or for a second opinion. Raises ConfigError and ModelError."""
    found = model_of(text)
    if found.loader != "clip":
        raise ConfigError(
            f"{text} is not a CLIP model: --embedder takes a model that embeds images and texts, such as zoo:clip"
        )
    return found


def generator_of(text: str) -> Model:
    """A pipeline of diffusers. Raises ConfigError and ModelError."""
    from audit.generators._pipeline import check_index

    path = Path(text).expanduser()
    if text.startswith("zoo:") or path.is_dir():
        check_index(text, local_folder(text if text.startswith("zoo:") else str(path)))
        return Model("diffusers", (("ref", text if text.startswith("zoo:") else str(path.resolve())),))
    if path.exists():
        raise ConfigError(
            f"{text} is a file; --generator takes a folder in the layout of diffusers, with a model_index.json: "
            "diffusers' script convert_original_stable_diffusion_to_diffusers.py converts a single file"
        )
    if not _HUB_ID.fullmatch(text):
        raise ConfigError(f"no generator at {text}; give a folder in the layout of diffusers, or a hub id as user/name")
    found = pinned(text, "model")
    return Model("diffusers", (("ref", text), ("revision", found.revision)), note=found.note)


def _folder(ref: str, folder: Path) -> Model:
    """Choose by the content of a folder."""
    if (folder / "model_index.json").is_file():
        raise ConfigError(f"{ref} is a generator, not a classifier; give it as --generator")
    if not (folder / "config.json").is_file():
        weights = [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS]
        if weights:
            _file(weights[0])
    config = _json(model_folder(ref) / "config.json")
    if "architecture" in config and "model_type" not in config:
        _check_loader("timm", ref)
        return Model("timm", (("ref", ref),), _named(config.get("label_names")))
    if config.get("model_type") == "clip":
        return Model("clip", (("ref", ref),), by_data=True)
    if not (folder / "preprocessor_config.json").is_file():
        raise ModelError(
            f"{ref} has no preprocessor_config.json, so the model's preprocessing is unknown; save the image "
            "processor into the same folder with its save_pretrained"
        )
    return Model("hf", (("ref", ref),), _named(config.get("id2label")))


def _named(names: Any) -> tuple[str, ...]:
    """Names of outputs in a configuration: a list, or a mapping from the number of the output."""
    if isinstance(names, dict):
        if not all(str(number).isdecimal() for number in names):
            return ()
        return tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))
    return tuple(map(str, names or ()))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _on_hub(name: str, loader: str = "") -> Model:
    """A hub id, with its current commit."""
    found = pinned(name, "model")
    if not loader:
        tags = {tag.lower() for tag in found.tags}
        loader = "timm" if "timm" in tags or name.startswith("timm/") else "clip" if "clip" in tags else "hf"
        if "diffusers" in tags:
            raise ConfigError(f"{name!r} is a generator, not a classifier; give it as --generator")
    _check_loader(loader, name)
    return Model(loader, (("ref", name), ("revision", found.revision)), by_data=loader == "clip", note=found.note)


def _torchvision(entry: str) -> Model:
    """Weights by torchvision's own name for them, whose beginning is the architecture's."""
    _check_loader("torchvision", entry)
    architecture, found, _ = entry.partition("_Weights.")
    if not found:
        raise ConfigError(
            f"torchvision:{entry} names no weights, but they decide preprocessing and class names; give their name, "
            "such as torchvision:ResNet50_Weights.IMAGENET1K_V2"
        )
    return Model("torchvision", (("ref", architecture.lower()), ("entry", entry)))


def _check_loader(loader: str, ref: str) -> None:
    if loader not in registry.names("classifiers"):
        raise ConfigError(
            f"{ref} needs the loader {loader!r}: {unknown('loader', loader, registry.names('classifiers'))}"
        )


def _file(path: Path) -> Model:
    """A table of predictions; other files are an error with advice."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        _check_loader("predictions", str(path))
        return Model("predictions", (("path", str(path.resolve())),))
    if suffix == ".py":
        raise ConfigError(f"{path}: which function builds the model? {_candidates(path)}")
    if suffix in (".onnx", ".h5", ".keras", ".tflite", ".pb"):
        raise ConfigError(
            f"{path} is not a model of PyTorch and cannot be read; give a table of its predictions, *.csv or "
            "*.parquet, or convert the model to PyTorch"
        )
    if suffix in WEIGHTS:
        raise ConfigError(_of_weights(path))
    raise ConfigError(f"{path} is not a model. {WORKS}")


def _of_weights(path: Path) -> str:
    beside = path.parent / "config.json"
    if beside.is_file():
        return f"{path} is a file of weights; give its folder {path.parent}, which has a config.json"
    read = "safetensors.torch.load_file(weights)"
    read = read if path.suffix == ".safetensors" else "torch.load(weights, weights_only=True)"
    return (
        f"{path} holds weights but no architecture. Write a file, such as model.py, with a function that builds the "
        f"network and loads them:\n\n    def load(weights):\n        model = MyNetwork()\n"
        f"        model.load_state_dict({read})\n        return model\n\n"
        f"and give model.py:load; in the job file, arguments: {{weights: {path.name}}} names the file"
    )


def _python(text: str) -> Model:
    """`file.py:function`, if the file exists and its source defines the function."""
    name, _, function = text.rpartition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"no Python file at {path}")
    tree = _parsed(path)
    if not function:
        raise ConfigError(f"{path}: which function builds the model? {_candidates(path)}")
    if function not in _defined(tree):
        raise ConfigError(f"{path} has no function {function!r}. {_candidates(path)}")
    return Model("python", (("ref", f"{path.resolve()}:{function}"),), by_data=True)


def input_size_in(text: str) -> tuple[int, str] | None:
    """The value that a Python file assigns to a name such as IMAGE_SIZE, and its place; None if there is no value, or
    several values. text: file.py:function."""
    path = Path(text.rpartition(":")[0]).expanduser()
    if path.suffix != ".py":
        return None
    found = {}
    for node in ast.walk(_parsed(path)):
        for name, value in _assigned(node):
            if _SIZE_NAMES.fullmatch(name) and isinstance(value, ast.Constant) and isinstance(value.value, int):
                found[value.value] = f"{path.name}, line {value.lineno}: {name} = {value.value}"
    return next(iter(found.items())) if len(found) == 1 else None


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names and their values: from assignments, defaults of parameters, and keywords of calls."""
    if isinstance(node, ast.Assign):
        yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value
    elif isinstance(node, ast.arguments):
        plain = [*node.posonlyargs, *node.args]
        yield from zip([one.arg for one in plain[len(plain) - len(node.defaults) :]], node.defaults, strict=True)
        yield from ((one.arg, value) for one, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value)
    elif isinstance(node, ast.Call):
        yield from ((one.arg, one.value) for one in node.keywords if one.arg)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is not valid Python: {error}") from error


def _defined(tree: ast.Module) -> set[str]:
    """Top-level names of a file: functions, classes, assigned and imported names."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {name for name, _ in _assigned(node)}
    return names


def _candidates(path: Path) -> str:
    """Advice that lists the functions of a file that may build a model, the likeliest names first."""
    functions = [node for node in _parsed(path).body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    likely = re.compile(r"(?i)load|build|create|make|get|model|net")
    named = sorted(functions, key=lambda node: not likely.search(node.name))
    if not named:
        classes = [node.name for node in _parsed(path).body if isinstance(node, ast.ClassDef)]
        there = f"; it has the class{'es' * (len(classes) > 1)} {', '.join(classes)}" if classes else ""
        return f"It has no function{there}: write one that returns the network with its weights loaded"
    calls = ", ".join(f"{path}:{node.name}" for node in named[:8])
    return f"Give one of: {calls}. It returns the network, a torch.nn.Module, with its weights loaded"
