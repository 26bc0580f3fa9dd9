"""Stage: ordinary inference of every model over data set and pool. An audit of a data set starts here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from audit.config import Frozen, Job
from audit.decode import decode
from audit.labels.contradictions import contradictory_labels
from audit.methods import Context, Counts, Payload, check_model, chunks
from audit.models import can_predict, folder_of
from audit.models.doubts import warnings_of_models
from audit.models.prediction_rows import Place
from audit.models.stored import rows_of_stored
from audit.predictions import look, rows_of
from audit.results.schema import Rows
from audit.results.warnings import warning_rows

ONCE, ITEMS = True, "items"
VERSION = 3
SIDES = 1000  # images whose size is compared with the input of the models


class Activations(Frozen):
    """Of a model, what goes into its last linear layer, or what comes out of the module `layer`."""

    model: str
    layer: str | None = None


AsActivations = Annotated[
    Activations, BeforeValidator(lambda value: {"model": value} if isinstance(value, str) else value)
]


class Options(Frozen):
    unit_items: int = Field(500, ge=1, description="images in a unit of work")
    activations: Annotated[tuple[AsActivations, ...], Field(strict=False)] = Field(
        (),
        description="whose activations are stored: a model id, for the inputs of its last linear layer, which "
        "'neurons: auto' reads; or {model: id, layer: module}, for a neuron stage with that 'layer'",
    )

    def stores(self, model_id: str) -> bool:
        """Whether the inputs of a model's last linear layer are stored."""
        return Activations(model=model_id) in self.activations


def check(options: Options, job: Job) -> None:
    for stored in options.activations:
        check_model(job, "screen: activations", stored.model)


def plan(options: Options, context: Context) -> Iterator[Payload]:
    """Chunks of the usable items; of equal images in one role, the first is screened."""
    doubted = False
    for role in ("data", "pool"):
        count = "select count(distinct item_id) from items where status = 'ok' and role = ?"
        (total,) = next(context.run.stream(count, [role]))
        items = context.run.stream(
            "select uri, item_id, label from items where status = 'ok' and role = ? "
            "qualify row_number() over (partition by item_id order by position) = 1 order by position",
            [role],
        )
        for chunk in chunks(items, options.unit_items, total):
            first = {} if doubted else {"doubts": True}  # one unit says what is not known of the models
            yield {"role": role, "items": chunk, **first}
            doubted = True


def expected(options: Options, counts: Counts) -> int:
    return counts.data + counts.pool


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: predictions, arrays with embeddings and activations, and in one unit warnings of the models.

    An image that changed since the inventory becomes a failed row.
    """
    role, items = payload["role"], payload["items"]
    stored = _stored(role, items, context)
    if payload.get("doubts"):
        found = [*warnings_of_models(context.models, _sides(context)), *contradictory_labels(context.run)]
        stored["warnings"] += warning_rows(found)
    if not shows_images(context):
        return stored
    contents = context.models.source(role).read([uri for uri, _, _ in items])
    seen: list[tuple[str, str | None]] = []
    gone: list[tuple[str, str | None]] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        """One image after the other, so that no more than one is held."""
        for (_, item_id, label), data in zip(items, contents, strict=True):
            if data is None or hashlib.sha256(data).hexdigest() != item_id:
                gone.append((item_id, label))
                continue
            seen.append((item_id, label))
            yield decode(data).image

    looks = look(context.models, images(), [(stored.model, stored.layer) for stored in options.activations])
    rows = rows_of(context.models, looks, [item_id for item_id, _ in seen], role, [label for _, label in seen])
    rows["predictions"] += _failed(role, gone, "changed_since_inventory", context)
    rows["predictions"] += stored["predictions"]
    return {**rows, "arrays": [*rows["arrays"], *stored["arrays"]], "warnings": stored["warnings"]}


def _sides(context: Context) -> list[int]:
    """The shorter sides of some images of the data set, in pixels."""
    query = "select least(width, height) as side from items where role = 'data' and status = 'ok' order by item_id"
    return [row["side"] for row in context.run.rows(f"{query} limit {SIDES}")]


def lost(options: Options, payload: Payload, reason: str, context: Context) -> Rows:
    """Rows of a given-up unit's images."""
    named = [(item_id, label) for _, item_id, label in payload["items"]]
    stored = _stored(payload["role"], payload["items"], context)
    failed = _failed(payload["role"], named, reason, context)
    return {**stored, "predictions": failed + stored["predictions"]}


def _failed(role: str, named: list[tuple[str, str | None]], reason: str, context: Context) -> list[dict[str, object]]:
    """A row for each model that is shown images, and each (item_id, label)."""
    base = {"role": role, "status": "failed", "reason": reason}
    return [
        {**base, "item_id": item_id, "label": label, "model_id": model_id}
        for model_id, model in context.job.models.items()
        if can_predict(model)
        for item_id, label in named
    ]


def shows_images(context: Context) -> bool:
    """Whether any model, or the embedder, has to be shown an image."""
    return context.job.embedder is not None or any(map(can_predict, context.job.models.values()))


def _stored(role: str, items: list[Any], context: Context) -> Rows:
    """Rows of the models that are known by their predictions alone."""
    named = [(item_id, label) for _, item_id, label in items]
    return rows_of_stored(context.models, role, named, lambda: _places(context))


def _places(context: Context) -> Iterator[Place]:
    """Every image that the inventory lists, with its label."""
    roots = {role: folder_of(context.job, role) for role in ("data", "pool")}
    query = "select role, item_id, uri, display_name, label, status = 'ok' from items order by role, position"
    for role, item_id, uri, name, label, usable in context.run.stream(query):
        yield Place(role, item_id, uri, name, roots[role], usable, label)
