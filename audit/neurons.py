"""Activations of a classifier's units, read through hooks that never stay behind.

By default the units are the inputs of the last linear layer, the phi of DiG-IN section 5: its weights say what each
unit does for each class. A unit after a ReLU that is 0 at every place has no gradient, and a search that starts there
can go nowhere. `with_redirection` gives it one where the ReLU is a module; where it is not, the search's row says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers import Classifier
from audit.errors import ModelError


@dataclass(frozen=True)
class Layer:
    """Where units are read: what goes into a module, or what comes out of it.

    `weight` (classes, units): from unit to class, where the layer is the input of the last linear layer. `relu`: the
    last one that runs before the layer, where gradients are to pass it also for units that are off; `relu_call`: which
    of its runs in a forward pass, from 0, as blocks may share one.
    """

    name: str
    module: nn.Module
    reads: str = "output"
    weight: Tensor | None = None
    relu: nn.Module | None = None
    relu_call: int = 0


def layer_of(classifier: Classifier, name: str | None = None) -> Layer:
    """The input of the last nn.Linear with one output per class, or the output of the module `name`.

    Raises ModelError where there is no such layer, with what would work.
    """
    modules = dict(classifier.network.named_modules())
    if name is not None:
        if name not in modules:
            raise ModelError(_no_module(name, modules))
        return Layer(name, modules[name])
    heads = [
        (found, module)
        for found, module in modules.items()
        if isinstance(module, nn.Linear) and module.out_features == len(classifier.class_names)
    ]
    if not heads:
        linear = [found for found, module in modules.items() if isinstance(module, nn.Linear)]
        some = ", ".join(linear[-3:]) or "it has no linear layer at all"
        raise ModelError(
            f"the model has no linear layer with {len(classifier.class_names)} outputs, one per class, so which units "
            f"decide is unknown (a zero-shot model has none). Name a module, whose output is read, with 'layer', and "
            f"list its 'neurons'. Its last linear layers: {some}"
        )
    found, head = heads[-1]
    return Layer(f"input of {found}" if found else "input", head, "input", head.weight.detach())


def stored_as(layer: str | None) -> str:
    """The name under which a screening pass stores a layer's activations as arrays."""
    return "activations" if layer is None else f"activations of {layer}"


def _no_module(name: str, modules: Mapping[str, nn.Module]) -> str:
    near = difflib.get_close_matches(name, list(modules), n=5, cutoff=0.4) or list(modules)[-5:]
    return f"unknown layer {name!r}. Near names: {', '.join(near)}"


def activations(classifier: Classifier, layer: Layer, x: Tensor, *, prepared: bool = False) -> tuple[Tensor, Tensor]:
    """Activations (b, units) and logits (b, classes) of RGB (b, 3, h, w) in [0, 1], in one forward pass, float32.

    `prepared`: x is what the classifier's preprocessing gives. Both are differentiable in x. A map (b, c, h, w) becomes
    (b, c) by the mean over its places, a token sequence (b, n, c) by the mean over its tokens. Raises ModelError where
    the layer does not run once, or has other shapes.
    """
    with _watched(layer) as seen:
        logits = classifier.forward(x).float() if prepared else classifier.logits(x)
    if len(seen) != 1:
        raise ModelError(f"the layer {layer.name!r} runs {len(seen)} times in a forward pass, expected once")
    return seen[0].float(), logits


