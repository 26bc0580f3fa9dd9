"""Derive a status from the excess of two models: new, fixed, unchanged or unclear.

The excess is a model's error rate on images with a feature minus that on control images. Both models predict the same
images, so the change of the excess is a paired difference of risk differences. All intervals are 95 % intervals.
The equivalence margin is half of the excess (`MARGIN`). The rule, in this order:

- `new`: the run after confirmed the failure mode, the interval of the change lies above 0, and the excess before is
  less than half of the excess after.
- `fixed`: the run before confirmed it and the run after did not, the interval of the change lies below 0, and the
  excess after is less than half of the excess before.
- `unchanged`: both runs confirmed it.
- `unclear`: the runs share too few images to compare; or the interval of the excess in the run that confirmed it
  reaches 0; or the interval of the excess in the other run reaches 0 and that excess is less than half of the
  *lower* end of the first one. The lower end is used because of the winner's curse: a mode is confirmed for a
  large measured excess, so its true excess, and that of an equal model that is trained again, is likely smaller.
- `unchanged`: all other cases. No change is shown, or more than half of the excess is left.
"""

from __future__ import annotations

from typing import Literal

from audit.discovery import Interval
from audit.metrics.excess import PairedExcess

Status = Literal["new", "fixed", "unchanged", "unclear"]

MARGIN = 0.5  # share of the larger excess below which the smaller one counts as gone


def status_of(was: bool, now: bool, excess: PairedExcess) -> Status:
    """The status of a failure mode that at least one run confirmed. was, now: whether the run before and after
    confirmed it."""
    before, after, change = excess.before.excess, excess.after.excess, excess.change
    if now and change.low > 0 and before.value < MARGIN * after.value:
        return "new"
    if was and not now and change.high < 0 and after.value < MARGIN * before.value:
        return "fixed"
    if was and now:
        return "unchanged"
    first, other = (before, after) if was else (after, before)
    if first.low <= 0 or (other.low <= 0 and other.value < MARGIN * first.low):
        return "unclear"
    return "unchanged"


def reason_for(excess: PairedExcess) -> str:
    """The figures behind a status, in one line."""
    before, after = excess.before, excess.after
    return (
        f"error rate on {excess.images} images with the feature: {before.rate:.0%} before, {after.rate:.0%} after; on "
        f"{excess.control_images} control images of the same classes: {before.control_rate:.0%} before, "
        f"{after.control_rate:.0%} after; excess: {_percent(before.excess)} before, {_percent(after.excess)} after; "
        f"change: {_percent(excess.change)}"
    )


def not_comparable(images: int, controls: int, confirmed: Literal["first", "second"]) -> str:
    """Why a mode that only one run confirmed cannot be compared. images, controls: their numbers in that run."""
    other = "second" if confirmed == "first" else "first"
    unconfirmed = f"the {other} run did not confirm it, and"
    if not images:
        return (
            f"{unconfirmed} the {confirmed} run stores no images to compare: run its discovery again with this version"
        )
    return (
        f"{unconfirmed} screened too few of the images on which the {confirmed} run confirmed it "
        f"({images} with the feature, {controls} without)"
    )


def _percent(interval: Interval) -> str:
    return f"{interval.value:+.0%} [{interval.low:.0%}, {interval.high:.0%}]"
