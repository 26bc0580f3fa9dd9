"""Preprocessing: our differentiable steps against the image processors of transformers and against Pillow itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from audit.classifiers import Preprocess, hf
from audit.classifiers._image_processor import preprocess_of
from audit.classifiers._preprocessing import (
    CentreCrop,
    Exact,
    FlipChannels,
    Grey,
    Normalise,
    Resize,
    ShortestEdge,
    Step,
    Thumbnail,
    Within,
)
from audit.classifiers._processor_check import check_processor
from audit.classifiers._resampling import MODES, resample
from audit.errors import ModelError

CONFIGS = sorted((Path(__file__).parent / "preprocessor_configs").glob("*.json"))
# What a refusal names, for what cannot be right.
REFUSED_FAMILIES = {
    "ImageGPTImageProcessor": "do_color_quantize",
    "Siglip2ImageProcessor": "max_num_patches",
    "TextNetImageProcessor": "size is {'shortest_edge': 640}",
    "TimmWrapperImageProcessor": "image_processor_type 'TimmWrapperImageProcessor'",
}
REFUSED_CONFIGS = {"do_resize_false": "do_resize is False", "longest_edge": "size is {'longest_edge': 224}"}
try:
    import torchvision  # noqa: F401

    HAS_TORCHVISION = True
except (ImportError, RuntimeError, OSError):  # beside a CPU build of torch its operators may be missing
    HAS_TORCHVISION = False
if not HAS_TORCHVISION:  # the only backend that this class has
    REFUSED_FAMILIES["PPLCNetImageProcessor"] = "image_processor_type 'PPLCNetImageProcessor'"


def families() -> dict[str, list[str]]:
    """Model types of transformers that classify images, by the class of their image processor."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    found: dict[str, list[str]] = {}
    for model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {})
        name = backends.get("torchvision") or backends.get("pil") or "none"
        found.setdefault(name, []).append(model_type)
    return found


FAMILIES = families()


def written(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def photos(size: tuple[int, int]) -> list[Image.Image]:
    """Portrait, landscape, small, of the input size, much larger, and grey; smooth shapes with hard edges."""
    random = np.random.default_rng(7)
    sizes = [(300, 211), (230, 401), (90, 61), size, (700, 640), (257, 257)]
    found = []
    for height, width in sizes:
        cells = random.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
        picture = np.array(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
        picture[height // 3 : height // 2, width // 4 :: 7] = (255, 0, 40)
        found.append(Image.fromarray(picture))
    return [*found[:-1], found[-1].convert("L").convert("RGB")]


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def differences(folder: Path, preprocess: Preprocess, channels: int = 3, backend: str = "pil") -> list[float]:
    """Mean absolute differences of normalised values from what the library's processor gives."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    found = []
    for picture in photos(preprocess.size):
        shown = picture.convert("L") if channels == 1 else picture
        theirs = torch.as_tensor(processor(images=shown, return_tensors="pt")["pixel_values"])
        ours = preprocess(as_tensor(picture))
        assert ours.shape == theirs.shape == (1, channels, *preprocess.size)
        found.append(float((ours - theirs).abs().mean()))
    return found


def defaults_of(kind: str) -> dict[str, Any]:
    """A file that leaves every key to the class; Donut's default of 2560 x 1920 is shrunk, to be quick."""
    small = {"size": {"height": 256, "width": 192}} if kind == "DonutImageProcessor" else {}
    return {"image_processor_type": kind, **small}


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - {"none"}))
def test_each_family_with_its_defaults_equals_its_own_processor_or_is_refused(kind: str, tmp_path: Path) -> None:
    folder = written(tmp_path, defaults_of(kind))
    if kind in REFUSED_FAMILIES:
        with pytest.raises(ModelError) as refused:
            preprocess_of(folder)
        assert REFUSED_FAMILIES[kind] in str(refused.value)
        return
    preprocess = preprocess_of(folder)
    assert max(differences(folder, preprocess)) <= 0.01
    # MobileViT's default crop is larger than its resize: there the two backends put an odd row of zeros on other sides.
    if HAS_TORCHVISION and kind != "MobileViTImageProcessor":
        assert max(differences(folder, preprocess, backend="torchvision")) <= 0.01


def test_at_least_31_of_the_42_families_are_supported() -> None:
    """By their number, so that a family that a newer transformers adds or drops is looked at."""
    supported = [kind for kind in FAMILIES if kind != "none" and kind not in REFUSED_FAMILIES]
    assert sum(len(types) for types in FAMILIES.values()) == 42
    assert sum(len(FAMILIES[kind]) for kind in supported) >= 35


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_each_file_that_models_come_with_equals_its_own_processor_or_is_refused(file: Path, tmp_path: Path) -> None:
    config = json.loads(file.read_text())
    folder, channels = written(tmp_path, config), 1 if file.stem == "one_channel" else 3
    if file.stem in REFUSED_CONFIGS:
        with pytest.raises(ModelError) as refused:
            preprocess_of(folder, channels)
        assert REFUSED_CONFIGS[file.stem] in str(refused.value)
        return
    preprocess = preprocess_of(folder, channels)
    assert max(differences(folder, preprocess, channels)) <= 0.01
    # Where a centre lies between two pixels, the nearest is another one for the two backends.
    if HAS_TORCHVISION and config.get("resample") != 0:
        assert max(differences(folder, preprocess, channels, "torchvision")) <= 0.01


def vit(**keys: Any) -> dict[str, Any]:
    return {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 48}, **keys}


