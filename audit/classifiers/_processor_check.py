"""Compare a model's image processor with the differentiable steps that replace it, on a few pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from audit.classifiers._preprocessing import Preprocess
from audit.errors import ModelError

# Mean absolute differences that resampling in 8 bits makes: of normalised values, and in steps of 1 / 255.
TOLERANCE, LEVELS = 0.01, 0.5
# Input side from which on the pictures grow no more: what a picture shows of the steps, it shows at this size.
LARGEST = 512
# Height and width of the pictures, as multiples of the input's, and whether they are grey.
_PICTURES = {
    "portrait": (1.53, 1.09, False),
    "landscape": (1.21, 1.87, False),
    "small": (0.61, 0.47, False),
    "of the input size": (1.0, 1.0, False),
    "grey": (1.3, 1.3, True),
}


def check_processor(processor: Any, preprocess: Preprocess, channels: int, path: Path) -> None:
    """Refuse steps that differ from the processor by more than its rounding to 8 bits.

    Raises ModelError, naming the key of `path` that is most likely the cause.
    """
    step = _step_of(processor, preprocess, channels)
    for name, picture in pictures(preprocess.size):
        theirs = processed(processor, picture, channels)
        ours = preprocess(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255)
        if theirs.shape != ours.shape:
            raise ModelError(
                f"{path}: for a test picture ({name}), the model's image processor returns the shape "
                f"{tuple(theirs.shape[1:])}, but the audit's differentiable steps return {tuple(ours.shape[1:])}. Most "
                "likely they interpret 'size' or 'crop_size' differently"
            )
        difference = float((ours - theirs).abs().mean())
        if not difference <= max(TOLERANCE, LEVELS * step):
            raise ModelError(
                f"{path}: for a test picture ({name}), the audit's differentiable steps differ from the model's image "
                f"processor by {difference:.3g} on average. Most likely they interpret {_suspect(ours, theirs)} "
                "differently"
            )


def pictures(size: tuple[int, int]) -> Iterator[tuple[str, Image.Image]]:
    """RGB test pictures of several sizes for an input size, with details of a few pixels; the same at every call."""
    random = np.random.default_rng(0)
    shrunk = min(1.0, LARGEST / max(size))
    for name, (tall, wide, is_grey) in _PICTURES.items():
        height, width = max(int(size[0] * shrunk * tall), 1), max(int(size[1] * shrunk * wide), 1)
        cells = random.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), dtype=np.uint8)
        picture = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        yield name, picture.convert("L").convert("RGB") if is_grey else picture


def processed(processor: Any, picture: Image.Image, channels: int) -> Tensor:
    """The processor's result for a picture, (1, c, h, w); for a model of one channel, the picture is converted to
    grey."""
    shown = picture.convert("L") if channels == 1 else picture
    return torch.as_tensor(processor(images=shown, return_tensors="pt")["pixel_values"]).float()


def _step_of(processor: Any, preprocess: Preprocess, channels: int) -> float:
    """The change of the processor's result for a change of brightness by 1 / 255."""
    ends = [processed(processor, Image.new("RGB", preprocess.size[::-1], (v, v, v)), channels) for v in (0, 255)]
    return float((ends[1] - ends[0]).abs().max()) / 255


def _suspect(ours: Tensor, theirs: Tensor) -> str:
    """The keys that most likely explain a difference."""
    if ours.shape[1] == 3 and float((ours.flip(1) - theirs).abs().mean()) < TOLERANCE:
        return "'do_flip_channel_order'"
    x, y = (t.transpose(0, 1).flatten(1) for t in (ours, theirs))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    correlation = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-12)
    if float(correlation.min()) > 0.999:
        return "'image_mean', 'image_std' or 'rescale_factor'"
    return "'size', 'crop_size' or 'resample'"