@contextmanager
def _watched(layer: Layer) -> Iterator[list[Tensor]]:
    """What passes the layer while the context lasts, pooled at once: a later layer may overwrite it in place."""
    seen: list[Tensor] = []

    def entering(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(_pooled(arguments[0], layer.name))

    def leaving(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        seen.append(_pooled(output, layer.name))

    with ExitStack() as handles:
        if layer.relu is not None:
            handles.enter_context(_redirecting(layer.relu, layer.relu_call))
        if layer.reads == "input":
            handles.callback(layer.module.register_forward_pre_hook(entering).remove)
        else:
            handles.callback(layer.module.register_forward_hook(leaving).remove)
        yield seen


@contextmanager
def _redirecting(relu: nn.Module, call: int) -> Iterator[None]:
    """Let gradients pass one run of a ReLU for units that are off, while the context lasts. It computes the same."""
    before: list[Tensor] = []

    def entering(_: nn.Module, arguments: tuple[Any, ...]) -> Tensor:
        before.append(arguments[0])
        return arguments[0].clone()  # a ReLU that works in place would overwrite what is kept

    def leaving(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if len(before) != call + 1:
            return output
        return _Redirected.apply(before[call])  # type: ignore[no-untyped-call]

    with ExitStack() as handles:
        handles.callback(relu.register_forward_pre_hook(entering).remove)
        handles.callback(relu.register_forward_hook(leaving).remove)
        yield


class _Redirected(torch.autograd.Function):
    """ReLU of (b, c, ...) whose gradient passes unchanged for items' units that are 0 at every place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        on = ctx.saved_tensors[0] > 0
        off = ~on.flatten(2).any(2) if on.ndim > 2 else ~on
        return gradient * (on | off.view(*off.shape, *[1] * (on.ndim - 2)))


def with_redirection(classifier: Classifier, layer: Layer) -> Layer:
    """The layer, with gradients also for units that the last ReLU before it turns off.

    Such a unit gets the gradient that it would have if its ReLU let everything through; a unit that is on at any
    place keeps its own. Activations stay the same. Differs from the paper, whose networks have 49 places for a unit:
    one that is off at all of them is rare there. ReLUs that are no modules (functional ones) are not found.
    """
    ran: list[nn.Module] = []
    with ExitStack() as handles:
        for module in classifier.network.modules():
            if module is layer.module or isinstance(module, nn.ReLU):
                handles.callback(module.register_forward_hook(lambda m, _, __: ran.append(m)).remove)
        count_units(classifier, layer)
    last = ran.index(layer.module) + (layer.reads == "output")  # a layer that is itself a ReLU turns its units off
    before = [module for module in ran[:last] if isinstance(module, nn.ReLU)]
    return replace(layer, relu=before[-1], relu_call=before.count(before[-1]) - 1) if before else layer


def _pooled(value: Any, name: str) -> Tensor:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor) or value.ndim not in (2, 3, 4):
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"the layer {name!r} gives {found}; expected (b, c), (b, tokens, c) or (b, c, h, w)")
    return value.flatten(2).mean(2) if value.ndim == 4 else value.mean(1) if value.ndim == 3 else value.clone()


def check_unit(layer: Layer, unit: int, count: int) -> None:
    """Refuse a unit that the layer, which has `count`, lacks. Raises ModelError."""
    if not 0 <= unit < count:
        raise ModelError(f"unknown neuron {unit} of the layer {layer.name!r}: it has 0 to {count - 1}")


@torch.no_grad()
def count_units(classifier: Classifier, layer: Layer) -> int:
    """How many units a layer has: found with a grey image."""
    grey = torch.full((1, 3, *classifier.preprocess.size), 0.5, device=next(classifier.network.parameters()).device)
    return activations(classifier, layer, grey)[0].shape[1]


class Objective:
    """Eq. 4 as a value to maximise: the activation of a unit as it is, times -1 for items that minimise it.

    signs: (b,), 1 or -1, one an item.
    """

    def __init__(self, classifier: Classifier, layer: Layer, unit: int, class_name: str, signs: Tensor) -> None:
        self.classifier, self.layer, self.unit, self.signs = classifier, layer, unit, signs
        self.target = classifier.index_of(class_name)

    def __call__(self, images: Tensor) -> Tensor:
        """(b, ..., 3, h, w) to (b, ...)."""
        shape = images.shape[:-3]
        units, _ = activations(self.classifier, self.layer, images.reshape(-1, *images.shape[-3:]))
        return units[:, self.unit].view(shape) * self.signs.view(-1, *[1] * (len(shape) - 1))

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Of images (b, 3, h, w): activation, p(class), and whether the model says the class, (b, 3)."""
        units, logits = activations(self.classifier, self.layer, images)
        said = logits.argmax(-1) == self.target
        return torch.stack([units[:, self.unit], logits.softmax(-1)[:, self.target], said.float()], 1)
