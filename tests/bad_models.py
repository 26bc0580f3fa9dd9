"""Model folders and model code of the bad-input corpus: damaged, hostile, or not what they claim."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audit.errors import ConfigError, ModelError
from audit.reference import local_folder
from tests.bad_input import Case, Holds, Refused

WEIGHTS = "model.safetensors"
CODE = """
import torch
class Net(torch.nn.Module):
    def __init__(self, value=0.0, classes=2):
        super().__init__()
        self.value, self.classes = value, classes
    def forward(self, x):
        return torch.full((len(x), self.classes), self.value)
class Flat(Net):
    def forward(self, x): return x.mean((1, 2, 3))
class Words(Net):
    def forward(self, x): return "crab"
class Raises(Net):
    def forward(self, x): raise ValueError("no such kernel")
def good(): return Net()
def nan(): return Net(float("nan"))
def infinite(): return Net(float("inf"))
def three(): return Net(classes=3)
def flat(): return Flat()
def words(): return Words()
def raises(): return Raises()
def text(): return "a model"
def state(): return Net().state_dict()
def fails(): raise FileNotFoundError("weights.pt")
def unpickled(path): return torch.load(path, weights_only=True)
constant = 3
"""


class Evil:
    """Unpickling it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@cache
def intact() -> Path:
    return local_folder("zoo:reference")


def copied(root: Path, loader: str) -> Path:
    return Path(shutil.copytree(local_folder("zoo:clip") if loader == "clip" else intact(), root / "model"))


def damaged(damage: Callable[[Path], object], loader: str = "hf", **options: Any) -> Callable[[Path], dict[str, Any]]:
    """A copy of a real model after this damage."""

    def make(root: Path) -> dict[str, Any]:
        damage(copied(root, loader))
        return {"loader": loader, "ref": "./model", **options}

    return make


def bytes_of(data: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda model: (model / WEIGHTS).write_bytes(data((model / WEIGHTS).read_bytes()))


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        found = load_file(model / WEIGHTS)
        change(found)
        save_file(found, model / WEIGHTS, metadata={"format": "pt"})

    return damage


def config(name: str = "config.json", **changes: Any) -> Callable[[Path], object]:
    def damage(model: Path) -> None:
        found = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**found, **changes}))

    return damage


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(content)


def pickled(name: str) -> Callable[[Path], None]:
    """Only a pickle, which runs code where it is loaded."""

    def damage(model: Path) -> None:
        (model / WEIGHTS).unlink()
        (model / name).write_bytes(pickle.dumps(Evil(model.parent / "PWNED")))

    return damage


def head(found: dict[str, Tensor]) -> str:
    return next(name for name in sorted(found) if "classifier" in name and name.endswith("weight"))