def clip(**keys: Any) -> dict[str, Any]:
    return {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64}, "crop_size": 48, **keys}


def of(kind: str, **keys: Any) -> dict[str, Any]:
    return {"image_processor_type": kind, **keys}


# Keys one by one, away from their defaults.
VARIED = {
    "nearest": vit(resample=0),
    "lanczos": vit(resample=1),
    "box": vit(resample=4),
    "hamming": vit(resample=5),
    "size as a list": vit(size=[40, 60]),
    "no normalising": vit(do_normalize=False),
    "no rescaling": vit(do_rescale=False, image_mean=[120.0, 110.0, 100.0], image_std=[60.0, 61.0, 62.0]),
    "another rescaling": vit(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    "padded at the end": vit(do_pad=True, pad_size={"height": 70, "width": 60}),
    "fast": vit(image_processor_type="ViTImageProcessorFast"),
    "a crop of another aspect": clip(crop_size={"height": 60, "width": 30}),
    "a crop larger than the resize": clip(crop_size={"height": 97, "width": 90}),
    "a crop without a resize": clip(do_resize=False, crop_size={"height": 200, "width": 250}),
    "shortest and longest edge": clip(size={"shortest_edge": 64, "longest_edge": 80}, crop_size=64),
    "max height and width": clip(size={"max_height": 60, "max_width": 40}, crop_size=32),
    "convnext below 384": of("ConvNextImageProcessor", size={"shortest_edge": 96}, crop_pct=0.7),
    "convnext from 384": of("ConvNextImageProcessor", size={"shortest_edge": 400}, crop_pct=0.7),
    "convnext, a crop on top": of("ConvNextImageProcessor", size=96, do_center_crop=True, crop_size=64),
    "levit, exact": of("LevitImageProcessor", size={"height": 80, "width": 70}, crop_size=64),
    "poolformer, no square": of("PoolFormerImageProcessor", size={"height": 80, "width": 60}, crop_size=56),
    "efficientnet, offset": of("EfficientNetImageProcessor", size=60, rescale_factor=1 / 127.5, rescale_offset=True),
    "efficientnet, no top": of("EfficientNetImageProcessor", size=60, include_top=False),
    "efficientnet, cropped": of("EfficientNetImageProcessor", size=60, do_center_crop=True, crop_size=48),
    "mobilevit, not flipped": of("MobileViTImageProcessor", size=70, crop_size=64, do_flip_channel_order=False),
    "mobilevit, told to normalise": of("MobileViTImageProcessor", size=70, crop_size=64, do_normalize=True),
    "perceiver, no crop": of("PerceiverImageProcessor", size=64, crop_size=64, do_center_crop=False),
    "perceiver, a crop of another aspect": of("PerceiverImageProcessor", size=[60, 40], crop_size=[80, 80]),
    "segformer, told to crop": of("SegformerImageProcessor", size=64, do_center_crop=True, crop_size=32),
    "textnet, cropped": of("TextNetImageProcessor", size={"shortest_edge": 70}, do_center_crop=True, crop_size=64),
    "donut, no thumbnail": of("DonutImageProcessor", size=[90, 90], do_thumbnail=False, do_pad=False)
    | {"do_center_crop": True, "crop_size": 80},
}


@pytest.mark.parametrize("name", VARIED)
def test_each_key_away_from_its_default_equals_the_processor(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, VARIED[name])
    preprocess = preprocess_of(folder)
    scale = 255 if name == "no rescaling" else 1  # of what an 8-bit step is worth there, over the std of 60
    assert max(differences(folder, preprocess)) <= 0.01 * (scale / 60 if scale > 1 else 1)


UNUSABLE = {
    "size kept": (clip(do_center_crop=False), "size is {'shortest_edge': 64}"),
    "nothing resized": (vit(do_resize=False), "do_resize is False"),
    "no such filter": (vit(resample=9), "resample is 9"),
    "an edge that the class does not take": (of("ConvNextImageProcessor", size={"height": 9, "width": 9}), "size is"),
    "a share above 1": (of("ConvNextImageProcessor", size=96, crop_pct=1.5), "crop_pct is 1.5"),
    "a std of 0": (vit(image_std=[0, 0, 0]), "image_std is [0.0, 0.0, 0.0]"),
    "a mean of text": (vit(image_mean="grey"), "image_mean is 'grey'"),
    "a mean of one channel": (vit(image_mean=[0.5]), "image_mean is [0.5]"),
    "a rescale by 0": (vit(rescale_factor=0), "rescale_factor is 0"),
    "pixels": (vit(size={"min_pixels": 9, "max_pixels": 99}), "size is {'min_pixels': 9, 'max_pixels': 99}"),
    "turned": (of("DonutImageProcessor", size=[90, 60], do_align_long_axis=True), "do_align_long_axis is True"),
    "several crops": (of("Gemma3ImageProcessor", do_pan_and_scan=True), "do_pan_and_scan is True"),
    "an unknown class": (vit(image_processor_type="NopeImageProcessor"), "image_processor_type 'NopeImageProcessor'"),
    "a class of another task": (of("DetrImageProcessor"), "image_processor_type is 'DetrImageProcessor'"),
    "code of its own": (
        vit(auto_map={"AutoImageProcessor": "mine.Processor"}),
        "auto_map asks for the model's own code",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_right_is_refused_by_its_key(name: str, tmp_path: Path) -> None:
    config, named = UNUSABLE[name]
    with pytest.raises(ModelError) as refused:
        preprocess_of(written(tmp_path, config))
    assert named in str(refused.value)
    assert "preprocessor_config.json" in str(refused.value)


def test_a_processor_inside_processor_config_is_read_first(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": vit()}))
    assert preprocess_of(tmp_path).size == (64, 48)
    written(tmp_path, vit(size={"height": 10, "width": 10}))
    preprocess = preprocess_of(tmp_path)
    assert preprocess.size == (64, 48)
    assert max(differences(tmp_path, preprocess)) <= 0.01
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": vit(resample=9)}))
    with pytest.raises(ModelError, match=r"/processor_config\.json: resample is 9"):
        preprocess_of(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "ViTProcessor"}))
    assert preprocess_of(tmp_path).size == (10, 10)


RIGHT: tuple[Step, ...] = (Resize(ShortestEdge(64), "bilinear"), CentreCrop(48, 48), Normalise((0.4, 0.5, 0.6), (0.5,)))
WRONG: dict[str, tuple[tuple[Step, ...], str]] = {
    "channels": ((*RIGHT, FlipChannels()), "do_flip_channel_order"),
    "mean": ((*RIGHT[:2], Normalise((0.4, 0.5, 0.65), (0.5,))), "image_mean"),
    "std": ((*RIGHT[:2], Normalise((0.4, 0.5, 0.6), (0.52,))), "image_std"),
    "filter": ((Resize(ShortestEdge(64), "bicubic"), *RIGHT[1:]), "resample"),
    "squashed": ((Resize(Exact(48, 48), "bilinear"), RIGHT[2]), "size"),
    "edge": ((Resize(ShortestEdge(63), "bilinear"), *RIGHT[1:]), "size"),
    "another size": ((RIGHT[0], CentreCrop(40, 40), RIGHT[2]), "crop_size"),
}


@pytest.mark.parametrize("name", ["right", *WRONG])
def test_steps_that_differ_from_the_processor_are_refused_with_the_likely_key(name: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    keys = {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5] * 3}
    processor = AutoImageProcessor.from_pretrained(written(tmp_path, clip(**keys)), backend="pil")
    if name == "right":
        check_processor(processor, Preprocess((48, 48), steps=RIGHT), 3, tmp_path)
        return
    steps, named = WRONG[name]
    with pytest.raises(ModelError, match=named):
        check_processor(processor, Preprocess((48, 48), steps=steps), 3, tmp_path)


def test_a_load_compares_the_steps_with_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a later version of the library does something else under the same keys."""
    from transformers.image_processing_backends import PilBackend

    preprocess_of(written(tmp_path, vit()))
    monkeypatch.setattr(PilBackend, "rescale", lambda self, image, scale, **_: image.astype(np.float32) * scale * 0.9)
    with pytest.raises(ModelError, match="they interpret 'image_mean', 'image_std' or 'rescale_factor' differently"):
        preprocess_of(tmp_path)


@pytest.mark.parametrize("mode", MODES.values())
@pytest.mark.parametrize("size", [(30, 41), (200, 350), (128, 96), (61, 300), (1, 1)])
def test_resampling_equals_pillow(mode: str, size: tuple[int, int]) -> None:
    """On noise and hard edges, where clipping between the two passes of Pillow shows."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (128, 150, 3), dtype=np.uint8)
    edges: NDArray[np.uint8] = np.repeat((np.indices((128, 150)).sum(0) // 5 % 2 * 255)[..., None], 3, 2).astype(
        np.uint8
    )
    number = next(n for n, name in MODES.items() if name == mode)
    for image in (noise, edges):
        theirs = np.asarray(Image.fromarray(image).resize(size[::-1], number), dtype=np.float32)
        ours = resample(as_tensor(Image.fromarray(image)), size, mode)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(ours - theirs).mean() < 0.6  # two roundings to 8 bits
        assert np.abs(ours - theirs).max() < 3


def test_grey_values_are_those_of_pillow() -> None:
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)
    ours = Grey()(as_tensor(Image.fromarray(image)))[0, 0].numpy() * 255
    assert np.abs(ours - theirs).max() <= 0.51


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((100, 150), ShortestEdge(64), (64, 96)),
        ((151, 100), ShortestEdge(64), (96, 64)),
        ((500, 1000), ShortestEdge(64, longest=100), (50, 100)),
        ((100, 201), ShortestEdge(100, longest=200), (100, 201)),
        ((100, 151), ShortestEdge(100, divisor=32), (128, 160)),
        ((100, 151), ShortestEdge(50, rounding=round), (50, 76)),
        ((100, 200), Within(50, 50), (25, 50)),
        ((300, 300), Thumbnail(100, 80), (100, 80)),  # a square is squashed, as Donut's processor does
        ((40, 60), Thumbnail(100, 80), (40, 60)),
        ((400, 200), Thumbnail(100, 80), (100, 50)),
        ((49, 49), ShortestEdge(224), (224, 224)),
    ],
)
def test_targets_of_a_resize(size: tuple[int, int], target: Any, expected: tuple[int, int]) -> None:
    assert target(size) == expected


