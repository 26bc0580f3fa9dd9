"""Decoding beside the bad-input corpus (test_bad_input.py): limits, encoders and the values of masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from audit.decode import Limits, decode, decode_mask, encode_png
from audit.errors import BadItem
from tests.bad_images import PHOTO, saved

RNG = np.random.default_rng(0)
PNG = saved(PHOTO, "PNG")


def test_the_byte_limit_comes_before_anything_else() -> None:
    with pytest.raises(BadItem) as caught:
        decode(PNG, Limits(max_bytes=10))
    assert caught.value.reason == "too_many_bytes"


def test_png_round_trip_is_lossless() -> None:
    assert np.array_equal(decode(encode_png(PHOTO)).image, PHOTO)


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