def remote_code(model: Path) -> None:
    config(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"})(model)
    (model / "evil.py").write_text(f"open({str(model.parent / 'PWNED')!r}, 'w')")


def of_code(ref: str, code: str = CODE, **options: Any) -> Callable[[Path], dict[str, Any]]:
    def make(root: Path) -> dict[str, Any]:
        (root / "mine.py").write_text(code)
        return {"loader": "python", "ref": ref, "input_size": 8, **options}

    return make


def evil_checkpoint(root: Path) -> dict[str, Any]:
    (root / "evil.pt").write_bytes(pickle.dumps(Evil(root / "PWNED"), protocol=2))
    return of_code("mine.py:unpickled", arguments={"path": "evil.pt"})(root)


def pickled_module(root: Path) -> dict[str, Any]:
    torch.save(torch.nn.Linear(2, 2), root / "module.pt")
    return of_code("mine.py:unpickled", arguments={"path": "module.pt"})(root)


def refused(*names: str) -> Refused:
    return Refused(ModelError, names)


LOADS = "cannot be loaded as an image classifier with safetensors"
MODELS: dict[str, tuple[Callable[[Path], dict[str, Any]], Refused | Holds]] = {
    "truncated weights": (damaged(bytes_of(lambda data: data[: len(data) // 2])), refused(LOADS)),
    "weights of no bytes": (damaged(bytes_of(lambda _: b"")), refused(LOADS, "header")),
    "a header of 2^62 bytes": (
        damaged(bytes_of(lambda _: (2**62).to_bytes(8, "little") + b"{}")),
        refused(LOADS, "header too large"),
    ),
    "a header that is no JSON": (
        damaged(bytes_of(lambda _: (8).to_bytes(8, "little") + b"nonsense")),
        refused(LOADS, "invalid JSON"),
    ),
    "a pickle named safetensors": (
        damaged(bytes_of(lambda _: pickle.dumps(Evil(Path("PWNED"))))),
        refused(LOADS),
    ),
    "pickled weights alone": (damaged(pickled("pytorch_model.bin")), refused(LOADS, "no file named model.safetensors")),
    "no weights": (damaged(lambda model: (model / WEIGHTS).unlink()), refused(LOADS, "no file named")),
    "weights of NaN": (
        damaged(tensors(lambda found: found[head(found)].fill_(float("nan")))),
        refused("NaN or infinity", "weights are broken"),
    ),
    "weights of infinity": (
        damaged(tensors(lambda found: found[head(found)].fill_(float("inf")))),
        refused("NaN or infinity"),
    ),
    "weights without the head": (
        damaged(tensors(lambda found: found.pop(head(found)))),
        refused("lack", "classifier", "without its head"),
    ),
    "weights of other names": (
        damaged(tensors(lambda found: found.update({f"x.{name}": found.pop(name) for name in list(found)}))),
        refused("lack", "more", "another architecture"),
    ),
    "weights with more than the model has": (
        damaged(tensors(lambda found: found.update(more=torch.zeros(3)))),
        Holds(9),
    ),
    "weights of another shape": (
        damaged(tensors(lambda found: found.update({head(found): torch.zeros(3, 5)}))),
        refused(LOADS),
    ),
    "fewer classes than the weights have": (
        damaged(config(id2label={"0": "a"}, label2id={"a": 0})),
        refused(LOADS),
    ),
    "a wrong count of class names": (
        damaged(lambda _: None, class_names=["a", "b"]),
        refused("9 outputs", "class_names gives 2 names"),
    ),
    "no config": (
        damaged(lambda model: (model / "config.json").unlink()),
        refused("is no model folder: it has no config.json, and holds"),
    ),
    "a config that is no JSON": (damaged(text("config.json", "{")), refused(LOADS, "config.json")),
    "a config of an unknown kind": (damaged(config(model_type="nope")), refused(LOADS, "nope")),
    "a config that brings code": (damaged(remote_code), refused(LOADS, "custom code")),
    "no preprocessor": (
        damaged(lambda model: (model / "preprocessor_config.json").unlink()),
        refused("no preprocessor_config.json"),
    ),
    "a preprocessor that is no JSON": (
        damaged(text("preprocessor_config.json", "{")),
        refused("preprocessor_config.json cannot be used"),
    ),
    "a preprocessor that is a list": (
        damaged(text("preprocessor_config.json", "[]")),
        refused("preprocessor_config.json cannot be used"),
    ),
    "a preprocessor of no size": (
        damaged(config("preprocessor_config.json", size="large")),
        refused("'size' is 'large'"),
    ),
    "a preprocessor with a mean of text": (
        damaged(config("preprocessor_config.json", image_mean="grey")),
        refused("preprocessor_config.json cannot be used"),
    ),
    "clip: truncated weights": (
        damaged(bytes_of(lambda data: data[:1000]), "clip"),
        refused("cannot be loaded as a CLIP model"),
    ),
    "clip: weights without a tower": (
        damaged(tensors(lambda found: [found.pop(name) for name in list(found) if "vision" in name]), "clip"),
        refused("lack", "vision"),
    ),
    "clip: pickled weights alone": (
        damaged(pickled("pytorch_model.bin"), "clip"),
        refused("cannot be loaded as a CLIP model"),
    ),
    "no folder": (lambda _: {"loader": "hf", "ref": "./none"}, refused("none")),
    "an unknown zoo model": (
        lambda _: {"loader": "hf", "ref": "zoo:referense"},
        refused("unknown zoo model", "Did you mean 'reference'"),
    ),
    "a hub id without a revision": (
        lambda _: {"loader": "hf", "ref": "google/vit-base-patch16-224"},
        refused("pinned 'revision'", "none is given"),
    ),
    "a hub id at a branch": (
        lambda _: {"loader": "hf", "ref": "google/vit-base-patch16-224", "revision": "main"},
        refused("'revision'", "found 'main'"),
    ),
    "a hub id offline": (
        lambda _: {"loader": "hf", "ref": "none/none", "revision": "0" * 40},
        refused("cannot fetch 'none/none'"),
    ),
    "an unknown loader": (
        lambda _: {"loader": "hff", "ref": "x"},
        Refused(ConfigError, ("unknown", "'hff'", "Did you mean 'hf'")),
    ),
    "code: good": (of_code("mine.py:good"), Holds(2)),
    "code: no such file": (of_code("other.py:good"), refused("no Python file at", "other.py")),
    "code: no such function": (of_code("mine.py:goood"), refused("no function 'goood'")),
    "code: no function": (of_code("mine.py:constant"), refused("no function 'constant'")),
    "code: a syntax error": (of_code("mine.py:good", "def good(:"), refused("cannot import", "SyntaxError")),
    "code: an import that is not there": (
        of_code("mine.py:good", "import no_such_package"),
        refused("cannot import", "no_such_package"),
    ),
    "code: a division by zero on import": (
        of_code("mine.py:good", "1 / 0"),
        refused("cannot import", "ZeroDivisionError"),
    ),
    "code: a file that is gone": (of_code("mine.py:fails"), refused("FileNotFoundError", "weights.pt")),
    "code: an argument too many": (of_code("mine.py:good", arguments={"x": 1}), refused("mine.py:good", "TypeError")),
    "code: text for a model": (of_code("mine.py:text"), refused("returned str", "torch.nn.Module")),
    "code: a state for a model": (of_code("mine.py:state"), refused("returned OrderedDict")),
    "code: no logits": (of_code("mine.py:flat"), refused("shape (b, classes)")),
    "code: logits of text": (of_code("mine.py:words"), refused("shape (b, classes)")),
    "code: raises on an image": (of_code("mine.py:raises"), refused("mine.py:raises", "no such kernel")),
    "code: logits of NaN": (of_code("mine.py:nan"), refused("NaN or infinity")),
    "code: logits of infinity": (of_code("mine.py:infinite"), refused("NaN or infinity")),
    "code: more outputs than classes": (of_code("mine.py:three"), refused("3 outputs", "give 2 names")),
    "code: an evil pickle": (evil_checkpoint, refused("mine.py:unpickled")),
    "code: a pickled module": (pickled_module, refused("mine.py:unpickled")),
}

CASES = [Case(f"model: {name}", "model", make, expected) for name, (make, expected) in MODELS.items()]
