"""Images of a data set as a method explains them: captioned, decoded, at the generator's size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audit.captions import captioned
from audit.class_names import spaced
from audit.decode import decode, decode_mask
from audit.errors import BadItem
from audit.predictions import to_tensor


@dataclass
class Subject:
    """An item with one source class, and all the targets that are sought from it.

    `source`: the class that the decision leaves; `word`: what the prompt calls the object. `image` (3, H, W) and `mask`
    (H, W), in [0, 1], come with reading.
    """

    item_id: str
    source: str
    word: str
    prompt: str
    targets: list[str]
    image: Tensor = field(default_factory=lambda: torch.empty(0))
    mask: Tensor = field(default_factory=lambda: torch.empty(0))

    def read(self, data: bytes | None, mask: bytes | None, masked: bool, size: tuple[int, int]) -> None:
        """Decode the image and, if `masked`, its mask. Raises BadItem, also where the image is not the item's."""
        if data is None or hashlib.sha256(data).hexdigest() != self.item_id:
            raise BadItem("changed_since_inventory")
        pixels = decode(data).image
        self.image = fitted(to_tensor(pixels), size)
        if masked:
            grey = torch.from_numpy(decode_mask(mask, *pixels.shape[:2]))
            self.mask = fitted(grey.expand(3, -1, -1), size)[0]


def subjects_of(item: Sequence[Any], options: Any) -> list[Subject]:
    """An item of a plan (uri, id, label, caption, predicted class, targets), once for each source class.

    `options`: those of a counterfactual stage: attribute, template, caption, prompt.
    """
    _, item_id, label, caption, predicted, targets = item
    told = caption if options.caption == "metadata" else None
    attribute = options.attribute
    sources = {attribute[0]: targets} if attribute else by_source(label, predicted, targets)
    found = []
    for source, named in sources.items():
        word = spaced(label if options.prompt == "keep" and label and not attribute else source)
        found.append(Subject(item_id, source, word, captioned(word, options.template, told, label), named))
    return found


def by_source(label: str | None, predicted: str, targets: list[str]) -> dict[str, list[str]]:
    """Targets by the class that they start from: the label or, where that is the target, what the model says."""
    found: dict[str, list[str]] = {}
    for target in targets:
        source = predicted if label is None or target == label else label
        found.setdefault(source, []).append(target)
    return found


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of an image (3, h, w) at another size: resized so that it covers (3, *size), then cropped."""
    scale = max(size[0] / image.shape[-2], size[1] / image.shape[-1])
    covering = (max(size[0], round(image.shape[-2] * scale)), max(size[1], round(image.shape[-1] * scale)))
    if covering != tuple(image.shape[-2:]):
        image = F.interpolate(image[None], covering, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return image[:, top : top + size[0], left : left + size[1]]
