"""Photos of any size pass through a unit one at a time, and models say of each what they say of it alone."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from audit.classifiers import Classifier, Preprocess
from audit.config import parse_job
from audit.decode import Decoded, decode
from audit.methods import Context, inventory, screen
from audit.models import Models
from audit.neurons import activations, layer_of
from audit.predictions import look, rows_for, to_tensor

SIZES = ((400, 300), (300, 400), (403, 302), (64, 64), (120, 90), (90, 50))
COUNT = 18


def photo(i: int) -> NDArray[np.uint8]:
    width, height = SIZES[i % len(SIZES)]
    rough = np.random.default_rng(i).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        path = root / "data" / ("crab" if i % 2 else "boat") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(i)).save(path)
    return root


def context(folder: Path, models: Models | None = None) -> Context:
    job = {"version": 1, "name": "photos", "data": {"source": "folder", "path": "data"}}
    job |= {"models": [{"id": "a", "loader": "hf", "ref": "zoo:shortcut-a"}]}
    job["models"] += [{"id": "r", "loader": "hf", "ref": "zoo:reference"}]
    made = parse_job({**job, "embedder": {"loader": "clip", "ref": "zoo:clip"}, "stages": [{"kind": "screen"}]}, folder)
    return Context(made, "1-screen", folder / "run", models or Models(made, ("boat", "crab")), 8)


class Alive:
    """`decode`, counting how many decoded images there are at once."""

    def __init__(self) -> None:
        self.images: list[weakref.ref[Any]] = []
        self.most = 0

    def __call__(self, data: bytes) -> Decoded:
        decoded = decode(data)
        image = decoded.image.copy()  # an array of its own, not a view of what Pillow has
        self.images.append(weakref.ref(image))
        self.most = max(self.most, sum(one() is not None for one in self.images))
        return Decoded(image, decoded.note)


def payloads(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Of the inventory, and of a screening of what it found."""
    at = context(folder)
    (first,) = inventory.plan(inventory.Options(), at)
    items = inventory.run(inventory.Options(), first, at)["items"]
    return first, {"role": "data", "items": [[i["uri"], i["item_id"], i["label"]] for i in items]}, items


def test_no_two_photos_are_in_memory_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = context(folder)
    first, second, _ = payloads(folder)
    for module, payload in ((inventory, first), (screen, second)):
        alive = Alive()
        monkeypatch.setattr(module, "decode", alive)
        module.run(module.Options(), payload, at)
        assert (len(alive.images), alive.most) == (COUNT, 1)


def test_what_models_say_of_a_photo_is_what_they_say_of_it_alone(folder: Path) -> None:
    """Logits, activations and embeddings; ids and labels belong to their photos."""
    at = context(folder)
    _, payload, items = payloads(folder)
    rows = screen.run(screen.Options(activations=({"model": "a"},)), payload, at)
    embedder = at.models.embedder
    assert embedder is not None
    pixels = {i["item_id"]: to_tensor(decode((folder / "data" / i["uri"]).read_bytes()).image)[None] for i in items}
    labels = {i["item_id"]: i["label"] for i in items}
    assert len(rows["predictions"]) == 2 * COUNT
    for row in rows["predictions"]:
        model = at.models.classifier(row["model_id"])
        logits = model.logits(pixels[row["item_id"]])[0].double()
        assert row["label"] == labels[row["item_id"]]
        assert row["confidence"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)
        assert row["predicted"] == model.class_names[int(logits.argmax())]
    assert len(rows["arrays"]) == 2 * COUNT
    for row in rows["arrays"]:
        x, model = pixels[row["subject_id"]], at.models.classifier("a")
        alone = embedder.embed_images(x) if row["name"] == "embedding" else activations(model, layer_of(model), x)[0]
        assert row["values"] == pytest.approx(alone[0].tolist(), abs=1e-4)


