"""Stage: ordinary inference of every model over data set and pool. An audit of a data set starts here."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BeforeValidator, Field

from audit.config import Frozen, Job
from audit.decode import decode
from audit.methods import Context, Payload, check_model
from audit.predictions import rows_for
from audit.results.schema import Rows

ONCE = True
VERSION = 2


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


def plan(options: Options, context: Context) -> list[Payload]:
    """Chunks of the usable items; of equal images in one role, the first is screened."""
    items = context.run.rows(
        "select role, uri, item_id, label from items where status = 'ok' "
        "qualify row_number() over (partition by role, item_id order by position) = 1 order by role, position"
    )
    units: list[Payload] = []
    for role in ("data", "pool"):
        chosen = [[item["uri"], item["item_id"], item["label"]] for item in items if item["role"] == role]
        for start in range(0, len(chosen), options.unit_items):
            units.append({"role": role, "items": chosen[start : start + options.unit_items]})
    return units


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: predictions, and arrays with embeddings and activations.

    An image that changed since the inventory becomes a failed row.
    """
    role, items = payload["role"], payload["items"]
    contents = context.models.source(role).read([uri for uri, _, _ in items])
    images, ids, labels, lost = [], [], [], []
    for (_, item_id, label), data in zip(items, contents, strict=True):
        if data is None or hashlib.sha256(data).hexdigest() != item_id:
            lost.append({"item_id": item_id, "role": role, "label": label, "status": "failed"})
            continue
        images.append(decode(data).image)
        ids.append(item_id)
        labels.append(label)
    read = [(stored.model, stored.layer) for stored in options.activations]
    rows = rows_for(context.models, images, ids, role, labels, read)
    for model_id in context.job.models:
        rows["predictions"] += [{**row, "model_id": model_id, "reason": "changed_since_inventory"} for row in lost]
    return rows
