"""The image processor of a model folder, from the library transformers, as differentiable steps.

The class of a processor decides which keys are read, in which order, and with which defaults. So the class itself reads
the file; the order of steps of each class is defined here. `_processor_check` compares the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.classifiers._preprocessing import (
    CentreCrop,
    CropShare,
    Exact,
    FlipChannels,
    Grey,
    Normalise,
    Pad,
    Preprocess,
    Resize,
    Scale,
    ShortestEdge,
    Size,
    Step,
    Target,
    Thumbnail,
    Within,
    output_sizes,
)
from audit.classifiers._processor_check import check_processor
from audit.classifiers._resampling import MODES
from audit.errors import ModelError

# Sizes of images of which the network's input size must not depend.
_SIZES = ((37, 53), (53, 37), (224, 224), (31, 600), (600, 31), (1000, 1500), (7, 7))
_OWN = ("_preprocess", "resize", "center_crop", "rescale", "normalize", "pad")
_UNUSABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


def preprocess_of(folder: Path, channels: int = 3) -> Preprocess:
    """Differentiable steps that do the same as the image processor of a folder.

    channels: of the network, 1 or 3. Raises ModelError, naming the key, if steps and processor differ, or if the
    processor is not supported.
    """
    path, raw = _read(folder)
    try:
        _check_form(raw, path)
        processor = _processor(folder, path, raw)
        preprocess = _Reader(processor, path, channels).preprocess()
        check_processor(processor, preprocess, channels, path)
    except _UNUSABLE as error:
        raise ModelError(f"{path} cannot be used, so the model's preprocessing is unknown: {error}") from error
    return preprocess


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the image processor, and its content. processor_config.json is preferred."""
    nested, plain = folder / "processor_config.json", folder / "preprocessor_config.json"
    for path in (nested, plain):
        if path.is_file():
            try:
                raw = json.loads(path.read_text("utf-8"))
                raw = raw.get("image_processor") if path == nested else raw
            except (ValueError, AttributeError) as error:
                raise ModelError(f"{path} cannot be used, so the model's preprocessing is unknown: {error}") from error
            if raw is not None:
                return path, raw
    raise ModelError(
        f"{folder} has no preprocessor_config.json, so the model's preprocessing is unknown. Copy the file from the "
        "source of the model, or save the image processor that the model was trained with, by save_pretrained"
    )


def _check_form(raw: dict[str, Any], path: Path) -> None:
    own_code = sorted({"AutoImageProcessor", "AutoFeatureExtractor"} & (raw.get("auto_map") or {}).keys())
    if own_code:
        raise ModelError(
            f"{path}: auto_map asks for the model's own code for {own_code[0]}. Such code is never run, so the model's "
            "preprocessing is unknown. Load the model with loader: python, with its preprocessing in the module"
        )
    for key in ("size", "crop_size"):
        if not isinstance(raw.get(key), int | list | dict | None) or isinstance(raw.get(key), bool):
            raise ModelError(f"{path}: {key!r} is {raw[key]!r}; expected a number, height and width, or shortest_edge")


def _processor(folder: Path, path: Path, raw: dict[str, Any]) -> Any:
    try:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except (*_UNUSABLE, OSError, ImportError, RuntimeError) as error:
        named = raw.get("image_processor_type") or raw.get("feature_extractor_type")
        kind = f"image_processor_type {named!r}" if named else "a missing image_processor_type"
        raise ModelError(
            f"{path}: {kind} selects no image processor of the installed transformers, so the model's preprocessing "
            f"is unknown: {' '.join(str(error).split())[:160]}"
        ) from error