class Counting:
    """Preprocessing that counts its calls, and how many of the photos that it was given are in memory still."""

    def __init__(self, size: tuple[int, int], steps: Callable[[Tensor], Tensor]) -> None:
        self.size, self.steps, self.calls, self.most = size, steps, 0, 0
        self.given: list[StorageWeakRef] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.given.append(StorageWeakRef(x.untyped_storage()))
        self.most = max(self.most, sum(not one.expired() for one in self.given))
        return self.steps(x)


class Watched(nn.Module):
    """A network that notes the batches that it sees; its logits are the mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(tuple(x.shape))
        return x.mean((2, 3))


def held(networks: dict[str, tuple[Any, Watched]]) -> Any:
    models = {key: Classifier(("r", "g", "b"), steps, net, net) for key, (steps, net) in networks.items()}
    return SimpleNamespace(classifiers=lambda: iter(models.items()), embedder=None, device="cpu")


def test_mixed_sizes_share_batches_and_equal_preprocessing_is_done_once() -> None:
    one, other, third = Watched(), Watched(), Watched()
    shared, apart = Counting((32, 32), Preprocess((32, 32))), Counting((16, 16), Preprocess((16, 16), 20))
    seen = look(held({"a": (shared, one), "b": (shared, other), "c": (apart, third)}), map(photo, range(COUNT)))
    assert one.batches == other.batches == [(COUNT, 3, 32, 32)]
    assert third.batches == [(COUNT, 3, 16, 16)]
    assert (shared.calls, apart.calls) == (COUNT, COUNT)
    for i in range(COUNT):
        expected = Preprocess((32, 32))(to_tensor(photo(i))[None]).mean((2, 3))[0]
        assert torch.allclose(seen.outputs["a"][i], expected, atol=1e-6)


def test_a_crop_does_not_keep_its_photo() -> None:
    """Preprocessing may give a view of the photo, of which a batch would hold 64."""
    crop = Counting((8, 8), lambda x: x[..., :8, :8])
    look(held({"a": (crop, Watched())}), map(photo, range(COUNT)))
    assert crop.most == 1


@pytest.mark.parametrize(
    ("side", "sizes"), [(112, [64, 6]), (224, [64, 6]), (448, [16, 16, 16, 16, 6]), (1800, [1, 1])]
)
def test_a_batch_has_bounded_pixels(side: int, sizes: list[int]) -> None:
    network = Watched()
    larger = Counting((side, side), lambda x: x[..., :1, :1].expand(1, 3, side, side))
    look(held({"a": (larger, network)}), (np.zeros((4, 4, 3), np.uint8) for _ in range(sum(sizes))))
    assert [batch[0] for batch in network.batches] == sizes


def test_a_photo_that_changed_is_a_failed_row_and_the_others_keep_their_places(folder: Path) -> None:
    at = context(folder)
    _, payload, items = payloads(folder)
    for i in (0, 7):
        payload["items"][i][1] = "0" * 64
    rows = screen.run(screen.Options(), payload, at)["predictions"]
    assert [row["item_id"] for row in rows if row["status"] == "failed"] == ["0" * 64] * 4
    plain = rows_for(at.models, [decode((folder / "data" / items[5]["uri"]).read_bytes()).image], ["x"], "data")
    (own,) = [row for row in rows if row["item_id"] == items[5]["item_id"] and row["model_id"] == "a"]
    assert own["confidence"] == pytest.approx(plain["predictions"][0]["confidence"], abs=1e-5)


def test_decoding_copies_no_more_than_it_must() -> None:
    """Upright and turned photos, palettes and grey ones are the same pixels as Pillow's own conversion gives."""

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    def kinds() -> Iterator[tuple[bytes, NDArray[np.uint8]]]:
        image = Image.fromarray(photo(0))
        yield encoded(image, "PNG"), photo(0)
        turned = Image.Exif()
        turned[274] = 6
        yield encoded(image, "PNG", exif=turned), np.rot90(photo(0), -1)
        for mode in ("P", "L", "1"):
            yield encoded(image.convert(mode), "PNG"), np.asarray(image.convert(mode).convert("RGB"))

    for data, expected in kinds():
        assert (decode(data).image == expected).all()
