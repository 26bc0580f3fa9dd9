"""Turn a model's outputs into logits of classes that exclude each other.

The softmax of these logits must give the model's probabilities. A single output, and outputs that are probabilities,
are converted to such logits; other outputs are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.errors import ModelError
from audit.results.warnings import RunWarning

Convert = Callable[[Tensor], Tensor]
# Operations of autograd that only move or copy values.
_MOVES = (
    *("View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze", "T", "Transpose", "Permute", "Select"),
    *("Slice", "Repeat", "Clone", "ToCopy", "Expand", "AsStrided", "Detach", "Contiguous", "UnsafeSplit", "Split"),
)
# Operations whose result may lie in [0, 1] by chance only.
_UNBOUNDED = ("Addmm", "Mm", "Bmm", "Mv", "Dot", "Convolution", "Add", "Sub", "Mean", "Sum", "Linear")


@dataclass(frozen=True)
class Head:
    """How outputs (b, outputs) become logits (b, classes)."""

    classes: int
    convert: Convert
    warnings: tuple[RunWarning, ...] = ()


def one_output(ref: str, names: Sequence[str]) -> RunWarning:
    """The warning for a model of one output."""
    message = f"{ref} has one output; it is read as the score of {names[1]!r} against {names[0]!r}"
    return RunWarning("one_output", message, blocks_gate=False)


def two_classes(outputs: Tensor) -> Tensor:
    """Log-odds (b, 1) of the second class to logits (b, 2): softmax of (0, z) is (1 - sigmoid z, sigmoid z)."""
    return torch.cat([torch.zeros_like(outputs), outputs], 1)


def from_probability(outputs: Tensor) -> Tensor:
    """The probability (b, 1) of the second class to logits (b, 2)."""
    eps = torch.finfo(torch.float32).eps
    return two_classes(torch.logit(outputs.float(), eps))


def from_probabilities(outputs: Tensor) -> Tensor:
    """Probabilities (b, classes) to logits: softmax of log p is p."""
    return outputs.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def as_they_are(outputs: Tensor) -> Tensor:
    return outputs


def head_of(outputs: Tensor, ref: str) -> Head:
    """Classify the outputs (b, outputs) of a module from trial images. Raises ModelError.

    outputs: with their autograd graph, if there is one: a sigmoid is recognised by the last operation.
    """
    last, values = last_operation(outputs), outputs.detach()
    within = bool(((values >= 0) & (values <= 1)).all())
    if outputs.shape[1] == 1:
        return _single(last, within, ref)
    if last == "Sigmoid":
        raise ModelError(
            f"{ref}: the module applies a sigmoid to each of its {outputs.shape[1]} outputs. A multi-label model, "
            "whose classes do not exclude each other, cannot be audited. If they exclude each other, return its inputs"
        )
    sums = values.double().sum(1)
    if within and torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-4):
        message = (
            f"{ref} returns probabilities (at least 0, with a sum of 1), not logits. Their logarithms are used as "
            "logits: the softmax of these is the same probabilities. Searches work better with a module of logits"
        )
        return Head(outputs.shape[1], from_probabilities, (RunWarning("probabilities", message, blocks_gate=False),))
    if bool((values >= 0).all()) and torch.allclose(sums, torch.full_like(sums, 100.0), rtol=0, atol=0.1):
        raise ModelError(
            f"{ref} returns percentages (at least 0, with a sum of 100). Return the logits, or divide by 100"
        )
    doubt = (_unit_interval(outputs.shape[1], ref),) if within and last not in _UNBOUNDED else ()
    return Head(outputs.shape[1], as_they_are, doubt)


def _unit_interval(count: int, ref: str) -> RunWarning:
    message = (
        f"{ref}: all {count} outputs lie in [0, 1] for every trial image and do not sum to 1, so whether they are "
        "logits, as which they are read, or a sigmoid of each class is unknown. Return what the sigmoid gets, or end "
        "the module in its last linear layer"
    )
    return RunWarning("outputs_in_unit_interval", message)


def _single(last: str | None, within: bool, ref: str) -> Head:
    if last == "Sigmoid":
        return Head(2, from_probability)
    if within and last not in _UNBOUNDED:
        raise ModelError(
            f"{ref}: the module's one output lies in [0, 1] for every trial image, so it may be the probability of the "
            "second class or its log-odds. Return the log-odds (the input of a sigmoid), or end the module in "
            "torch.sigmoid"
        )
    return Head(2, two_classes)


def last_operation(outputs: Tensor) -> str | None:
    """Autograd's name of the operation that made the outputs ('Addmm', 'Sigmoid'); None if unknown."""
    node = outputs.grad_fn
    while node is not None:
        name = node.name().removeprefix("torch::autograd::").rstrip("0123456789").removesuffix("Backward")
        if name not in _MOVES:
            return name.lstrip("_")
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def doubts(alone: Tensor, outputs: Tensor, ref: str) -> tuple[RunWarning, ...]:
    """Warnings about a module's outputs (b, outputs) for varied images; `alone`: the same, shown one by one."""
    values = outputs.detach().double()
    found = []
    if len(values) > 1 and (values - values[:1]).abs().max() <= 1e-6 * _scale(values):
        message = f"{ref} returns the same output for {len(values)} very different trial images: it ignores its input"
        found.append(RunWarning("constant_output", message))
    return (*found, *unstable(alone, outputs, ref))


def unstable(alone: Tensor, outputs: Tensor, ref: str) -> tuple[RunWarning, ...]:
    """A warning if a model's outputs (b, outputs) differ from those for the same images one by one."""
    one, values = alone.detach().double(), outputs.detach().double()
    equal = (one == values) | (one.isnan() & values.isnan())  # inf - inf is NaN
    if (one - values).abs().masked_fill(equal, 0.0).max() <= 1e-3 * _scale(values):
        return ()
    message = (
        f"{ref} returns another output for an image alone than for the same image in a batch: its results depend "
        "on random numbers or on the batch (dropout or batch statistics that eval() does not switch off?)"
    )
    return (RunWarning("unstable_output", message),)


def _scale(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp_min(1e-3)
