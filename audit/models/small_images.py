"""Warn of images that are much smaller than a model's input: the input size of the model may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from audit.results.warnings import RunWarning

FACTOR = 0.5  # of the input's shorter side, below which images count as much smaller


def small_images(
    model_id: str, size: tuple[int, int], sides: Sequence[int], role: str = "data", python: bool = False
) -> RunWarning | None:
    """A warning if the median of the images' shorter sides is below half of the input's; else None.

    size: height and width of the model's input, in pixels. sides: the shorter side of each examined image, in pixels.
    python: whether the job file can set the size, by `input_size`.
    """
    if not sides or median_low(sides) >= FACTOR * min(size):
        return None
    middle, height, width = median_low(sides), *size
    cure = "if the model was trained on such images, set input_size to their size in the job file"
    cure = cure if python else "check that the model was trained on such enlarged images"
    message = (
        f"{model_id}: half of the {len(sides)} examined images of the {role} have a shorter side of {middle} pixels or "
        f"less. They are enlarged to the model's input of {height} x {width}; {cure}"
    )
    return RunWarning("small_images", message, model_id, role, blocks_gate=False)
