"""Scores in memory of one output per image, read as those of two classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audit.class_names import beginning
from audit.classifiers._scores import Floats, Scale
from audit.errors import ModelError


def two_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the two classes that one output tells apart. Raises ModelError if there are not two."""
    if len(names) == 2:
        return tuple(names)
    found = f"; there are {len(names)} class names: {beginning(names)}" if names else ""
    raise ModelError(
        "the model has one output: the log-odds or the probability of the second of two classes. Set "
        f"class_names=[negative, positive]. A regression cannot be audited{found}"
    )


def of_two_classes(outputs: Floats, scale: Scale, *, stored: bool) -> tuple[Floats, Scale]:
    """Outputs (n, 1) as the scores (n, 2) of two classes, and their scale; NaN in rows that are not finite.

    outputs: log-odds z of the second class for 'logits', whose softmax with 0 is (1 - sigmoid z, sigmoid z), or its
    probability. 'auto' is logits for a model with outputs outside [0, 1]. stored: whether these are an array, for which
    'auto' is refused. Raises ModelError.
    """
    values = np.where(np.isfinite(outputs), outputs, np.nan)
    finite = values[np.isfinite(values)]
    within = bool(((finite >= 0) & (finite <= 1)).all())
    if scale == "auto" and (stored or (within and len(finite))):
        found = "the scores are one number" if stored else "the model's one output lies in [0, 1]"
        raise ModelError(
            f"{found} for every image, so it may be the probability of the second class or its log-odds: set "
            "scores='probabilities' or scores='logits'"
        )
    if scale != "probabilities":
        return np.concatenate([np.zeros_like(values), values], 1), "logits"
    if not within:
        raise ModelError(
            f"scores='probabilities', but the one output has values from {finite.min():.4g} to {finite.max():.4g}. If "
            "these are log-odds of the second class, set scores='logits'"
        )
    return np.concatenate([1 - values, values], 1), "probabilities"
