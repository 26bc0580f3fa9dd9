"""Bytes of any origin to RGB, or a reason why not. What is accepted is a rule, not an accident of the decoder."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from audit.errors import BadItem, DataUnavailable

try:
    from pillow_heif import register_heif_opener
except ImportError:  # the extra `heic`
    HEIC_READ = False
else:
    HEIC_READ = True
    register_heif_opener(thumbnails=False)

FORMATS = (
    *("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"),
    *(("HEIF",) if HEIC_READ else ()),
)
# Pillow imports these when it first needs them; where no file can be opened then, it does without them for ever.
_PLUGINS = (
    *(AvifImagePlugin, BmpImagePlugin, GifImagePlugin, Jpeg2KImagePlugin, JpegImagePlugin, MpoImagePlugin),
    *(PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin),
)
_BYTES_A_PIXEL = 16  # that decoding takes, but for the widest of formats
_ORIENTATION, _TURNED = 274, range(2, 9)
_KNOWN_REFUSED = {b"\x00\x00\x01\x00": "ICO", b"%!PS": "EPS"}
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
# What Pillow raises, in some decoder or other, for bytes that begin like an image and are none.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, MemoryError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error),
)


@dataclass(frozen=True)
class Limits:
    """Bounds that an image is held to before it is decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000
    min_side: int = 4
    max_aspect: float = 100.0


@dataclass(frozen=True)
class Decoded:
    """`image`: uint8 RGB (h, w, 3). `note`: what was done to an unusual image, or None."""

    image: NDArray[np.uint8]
    note: str | None


def decode(data: bytes, limits: Limits = Limits()) -> Decoded:
    """Decode an image: first frame, EXIF orientation applied, alpha over white, 16 bits scaled to 8.

    EXIF data that cannot be read are taken as none. Float images: values in [0, 1] are scaled by 255, others are taken
    as 0-255; NaN and infinities are refused.
    Raises BadItem with reason `too_many_bytes`, `unidentified`, `format_not_allowed`, `too_small`,
    `too_elongated`, `too_many_pixels`, `truncated` or `not_finite`; DataUnavailable where this machine lacks what any
    image of that size needs, which says nothing of the image.
    """
    if len(data) > limits.max_bytes:
        raise BadItem("too_many_bytes", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    pixels = limits.max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
            pixels = min(pixels, opened.width * opened.height)
            return _decode(opened, limits)
    except BadItem:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BadItem(*_why_not_opened(data, error)) from error
    except _BROKEN as error:
        _not_of_the_machine(error, pixels)
        raise BadItem("truncated", str(error)[:200]) from error


def _not_of_the_machine(error: Exception, pixels: int) -> None:
    """Raises DataUnavailable for an error that is no fault of the image. Decoders report a lack of memory by several
    errors, and raise MemoryError for images that ask for more than their size warrants: so the memory that an image of
    so many pixels may need is asked for. An error with a number is one of the system, since images come as bytes."""
    if isinstance(error, OSError) and error.errno is not None:
        raise DataUnavailable(f"cannot decode images now: {error}. Go on when the machine can open files") from error
    try:
        np.empty(pixels * _BYTES_A_PIXEL, np.uint8)
    except MemoryError:
        raise DataUnavailable(
            f"cannot decode images of {pixels} pixels now: this process gets no {pixels * _BYTES_A_PIXEL >> 20} MiB "
            "more memory. Go on with fewer workers on the machine, or with more memory"
        ) from error


def decode_mask(data: bytes | None, height: int, width: int, limits: Limits = Limits()) -> NDArray[np.float32]:
    """A mask as (height, width) float32 in [0, 1]: its grey levels, 1 where the object is; no threshold is applied.

    It is decoded as images are, so what is transparent counts as white. A mask of which no value is above 1 of 255
    holds 0 and 1 as numbers, and is taken so. Raises BadItem with reason `mask_missing` (`data` is None),
    `mask_size` (it is not as large as the image, whose height and width are given) or `mask_<reason>` with a reason
    of `decode`.
    """
    if data is None:
        raise BadItem("mask_missing", "there is no mask that can be read")
    try:
        image = decode(data, limits).image
    except BadItem as error:
        raise BadItem(f"mask_{error.reason}", str(error)) from error
    if image.shape[:2] != (height, width):
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise BadItem("mask_size", f"the mask has {found} pixels, its image {width} x {height}")
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    return grey / np.float32(1 if grey.max() <= 1 else 255)


def _why_not_opened(data: bytes, error: Exception) -> tuple[str, str]:
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels", str(error)[:200]
    head = data.lstrip()[:256].lower()
    if head.startswith((b"<svg", b"<?xml")) and b"<svg" in data[:4096].lower():
        return "format_not_allowed", "SVG"
    if data[4:8] == b"ftyp" and data[8:12] in (*_AVIF_BRANDS, *_HEIC_BRANDS):
        if data[8:12] in _HEIC_BRANDS and not HEIC_READ:
            return "format_not_allowed", "HEIC, which needs: pip install 'audit[heic]'"
        return "truncated", "an AVIF or HEIC file without a whole image"
    for magic, name in _KNOWN_REFUSED.items():
        if data.startswith(magic):
            return "format_not_allowed", name
    return "unidentified", f"no image of a known format ({', '.join(FORMATS)}) in {len(data)} bytes"


def _decode(opened: Image.Image, limits: Limits) -> Decoded:
    width, height = opened.size
    if width * height > limits.max_pixels:
        raise BadItem("too_many_pixels", f"{width} x {height}, the limit is {limits.max_pixels} in all")
    if min(width, height) < limits.min_side:
        raise BadItem("too_small", f"{width} x {height}, the limit is {limits.min_side} a side")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise BadItem("too_elongated", f"{width} x {height}, the limit is {limits.max_aspect:g} to 1")
    notes = []
    if getattr(opened, "n_frames", 1) > 1:
        notes.append("first_frame")
    by_decoder = _orientation(opened) if opened.format == "TIFF" else 1
    opened.load()
    orientation = by_decoder if by_decoder != 1 else _orientation(opened)
    if orientation is None:
        notes.append("exif_unreadable")
        return Decoded(_rgb(opened, notes), ",".join(notes))
    if orientation in _TURNED:
        notes.append("exif_rotated")
        opened = ImageOps.exif_transpose(opened)
    return Decoded(_rgb(opened, notes), ",".join(notes) or None)


def _orientation(opened: Image.Image) -> int | None:
    """EXIF's orientation, 1 where none is said; None where the EXIF data are none. The TIFF decoder turns the image
    itself and then forgets it; a PNG that is asked before it is loaded is taken as whole, whatever it is."""
    try:
        return int(opened.getexif().get(_ORIENTATION, 1))
    except _BROKEN as error:
        _not_of_the_machine(error, opened.width * opened.height)
        return None


def _rgb(image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        return _wide(image, notes)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        notes.append("alpha_over_white")
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _wide(image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    """16-bit and float grey to 8-bit RGB."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise BadItem("not_finite", "a float image holds NaN or infinity")
    notes.append("scaled_to_8_bits")
    top = values.max(initial=0.0)
    scale = 255.0 / 65535.0 if image.mode != "F" else (255.0 if top <= 1.0 else 1.0)
    grey = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        notes.append("alpha_over_white")
        grey[values == image.info["transparency"]] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """uint8 RGB (h, w, 3), or grey (h, w), to PNG bytes, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def encode_thumbnail(image: NDArray[np.uint8], side: int = 256) -> bytes:
    """uint8 RGB to WebP bytes of at most `side` pixels; small images keep their size."""
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()
