"""Classifier sources: preprocessing against the libraries' own, names, and refusals."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from audit.classifiers import Preprocess, hf, python
from audit.errors import ModelError
from audit.labels.matching import DataClasses, Matching
from audit.predictions import rows_for, to_tensor
from audit.zoo.recipes import classifiers as recipe
from audit.zoo.scenes import LABELS

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet")
    recipe.build(width=8).save_pretrained(folder)
    recipe.processor().save_pretrained(folder)
    return folder


def smooth(height: int, width: int) -> np.ndarray[Any, Any]:
    small = RNG.integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


CONFIGS = [
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 40}, "resample": 2},
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 40}, "resample": 3},
    {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 48},
        "crop_size": {"height": 40, "width": 40},
        "resample": 3,
        "do_center_crop": True,
    },
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 42}, "crop_pct": 0.875, "resample": 3},
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 40}, "do_normalize": False},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", [(64, 64), (90, 60)])
def test_preprocessing_equals_the_hugging_face_processor(
    config: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    """Up to the 8-bit rounding between resize and normalise that PIL does and a differentiable path cannot."""
    from transformers import AutoImageProcessor

    full = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "do_resize": True, "do_rescale": True}
    full |= {"rescale_factor": 1 / 255, "do_normalize": True, **config}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(full))
    image = smooth(*shape)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(image), return_tensors="pt").pixel_values
    ours = hf.preprocess_of(tmp_path)(to_tensor(image)[None])
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.02
    assert (ours - theirs).abs().max() < 0.1


def test_preprocessing_is_differentiable_and_leaves_the_right_size_alone() -> None:
    x = torch.rand((1, 3, 16, 16), requires_grad=True)
    assert torch.equal(Preprocess((16, 16))(x), x)
    Preprocess((12, 12), 14)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_a_hugging_face_folder_gives_the_library_s_logits(saved: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = hf.load(hf.Options(ref=str(saved)), ())
    image = smooth(64, 64)
    inputs = AutoImageProcessor.from_pretrained(saved)(Image.fromarray(image), return_tensors="pt")
    theirs = AutoModelForImageClassification.from_pretrained(saved).eval()(**inputs).logits
    assert torch.allclose(model.logits(to_tensor(image)[None]), theirs, atol=0.02)
    assert model.class_names == LABELS
    assert model.index_of("Water_Bottle") == LABELS.index("water bottle")
    with pytest.raises(ModelError, match="Did you mean 'water bottle'"):
        model.index_of("water botle")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", "cannot be loaded"),
        ("header", "cannot be loaded"),
        ("pickle", "cannot be loaded"),
        ("nan", "NaN or infinity"),
        ("no-preprocessor", "no preprocessor_config.json"),
    ],
)
def test_broken_folders_are_refused(saved: Path, tmp_path: Path, damage: str, message: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    weights = folder / "model.safetensors"
    if damage == "truncate":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "header":
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    elif damage == "pickle":
        model = recipe.build(width=8)
        weights.unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    elif damage == "nan":
        model = recipe.build(width=8)
        with torch.no_grad():
            model.classifier[1].weight[0, 0] = float("nan")
        model.save_pretrained(folder)
    else:
        (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=message):
        hf.load(hf.Options(ref=str(folder)), ())


def test_a_hub_id_needs_a_pinned_revision() -> None:
    with pytest.raises(ModelError, match="pinned 'revision'"):
        hf.load(hf.Options(ref="google/vit-base-patch16-224"), ())


def test_the_digest_follows_the_weights(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    before = hf.digest(hf.Options(ref=str(folder)))
    assert before == hf.digest(hf.Options(ref=str(saved)))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert hf.digest(hf.Options(ref=str(folder))) != before


USER = """
import torch
class M(torch.nn.Module):
    def __init__(self, n): super().__init__(); self.n = n
    def forward(self, x): return x.mean((1, 2, 3))[:, None] * torch.arange(self.n)
def good(n=3): return M(n)
def wrong(): return "a string"
class Flat(torch.nn.Module):
    def forward(self, x): return x.mean((1, 2, 3))
