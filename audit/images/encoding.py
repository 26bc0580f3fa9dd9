"""Encode images in memory, of any common type, as bytes of a file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from audit.errors import DataError

_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_NORMALISED = "if the data set normalises its images, remove that transform from it and pass it as transform="


def as_bytes(image: Any, where: str) -> bytes:
    """The bytes of an image: its own where it is a path or encoded, else PNG, without loss.

    image: PIL image; uint8 array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or (c, h, w) where that is no (h, w, c);
    float array or tensor of these shapes in [0, 1], which is rounded to 8 bits; torch tensors are (c, h, w) or (h, w).
    where: names the image, for messages. Raises DataError for anything else.
    """
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _read(Path(image), where)
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_pixels(image, where))
    target = io.BytesIO()
    (image if image.mode in _PNG else image.convert("RGB")).save(target, "PNG", compress_level=1)
    return target.getvalue()


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: cannot read {path}: {error.strerror}") from error


def _pixels(image: Any, where: str) -> NDArray[np.uint8]:
    """uint8 (h, w), (h, w, 3) or (h, w, 4)."""
    channels_first = isinstance(image, torch.Tensor)
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    values = _shaped(array, channels_first, where)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating) and not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{where} holds {array.dtype}, expected uint8, or float in [0, 1]")
    if np.issubdtype(values.dtype, np.integer):
        return _in_range(values, 255, where).astype(np.uint8)
    return np.rint(_in_range(values, 1, where).astype(np.float64) * 255).astype(np.uint8)


def _in_range(values: NDArray[Any], most: int, where: str) -> NDArray[Any]:
    low, high = float(np.min(values)), float(np.max(values))
    if not (low >= 0 and high <= most):  # NaN too
        raise DataError(
            f"{where} has values from {low:.4g} to {high:.4g}, expected {values.dtype} in [0, {most}]: {_NORMALISED}"
        )
    return values


def _shaped(array: NDArray[Any], channels_first: bool, where: str) -> NDArray[Any]:
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        if channels_first and array.shape[0] in (1, 3, 4):
            return _last(np.moveaxis(array, 0, -1))
        if not channels_first and array.shape[-1] in (1, 3, 4):
            return _last(array)
        if not channels_first and array.shape[0] in (1, 3, 4):
            return _last(np.moveaxis(array, 0, -1))
    if array.ndim == 4:
        raise DataError(f"{where} has shape {array.shape}, a batch; pass the data set itself, not a DataLoader")
    expected = "(c, h, w)" if channels_first else "(h, w), (h, w, 3)"
    raise DataError(f"{where} has shape {array.shape}, expected an image of shape {expected}")


def _last(array: NDArray[Any]) -> NDArray[Any]:
    return array[..., 0] if array.shape[-1] == 1 else array
