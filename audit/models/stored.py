"""A model with stored predictions only: it cannot predict any other image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audit.class_names import folded
from audit.errors import ModelError
from audit.models.prediction_rows import Matching, Place, Rule, by_digest, match, without_row
from audit.results.schema import Rows
from audit.results.warnings import RunWarning, warning_rows

if TYPE_CHECKING:
    from audit.models import Models

NO_PREDICTION = "no_prediction"
UNUSED_PREDICTIONS = "unused_predictions"
_SHOWN = 3  # of a list, in a message


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions of n images, from a file.

    `source`: the file, for messages. `keys`: the image of each row, by path, name or sha256. `classes`: indices into
    `class_names` (n, k), the most probable first; -1 in all k where a row's scores are not finite. `confidences`: their
    probabilities (n, k); NaN where the file gives none. `labels`: the file's own, None where it has none. `match`: how
    rows and images are matched. `embeddings`: of the images (n, d), NaN in rows without one, where the file has any.
    `complete`: whether `class_names` are all classes of the model, or only those that it predicted for some image.
    `warnings`: those of its loader.
    """

    class_names: tuple[str, ...]
    source: str
    keys: tuple[str, ...]
    classes: NDArray[np.int32]
    confidences: NDArray[np.float64]
    labels: tuple[str | None, ...]
    match: Rule = "auto"
    embeddings: NDArray[np.float32] | None = field(default=None, kw_only=True)
    complete: bool = field(default=True, kw_only=True)
    warnings: tuple[RunWarning, ...] = field(default=(), kw_only=True)

    def matching(self, places: Sequence[Place]) -> Matching:
        """Match rows and images. Raises ModelError if no row belongs to an image of a role that has usable images."""
        found = match(self.keys, places, self.match, self.source)
        for role in dict.fromkeys(place.role for place in places if place.usable):
            own = [place for place in places if place.usable and place.role == role]
            if not any(place.item_id in found.rows for place in own):
                raise ModelError(self._none_of(role, own, found))
        return found

    def _none_of(self, role: str, places: Sequence[Place], found: Matching) -> str:
        rows = ", ".join(map(repr, self.keys[:_SHOWN]))
        images = ", ".join(repr(place.display_name) for place in places[:_SHOWN])
        several = ""
        if found.ambiguous:
            row, one, other = found.ambiguous[0]
            several = f"; {len(found.ambiguous)} rows fit several images, such as {self.keys[row]!r}, which fits "
            several += f"{one.display_name!r} of the {one.role} and {other.display_name!r} of the {other.role}"
        return (
            f"{self.source}: no row belongs to an image of the {role}. The first rows name {rows}; the first images of "
            f"the {role} are {images}{several}. A row must name its image by its path in the data set or a longer "
            "path, by its file name, or by the sha256 of its bytes; 'match: name' compares file names alone"
        )

    def prediction(self, row: int, label: str | None, class_of: Callable[[str], str | None] = str) -> dict[str, Any]:
        """Columns of the table `predictions` for a row.

        label: of the data set; if None, the label in the file is used, with the spelling of the class that it matches.
        class_of: maps a label to the prediction that is right for it, or to None if the model has no such class; by
        default, to the label itself.
        """
        meant = label or self.labels[row]
        right = class_of(meant) if meant else None
        label = label or right or meant
        if self.classes[row, 0] < 0:
            return {"label": label, "status": "failed", "reason": "not_finite"}
        top = [self.class_names[i] for i in self.classes[row]]
        known = not np.isnan(self.confidences[row, 0])
        said: dict[str, Any] = {"label": label, "predicted": top[0], "status": "ok", "top_classes": top}
        said["confidence"] = float(self.confidences[row, 0]) if known else None
        said["top_confidences"] = self.confidences[row].tolist() if known else None
        if right is not None:
            said["correct"] = top[0] == right
        return said

    def before_a_run(self, model_id: str, places: Sequence[Place], *, pool: bool) -> list[RunWarning]:
        """Warnings about the file that follow from the listing of the data, before any image is read.

        Empty if rows name images by sha256, or if a row fits several images, which may be copies of one. pool: whether
        the job has a pool; then rows that fit no image of the data may belong to the pool. Raises ModelError if no row
        belongs to an image of the data, or if two rows belong to one image.
        """
        if by_digest(self.keys, self.match):
            return []
        found = self.matching(places)
        if found.ambiguous:
            return []
        return [
            warning
            for warning in self.doubts(model_id, places, found)
            if not (pool and warning.code == UNUSED_PREDICTIONS)
        ]

    def doubts(
        self, model_id: str, places: Sequence[Place], found: Matching, known: Callable[[str], bool] | None = None
    ) -> list[RunWarning]:
        """Warnings about differences between the file and the data sets.

        known: whether the model has a class for a label, or the job says that it has none; default: every label is.
        """
        return [
            *(self._without_class(model_id, places, found, known) if known else ()),
            *self._copies(model_id, found),
            *self._without_prediction(model_id, places, found),
            *self._without_image(model_id, found),
            *self._not_finite(model_id, places, found),
            *self._other_labels(model_id, places, found),
        ]

    def _without_prediction(self, model_id: str, places: Sequence[Place], found: Matching) -> Iterator[RunWarning]:
        for role in dict.fromkeys(place.role for place in places):
            lacking = list(without_row(found, [place for place in places if place.role == role]))
            if lacking:
                first = ", ".join(repr(place.display_name) for place in lacking[:_SHOWN])
                message = f"{self.source}: images of the {role} without a prediction: {len(lacking):,}, such as {first}"
                if found.ambiguous:
                    message += f"; {len(found.ambiguous)} of its rows fit several images: give them longer paths"
                yield RunWarning(NO_PREDICTION, message, model_id, role, len(lacking))

    def _without_image(self, model_id: str, found: Matching) -> Iterator[RunWarning]:
        if found.unused:
            first = ", ".join(repr(self.keys[row]) for row in found.unused[:_SHOWN])
            yield RunWarning(
                UNUSED_PREDICTIONS,
                f"{self.source}: rows that belong to no image of the job: {len(found.unused):,}, such as {first}",
                model_id,
                items=len(found.unused),
                blocks_gate=False,
            )

    def _not_finite(self, model_id: str, places: Sequence[Place], found: Matching) -> Iterator[RunWarning]:
        usable = {place.item_id for place in places if place.usable}
        rows = [row for item_id, row in found.rows.items() if self.classes[row, 0] < 0 and item_id in usable]
        if rows:
            message = f"{self.source}: images whose scores are NaN, empty or infinite: {len(rows):,}, the first in row "
            message += f"{min(rows) + 1} ({self.keys[min(rows)]!r})"
            yield RunWarning("not_finite", message, model_id, items=len(rows))

    def _copies(self, model_id: str, found: Matching) -> Iterator[RunWarning]:
        """Rows of copies of one image with different predictions: some belong to other images."""
        differing = [(row, first) for row, first in found.copies if self.classes[row, 0] != self.classes[first, 0]]
        if differing:
            row, first = differing[0]
            message = f"{self.source}: rows whose prediction differs from that of an equal image: {len(differing):,}, "
            message += f"such as row {row + 1} ({self.keys[row]!r}), whose image equals that of row {first + 1} "
            message += f"({self.keys[first]!r}). Check that the rows belong to these images"
            yield RunWarning("copies_differ", message, model_id, items=len(differing))

    def _without_class(
        self, model_id: str, places: Sequence[Place], found: Matching, known: Callable[[str], bool]
    ) -> Iterator[RunWarning]:
        """Labels of the file that the model has no class for, of images of the data without a label of their own."""
        labelled = {place.item_id for place in places if place.label is not None}
        data = {place.item_id for place in places if place.usable and place.role == "data"} - labelled
        labels = [(row, self.labels[row]) for item_id, row in found.rows.items() if item_id in data]
        unknown = [row for row, label in labels if label is not None and not known(label)]
        if unknown:
            message = f"{self.source}: images whose label in the file is no class of the model: {len(unknown):,}, such "
            message += f"as {self.keys[unknown[0]]!r} with {self.labels[unknown[0]]!r}; they count as unlabelled"
            yield RunWarning("labels_unknown", message, model_id, items=len(unknown))

    def _other_labels(self, model_id: str, places: Sequence[Place], found: Matching) -> Iterator[RunWarning]:
        """Labels that differ between file and data set: the rows may belong to other images."""
        labels = {place.item_id: place.label for place in reversed(places) if place.label is not None}
        differing = [
            (row, labels[item_id])
            for item_id, row in found.rows.items()
            if item_id in labels and _differs(self.labels[row], labels[item_id])
        ]
        if differing:
            row, label = differing[0]
            message = f"{self.source}: images whose label differs from the data set's: {len(differing):,}, such as "
            message += f"{self.labels[row]!r} in the file and {label!r} in the data set for {self.keys[row]!r}. Check "
            message += "that the rows belong to these images; the labels of the data set are used"
            yield RunWarning("labels_differ", message, model_id, items=len(differing))


