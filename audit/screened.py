"""What the screening pass stored of real images, as arrays: a model's activations, what it says, what a check sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from audit import suspects
from audit.decode import decode
from audit.models import Models
from audit.neurons import stored_as
from audit.pictures import image_row
from audit.results.sql import Run

Floats = NDArray[np.float32]
Names = NDArray[np.object_]

_EMBEDDINGS = (
    "select subject_id as item_id, role, values as checked from arrays where name = 'embedding' and values is not null"
)
_PREDICTIONS = "select item_id, role, predicted as checked from predictions where model_id = ? and status = 'ok'"


@dataclass(frozen=True)
class Screened:
    """Real images of data set and pool. `labels` are '' where there is none."""

    ids: Names
    activations: Floats
    labels: Names
    says: Names
    checks: Names

    def ranking(self, weights: NDArray[np.float64], class_name: str) -> suspects.Ranking:
        """The units' order of suspicion for a class; weights (units,) are those from unit to class.

        Triggers are told by images that propose failure modes alone, as what is asked of the others must not be why a
        unit was chosen: they count as if the check saw the class, and so are on neither side.
        """
        name = class_name
        labelled, says, sees = self.labels == name, self.says == name, self.checks == name
        apart = sees | ~naming_half(self.ids)
        return suspects.rank(self.activations.astype(np.float64), weights, labelled, says, apart)


def screened(
    run: Run, model_id: str, check: str | Callable[[Floats], Names], layer: str | None = None
) -> Screened | None:
    """The images with stored activations of a model's layer, by default the input of its last linear one; None where
    there are none.

    check: the id of a model whose predictions were stored, or a function from embeddings (n, d) to class names (n,).
    """
    source = _EMBEDDINGS if callable(check) else _PREDICTIONS
    table = run.sql(
        f"with c as ({source}) select a.subject_id, a.values as units, coalesce(p.label, '') as label, p.predicted, "
        "c.checked from arrays a join c on c.item_id = a.subject_id and c.role = a.role "
        "join predictions p on p.item_id = a.subject_id and p.role = a.role and p.model_id = a.model_id "
        "where a.name = ? and a.model_id = ? and a.values is not null and p.status = 'ok' "
        "and a.role in ('data', 'pool') "
        "qualify row_number() over (partition by a.subject_id order by a.role) = 1 order by a.subject_id",
        [*([] if callable(check) else [check]), stored_as(layer), model_id],
    )
    if not len(table):
        return None
    checked = check(matrix(table["checked"])) if callable(check) else names(table["checked"])
    return Screened(
        np.array(table["subject_id"].to_pylist(), object),
        matrix(table["units"]),
        names(table["label"]),
        names(table["predicted"]),
        checked,
    )


def naming_half(item_ids: Names) -> NDArray[np.bool_]:
    """Which images propose what a failure mode might be, (n,): half of them, by their hashes. The others are asked."""
    return np.array([int(item_id[:8], 16) % 2 == 0 for item_id in item_ids], np.bool_)


def matrix(column: pa.ChunkedArray | pa.Array) -> Floats:
    """A column of lists of one length to (n, length)."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), -1)


def names(column: pa.ChunkedArray) -> Names:
    """A column of text to (n,)."""
    return np.array(column.to_pylist(), object)


def originals(run: Run, models: Models, item_ids: list[str]) -> list[dict[str, Any]]:
    """Rows of `images` for items of data set and pool, so that a report needs nothing but the run."""
    found = run.rows(
        "select item_id, any_value(role) as role, any_value(uri) as uri from (select * from items where status = 'ok' "
        "and item_id in (select unnest(?)) order by role, position) group by item_id order by item_id",
        [item_ids],
    )
    images = []
    for role in ("data", "pool"):
        rows = [row for row in found if row["role"] == role]
        contents = models.source(role).read([row["uri"] for row in rows]) if rows else []
        for row, data in zip(rows, contents, strict=True):
            if data is not None and hashlib.sha256(data).hexdigest() == row["item_id"]:
                images.append({**image_row(decode(data).image, "original"), "image_id": row["item_id"]})
    return images
