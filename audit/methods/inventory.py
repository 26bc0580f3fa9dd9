"""Stage before all others: look at every image of data set and pool once, and say which can be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

from audit.class_names import composed
from audit.config import Frozen
from audit.datasets import Entry, warnings_of
from audit.decode import decode
from audit.errors import BadItem
from audit.methods import Context, Counts, Payload
from audit.models import open_source
from audit.results.schema import Rows
from audit.results.warnings import RunWarning, warning_rows

VERSION, ITEMS = 4, "entries"
UNIT_ITEMS = 1000


class Options(Frozen):
    pass


def plan(options: Options, context: Context) -> Iterator[Payload]:
    """Chunks of the listings, which are walked once and never held."""
    for role in ("data", "pool") if context.job.pool else ("data",):
        source = open_source(context.job, role)
        listing = enumerate(source.entries())
        chunk = list(islice(listing, UNIT_ITEMS))
        while following := list(islice(listing, UNIT_ITEMS)):
            yield payload_of(role, chunk)
            chunk = following
        yield payload_of(role, chunk, source.classes() if role == "data" else (), warnings_of(source, role))


def payload_of(
    role: str,
    entries: Sequence[tuple[int, Entry]],
    classes: Sequence[str] = (),
    warnings: Sequence[RunWarning] = (),
) -> Payload:
    """A unit of these entries, each with its place in the listing; with the last ones what the whole listing said."""
    payload: Payload = {"role": role, "entries": [[i, *_told(entry)] for i, entry in entries]}
    if classes:
        payload["classes"] = list(classes)
    if warnings:
        payload["warnings"] = warning_rows(warnings)
    return payload


def expected(options: Options, counts: Counts) -> int:
    return counts.data + counts.pool


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Hash and decode each image. Rows: items; classes that the data set declares and warnings of its source."""
    contents = context.models.source(payload["role"]).read([uri for _, uri, *_ in payload["entries"]])
    looked = zip(payload["entries"], contents, strict=True)
    items = [_row(payload["role"], entry, _look(entry[1], data, entry[4])) for entry, data in looked]
    return {"items": items, **_declared(payload)}


def lost(options: Options, payload: Payload, reason: str, context: Context) -> Rows:
    """Rows of a given-up unit's images."""
    items = [_row(payload["role"], entry, _look(entry[1], None, reason)) for entry in payload["entries"]]
    return {"items": items, **_declared(payload)}


def _declared(payload: Payload) -> Rows:
    """Rows of what the listing as a whole said."""
    classes = [{"class_name": composed(name), "position": i} for i, name in enumerate(payload.get("classes", []))]
    return {"classes": classes, "warnings": payload.get("warnings", [])}


def _row(role: str, entry: list[object], found: dict[str, object]) -> dict[str, object]:
    position, uri, name, label, _, caption, has_mask = entry
    row = {"role": role, "position": position, "uri": uri, "display_name": name, "label": label}
    return {**row, "caption": caption, "has_mask": has_mask, **found}


def _told(entry: Entry) -> list[object]:
    label = None if entry.label is None else composed(entry.label)
    return [entry.uri, entry.display_name, label, entry.reason, entry.caption, entry.mask is not None]


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