def _differs(own: str | None, label: str) -> bool:
    return own is not None and folded(own) != folded(label)


@dataclass(frozen=True)
class Matched:
    """The matched rows of a model, its warnings, and the first usable image of each role."""

    matching: Matching
    warnings: tuple[RunWarning, ...]
    first: dict[str, str]


def matched(
    stored: StoredPredictions, model_id: str, places: Sequence[Place], known: Callable[[str], bool] | None = None
) -> Matched:
    """Match the rows of a model. `known`: as in `StoredPredictions.doubts`.

    Raises ModelError if no row belongs to an image of a role, or two rows to one image.
    """
    found = stored.matching(places)
    first: dict[str, str] = {}
    for place in places:
        if place.usable:
            first.setdefault(place.role, place.item_id)
    return Matched(found, tuple(stored.doubts(model_id, places, found, known)), first)


def rows_of_stored(
    models: Models, role: str, named: Sequence[tuple[str, str | None]], places: Callable[[], Iterable[Place]]
) -> Rows:
    """Rows of the models with stored predictions only: predictions, embeddings and warnings.

    named: (item_id, label) of each image. places: lists all images of the job; called once per process. Embeddings are
    those of the first model whose file has any. If the job has an embedder, they are left out, since embeddings of two
    models cannot be compared. Warnings are returned with the first image of their role, or of the data if they have no
    role.
    """
    predictions: list[dict[str, Any]] = []
    arrays: list[dict[str, Any]] = []
    warnings: list[RunWarning] = []
    ids = {item_id for item_id, _ in named}
    for model_id, stored in models.stored():
        found = models.matched(model_id, stored, places)
        base, class_of = {"role": role, "model_id": model_id}, models.matching(model_id).class_of
        for item_id, given in named:
            row, label = found.matching.rows.get(item_id), None if given is None else models.classes.label_of(given)
            said = _NOTHING | {"label": label} if row is None else stored.prediction(row, label, class_of)
            predictions.append({**base, "item_id": item_id, **said})
        if models.job.embedder is None and not arrays and stored.embeddings is not None:
            base = {"role": role, "name": "embedding", "model_id": model_id}
            rows = {item_id: found.matching.rows[item_id] for item_id in ids & found.matching.rows.keys()}
            arrays = [{**base, "subject_id": i, **_array(stored.embeddings[row])} for i, row in sorted(rows.items())]
        if found.first.get(role) in ids:
            warnings += [one for one in found.warnings if (one.role or "data") == role]
    return {"predictions": predictions, "arrays": arrays, "warnings": warning_rows(warnings)}


def _array(values: NDArray[np.float32]) -> dict[str, Any]:
    if not np.isfinite(values).all():
        return {"reason": "not_finite"}
    return {"values": values.tolist(), "shape": [len(values)]}


_NOTHING: dict[str, Any] = {"status": "failed", "reason": NO_PREDICTION}
