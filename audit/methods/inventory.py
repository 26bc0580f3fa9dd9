"""Stage before all others: look at every image of data set and pool once, and say which can be used."""

from __future__ import annotations

import hashlib
from itertools import islice

from audit.config import Frozen
from audit.datasets import Entry
from audit.decode import decode
from audit.errors import BadItem
from audit.methods import Context, Payload
from audit.models import open_source
from audit.results.schema import Rows

VERSION = 2
UNIT_ITEMS = 1000


class Options(Frozen):
    pass


def plan(options: Options, context: Context) -> list[Payload]:
    """Chunks of the listings."""
    units: list[Payload] = []
    for role in ("data", "pool") if context.job.pool else ("data",):
        listing = enumerate(open_source(context.job, role).entries())
        while chunk := list(islice(listing, UNIT_ITEMS)):
            units.append({"role": role, "entries": [[i, *_told(entry)] for i, entry in chunk]})
    return units


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Hash and decode each image. Rows: items."""
    role, entries = payload["role"], payload["entries"]
    contents = context.models.source(role).read([uri for _, uri, *_ in entries])
    rows = []
    for (position, uri, name, label, reason, caption, has_mask), data in zip(entries, contents, strict=True):
        row = {"role": role, "position": position, "uri": uri, "display_name": name, "label": label}
        rows.append({**row, "caption": caption, "has_mask": has_mask, **_look(uri, data, reason)})
    return {"items": rows}


def _told(entry: Entry) -> list[object]:
    return [entry.uri, entry.display_name, entry.label, entry.reason, entry.caption, entry.mask is not None]


def _look(uri: str, data: bytes | None, reason: str | None) -> dict[str, object]:
    if data is None:
        absent = hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()
        return {"item_id": f"uri-{absent}", "status": "quarantined", "reason": reason or "unreadable"}
    item_id = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode(data)
    except BadItem as error:
        return {"item_id": item_id, "status": "quarantined", "reason": error.reason}
    height, width = decoded.image.shape[:2]
    return {"item_id": item_id, "width": width, "height": height, "status": "ok", "reason": decoded.note}
