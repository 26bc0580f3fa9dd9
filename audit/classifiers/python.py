"""A classifier of the user's own: `ref: path/to/file.py:function` or `ref: package.module:function`.

The function gets `arguments` and returns a torch module that maps RGB float32 (b, 3, h, w) in [0, 1], at the size
`input_size`, to logits (b, classes). What the model does to its input first is part of the module. A module that takes
one channel gets grey values; one output becomes two classes; probabilities become their logarithms. The file may import
modules that lie beside it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, ValidationInfo
from torch import Tensor, nn

from audit.classifiers import Classifier, Preprocess, check_network, names_for
from audit.classifiers._heads import Head, doubts, head_of, one_output
from audit.classifiers._preprocessing import digest_with_steps
from audit.classifiers._trial import images, input_of
from audit.config import ClassNames, Frozen
from audit.errors import ModelError
from audit.reference import LOAD_ERRORS, digest_of_file

# What code of a user's own raises, when it is imported, called, or shown an image.
_USER_ERRORS = (
    *(ImportError, SyntaxError, NameError, AttributeError, TypeError, LookupError, ArithmeticError, AssertionError),
    *(EOFError, UnpicklingError, *LOAD_ERRORS),
)


def _from_job(value: Any, info: ValidationInfo) -> Any:
    """Make 'file.py:function' absolute, relative to the job file."""
    if isinstance(value, str) and ".py:" in value:
        path, _, function = value.rpartition(":")
        return f"{((info.context or {}).get('folder', Path()) / Path(path).expanduser()).resolve()}:{function}"
    return value


def _paths(value: Any, info: ValidationInfo) -> Any:
    """Arguments that name a file beside the job become absolute paths."""
    if not isinstance(value, dict):
        return value
    folder = (info.context or {}).get("folder", Path())
    return {
        k: str((folder / v).resolve()) if isinstance(v, str) and (folder / v).is_file() else v for k, v in value.items()
    }


class Options(Frozen):
    ref: Annotated[str, BeforeValidator(_from_job)]
    arguments: Annotated[dict[str, Any], BeforeValidator(_paths)] = Field(
        {}, description="keyword arguments of the function"
    )
    input_size: int | None = Field(
        None,
        ge=1,
        description="side that images are resized to before the module; default: the side that it accepts, or 224",
    )
    class_names: ClassNames = Field("data", description="names of the outputs, or 'data'")


def load(options: Options, data_classes: tuple[str, ...]) -> Classifier:
    """Call the user's function. Raises ModelError naming what is wrong with what it returns."""
    module_name, _, function_name = options.ref.rpartition(":")
    with _neighbours(module_name):
        return _load(options, data_classes, module_name, function_name)


