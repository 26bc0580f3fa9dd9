"""Image files and masks of the bad-input corpus. Expected pixels are worked out from the formats' definitions."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from audit.decode import HEIC_READ, Limits, encode_png
from tests.bad_input import Accepted, Case, Quarantined

RNG = np.random.default_rng(0)
PHOTO = np.asarray(
    Image.fromarray(RNG.integers(0, 255, (12, 18, 3), dtype=np.uint8)).resize((48, 32), Image.Resampling.BICUBIC)
)
RAMP16 = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
UNIT = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
TURNS: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def saved(image: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, form, **options)
    return buffer.getvalue()


def plain(colour: Any, form: str, mode: str = "RGB", **options: Any) -> bytes:
    return saved(Image.new(mode, (8, 8), colour), form, **options)


def half(form: str, **options: Any) -> bytes:
    data = saved(PHOTO, form, **options)
    return data[: len(data) // 2]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, body: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG written by hand: `body` holds filter bytes and samples, `extra` chunks before the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def grey_png(extra: bytes = b"") -> bytes:
    return png(8, 8, 8, 0, (b"\0" + b"\x07" * 8) * 8, extra)


def tiff(width: int, height: int, next_page: int = 0) -> bytes:
    """An uncompressed grey TIFF written by hand, of 64 bytes of pixels whatever size it claims."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 64)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x48\0\0\0" + b"\x80" * 64 + struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_page)


def jpeg_claim() -> bytes:
    data = saved(PHOTO, "JPEG")
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">HH", 65535, 65535) + data[size + 4 :]


def webp_claim() -> bytes:
    size = struct.pack("<I", 65534)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size + size
    body += b"VP8L" + struct.pack("<I", 16) + b"\x2f" + b"\0" * 15
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_claim() -> bytes:
    data = saved(PHOTO, "BMP")
    return data[:18] + struct.pack("<ii", 100_000, 100_000) + data[26:]


def with_exif(form: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return saved(PHOTO, form, exif=exif, **options)


def jpeg_with(app1: bytes) -> bytes:
    data = plain((10, 200, 30), "JPEG", quality=95)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(app1)) + app1 + data[2:]


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "x" * 100)
    return buffer.getvalue()


