"""timm's and torchvision's models, against these libraries themselves: run by test_torchvision.py, in a process of its
own, since a torchvision that can be imported changes what transformers does, with tests/torchvision_operators.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import models

from audit.classifiers import timm as ours
from audit.classifiers import torchvision as tv
from audit.classifiers._eval_transform import MODES
from audit.errors import ModelError
from audit.predictions import to_tensor

SHAPES = {"portrait": (90, 61), "landscape": (53, 97), "small": (19, 23), "exact": (40, 40), "wide": (33, 200)}


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth image with edges, for which 8-bit rounding between steps is all that may differ."""
    small = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 90)
    return Image.fromarray(image)


def differences(ours_: Any, theirs: Any, image: Image.Image) -> torch.Tensor:
    expected = theirs(image)
    found = ours_(to_tensor(np.array(image))[None])[0]
    assert found.shape == expected.shape
    return (found - expected).abs()


CONFIGS: dict[str, dict[str, Any]] = {
    "center": {"input_size": (3, 40, 40), "crop_pct": 0.875, "interpolation": "bicubic"},
    "odd": {"input_size": (3, 41, 41), "crop_pct": 0.9, "interpolation": "bilinear"},
    "whole": {"input_size": (3, 40, 40), "crop_pct": 1.0, "interpolation": "bicubic"},
    "not-square": {"input_size": (3, 48, 32), "crop_pct": 0.875, "interpolation": "bicubic"},
    "squash": {"input_size": (3, 40, 40), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic"},
    "squash-not-square": {
        "input_size": (3, 48, 32),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    },
    "border": {"input_size": (3, 40, 40), "crop_pct": 1.0, "crop_mode": "border", "interpolation": "bicubic"},
    "border-cropped": {"input_size": (3, 41, 40), "crop_pct": 0.8, "crop_mode": "border", "interpolation": "bilinear"},
    "nearest": {"input_size": (3, 40, 40), "crop_pct": 0.875, "interpolation": "nearest"},
    "lanczos": {"input_size": (3, 40, 40), "crop_pct": 0.875, "interpolation": "lanczos"},
    "inception": {"input_size": (3, 42, 42), "crop_pct": 0.875, "mean": (0.5,) * 3, "std": (0.5,) * 3},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_preprocessing_equals_timm_s_own(config: str, shape: str) -> None:
    resolved = timm.data.resolve_data_config({}, pretrained_cfg=CONFIGS[config])
    transform = timm.data.create_transform(**resolved, is_training=False)
    found = differences(ours.preprocess_of(resolved, "x"), transform, photo(*SHAPES[shape]))
    assert found.mean() <= 0.01
    assert found.max() <= 2.5 / 255 / min(resolved["std"])  # Pillow rounds to 8 bits after each of two passes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "random"}, "crop_mode 'random' is not supported; known: center, squash, border"),
        ({"interpolation": "hamming"}, "interpolation 'hamming' is not supported; known: nearest, bilinear"),
        ({"interpolation": "random"}, "interpolation 'random' is not supported"),
        ({"input_size": (1, 28, 28)}, r"input_size \(1, 28, 28\) is no RGB"),
        ({"mean": (0.5,)}, "is no RGB"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(change: dict[str, Any], message: str) -> None:
    resolved = {**timm.data.resolve_data_config({}, pretrained_cfg=CONFIGS["center"]), **change}
    with pytest.raises(ModelError, match=message):
        ours.preprocess_of(resolved, "x")


def test_every_interpolation_that_torchvision_s_weights_name_is_known() -> None:
    used = {
        entry.transforms().interpolation.value
        for name in models.list_models(module=models)
        for entry in models.get_model_weights(name)
    }
    assert used <= set(MODES)


def saved(folder: Path, architecture: str = "test_resnet", data_config: Any = None, **config: Any) -> Path:
    """A small model of random weights, in timm's own layout for the hub."""
    torch.manual_seed(0)
    made = timm.create_model(architecture, pretrained=False, num_classes=4)
    made.pretrained_cfg.update({"input_size": (3, 48, 48), "crop_pct": 0.9, "interpolation": "bicubic"})
    folder.mkdir(parents=True, exist_ok=True)
    timm.models.save_for_hf(made, folder, model_config=config, safe_serialization=True)
    return folder


def load(folder: Path, data: tuple[str, ...] = (), **options: Any) -> Any:
    return ours.load(ours.Options(ref=str(folder), **options), data)


NAMES = ["n1", "n2", "n3", "n4"]
DESCRIBED = {"n1": "crane", "n2": "cat", "n3": "crane", "n4": "dog, hound"}


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_a_folder_gives_timm_s_own_logits(architecture: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a folder #1", architecture, label_names=NAMES)
    model = load(folder)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    image = photo(90, 61)
    with torch.no_grad():
        expected = theirs(transform(image)[None])
        found = model.logits(to_tensor(np.array(image))[None])
        other = model.logits(to_tensor(np.array(photo(90, 61, 1)))[None])
    assert (found - expected).abs().max() < 0.05 * (other - expected).abs().max() + 1e-4
    x = torch.rand((1, 3, 60, 60), requires_grad=True)
    model.logits(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_class_names_of_a_folder(tmp_path: Path) -> None:
    bare = saved(tmp_path / "bare")
    with pytest.raises(ModelError, match="has no label_names"):
        load(bare)
    assert load(bare, ("a", "b", "c", "d"), class_names="data").class_names == ("a", "b", "c", "d")
    with pytest.raises(ModelError, match="the model has 4 outputs, but class_names gives 1000 names"):
        load(bare, class_names="imagenet-1k")
    with pytest.raises(ModelError, match="'imagenet-7' is no set that timm knows"):
        load(bare, class_names="imagenet-7")
    named = saved(tmp_path / "named", label_names=NAMES, label_descriptions=DESCRIBED)
    assert load(named).class_names == ("crane (n1)", "cat", "crane (n3)", "dog, hound")
    assert load(named, ("n2", "other")).class_names == tuple(NAMES)
    mapped = saved(tmp_path / "mapped", label_names={str(i): name for i, name in enumerate(NAMES)})
    assert load(mapped).class_names == tuple(NAMES)
    gap = saved(tmp_path / "gap", label_names={"0": "a", "1": "b", "3": "d"})
    with pytest.raises(ModelError, match="label_names has no name for the output 2"):
        load(gap)
    subset = ours._subset("imagenet-1k")
    assert (len(subset), len(set(subset)), subset[0]) == (1000, 1000, "tench, Tinca tinca")


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        return saved(tmp_path / name, label_names=NAMES)

    pickled = folder("pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model.safetensors; it holds .*pytorch_model.bin"):
        load(pickled)
    for change, message in (
        ("lack", "lack fc.weight"),
        ("more", "holds 'head_dist.weight', which its architecture does not have"),
        ("nan", "NaN or infinity"),
        ("other", "cannot be loaded as a classifier of timm: .*ResNet"),
    ):
        broken = folder(change)
        state = load_file(broken / "model.safetensors")
        if change == "lack":
            del state["fc.weight"]
        elif change == "more":
            state["head_dist.weight"] = torch.zeros(4, 3)
        elif change == "nan":
            state["fc.bias"][0] = float("nan")
        else:
            state["fc.bias"] = torch.zeros(5)
        save_file(state, broken / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            load(broken)
    for key, value, message in (
        ("architecture", "no_such_net", "cannot be loaded as a classifier of timm"),
        ("architecture", None, "names no 'architecture'.*loader: hf"),
    ):
        broken = folder(f"config-{value}")
        config = json.loads((broken / "config.json").read_text())
        (broken / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ModelError, match=message):
            load(broken)
    with pytest.raises(ModelError, match="pinned 'revision'"):
        ours.load(ours.Options(ref="timm/resnet18.a1_in1k"), ())


V1 = "ResNet18_Weights.IMAGENET1K_V1"


def state_of(name: str, count: int, path: Path, prefix: str = "", wrapped: bool = False) -> Path:
    torch.manual_seed(1)
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    state = {
        prefix + k: v
        for k, v in models.get_model(name, weights=None, num_classes=count, **settings).state_dict().items()
    }
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3} if wrapped else state, path)
    return path


def torchvision_of(name: str, entry: str, weights: Path, **options: Any) -> Any:
    data = options.pop("data", ())
    return tv.load(tv.Options(ref=name, entry=entry, weights=weights, **options), data)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_gives_torchvision_s_own_logits(suffix: str, wrapped: bool, tmp_path: Path) -> None:
    path = state_of("resnet18", 5, tmp_path / f"w{suffix}", "module." if wrapped else "", wrapped)
    model = torchvision_of("resnet18", V1, path, class_names=tuple("abcde"))
    torch.manual_seed(1)
    theirs = models.resnet18(num_classes=5).eval()
    image = photo(300, 401)
    with torch.no_grad():
        expected = theirs(models.ResNet18_Weights.IMAGENET1K_V1.transforms()(image)[None])
        found = model.logits(to_tensor(np.array(image))[None])
    assert torch.allclose(found, expected, atol=0.01 * float(expected.abs().max()))
    assert not torch.allclose(found, expected.flip(1), atol=0.01 * float(expected.abs().max()))


@pytest.mark.parametrize("entry", [V1, "ConvNeXt_Tiny_Weights.IMAGENET1K_V1", "EfficientNet_B3_Weights.IMAGENET1K_V1"])
@pytest.mark.parametrize("shape", [(500, 333), (224, 224), (240, 417), (100, 90)])
def test_preprocessing_equals_torchvision_s_own(entry: str, shape: tuple[int, int]) -> None:
    found = differences(tv._preprocess(models.get_weight(entry)), models.get_weight(entry).transforms(), photo(*shape))
    assert found.mean() <= 0.01
    assert found.max() <= 2.5 / 255 / 0.224


def test_names_are_the_categories_or_as_given(tmp_path: Path) -> None:
    path = state_of("resnet18", 1000, tmp_path / "w.pth")
    names = torchvision_of("resnet18", V1, path).class_names
    assert (names[0], len(set(names))) == ("tench", 1000)
    assert (names[134], names[517]) == ("crane bird", "crane")
    small = state_of("resnet18", 2, tmp_path / "small.pth")
    assert torchvision_of("resnet18", V1, small, class_names="data", data=("a", "b")).class_names == ("a", "b")
    with pytest.raises(ModelError, match="the model has 2 outputs, but class_names gives 1000 names"):
        torchvision_of("resnet18", V1, small)


def test_inception_transforms_its_input_as_with_torchvision_s_weights(tmp_path: Path) -> None:
    path = state_of("googlenet", 3, tmp_path / "w.pth")
    model = torchvision_of("googlenet", "GoogLeNet_Weights.IMAGENET1K_V1", path, class_names=tuple("abc"))
    x = torch.rand(1, 3, 224, 224)
    expected = []
    for transforms in (True, False):
        theirs = models.googlenet(num_classes=3, transform_input=transforms, init_weights=False)
        theirs.load_state_dict(torch.load(path, weights_only=True))
        with torch.no_grad():
            expected.append(theirs.eval()(x))
    with torch.no_grad():
        found = model.network(x)
    assert (found - expected[0]).abs().max() < 0.01 * (found - expected[1]).abs().max()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = state_of("resnet18", 2, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"unknown classifier 'resnet19'. Did you mean"):
        torchvision_of("resnet19", V1, path)
    with pytest.raises(ModelError, match=r"unknown entry 'ResNet50_Weights.IMAGENET1K_V1'"):
        torchvision_of("resnet18", "ResNet50_Weights.IMAGENET1K_V1", path)
    with pytest.raises(ModelError, match=r"does not fit resnet50|lack"):
        torchvision_of("resnet50", "ResNet50_Weights.IMAGENET1K_V1", path, class_names=("a", "b"))
    with pytest.raises(ModelError, match="which resnet18 does not have: it belongs to another architecture"):
        torchvision_of("resnet18", V1, state_of("resnet34", 2, tmp_path / "x.pth"), class_names=("a", "b"))
    with pytest.raises(ModelError, match="no file of weights"):
        torchvision_of("resnet18", V1, tmp_path / "none.pth")
    state = torch.load(path, weights_only=True)
    del state["fc.weight"]
    torch.save(state, tmp_path / "headless.pth")
    with pytest.raises(ModelError, match=r"lack fc.weight"):
        torchvision_of("resnet18", V1, tmp_path / "headless.pth")
    torch.save(models.resnet18(num_classes=2), tmp_path / "module.pth")
    with pytest.raises(ModelError, match="pickled code is never run"):
        torchvision_of("resnet18", V1, tmp_path / "module.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds list, expected a state dict"):
        torchvision_of("resnet18", V1, tmp_path / "list.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ModelError, match="cannot be loaded as weights"):
        torchvision_of("resnet18", V1, tmp_path / "junk.pth")


def test_the_digest_follows_weights_and_entry(tmp_path: Path) -> None:
    path = state_of("resnet18", 2, tmp_path / "w.pth")
    options = tv.Options(ref="resnet18", entry=V1, weights=path)
    before = tv.digest(options)
    assert tv.digest(options.model_copy(update={"weights": None})) != before
    assert tv.digest(options.model_copy(update={"entry": "other"})) != before
    state_of("resnet18", 3, path)
    assert tv.digest(options) != before
