"""Find the input shape and the outputs of a user's module by showing it a few images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit.classifiers._preprocessing import Exact, Grey, Preprocess, Resize
from audit.errors import ModelError
from audit.results.warnings import RunWarning

DEFAULT = 224
# Two sides that only a module which takes any size, or which rounds sizes, takes as well as the default.
_OTHERS = (160, 240)
# Sides that are tried where a module does not take the default.
_SIDES = (16, 28, 32, 48, 64, 96, 112, 128, 160, 192, 240, 256, 260, 288, 299, 300, 320, 336, 380, 384, 448, 512)


@dataclass(frozen=True)
class Input:
    """The input of a module: channels, and side in pixels."""

    channels: int
    side: int
    warnings: tuple[RunWarning, ...] = ()

    @property
    def preprocess(self) -> Preprocess:
        resize = Resize(Exact(self.side, self.side))
        return Preprocess((self.side, self.side), steps=(Grey(), resize) if self.channels == 1 else (resize,))


def input_of(network: nn.Module, given: int | None, ref: str, errors: tuple[type[Exception], ...]) -> Input:
    """Find the channels and the side of a module's input; `given` is the side, if it is not None.

    errors: exceptions by which a module rejects an image. Raises ModelError with the module's own error.
    """
    trial = _Trial(network, errors)
    side = given or DEFAULT
    channels = trial.channels(side)
    if channels and given:
        return Input(channels, side)
    if channels:
        if not any(trial.takes(channels, other) for other in _OTHERS):
            return Input(channels, side)
        return Input(channels, side, (_by_default(ref, f"the module takes any size, so {side} is used"),))
    fitting = [] if given else [(c, s) for s in _SIDES for c in (3, 1) if trial.takes(c, s)]
    if not fitting:
        shapes = " and on one of shape ".join(
            f"{(1, channels, side, side)}: {trial.errors_of[channels, side]}" for channels in (3, 1)
        )
        raise ModelError(f"{ref} fails on an image of shape {shapes}{_advice(given)}")
    channels, side = fitting[0]
    if len(fitting) == 1:
        return Input(channels, side)
    sides = ", ".join(str(s) for _, s in fitting)
    return Input(channels, side, (_by_default(ref, f"the module takes {sides}, so {side} is used"),))


def _advice(given: int | None) -> str:
    if given is not None:
        return ""
    return f". input_size is not given, and no common side from {_SIDES[0]} to {_SIDES[-1]} works: set input_size"


def _by_default(ref: str, found: str) -> RunWarning:
    message = (
        f"{ref}: input_size is not given, and {found}. Set input_size to the side of the images that it was trained on"
    )
    return RunWarning("input_size_default", message)


class _Trial:
    """Shows a module grey images of several shapes, and keeps its errors."""

    def __init__(self, network: nn.Module, errors: tuple[type[Exception], ...]) -> None:
        self.network, self.errors = network, errors
        self.errors_of: dict[tuple[int, int], str] = {}

    def channels(self, side: int) -> int | None:
        return next((channels for channels in (3, 1) if self.takes(channels, side)), None)

    @torch.no_grad()
    def takes(self, channels: int, side: int) -> bool:
        try:
            self.network(torch.full((1, channels, side, side), 0.5))
        except self.errors as error:
            self.errors_of[channels, side] = f"{type(error).__name__}: {error}"
            return False
        return True


def images(side: int) -> Tensor:
    """Varied images (8, 3, side, side) in [0, 1]: flat colours, a slope, stripes, fine and coarse noise."""
    random = torch.Generator().manual_seed(0)
    slope = torch.linspace(0, 1, side).expand(3, side, side)
    stripes = (torch.arange(side) // max(side // 8, 1) % 2).float().expand(3, side, side)
    coarse = F.interpolate(torch.rand((1, 3, 4, 4), generator=random), (side, side), mode="bilinear")[0]
    flat = [torch.tensor(colour)[:, None, None].expand(3, side, side) for colour in _COLOURS]
    return torch.stack([*flat, slope, stripes, coarse, torch.rand((3, side, side), generator=random)])


_COLOURS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.9, 0.1, 0.1), (0.1, 0.3, 0.9))