def _load(options: Options, data_classes: tuple[str, ...], module_name: str, function_name: str) -> Classifier:
    module = _import(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(f"{options.ref}: {module_name} has no function {function_name!r}")
    if isinstance(function, nn.Module):
        raise ModelError(f"{options.ref} is a torch module, not a function; write a function that returns it")
    try:
        network = function(**options.arguments)
    except _USER_ERRORS as error:
        raise ModelError(f"{options.ref} with {options.arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{options.ref} returned {type(network).__name__}, expected a torch.nn.Module")
    network = network.float().eval().requires_grad_(False)
    taken = input_of(network, options.input_size, options.ref, _USER_ERRORS)
    alone, outputs = _outputs(network, taken.preprocess, options.ref)
    head = head_of(outputs, options.ref)
    names = _names(options, data_classes, outputs.shape[1], head)
    check_network(head.convert(outputs.detach()), len(names))

    single = (one_output(options.ref, names),) if outputs.shape[1] == 1 else ()

    def forward(x: Tensor) -> Tensor:
        return head.convert(network(x))

    return Classifier(
        names,
        taken.preprocess,
        forward,
        network,
        warnings=(*taken.warnings, *head.warnings, *single, *doubts(alone, outputs, options.ref)),
        default_size=bool(taken.warnings),
    )


def _outputs(network: nn.Module, preprocess: Preprocess, ref: str) -> tuple[Tensor, Tensor]:
    """Outputs (b, outputs) for images one by one, and for the same images in a batch, with their autograd graph."""
    x = images(preprocess.size[0]).requires_grad_(True)
    try:
        alone = [network(preprocess(one[None].detach())) for one in x]
        together = network(preprocess(x))
    except _USER_ERRORS as error:
        raise ModelError(f"{ref} fails on images of shape {tuple(x.shape)}: {type(error).__name__}: {error}") from error
    for found, count in (*((one, 1) for one in alone), (together, len(x))):
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count or not found.is_floating_point():
            what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ModelError(
                f"{ref}: the module must return logits of shape (b, classes), (b, 1) for one output; for {count} "
                f"images it returns {what}{_as_column(found, count)}"
            )
    return torch.cat(alone), together


def _as_column(found: object, count: int) -> str:
    """What makes one number per image a column; empty for other outputs."""
    if isinstance(found, Tensor) and found.shape == (count,):
        return ". Shape (b,) is not accepted: output[:, None] gives (b, 1)"
    if isinstance(found, Tensor) and found.ndim == 0 and count == 1:
        return ". Is there a squeeze()? Without it, the shape is (b, 1)"
    return ""


def _names(options: Options, data_classes: tuple[str, ...], outputs: int, head: Head) -> tuple[str, ...]:
    try:
        return names_for(options.class_names, (), data_classes, head.classes)
    except ModelError as error:
        if outputs != 1:
            raise
        raise ModelError(
            f"{options.ref} has one output: the log-odds or the probability of the second of two classes. Give "
            f"class_names: [negative, positive]. A regression cannot be audited ({error})"
        ) from error


@contextmanager
def _neighbours(name: str) -> Iterator[None]:
    """While the block lasts, a file imports the modules beside it, as when Python runs the file.

    Afterwards these modules are removed from `sys.modules`, so that files of two folders can each import a neighbour of
    one name.
    """
    if not name.endswith(".py"):
        yield
        return
    folder, before = Path(name).resolve().parent, set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:  # the file may have changed it, too
            sys.path.remove(str(folder))
        new = {name: name.partition(".")[0] for name in set(sys.modules) - before}
        beside = {
            top for top in new.values() if _place_of(sys.modules.get(top)) in (folder / f"{top}.py", folder / top)
        }
        for found in (found for found, top in new.items() if top in beside):
            del sys.modules[found]


def _place_of(module: ModuleType | None) -> Path | None:
    """The file of a module, or the folder of a package."""
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return Path(places[0]).resolve() if places[0] else None


def _import(name: str) -> ModuleType:
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        unique = hashlib.sha256(name.encode()).hexdigest()[:8]
        spec = importlib.util.spec_from_file_location(f"audit_user_{Path(name).stem}_{unique}", name)
        if spec is None or spec.loader is None or not Path(name).is_file():
            raise ModelError(f"no Python file at {name}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # a dataclass looks its own module up there
        spec.loader.exec_module(module)
        return module
    except _USER_ERRORS as error:
        raise ModelError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def digest(options: Options) -> str:
    """sha256 of the file that defines the model, of those beside it that it imports, and of its arguments, files among
    them by what they hold."""
    name = options.ref.rpartition(":")[0]
    with _neighbours(name):
        module = inspect.getfile(_import(name))
    held = {
        name: digest_of_file(Path(value)) if isinstance(value, str) and Path(value).is_file() else value
        for name, value in options.arguments.items()
    }
    called = options.ref.rpartition(":")[2]
    parts = [called, json.dumps(held, sort_keys=True, default=str), *map(digest_of_file, sources_of(Path(module)))]
    return digest_with_steps(hashlib.sha256("\0".join(parts).encode()).hexdigest())


def sources_of(module: Path) -> list[Path]:
    """A Python file, and those below its folder that it imports, or that these import, as far as their text says so."""
    found, waiting = {module: None}, [module]
    while waiting:
        file = waiting.pop()
        for name in _imported(file):
            beside = [folder.joinpath(*name.split(".")) for folder in (module.parent, file.parent)]
            for place in (path for base in beside for path in (base.with_suffix(".py"), base / "__init__.py")):
                if place.is_file() and place not in found:
                    found[place] = None
                    waiting.append(place)
    return [module, *sorted(file for file in found if file != module)]


def _imported(file: Path) -> list[str]:
    """Dotted names that a file's import statements may mean, with those of modules imported from a package."""
    names = []
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # of a file that only seems to be imported
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names += [base] if base else []
            names += [f"{base}.{alias.name}".strip(".") for alias in node.names if alias.name != "*"]
    return names
