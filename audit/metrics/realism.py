"""How close generated images are to real ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kid(x: Floats, y: Floats) -> float:
    """Kernel distance of two sets of embeddings (n, d) and (m, d): the unbiased squared MMD, lower is closer.

    Kernel (x.y + 1)^3 for embeddings of norm 1. Source: Binkowski et al., Demystifying MMD GANs, 2018, whose
    kernel divides by d because Inception's features have a norm of about sqrt(d). Needs n, m >= 2. Differs from the
    usual KID: the embeddings are those of the job's embedder, so values compare within a job only.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"KID needs at least 2 images on each side, got {n} and {m}")
    xx, yy, xy = (_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def _kernel(x: Floats, y: Floats) -> Floats:
    return np.asarray((x @ y.T + 1) ** 3)