@dataclass(frozen=True)
class _Reader:
    """Derives the steps from the attributes of an image processor: values of the file, or defaults of the class."""

    processor: Any
    path: Path
    channels: int

    def preprocess(self) -> Preprocess:
        if self.channels == 1:
            self.off("do_convert_rgb", "the network takes one channel, and this makes three")
        steps = (*([Grey()] if self.channels == 1 else []), *self._steps())
        sizes = output_sizes(steps, _SIZES)
        if len(sizes) != 1:
            p = self.processor
            key = "do_resize" if not p.do_resize else "size"
            value = p.do_resize if not p.do_resize else _shown(p.size)
            self.refuse(
                key,
                value,
                "the size of the network's input would depend on the size of the image. Write the size that the model "
                "was trained with: do_center_crop: true and its crop_size, or a size of height and width",
            )
        return Preprocess(sizes.pop(), steps=steps)

    def refuse(self, key: str, value: object, why: str) -> None:
        raise ModelError(f"{self.path}: {key} is {value!r}: {why}")

    @property
    def kind(self) -> str:
        return type(self.processor).__name__.removesuffix("Pil").removesuffix("Fast")

    def _steps(self) -> list[Step]:
        if self.kind in _REFUSED:
            self.refuse("image_processor_type", self.kind, _REFUSED[self.kind])
        if self.kind in _ORDERS:
            return _ORDERS[self.kind](self)
        if not self._is_plain():
            self.refuse("image_processor_type", self.kind, "audit does not support this kind of image processor")
        return _plain(self)

    def _is_plain(self) -> bool:
        """Whether the class has only the common steps."""
        from transformers.image_processing_backends import PilBackend

        return all(getattr(type(self.processor), name, None) is getattr(PilBackend, name) for name in _OWN)

    def resize(self, target: Target | None = None) -> list[Step]:
        p = self.processor
        if not p.do_resize:
            return []
        return [Resize(target or self.target(), self.mode())]

    def mode(self) -> str:
        number = 2 if self.processor.resample is None else int(self.processor.resample)
        if number not in MODES:
            self.refuse("resample", number, f"known: {MODES}")
        return MODES[number]

    def target(self) -> Target:
        size = self.processor.size
        if size and size.shortest_edge:
            return ShortestEdge(self.whole("size", size.shortest_edge), size.longest_edge or None)
        if size and size.max_height and size.max_width:
            return Within(self.whole("size", size.max_height), self.whole("size", size.max_width))
        return Exact(*self.height_width("size"))

    def edge(self) -> int:
        """`shortest_edge` of `size`, which the class requires."""
        size = self.processor.size
        if not size or not size.shortest_edge:
            self.refuse("size", _shown(size), f"{self.kind} needs a number, or shortest_edge")
        return self.whole("size", size.shortest_edge)

    def height_width(self, key: str) -> Size:
        size = getattr(self.processor, key)
        if not size or not size.height or not size.width:
            self.refuse(key, _shown(size), f"{self.kind} needs height and width here")
        return self.whole(key, size.height), self.whole(key, size.width)

    def whole(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(key, value, "expected whole numbers from 1")
        assert isinstance(value, int)
        return value

    def share(self, key: str) -> float:
        value = getattr(self.processor, key)
        if not isinstance(value, int | float) or not 0 < value <= 1:
            self.refuse(key, value, "expected a number above 0 and at most 1")
        return float(value)

    def crop(self) -> list[Step]:
        return [CentreCrop(*self.height_width("crop_size"))] if self.processor.do_center_crop else []

    def rescale(self, offset: float = 0.0) -> list[Step]:
        """The rescaling of the processor, whose pixels are 0 to 255, for pixels in [0, 1]."""
        p = self.processor
        if not p.do_rescale:
            return [Scale(255.0)]
        factor = float(p.rescale_factor) * 255
        if not math.isfinite(factor) or factor == 0:
            self.refuse("rescale_factor", p.rescale_factor, "expected a finite number other than 0")
        return [] if math.isclose(factor, 1, rel_tol=1e-9) and not offset else [Scale(factor, offset)]

    def normalise(self) -> list[Step]:
        return [Normalise(self.numbers("image_mean"), self.numbers("image_std"))] if self.processor.do_normalize else []

    def numbers(self, key: str) -> tuple[float, ...]:
        value = getattr(self.processor, key)
        try:
            numbers = (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{key} is {value!r}; expected numbers") from error
        if not isinstance(value, int | float) and len(numbers) != self.channels:
            what = f"the network takes {self.channels} channel{'s' if self.channels > 1 else ''}"
            self.refuse(
                key, list(numbers), f"these are {len(numbers)}, but {what}; write {self.channels}, or one number"
            )
        if not all(map(math.isfinite, numbers)) or (key == "image_std" and 0 in numbers):
            self.refuse(key, list(numbers), "expected finite numbers" + (" other than 0" if key == "image_std" else ""))
        return numbers

    def pad(self) -> list[Step]:
        if not self.processor.do_pad or self.processor.pad_size is None:
            return []
        return [Pad(*self.height_width("pad_size"))]

    def off(self, key: str, why: str) -> None:
        """Refuse a key that is switched on."""
        if getattr(self.processor, key, None):
            self.refuse(key, getattr(self.processor, key), why)


def _shown(size: Any) -> object:
    return {k: v for k, v in dict(size).items() if v is not None} if size else None


def _without_pad(r: _Reader) -> list[Step]:
    return [*r.resize(), *r.crop(), *r.rescale(), *r.normalise()]


def _plain(r: _Reader) -> list[Step]:
    return [*_without_pad(r), *r.pad()]


def _convnext(r: _Reader) -> list[Step]:
    """Below 384 pixels: resize the shorter side to size / crop_pct and crop the centre. From 384 on: resize to a
    square."""
    rest = [*r.crop(), *r.rescale(), *r.normalise()]
    if not r.processor.do_resize:
        return rest
    edge = r.edge()
    if edge >= 384:
        return [*r.resize(Exact(edge, edge)), *rest]
    return [*r.resize(ShortestEdge(int(edge / r.share("crop_pct")))), CentreCrop(edge, edge), *rest]


def _levit(r: _Reader) -> list[Step]:
    size = r.processor.size
    target = ShortestEdge(int(256 / 224 * r.edge())) if size and size.shortest_edge else Exact(*r.height_width("size"))
    return [*r.resize(target), *r.crop(), *r.rescale(), *r.normalise(), *r.pad()]


def _poolformer(r: _Reader) -> list[Step]:
    share, size = r.share("crop_pct"), r.processor.size
    if size and size.shortest_edge:
        target: Target = ShortestEdge(int(r.edge() / share))
    else:
        height, width = (int(side / share) for side in r.height_width("size"))
        target = ShortestEdge(height) if height == width else Exact(height, width)
    return [*r.resize(target), *r.crop(), *r.rescale(), *r.normalise(), *r.pad()]


def _efficientnet(r: _Reader) -> list[Step]:
    """`include_top` divides by the standard deviation a second time."""
    steps = [*r.resize(), *r.crop(), *r.rescale(-1.0 if r.processor.rescale_offset else 0.0), *r.normalise()]
    return [*steps, Normalise((0.0,), r.numbers("image_std"))] if r.processor.include_top else steps


def _mobilevit(r: _Reader) -> list[Step]:
    steps = [*r.resize(), *r.rescale(), *r.crop()]
    if not r.processor.do_flip_channel_order:
        return steps
    if r.channels == 1:
        r.refuse("do_flip_channel_order", True, "the network takes one channel")
    return [*steps, FlipChannels()]


def _perceiver(r: _Reader) -> list[Step]:
    """The crop comes first: `size` / `crop_size` of the image's shorter side."""
    crop: list[Step] = []
    if r.processor.do_center_crop:
        (height, width), (of_height, of_width) = r.height_width("size"), r.height_width("crop_size")
        crop = [CropShare(height / of_height, width / of_width)]
    return [*crop, *r.resize(), *r.rescale(), *r.normalise()]


def _segformer(r: _Reader) -> list[Step]:
    return [*r.resize(), *r.rescale(), *r.normalise()]


def _textnet(r: _Reader) -> list[Step]:
    target = ShortestEdge(r.edge(), divisor=r.whole("size_divisor", r.processor.size_divisor))
    return [*r.resize(target), *r.crop(), *r.rescale(), *r.normalise()]


def _donut(r: _Reader) -> list[Step]:
    r.off("do_align_long_axis", "wide images would be rotated by 90 degrees")
    height, width = r.height_width("size")
    steps = r.resize(ShortestEdge(min(height, width)))
    if r.processor.do_thumbnail:
        steps.append(Resize(Thumbnail(height, width), r.mode()))
    if r.processor.do_pad:
        steps.append(Pad(height, width, centred=True))
    return [*steps, *r.crop(), *r.rescale(), *r.normalise()]


def _gemma3(r: _Reader) -> list[Step]:
    r.off("do_pan_and_scan", "one image becomes several crops")
    return [*r.resize(), *r.rescale(), *r.normalise()]


def _pplcnet(r: _Reader) -> list[Step]:
    p = r.processor
    target = r.target() if p.resize_short is None else ShortestEdge(p.resize_short, None, round, p.size_divisor or 1)
    return [*r.resize(target), *r.crop(), *r.rescale(), *r.normalise(), FlipChannels()]


# The order of steps of each class that has one of its own.
_ORDERS: dict[str, Callable[[_Reader], list[Step]]] = {
    "BeitImageProcessor": _without_pad,
    "ConvNextImageProcessor": _convnext,
    "DonutImageProcessor": _donut,
    "EfficientNetImageProcessor": _efficientnet,
    "Gemma3ImageProcessor": _gemma3,
    "LevitImageProcessor": _levit,
    "MobileNetV2ImageProcessor": _without_pad,
    "MobileViTImageProcessor": _mobilevit,
    "PPLCNetImageProcessor": _pplcnet,
    "PerceiverImageProcessor": _perceiver,
    "PoolFormerImageProcessor": _poolformer,
    "SegformerImageProcessor": _segformer,
    "TextNetImageProcessor": _textnet,
}
_REFUSED = {
    "ImageGPTImageProcessor": "do_color_quantize replaces each pixel by the index of a colour, which has no gradient",
    "Siglip2ImageProcessor": "the model takes up to max_num_patches patches with a mask, not pixels",
    "TimmWrapperImageProcessor": "a model of timm; use loader: timm",
}
