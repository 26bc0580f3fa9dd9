"""The bad-input corpus: every kind of file that turns up in data sets, and what becomes of it."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from audit.decode import Limits, decode, decode_mask, encode_png
from audit.errors import BadItem

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 255, (12, 18, 3), dtype=np.uint8)).resize((48, 32), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "x" * 100)
    return buffer.getvalue()


def png_header(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


JPEG, PNG = saved(PHOTO, "JPEG"), saved(PHOTO, "PNG")
PROGRESSIVE = saved(PHOTO, "JPEG", progressive=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unidentified"),
        (b"x", "unidentified"),
        (b"just some text, not an image", "unidentified"),
        (b"<html><body>404</body></html>", "unidentified"),
        (zipped(), "unidentified"),
        (b"%PDF-1.7 ...", "unidentified"),
        (b"8BPS\x00\x01" + b"\0" * 40, "unidentified"),
        (b"DDS |\x00\x00\x00" + b"\0" * 200, "unidentified"),
        (b"\x00\x00\x00\x18ftypheic" + b"\0" * 40, "unidentified"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format_not_allowed"),
        (b"<?xml version='1.0'?><svg/>", "format_not_allowed"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format_not_allowed"),
        (saved(PHOTO, "ICO"), "format_not_allowed"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PROGRESSIVE[: len(PROGRESSIVE) // 2], "truncated"),
        (saved(PHOTO.resize((1, 1)), "PNG"), "too_small"),
        (saved(PHOTO.resize((4, 2000)), "PNG"), "too_elongated"),
        (png_header(100_000, 100_000), "too_many_pixels"),
        (png_header(13_000, 13_000, 1, 0), "too_many_pixels"),
        (saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), "not_finite"),
    ],
)
def test_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadItem) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_the_byte_limit_comes_before_anything_else() -> None:
    with pytest.raises(BadItem) as caught:
        decode(PNG, Limits(max_bytes=10))
    assert caught.value.reason == "too_many_bytes"


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 180), (6, -90), (8, 90)])
def test_exif_orientation_is_applied(orientation: int, turn: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    found = decode(saved(PHOTO, "PNG", exif=exif))
    assert np.array_equal(found.image, np.asarray(PHOTO.rotate(turn, expand=True)))
    assert found.note == (None if orientation == 1 else "exif_rotated")


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    form = "PNG" if mode in ("L", "1", "P") else "JPEG" if mode in ("CMYK", "YCbCr") else "TIFF"
    image = PHOTO.convert(mode) if mode != "LAB" else Image.new("LAB", (16, 16), (128, 128, 128))
    found = decode(saved(image, form)).image
    assert found.shape[2] == 3
    assert found.dtype == np.uint8
    if mode in ("CMYK", "YCbCr"):
        assert np.abs(found.astype(int) - np.asarray(PHOTO)).mean() < 25


def test_alpha_lies_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert decode(saved(clear, "PNG")).image.min() == 255
    assert abs(int(decode(saved(half, "PNG")).image[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    found = decode(saved(palette, "PNG", transparency=0))
    assert found.image.min() == 255
    assert found.note == "alpha_over_white"


def test_sixteen_bits_are_scaled() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    found = decode(saved(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(found.image[..., 0], np.rint(ramp / 257).astype(np.uint8))
    assert found.note == "scaled_to_8_bits"


def test_float_tiff_by_its_range() -> None:
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert decode(saved(Image.fromarray(unit), "TIFF")).image.max() == 255
    wide = np.linspace(0, 200, 64, dtype=np.float32).reshape(8, 8)
    assert decode(saved(Image.fromarray(wide), "TIFF")).image.max() == 200


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    found = decode(saved(frames[0], form, save_all=True, append_images=frames[1:], **options))
    assert found.image[0, 0].tolist() == [255, 0, 0]
    assert "first_frame" in (found.note or "")


def test_a_broken_colour_profile_is_no_obstacle() -> None:
    assert decode(saved(PHOTO, "PNG", icc_profile=b"broken")).image.shape == (32, 48, 3)


def test_png_round_trip_is_lossless() -> None:
    array = np.asarray(PHOTO)
    assert np.array_equal(decode(encode_png(array)).image, array)


def test_a_mask_is_its_grey_levels() -> None:
    grey = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    mask = decode_mask(encode_png(grey), 5, 7)
    assert (mask.dtype, mask.shape) == (np.float32, (5, 7))
    assert np.abs(mask - grey / 255).max() < 1e-6
    colour = np.zeros((5, 7, 3), np.uint8)
    colour[2, 3] = 255, 0, 0
    assert decode_mask(encode_png(colour), 5, 7)[2, 3] == pytest.approx(0.299, abs=0.003)  # ITU-R 601 luma of red


@pytest.mark.parametrize("kind", ["0/1", "0/255", "1 bit"])
def test_a_mask_of_two_values_is_0_and_1(kind: str) -> None:
    """Annotation tools write the numbers 0 and 1, or black and white."""
    truth = RNG.integers(0, 2, (5, 7)).astype(np.uint8)
    picture = Image.fromarray(truth if kind == "0/1" else truth * 255)
    assert np.array_equal(decode_mask(saved(picture.convert("1") if kind == "1 bit" else picture, "PNG"), 5, 7), truth)
    assert not decode_mask(encode_png(truth * 0), 5, 7).any()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "mask_missing"),
        (b"no image", "mask_unidentified"),
        (PNG[: len(PNG) // 2], "mask_truncated"),
        (encode_png(np.zeros((7, 5), np.uint8)), "mask_size"),
    ],
)
def test_a_mask_that_cannot_be_used_says_why(data: bytes | None, reason: str) -> None:
    with pytest.raises(BadItem) as caught:
        decode_mask(data, 5, 7)
    assert caught.value.reason == reason
