"""Images as rows: encoded without loss, named by their bytes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.decode import encode_png, encode_thumbnail


def image_row(image: NDArray[np.uint8], kind: str) -> dict[str, Any]:
    """A row of `images` for a uint8 RGB image (h, w, 3)."""
    png = encode_png(image)
    height, width = image.shape[:2]
    return {
        "image_id": hashlib.sha256(png).hexdigest(),
        "kind": kind,
        "width": width,
        "height": height,
        "png": png,
        "thumbnail": encode_thumbnail(image),
    }


class Pictures:
    """The generated images of a unit of work as rows, each once however often it is met."""

    def __init__(self) -> None:
        self.pixels: dict[str, NDArray[np.uint8]] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, image: NDArray[np.uint8], kind: str) -> str:
        """Keep a uint8 RGB image (h, w, 3); returns its id."""
        row = image_row(image, kind)
        if row["image_id"] not in self.pixels:
            self.pixels[row["image_id"]] = image
            self.rows.append(row)
        return str(row["image_id"])
