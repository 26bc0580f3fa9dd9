"""Which part of a counterfactual's change flips the decision: the planted feature's alone, or all the rest alone?

The scene that an image shows is known, so the two can be taken apart: a background outside the object's mask, a colour
as the chroma inside it, a badge in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from audit.decode import encode_png
from audit.errors import ConfigError
from audit.zoo.scenes import Rendered, Scene, render
from audit.zoo.world import Mode, World, scenes

Pixels = NDArray[np.uint8]
_SPLITS = ("heldout", "labelled")


def scenes_of(world: World, item_ids: Iterable[str]) -> dict[str, Scene]:
    """The scenes that exported images show, by item id. Raises ConfigError where an image is none of the world's."""
    missing, found = set(item_ids), dict[str, Scene]()
    for split in _SPLITS:
        for labelled in scenes(world, split):
            if not missing:
                return found
            item_id = hashlib.sha256(encode_png(render(labelled.scene).image)).hexdigest()
            if item_id in missing:
                found[item_id] = labelled.scene
                missing.remove(item_id)
    if missing:
        raise ConfigError(f"{len(missing)} images are no scenes of the splits {', '.join(_SPLITS)}")
    return found


def parts(mode: Mode, scene: Scene, original: Pixels, result: Pixels) -> tuple[Pixels, Pixels]:
    """The original with the change of the mode's feature alone, and with all the rest of the change: (64, 64, 3)."""
    drawn = render(scene)
    if mode.kind == "colour":
        inside = _weights(drawn)
        colour, rest = _with_chroma(original, result), _with_chroma(result, original)
        return _mixed(colour, original, inside), _mixed(rest, result, inside)
    share = 1 - _weights(drawn) if mode.kind == "background" else _badge(scene, drawn)
    return _mixed(result, original, share), _mixed(original, result, share)


def _weights(drawn: Rendered) -> NDArray[np.float64]:
    return drawn.mask[..., None] / 255.0


def _badge(scene: Scene, drawn: Rendered) -> NDArray[np.float64]:
    without = render(replace(scene, badge=not scene.badge)).image
    return (without != drawn.image).any(-1, keepdims=True).astype(np.float64)


def _mixed(one: Pixels, other: Pixels, share: NDArray[np.float64]) -> Pixels:
    """`share` of one image, the rest of the other."""
    mixed: Pixels = (share * one + (1 - share) * other).round().astype(np.uint8)
    return mixed


def _with_chroma(image: Pixels, chroma: Pixels) -> Pixels:
    """The brightness of one image in the colours of another (YCbCr of JPEG)."""
    light, colours = (np.asarray(Image.fromarray(x).convert("YCbCr")) for x in (image, chroma))
    joined = np.concatenate([light[..., :1], colours[..., 1:]], -1)
    return np.asarray(Image.fromarray(joined, "YCbCr").convert("RGB"))
