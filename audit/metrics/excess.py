"""The excess error rate of a model on images with a feature over control images, before and after a change.

The excess is a standardised risk difference: in each stratum s (a class) the error rate of the images with the feature
minus that of the control images, weighted by w_s, the share of the images with the feature that are in s,

    e = sum_s w_s (p_s1 - p_s0),          arm 1: with the feature, arm 0: controls.

Its 95 % interval combines Wilson's intervals (l, u) of the rates by MOVER (Zou and Donner 2008, eq. 6), with
delta_sa the distance of a rate from the end of its interval:

    low  = e - sqrt(sum_s w_s^2 ((p_s1 - l_s1)^2 + (u_s0 - p_s0)^2))
    high = e + sqrt(sum_s w_s^2 ((u_s1 - p_s1)^2 + (p_s0 - l_s0)^2))

Both models predict the same images, so the change of the excess is a difference of paired differences,

    c = sum_s w_s (d_s1 - d_s0),          d_sa = q_sa - p_sa: the rate after minus the rate before on the same images,

Each d_sa has Newcombe's interval for paired rates (1998, method 10), where phi is the correlation of the errors of the
two models, corrected for continuity:

    L = d - sqrt((q - l_q)^2 - 2 phi (q - l_q)(u_p - p) + (u_p - p)^2)
    U = d + sqrt((u_q - q)^2 - 2 phi (u_q - q)(p - l_p) + (p - l_p)^2)

MOVER combines these as above. There is no resampling, so the same images give the same interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from audit.discovery import Bools, Interval, Names

Array = NDArray[np.float64]
_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Excess:
    """One model: its error rate on images with the feature, its rate on the controls with the same weights of the
    strata, and their difference with its 95 % interval; all in [-1, 1]."""

    rate: float
    control_rate: float
    excess: Interval


@dataclass(frozen=True)
class PairedExcess:
    """Two models on the same images. `images` (with the feature) and `control_images`: counts in the strata that have
    both. `errors`: of each model on `images`. `change`: the excess after minus the excess before."""

    images: int
    control_images: int
    errors: tuple[int, int]
    before: Excess
    after: Excess
    change: Interval


@dataclass(frozen=True)
class _Arm:
    """The images of one arm by stratum (s,): their number, and how many of them both models, the model before, and the
    model after get wrong."""

    n: Array
    both: Array
    before: Array
    after: Array

    @property
    def d(self) -> Array:
        return (self.after - self.before) / self.n

    def paired(self) -> tuple[Array, Array]:
        """How far the interval of `d` reaches below and above it, (s,) each."""
        p, q = self.before / self.n, self.after / self.n
        (l_p, u_p), (l_q, u_q) = (_wilson(each, self.n) for each in (self.before, self.after))
        phi = self._phi()
        below = _norm(q - l_q, u_p - p, phi)
        above = _norm(u_q - q, p - l_p, phi)
        return below, above

    def _phi(self) -> Array:
        neither = self.n - self.before - self.after + self.both
        a = self.both * neither - (self.before - self.both) * (self.after - self.both)
        a = np.where(a > 0, np.maximum(a - self.n / 2, 0), a)
        scale = np.sqrt(self.before * (self.n - self.before) * self.after * (self.n - self.after))
        return np.divide(a, scale, out=np.zeros_like(a), where=scale > 0)


def paired_excess(before: Bools, after: Bools, shows: Bools, strata: Names) -> PairedExcess | None:
    """Compare the errors of two models, `before` and `after`, on images with a feature (`shows`) and on controls.

    All (p,). strata: the class of each image; a stratum without images of both kinds is left out. None if no stratum
    has both.
    """
    _, code = np.unique(strata.astype(str), return_inverse=True)
    arms = [_arm(before, after, code, shows == side) for side in (True, False)]
    kept = (arms[0].n > 0) & (arms[1].n > 0)
    if not kept.any():
        return None
    one, other = (_Arm(*(each[kept] for each in (arm.n, arm.both, arm.before, arm.after))) for arm in arms)
    weights = one.n / one.n.sum()
    (below, above), (control_below, control_above) = one.paired(), other.paired()
    change = float(weights @ (one.d - other.d))
    return PairedExcess(
        int(one.n.sum()),
        int(other.n.sum()),
        (int(one.before.sum()), int(one.after.sum())),
        _excess(one.before, other.before, one.n, other.n),
        _excess(one.after, other.after, one.n, other.n),
        Interval(
            change,
            change - _length(weights, below, control_above),
            change + _length(weights, above, control_below),
        ),
    )


def _arm(before: Bools, after: Bools, code: NDArray[Any], inside: Bools) -> _Arm:
    def count(chosen: Bools) -> Array:
        return np.bincount(code[chosen & inside], minlength=int(code.max()) + 1).astype(np.float64)

    return _Arm(count(np.ones_like(inside)), count(before & after), count(before), count(after))


def _excess(hits: Array, control_hits: Array, n: Array, m: Array) -> Excess:
    weights, p, q = n / n.sum(), hits / n, control_hits / m
    (low, high), (control_low, control_high) = _wilson(hits, n), _wilson(control_hits, m)
    rate, control_rate = float(weights @ p), float(weights @ q)
    down = _length(weights, p - low, control_high - q)
    up = _length(weights, high - p, q - control_low)
    value = rate - control_rate
    return Excess(rate, control_rate, Interval(value, value - down, value + up))


def _wilson(hits: Array, n: Array) -> tuple[Array, Array]:
    p, z = hits / n, _Z
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def _norm(a: Array, b: Array, phi: Array) -> Array:
    return np.sqrt(np.maximum(a**2 - 2 * phi * a * b + b**2, 0))


def _length(weights: Array, a: Array, b: Array) -> float:
    return float(np.sqrt(weights**2 @ (a**2 + b**2)))
