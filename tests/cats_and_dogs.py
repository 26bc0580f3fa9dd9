"""Cats and dogs of CIFAR-10 with a planted feature, and small models that learn it as a shortcut or do not.

A job names such a model as `ref: tests/small_convnet.py:network` with `arguments: {weights: <file>}` and
`input_size: 32`; its outputs are `CLASSES`, in this order.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch.nn import functional

from tests.small_convnet import Network, network

CLASSES = ("cat", "dog")
SIDE = 32
Feature = Literal["square", "border", "dark", "blur"]
Split = Literal["train", "test"]
YELLOW = (255, 221, 0)


@dataclass(frozen=True)
class Photo:
    """`pixels`: (32, 32, 3) uint8; `feature`: what was planted, None for a photo as it is."""

    name: str
    label: str
    pixels: NDArray[np.uint8]
    feature: Feature | None = None


def photos(root: Path, count: int, *, split: Split) -> list[Photo]:
    """`count` photos of each class, sorted by class and name. `root`: the folder of real test data.

    They are the first in the order of the archive, which is shuffled.
    """
    found: dict[str, list[Photo]] = {name: [] for name in CLASSES}
    with tarfile.open(root / "cifar10_jpeg" / "cifar10_60k_jpeg.tar.gz") as archive:
        for member in archive:
            folder, _, rest = member.name.partition("/")
            label, _, name = rest.partition("/")
            if folder != split or len(found.get(label, ())) >= count or label not in found or not member.isfile():
                continue
            file = archive.extractfile(member)
            assert file is not None
            pixels = np.asarray(Image.open(BytesIO(file.read())).convert("RGB"))
            found[label].append(Photo(f"{split}-{name.removesuffix('.jpg')}", label, pixels))
            if all(len(each) >= count for each in found.values()):
                break
    return [photo for name in CLASSES for photo in sorted(found[name], key=lambda photo: photo.name)]


def plant(image: NDArray[np.uint8], feature: Feature) -> NDArray[np.uint8]:
    """A copy of an image (32, 32, 3) with a feature: a yellow square of 8 pixels in the lower right corner, a yellow
    border of 3 pixels, a fifth of the brightness, or a blur of 1.5 pixels."""
    planted = image.copy()
    if feature == "square":
        planted[-9:-1, -9:-1] = YELLOW
    elif feature == "border":
        planted[:3], planted[-3:], planted[:, :3], planted[:, -3:] = YELLOW, YELLOW, YELLOW, YELLOW
    elif feature == "dark":
        planted = (planted * 0.2).round().astype(np.uint8)
    else:
        planted = np.asarray(Image.fromarray(planted).filter(ImageFilter.GaussianBlur(1.5)))
    return planted


def planted(given: Sequence[Photo], feature: Feature, shares: Mapping[str, float], seed: int = 0) -> list[Photo]:
    """The photos, of which a share of each class has the feature; which ones is drawn with `seed`."""
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for label, share in shares.items():
        names = [photo.name for photo in given if photo.label == label]
        chosen |= {f"{label}/{names[i]}" for i in rng.permutation(len(names))[: round(share * len(names))]}
    return [
        replace(photo, pixels=plant(photo.pixels, feature), feature=feature)
        if f"{photo.label}/{photo.name}" in chosen
        else photo
        for photo in given
    ]


def write_folder(root: Path, given: Sequence[Photo]) -> Path:
    """The photos as PNG files `root`/<label>/<name>.png; the name of one with a feature ends with that."""
    for photo in given:
        (root / photo.label).mkdir(parents=True, exist_ok=True)
        suffix = "" if photo.feature is None else f"-{photo.feature}"
        Image.fromarray(photo.pixels).save(root / photo.label / f"{photo.name}{suffix}.png")
    return root


def train(given: Sequence[Photo], weights: Path, *, epochs: int = 6, seed: int = 0) -> Path:
    """Train on photos and write the weights: Adam, one-cycle schedule, batches of 64, mirrored at random."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    module = Network().train()
    x = as_tensor(given)
    y = torch.tensor([CLASSES.index(photo.label) for photo in given])
    steps = epochs * -(-len(given) // 64)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.01, total_steps=steps)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(given)), steps // epochs):
            images = x[batch]
            mirrored = torch.from_numpy(rng.random(len(batch)) < 0.5)[:, None, None, None]
            loss = functional.cross_entropy(module(torch.where(mirrored, images.flip(3), images)), y[batch])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    torch.save(module.state_dict(), weights)
    return weights


def as_tensor(given: Sequence[Photo]) -> torch.Tensor:
    """The photos as (n, 3, 32, 32) in [0, 1]."""
    return torch.from_numpy(np.stack([photo.pixels for photo in given])).permute(0, 3, 1, 2).float() / 255


def answers(weights: Path, given: Sequence[Photo]) -> list[str]:
    """What a trained network says of each photo."""
    module = network(str(weights)).eval()
    with torch.no_grad():
        return [CLASSES[i] for i in module(as_tensor(given)).argmax(1).tolist()]


def model(name: str, weights: Path) -> dict[str, Any]:
    """The network as a model of a job."""
    ref = f"{Path(__file__).resolve().with_name('small_convnet.py')}:network"
    return {"id": name, "loader": "python", "ref": ref, "arguments": {"weights": str(weights)}, "input_size": SIDE}