def two_frames(form: str, **options: Any) -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], **options)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def palette(**options: Any) -> bytes:
    image = Image.fromarray((np.arange(64).reshape(8, 8) % 2).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    return saved(image, "PNG", **options)


def chessboard(first: Any, second: Any) -> Any:
    return np.where((np.arange(64).reshape(8, 8) % 2 == 0)[..., None], first, second)


def grey(values: Any) -> Any:
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def lightness(value: float) -> int:
    """CIE L* in 0-100 to the sRGB grey of the same lightness."""
    linear = ((value + 16) / 116) ** 3
    return round(255 * (1.055 * linear ** (1 / 2.4) - 0.055))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "unidentified"),
    "one byte": (lambda: b"x", "unidentified"),
    "text": (lambda: b"just some text, not an image", "unidentified"),
    "html of an error page": (lambda: b"<html><body>404</body></html>", "unidentified"),
    "json": (lambda: b'{"error": "rate limit"}', "unidentified"),
    "zip": (zipped, "unidentified"),
    "pdf": (lambda: b"%PDF-1.7 ...", "unidentified"),
    "psd": (lambda: b"8BPS\x00\x01" + b"\0" * 40, "unidentified"),
    "dds": (lambda: b"DDS |\x00\x00\x00" + b"\0" * 200, "unidentified"),
    "heic": (
        lambda: b"\x00\x00\x00\x18ftypheic" + b"\0" * 40,
        "truncated" if HEIC_READ else "format_not_allowed",
    ),
    "mp4": (lambda: b"\x00\x00\x00\x18ftypisom" + b"\0" * 40, "unidentified"),
    "half an avif": (lambda: half("AVIF"), "truncated"),
    "half a jpeg 2000": (lambda: half("JPEG2000"), "truncated"),
    "tga": (lambda: saved(PHOTO, "TGA"), "unidentified"),
    "a signature alone: jpeg": (lambda: b"\xff\xd8\xff", "unidentified"),
    "a signature alone: png": (lambda: b"\x89PNG\r\n\x1a\n", "unidentified"),
    "a signature alone: gif": (lambda: b"GIF89a", "unidentified"),
    "a signature alone: webp": (lambda: b"RIFF\x10\0\0\0WEBP", "unidentified"),
    "a signature alone: bmp": (lambda: b"BM", "unidentified"),
    "a signature alone: tiff": (lambda: b"II*\0", "unidentified"),
    "png of no width": (lambda: png(0, 10, 8, 0), "unidentified"),
    "png header with a wrong checksum": (lambda: flipped(saved(PHOTO, "PNG"), 29), "unidentified"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format_not_allowed"),
    "svg after an xml header": (lambda: b"<?xml version='1.0'?><svg/>", "format_not_allowed"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "format_not_allowed"),
    "ico": (lambda: saved(PHOTO, "ICO"), "format_not_allowed"),
    "half a jpeg": (lambda: half("JPEG"), "truncated"),
    "half a progressive jpeg": (lambda: half("JPEG", progressive=True), "truncated"),
    "half a png": (lambda: half("PNG"), "truncated"),
    "half a gif": (lambda: half("GIF"), "truncated"),
    "half a webp": (lambda: half("WEBP"), "truncated"),
    "half a bmp": (lambda: half("BMP"), "truncated"),
    "half a tiff": (lambda: half("TIFF"), "truncated"),
    "half a ppm": (lambda: half("PPM"), "truncated"),
    "jpeg without its last two bytes": (lambda: saved(PHOTO, "JPEG")[:-2], "truncated"),
    "png without its last pixels": (lambda: saved(PHOTO, "PNG")[:-25], "truncated"),
    "png with a flipped bit in its pixels": (lambda: flipped(saved(PHOTO, "PNG"), 60), "truncated"),
    "png of fewer pixels than it claims": (lambda: png(48, 32, 8, 2, b"\0" * 64), "truncated"),
    "png with 100 MB of compressed text": (
        lambda: grey_png(chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 10**8))),
        "truncated",
    ),
    "png with a profile of 100 MB": (
        lambda: grey_png(chunk(b"iCCP", b"k\0\0" + zlib.compress(b"a" * 10**8))),
        "truncated",
    ),
    "ppm in text with an endless number": (lambda: b"P3\n8 8\n255\n" + b"9" * 10**6, "truncated"),
    "1 x 1": (lambda: saved(PHOTO[:1, :1], "PNG"), "too_small"),
    "3 x 3": (lambda: saved(PHOTO[:3, :3], "PNG"), "too_small"),
    "1 x 20000": (lambda: saved(np.zeros((20_000, 1), np.uint8), "PNG"), "too_small"),
    "4 x 2000": (lambda: saved(np.zeros((2000, 4), np.uint8), "PNG"), "too_elongated"),
    "png that claims 100k x 100k": (lambda: png(100_000, 100_000, 8, 2, b"\0" * 64), "too_many_pixels"),
    "png of 169 Mpx in 1 bit": (lambda: png(13_000, 13_000, 1, 0, b"\0" * 64), "too_many_pixels"),
    "png of one row more than the limit": (lambda: png(8000, 8001, 8, 0, b"\0" * 64), "too_many_pixels"),
    "bmp that claims 100k x 100k": (bmp_claim, "too_many_pixels"),
    "ppm that claims 100k x 100k": (lambda: b"P6\n100000 100000\n255\n", "too_many_pixels"),
    "tiff that claims 100k x 100k": (lambda: tiff(100_000, 100_000), "too_many_pixels"),
    "jpeg that claims 65k x 65k": (jpeg_claim, "too_many_pixels"),
    "gif that claims 65k x 65k": (lambda: b"GIF89a\xff\xff\xff\xff" + saved(PHOTO, "GIF")[10:], "too_many_pixels"),
    "webp that claims 65k x 65k": (webp_claim, "too_many_pixels"),
    "a file above the byte limit": (lambda: saved(PHOTO, "JPEG") + bytes(Limits.max_bytes), "too_many_bytes"),
    "float tiff of NaN": (lambda: saved(np.full((8, 8), np.nan, np.float32), "TIFF"), "not_finite"),
    "float tiff of infinity": (lambda: saved(np.full((8, 8), np.inf, np.float32), "TIFF"), "not_finite"),
}

