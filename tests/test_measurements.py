"""What is measured of counterfactuals, on images of a few pixels, written out."""

from __future__ import annotations

import math

import pytest
import torch

from audit import measurements
from audit.classifiers import Classifier, Preprocess
from audit.counterfactual import Original
from audit.decisions import Decision
from audit.diffusion.optimise import Variables
from audit.diffusion.prompt_to_prompt import Recording

NOTHING = torch.empty(2, 0)


def originals(masks: torch.Tensor) -> Original:
    images = torch.full((2, 3, 12, 12), 0.5)
    variables = Variables(NOTHING, NOTHING, NOTHING)
    return Original(images, NOTHING, images, ("", ""), ("", ""), variables, Recording(), images, masks)


def decision() -> Decision:
    model = Classifier(
        ("red", "green", "blue"), Preprocess((12, 12)), lambda x: 10 * x.mean((-1, -2)), torch.nn.Identity()
    )
    return Decision(model, ["red", "green"], ["blue", "red"])


def test_each_background_is_that_of_its_own_mask() -> None:
    """Two changes, in different corners: the search's mask covers one, the source's the other, one covers all."""
    changed = torch.full((2, 3, 12, 12), 0.5)
    changed[:, :, :6, :6] += 0.1
    changed[:, :, 6:, 6:] += 0.4
    source, mask = torch.zeros(2, 12, 12), torch.zeros(2, 12, 12)
    source[:, :6, :6] = 1.0
    mask[0, 6:, 6:], mask[1] = 1.0, 1.0
    found = measurements.measured({"result": changed}, originals(source), mask, decision(), None)["result"]
    # of the 144 pixels a mask covers 36, of the 108 others 36 have changed
    assert found["background_rmse"] == [pytest.approx(0.1 / math.sqrt(3), rel=1e-5), None]
    assert found["source_background_rmse"] == [pytest.approx(0.4 / math.sqrt(3), rel=1e-5)] * 2
    assert found["l1"] == [pytest.approx((0.1 + 0.4) / 4, rel=1e-5)] * 2
    assert found["perceptual_distance"] == [None, None]


def test_scores_are_those_of_each_image_and_its_classes() -> None:
    """Red to blue on an image that is bluer, green to red on one that is greener; the original has no distances."""
    images = torch.full((2, 3, 12, 12), 0.5)
    images[0, 2] += 0.2
    images[1, 1] += 0.1
    variants = {"original": originals(torch.zeros(2, 12, 12)).image, "result": images}
    found = measurements.measured(variants, originals(torch.zeros(2, 12, 12)), torch.zeros(2, 12, 12), decision(), None)
    assert set(found["original"]) == {"p_source", "p_target", "flipped"}
    assert found["original"]["p_source"] == pytest.approx([1 / 3, 1 / 3])
    more, little = math.exp(2), math.exp(1)
    assert found["result"]["p_source"] == pytest.approx([1 / (2 + more), little / (2 + little)])
    assert found["result"]["p_target"] == pytest.approx([more / (2 + more), 1 / (2 + little)])
    assert found["result"]["flipped"] == [1.0, 0.0]


def test_perceptual_distances_are_between_an_image_and_its_own_original() -> None:
    """Features of the mean colour: 1 minus the cosine of (.5, .5, .5) and (.9, .5, .5); 0 where nothing changed."""
    images = torch.full((2, 3, 12, 12), 0.5)
    images[1, 0] = 0.9
    masks = torch.zeros(2, 12, 12)
    found = measurements.measured({"result": images}, originals(masks), masks, decision(), lambda x: x.mean((-1, -2)))
    cosine = (0.45 + 0.25 + 0.25) / math.sqrt(0.75 * (0.81 + 0.25 + 0.25))
    assert found["result"]["perceptual_distance"] == pytest.approx([0.0, 1 - cosine], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "kept", "unit", "reason"),
    [
        ("psnr", 31.5, 31.5, "dB", None),
        ("psnr", math.nan, None, "dB", "not_finite"),
        ("l2", math.inf, None, "1", "not_finite"),
        ("mask_area", 0.0, 0.0, "share of the image", None),
        ("background_rmse", None, None, "1", "the mask covers the whole image"),
        ("source_background_rmse", None, None, "1", "the source's mask covers the whole image"),
    ],
)
def test_a_row_has_a_value_or_a_reason(
    name: str, value: float | None, kept: float | None, unit: str, reason: str | None
) -> None:
    row = measurements.row("ab12", "2-uvce", name, "result", value)
    assert (row["subject_id"], row["stage"], row["name"], row["key"]) == ("ab12", "2-uvce", name, "result")
    assert (row["value"], row["unit"], row.get("reason")) == (kept, unit, reason)