def test_an_image_of_the_input_size_goes_through_all_steps() -> None:
    """As it does where the model is served: the shorter side to 64, and the centre of that."""
    x = torch.rand((1, 3, 48, 48))
    expected = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", antialias=True)[..., 8:56, 8:56]
    assert torch.allclose(Preprocess((48, 48), 64, mode="bilinear")(x), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["lanczos", "convnext below 384", "efficientnet, offset", "perceiver, no crop"])
def test_every_step_is_differentiable(name: str, tmp_path: Path) -> None:
    preprocess = preprocess_of(written(tmp_path, VARIED[name]))
    x = torch.rand((2, 3, 70, 90)).requires_grad_(True)
    preprocess(x).square().sum().backward()
    assert x.grad is not None
    centre = x.grad[..., 25:45, 35:55].abs()
    assert (centre.mean((-1, -2)) > 0).all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("preprocess", "side"),
    [
        (Preprocess((48, 48)), 48),
        (Preprocess((48, 48), 64), 64),
        (Preprocess((48, 48), steps=(Resize(ShortestEdge(24)), CentreCrop(48, 48))), 24),
        (Preprocess((60, 40), 60), 60),
    ],
)
def test_the_side_of_a_square_image_that_is_not_resampled(preprocess: Preprocess, side: int) -> None:
    assert preprocess.side == side
    x = torch.rand((1, 3, side, side))
    if preprocess.size[0] == preprocess.size[1] and side > 48:
        assert torch.equal(preprocess(x), x[..., 8:56, 8:56])


