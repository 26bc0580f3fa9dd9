"""How often `audit compare` says what of two models of which it is known whether they differ.

A draw is what two runs would compare: images with a feature and four times as many control images, on which models err
by chance. The run of one model has to have confirmed the failure mode first (the exact test at .01, corrected by Holm
for `TESTS` modes, and an excess of at least .05), which is what makes equal models look different: of a weak failure
mode the run that confirmed it is the one in which it happened more often.

    python -m benchmarks.comparison --draws 2000
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from audit.discovery import Bools
from audit.metrics.excess import paired_excess
from audit.review.decision import Status, status_of

SIZES = (10, 25, 100, 500)
CONTROLS, TESTS, LEVEL, LEAST = 4, 10, 0.01, 0.05
STATUSES: tuple[Status, ...] = ("new", "fixed", "unclear", "unchanged")


@dataclass(frozen=True)
class World:
    """Error rates of the model before and after on images with the feature; both err on `control` of the others.

    `shared`: on this share of the images both models err by the same draw, as models do that find the same images hard;
    1 is one and the same model.
    """

    before: float
    after: float
    control: float = 0.05
    shared: float = 0.5


def worlds(strong: float, shared: float) -> dict[str, World]:
    """Equal models and a planted failure that comes or goes."""
    return {
        "identical": World(strong, strong, shared=1.0),
        "trained again": World(strong, strong, shared=shared),
        "new": World(0.05, strong, shared=shared),
        "fixed": World(strong, 0.05, shared=shared),
    }


def statuses(world: World, images: int, draws: int, seed: int = 0) -> Counter[Status]:
    """Of this many draws, the statuses of those in which at least one run confirmed the failure mode."""
    rng = np.random.default_rng(seed)
    shows = np.arange(images * (1 + CONTROLS)) < images
    strata = np.full(len(shows), "", object)
    found: Counter[Status] = Counter()
    for _ in range(draws):
        u = rng.random(len(shows))
        v = np.where(rng.random(len(shows)) < world.shared, u, rng.random(len(shows)))
        before = u < np.where(shows, world.before, world.control)
        after = v < np.where(shows, world.after, world.control)
        was, now = confirmed(before, shows), confirmed(after, shows)
        if was or now:
            excess = paired_excess(before, after, shows, strata)
            assert excess is not None
            found[status_of(was, now, excess)] += 1
    return found


def confirmed(wrong: Bools, shows: Bools) -> bool:
    """As discovery judges a mode of one stratum: Fisher's exact test, one-sided, corrected, and the least excess."""
    hits, images, errors = int((wrong & shows).sum()), int(shows.sum()), int(wrong.sum())
    excess = hits / images - (errors - hits) / (len(shows) - images)
    p_value = stats.hypergeom.sf(hits - 1, len(shows), errors, images)
    return bool(excess >= LEAST and p_value * TESTS < LEVEL)


def measured(draws: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Shares of the draws: how many confirmed anything and, of all draws, how many ended with each status."""
    for images, strong, shared in product(SIZES, (0.12, 0.3, 0.6, 1.0), (0.0, 0.5)):
        for name, world in worlds(strong, shared).items():
            found = statuses(world, images, draws, seed)
            row: dict[str, Any] = {"images": images, "rate": strong, "shared": world.shared, "world": name}
            row["confirmed"] = found.total() / draws
            yield row | {status: found[status] / draws for status in STATUSES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=1000)
    for row in measured(parser.parse_args().draws):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