WHITE = "alpha_over_white"
SCALED = "scaled_to_8_bits"
ACCEPTED: dict[str, tuple[Callable[[], bytes], Accepted]] = {
    **{
        f"exif orientation {turn}": (
            lambda turn=turn: with_exif("PNG", turn),
            Accepted((48, 32) if turn < 5 else (32, 48), TURNS[turn](PHOTO), None if turn == 1 else "exif_rotated"),
        )
        for turn in TURNS
    },
    "exif orientation 9": (lambda: with_exif("PNG", 9), Accepted((48, 32), PHOTO)),
    "exif orientation 6 in tiff": (
        lambda: with_exif("TIFF", 6),
        Accepted((32, 48), TURNS[6](PHOTO), "exif_rotated"),
    ),
    "exif orientation 6 in webp": (
        lambda: with_exif("WEBP", 6, lossless=True),
        Accepted((32, 48), TURNS[6](PHOTO), "exif_rotated"),
    ),
    "broken exif in jpeg": (
        lambda: jpeg_with(b"Exif\0\0garbage garbage"),
        Accepted((8, 8), (10, 200, 30), None, tolerance=2),
    ),
    "broken exif in png": (
        lambda: saved(PHOTO, "PNG", exif=b"Exif\0\0garbage"),
        Accepted((48, 32), PHOTO, "exif_unreadable"),
    ),
    "exif cut off": (
        lambda: jpeg_with(b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
        Accepted((8, 8), (10, 200, 30), None, tolerance=2),
    ),
    "broken colour profile in png": (
        lambda: saved(PHOTO, "PNG", icc_profile=b"broken"),
        Accepted((48, 32), PHOTO),
    ),
    "broken colour profile in jpeg": (
        lambda: plain((10, 200, 30), "JPEG", icc_profile=b"broken", quality=95),
        Accepted((8, 8), (10, 200, 30), tolerance=2),
    ),
    "cmyk tiff": (lambda: plain((255, 0, 55, 0), "TIFF", "CMYK"), Accepted((8, 8), (0, 255, 200))),
    "cmyk jpeg": (
        lambda: plain((255, 0, 0, 0), "JPEG", "CMYK", quality=95),
        Accepted((8, 8), (0, 255, 255), tolerance=2),
    ),
    "ycbcr jpeg": (  # JFIF: R = Y + 1.402 (Cr - 128) and so on
        lambda: plain((76, 85, 255), "JPEG", "YCbCr", quality=95),
        Accepted((8, 8), (254, 0, 0), tolerance=2),
    ),
    "ycbcr tiff": (lambda: plain((76, 85, 255), "TIFF", "YCbCr"), Accepted((8, 8), (254, 0, 0), tolerance=2)),
    "lab tiff": (
        lambda: plain((128, 128, 128), "TIFF", "LAB"),
        Accepted((8, 8), (lightness(100 * 128 / 255),) * 3, tolerance=1),
    ),
    "grey": (lambda: saved(PHOTO[..., 0], "PNG"), Accepted((48, 32), grey(PHOTO[..., 0]))),
    "grey and alpha": (lambda: plain((0, 51), "PNG", "LA"), Accepted((8, 8), 204, WHITE, tolerance=1)),
    "colour and alpha": (
        lambda: plain((200, 0, 100, 51), "PNG", "RGBA"),
        Accepted((8, 8), (244, 204, 224), WHITE, tolerance=1),
    ),
    "webp with alpha": (
        lambda: plain((200, 0, 0, 0), "WEBP", "RGBA", lossless=True),
        Accepted((8, 8), 255, WHITE),
    ),
    "palette": (palette, Accepted((8, 8), chessboard((10, 20, 30), (200, 100, 50)))),
    "palette with a transparent colour": (
        lambda: palette(transparency=0),
        Accepted((8, 8), chessboard((255, 255, 255), (200, 100, 50)), WHITE),
    ),
    "palette with alpha": (
        lambda: palette(transparency=b"\x33\xff"),
        Accepted((8, 8), chessboard((206, 208, 210), (200, 100, 50)), WHITE, tolerance=1),
    ),
    "colour with a transparent colour": (
        lambda: plain((1, 2, 3), "PNG", transparency=(1, 2, 3)),
        Accepted((8, 8), 255, WHITE),
    ),
    "16-bit grey with a transparent value": (
        lambda: png(8, 8, 16, 0, (b"\0" + b"\x80\x00" * 8) * 8, chunk(b"tRNS", b"\x80\x00")),
        Accepted((8, 8), 255, f"{SCALED},{WHITE}"),
    ),
    "1 bit": (
        lambda: saved(Image.fromarray(grey(np.eye(8))[..., 0] > 0), "PNG"),
        Accepted((8, 8), grey(np.eye(8) * 255)),
    ),
    "16-bit grey png": (lambda: saved(RAMP16, "PNG"), Accepted((8, 8), grey(np.rint(RAMP16 / 257)), SCALED)),
    "16-bit grey tiff": (lambda: saved(RAMP16, "TIFF"), Accepted((8, 8), grey(np.rint(RAMP16 / 257)), SCALED)),
    "16-bit grey tiff, big endian": (
        lambda: saved(RAMP16.astype(">u2"), "TIFF"),
        Accepted((8, 8), grey(np.rint(RAMP16 / 257)), SCALED),
    ),
    "16-bit grey pgm": (
        lambda: b"P5\n8 8\n65535\n" + RAMP16.astype(">u2").tobytes(),
        Accepted((8, 8), grey(np.rint(RAMP16 / 257)), SCALED),
    ),
    "16-bit colour png": (
        lambda: png(8, 8, 16, 2, (b"\0" + struct.pack(">3H", 1000, 30_000, 65_535) * 8) * 8),
        Accepted((8, 8), (1000 / 257, 30_000 / 257, 255), tolerance=1),
    ),
    "32-bit tiff": (
        lambda: saved(RAMP16.astype(np.int32) * 2, "TIFF"),
        Accepted((8, 8), grey(np.minimum(np.rint(RAMP16 * 2.0 / 257), 255)), SCALED),
    ),
    "float tiff of 0 to 1": (
        lambda: saved(UNIT, "TIFF"),
        Accepted((8, 8), grey(np.rint(UNIT.astype(float) * 255)), SCALED),
    ),
    "float tiff of 0 to 200": (
        lambda: saved(UNIT * 200, "TIFF"),
        Accepted((8, 8), grey(np.rint(UNIT * 200)), SCALED),
    ),
    "float tiff of -1 to 1": (
        lambda: saved(UNIT * 2 - 1, "TIFF"),
        Accepted((8, 8), grey(np.clip(np.rint((UNIT * 2 - 1).astype(float) * 255), 0, 255)), SCALED),
    ),
    "animated gif": (lambda: two_frames("GIF"), Accepted((16, 16), (255, 0, 0), "first_frame")),
    "animated webp": (lambda: two_frames("WEBP", lossless=True), Accepted((16, 16), (255, 0, 0), "first_frame")),
    "animated png": (lambda: two_frames("PNG"), Accepted((16, 16), (255, 0, 0), "first_frame")),
    "animated png cut in its second frame": (
        lambda: two_frames("PNG")[:-60],
        Accepted((16, 16), (255, 0, 0), "first_frame"),
    ),
    "tiff of two pages": (lambda: two_frames("TIFF"), Accepted((16, 16), (255, 0, 0), "first_frame")),
    "two pictures in a jpeg": (
        lambda: two_frames("MPO", quality=95),
        Accepted((16, 16), (254, 0, 0), "first_frame", tolerance=2),
    ),
    "tiff whose second page is its first": (lambda: tiff(8, 8, next_page=72), Accepted((8, 8), 128)),
    "gif with a transparent colour": (
        lambda: plain(0, "GIF", "P", transparency=0),
        Accepted((8, 8), 255, WHITE),
    ),
    "jpeg with garbage after its end": (
        lambda: plain((10, 200, 30), "JPEG", quality=95) + b"garbage" * 100,
        Accepted((8, 8), (10, 200, 30), tolerance=2),
    ),
    "png without its end": (lambda: saved(PHOTO, "PNG")[:-12], Accepted((48, 32), PHOTO)),
    "png that holds more than it claims": (lambda: png(8, 8, 8, 0, bytes(10**8)), Accepted((8, 8), 0)),
    "ppm in text": (lambda: b"P3\n8 8\n255\n" + b"1 2 3 " * 64, Accepted((8, 8), (1, 2, 3))),
    "pbm": (lambda: b"P4\n8 8\n" + b"\xff" * 8, Accepted((8, 8), 0)),
    "tiff with jpeg inside": (
        lambda: plain((10, 200, 30), "TIFF", compression="jpeg", quality=95),
        Accepted((8, 8), (10, 200, 30), tolerance=3),
    ),
}

# An image of 7 x 5 has these masks.
MASKS: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "no mask": (lambda: None, "mask_missing"),
    "mask of no format": (lambda: b"no image", "mask_unidentified"),
    "svg as a mask": (lambda: b"<svg/>", "mask_format_not_allowed"),
    "half a mask": (lambda: half("PNG"), "mask_truncated"),
    "mask turned": (lambda: encode_png(np.zeros((7, 5), np.uint8)), "mask_size"),
    "mask of NaN": (lambda: saved(np.full((5, 7), np.nan, np.float32), "TIFF"), "mask_not_finite"),
    "mask of 100k x 100k": (lambda: png(100_000, 100_000, 8, 2), "mask_too_many_pixels"),
    "mask above the byte limit": (lambda: bytes(Limits.max_bytes + 1), "mask_too_many_bytes"),
    "mask of 1 x 1": (lambda: saved(PHOTO[:1, :1], "PNG"), "mask_too_small"),
    "mask of 4 x 2000": (lambda: saved(np.zeros((2000, 4), np.uint8), "PNG"), "mask_too_elongated"),
}

CASES = [
    *(Case(f"image: {name}", "image", make, Quarantined(reason)) for name, (make, reason) in REFUSED.items()),
    *(Case(f"image: {name}", "image", make, expected) for name, (make, expected) in ACCEPTED.items()),
    *(Case(f"mask: {name}", "mask", make, Quarantined(reason)) for name, (make, reason) in MASKS.items()),
]
