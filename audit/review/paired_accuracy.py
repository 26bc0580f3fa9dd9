"""Accuracy of two models on the same labelled images, as a whole and by class.

McNemar's exact test: of the images on which exactly one of the two models is right, fixed and broken ones are equally
likely where neither model is better. Their number then follows a binomial distribution with p = 1/2. Source: McNemar,
Psychometrika 12, 1947, in its exact form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from audit.class_names import resolve
from audit.discovery import holm
from audit.results.sql import Run

_SPELLING = pa.schema([("label", pa.string()), ("now", pa.string())])
LEVEL = 0.01  # corrected p-value below which a class counts as worse


@dataclass(frozen=True)
class Accuracy:
    """A model on the labelled images that both runs have: share right before and after, in [0, 1]; `fixed` were wrong
    and are right, `broken` the other way round; `p_value`: McNemar's exact test, two-sided, that both are as likely.
    `relabelled`: images that both runs have with labels of different classes, which are not counted."""

    model_id: str
    images: int
    before: float
    after: float
    fixed: int
    broken: int
    p_value: float
    relabelled: int = 0

    @property
    def note(self) -> str | None:
        """What is said of images that are not counted; None if there are none."""
        if not self.relabelled:
            return None
        return (
            f"{self.model_id}: images that both runs have, but whose labels name different classes, are not counted: "
            f"{self.relabelled:,}"
        )


@dataclass(frozen=True)
class WorseClass:
    """A class of which a model gets more images wrong than before, beyond chance.

    `images`: those labelled with the class that both runs have. `before`, `after`: share wrong, in [0, 1]. `share`: of
    all labelled images that both runs have, how many more are wrong. `p_corrected`: McNemar's exact test, one-sided,
    that no more images were broken than fixed, after Holm's correction over the classes of all models compared.
    """

    model_id: str
    class_name: str
    images: int
    before: float
    after: float
    share: float
    p_corrected: float

    def __str__(self) -> str:
        return (
            f"{self.model_id} is wrong on {self.after:.1%} of {self.images:,} images of “{self.class_name}”, before on "
            f"{self.before:.1%} (p = {self.p_corrected:.1g})"
        )


@dataclass(frozen=True)
class _Counts:
    """Of the images of a class: how many there are, how many were and are right, and on how many only one is."""

    model_id: str
    class_name: str
    images: int
    was_right: int
    is_right: int
    fixed: int
    broken: int


def paired_accuracy(
    before: Run, after: Run, pairs: Mapping[str, str]
) -> tuple[tuple[Accuracy, ...], tuple[WorseClass, ...]]:
    """Each model that is compared, and the classes that got worse, by how many more images are wrong. `pairs`: what
    each model of `before` is called in `after`."""
    counted = {new_id: _counts(before, after, old_id, new_id) for old_id, new_id in pairs.items()}
    accuracy = tuple(_accuracy(model_id, *found) for model_id, found in counted.items())
    return accuracy, _worse([one for counts, _ in counted.values() for one in counts])


def _counts(before: Run, after: Run, old_id: str, new_id: str) -> tuple[list[_Counts], int]:
    """The counts of each class, spelled as in `after`, and the number of images with another class in each run."""
    # 64 bits for an id of 64 characters: in ten million images two are taken for one with a chance of 3 in a million.
    query = (
        "select hash(item_id) as image, any_value(label) as label, any_value(correct) as correct "
        "from predictions where role = 'data' and correct is not null and model_id = ? group by image"
    )
    old, new = before.sql(query, [old_id]), after.sql(query, [new_id])
    spelled = pc.unique(new["label"]).to_pylist()
    labels = pc.unique(old["label"]).to_pylist()
    spelling = pa.table({"label": labels, "now": [resolve(label, spelled) for label in labels]})
    with duckdb.connect() as connection:
        for name, table in (("old", old), ("new", new), ("spelling", spelling.cast(_SPELLING))):
            connection.register(name, table)
        rows = connection.execute(
            "select now is not distinct from new.label as same, new.label, count(*), count(*) filter (old.correct), "
            "count(*) filter (new.correct), count(*) filter (new.correct and not old.correct), "
            "count(*) filter (old.correct and not new.correct) from old join spelling using (label) "
            "join new using (image) group by all order by new.label"
        ).fetchall()
    counts = [_Counts(new_id, *row) for same, *row in rows if same]
    return counts, sum(row[2] for row in rows if not row[0])


def _accuracy(model_id: str, counts: Sequence[_Counts], relabelled: int) -> Accuracy:
    images, fixed, broken = (sum(getattr(one, key) for one in counts) for key in ("images", "fixed", "broken"))
    before, after = (sum(getattr(one, key) for one in counts) / max(images, 1) for key in ("was_right", "is_right"))
    p_value = float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0
    return Accuracy(model_id, images, before, after, fixed, broken, p_value, relabelled)


def _worse(counts: Sequence[_Counts]) -> tuple[WorseClass, ...]:
    images = {one.model_id: 0 for one in counts}
    for one in counts:
        images[one.model_id] += one.images
    found = [
        WorseClass(
            one.model_id,
            one.class_name,
            one.images,
            1 - one.was_right / one.images,
            1 - one.is_right / one.images,
            (one.broken - one.fixed) / images[one.model_id],
            p_corrected,
        )
        for one, p_corrected in zip(counts, holm([_p_value(one) for one in counts]), strict=True)
        if p_corrected < LEVEL
    ]
    return tuple(sorted(found, key=lambda one: (-one.share, one.class_name, one.model_id)))


def _p_value(one: _Counts) -> float:
    changed = one.fixed + one.broken
    return float(stats.binomtest(one.broken, changed, alternative="greater").pvalue) if changed else 1.0
