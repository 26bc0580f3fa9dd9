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