def flat(): return Flat()
"""


def test_a_model_of_the_user_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER)
    options = python.Options.model_validate(
        {"ref": "mine.py:good", "arguments": {"n": 3}, "input_size": 8}, context={"folder": tmp_path}
    )
    model = python.load(options, ("a", "b", "c"))
    assert model.class_names == ("a", "b", "c")
    assert torch.allclose(model.logits(torch.full((1, 3, 20, 20), 0.5)), torch.tensor([[0, 0.5, 1.0]]))
    with pytest.raises(ModelError, match="3 outputs, but the data set's classes give 2"):
        python.load(options, ("a", "b"))
    for name, message in (("wrong", "returned str"), ("flat", "shape"), ("none", "no function 'none'")):
        with pytest.raises(ModelError, match=message):
            python.load(options.model_copy(update={"ref": f"{tmp_path}/mine.py:{name}", "arguments": {}}), ("a",))
    before = python.digest(options)
    (tmp_path / "mine.py").write_text(USER + "# changed\n")
    assert python.digest(options) != before


def test_a_model_s_code_may_hold_dataclasses(tmp_path: Path) -> None:
    """With annotations as text, a dataclass looks up the module that it is defined in."""
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass C:\n    n: int = 3\n"
    )
    (tmp_path / "mine.py").write_text(code + USER + "def made(): return M(C().n)\n")
    options = python.Options(ref=f"{tmp_path}/mine.py:made", input_size=8)
    assert python.load(options, ("a", "b", "c")).class_names == ("a", "b", "c")


def test_a_model_s_code_imports_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders have modules of the same names; a package beside the file is imported, a packaged one stays."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    for count in (2, 3):
        folder = tmp_path / str(count)
        (folder / "layers").mkdir(parents=True)
        (folder / "net.py").write_text(f"import layers.counts\nCOUNT = layers.counts.COUNT\n{USER}")
        (folder / "layers" / "__init__.py").write_text("")
        (folder / "layers" / "counts.py").write_text(f"import colorsys\nCOUNT = {count}\n")
        (folder / "mine.py").write_text(
            "from net import COUNT, M\ndef made():\n    import net\n    return net.M(COUNT)\n"
        )
        options = python.Options(ref=f"{folder}/mine.py:made", input_size=8)
        python.digest(options)
        names = tuple("abc"[:count])
        assert python.load(options, names).class_names == names
    assert {name for name in set(sys.modules) - before if name.partition(".")[0] in ("net", "layers")} == set()
    assert sys.path == path


def test_the_digest_of_a_model_s_code_holds_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    """From its folder and from packages there, also by way of each other; not what merely lies there."""
    files = {
        "model.py": "import os\nfrom parts import layers\nimport helper as h\ndef f(): ...\n",
        "helper.py": "from parts.deep import x\n",
        "parts/__init__.py": "",
        "parts/layers.py": "from . import sibling\n",
        "parts/sibling.py": "",
        "parts/deep.py": "import model\nx = 1\n",
        "beside.py": "",
        "parts/unused.py": "this is no Python\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = python.sources_of(tmp_path / "model.py")
    assert found[0] == tmp_path / "model.py"
    assert {str(file.relative_to(tmp_path)) for file in found} == files.keys() - {"beside.py", "parts/unused.py"}
    (tmp_path / "mine.py").write_text("try:\n    import extra\nexcept ImportError:\n    pass\n" + USER)
    (tmp_path / "extra.py").write_text("")
    options = python.Options(ref=f"{tmp_path}/mine.py:good")
    before = python.digest(options)
    (tmp_path / "extra.py").write_text("changed = True\n")
    assert python.digest(options) != before


def test_images_of_any_sizes_are_predicted_in_their_order() -> None:
    """Brightness as the class score: the rows must follow the images, not the size groups."""

    class Dim:
        class_names = ("dark", "light")
        preprocess = Preprocess((8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([1 - mean, mean], 1) * 10

    class Models:
        embedder = None
        device = "cpu"
        classes = DataClasses(("dark", "light"))

        def matching(self, _: str) -> Matching:
            return Matching(Dim.class_names, own=Dim.class_names)

        def classifiers(self):
            yield "dim", Dim()

    values = [250, 10, 240, 20, 230]
    images = [np.full((8 + 4 * (i % 2), 8, 3), v, np.uint8) for i, v in enumerate(values)]
    labels = ["light", "light", "Light", None, "dark"]
    rows = rows_for(Models(), images, [str(v) for v in values], "data", labels)  # type: ignore[arg-type]
    assert [r["predicted"] for r in rows["predictions"]] == ["light", "dark", "light", "dark", "light"]
    assert [r.get("correct") for r in rows["predictions"]] == [True, False, True, None, False]
    assert [r["item_id"] for r in rows["predictions"]] == [str(v) for v in values]