def saved(folder: Path, processor: dict[str, Any], **config: Any) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    small = {"patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    keys = {**small, "image_size": 32, "intermediate_size": 16, "id2label": {0: "cat", 1: "dog"}, **config}
    ViTForImageClassification(ViTConfig(**keys)).save_pretrained(folder)
    return written(folder, processor)


def test_a_model_of_one_channel_gives_the_library_s_logits_of_grey_images(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    size = {"height": 32, "width": 32}
    folder = saved(tmp_path, vit(size=size, image_mean=[0.3], image_std=[0.2]), num_channels=1)
    model = hf.load(hf.Options(ref=str(folder)), ())
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    for picture in photos((32, 32)):
        with torch.no_grad():
            theirs = network(**processor(images=picture.convert("L"), return_tensors="pt")).logits
        assert torch.allclose(model.logits(as_tensor(picture)), theirs, atol=0.01)


@pytest.mark.parametrize(
    ("processor", "config", "named"),
    [
        (vit(size=32), {"num_channels": 1}, ""),
        (vit(size=32, image_mean=[0.5] * 3), {"num_channels": 1}, "image_mean is [0.5, 0.5, 0.5]"),
        (vit(size=32, image_mean=0.5, image_std=0.5, do_convert_rgb=True), {"num_channels": 1}, "do_convert_rgb"),
        (vit(size=32), {"num_channels": 4}, "takes images of 4 channels"),
        (vit(size=64), {}, "(3, 64, 64); config.json says image_size 32"),
    ],
)
def test_a_model_that_does_not_take_what_its_processor_gives_is_refused_at_load(
    processor: dict[str, Any], config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, processor, **config)
    with pytest.raises(ModelError) as refused:
        hf.load(hf.Options(ref=str(folder)), ())
    assert (named or "image_mean") in str(refused.value)


def test_another_input_size_that_model_and_processor_share_is_taken(tmp_path: Path) -> None:
    folder = saved(tmp_path, vit(size={"height": 48, "width": 24}), image_size=(48, 24))
    model = hf.load(hf.Options(ref=str(folder)), ())
    assert model.preprocess.size == (48, 24)
    assert model.logits(torch.rand((2, 3, 50, 60))).shape == (2, 2)
