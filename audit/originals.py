"""The images that a run was made on, from where it read them: they are no part of the run, and may be gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from audit import registry
from audit.config import restored
from audit.decode import decode, encode_thumbnail
from audit.errors import DataError
from audit.results.store import Store

Row = dict[str, Any]


def contents(store: Store, rows: Sequence[Row]) -> list[bytes | None]:
    """The bytes of images of a run, from their data source; None where they are gone or are others now.

    rows: each with the item's `item_id`, `role` and `uri`. Raises DataError where a source cannot be read at all.
    """
    found: dict[str, bytes] = {}
    for role in sorted({row["role"] for row in rows}):
        own = sorted((row for row in rows if row["role"] == role), key=lambda row: row["uri"])
        plugin = restored("datasets", _source(store, role))
        source = registry.plugin("datasets", plugin.name).open_source(plugin.options)
        for row, data in zip(own, source.read([row["uri"] for row in own]), strict=True):
            if data is not None and hashlib.sha256(data).hexdigest() == row["item_id"]:
                found[row["item_id"]] = data
    return [found.get(row["item_id"]) for row in rows]


def thumbnails(store: Store, rows: Sequence[Row]) -> list[bytes | None]:
    """Small WebP pictures of images of a run, drawn anew from their pixels; None where they cannot be read."""
    try:
        data = contents(store, rows)
    except DataError:
        return [None] * len(rows)
    return [None if one is None else encode_thumbnail(decode(one).image) for one in data]


def _source(store: Store, role: str) -> Row:
    """Where the run read the images of a role, as its `job.json` has it."""
    source = (json.loads(store.read("job.json") or b"{}").get("job") or {}).get(role)
    if not source:
        raise DataError(f"{store.location} does not say where it read the images of the role {role!r}")
    return dict(source)
