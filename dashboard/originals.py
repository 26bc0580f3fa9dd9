"""Pictures of the images that a run was made on: those that it keeps by URL, the others read anew from their source.

The report's server reads no files that a run's folder names: another process does, and gives back small pictures drawn
anew from the images' pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from audit.locations import absolute
from audit.results import queries
from audit.results.sql import Run
from dashboard import child, components

Row = dict[str, Any]

SECONDS = 120
_NEEDED = ("item_id", "role", "uri")


def show(run: Run, rows: Sequence[Row], title: str) -> None:
    """Images with what every model says of them. rows: each with item_id, role, uri, display_name and label."""
    urls = _urls(run, rows)
    said = queries.said(run, [row["item_id"] for row in rows])
    cells = [_cell(row, urls.get(row["item_id"]), said.get(row["item_id"], []), title) for row in rows]
    st.html(components.grid(cells))
    gone = sum(row["item_id"] not in urls for row in rows)
    if gone:
        st.warning(
            f"{gone} of these {len(rows)} images cannot be read any more: they are not where the run read them, or are "
            "others now. Put the data set back where it was and reload this page. What the models said of them is "
            "kept."
        )


def kept(run: Run, ids: list[str], title: str) -> None:
    """Images that the run holds, with what every model says of them."""
    said = queries.said(run, ids)
    cells = [components.figure(i, f"{title} {k + 1}", components.verdicts(said.get(i, []))) for k, i in enumerate(ids)]
    st.html(components.grid(cells))


def _cell(row: Row, url: str | None, said: list[Row], title: str) -> str:
    alt = f"{title}: {row['display_name'] or row['item_id'][:12]}"
    return components.framed(url, alt, components.verdicts(said), row["label"] or "")


def _urls(run: Run, rows: Sequence[Row]) -> Mapping[str, str]:
    """Where a browser finds each picture; those that cannot be read are left out."""
    ids = [row["item_id"] for row in rows]
    urls = {item_id: f"/evidence/{item_id}" for item_id in queries.kept(run, [ids], len(ids))[0]}
    asked = tuple(tuple(row[key] for key in _NEEDED) for row in rows if row["uri"] and row["item_id"] not in urls)
    if not asked:
        return urls
    try:
        read = _read(absolute(run.location), asked)
    except child.Refused as refused:
        st.error("The pictures were not read. Reload this page to try again.")
        st.text(str(refused))
        return urls
    if None in read:
        _read.clear(absolute(run.location), asked)  # what is gone may be put back
    found = {row[0]: data for row, data in zip(asked, read, strict=True) if data is not None}
    return urls | {item_id: f"data:image/webp;base64,{data}" for item_id, data in found.items()}


@st.cache_data(max_entries=100, ttl=600, show_spinner="Reading images ...")
def _read(run: str, asked: tuple[tuple[str, ...], ...]) -> list[str | None]:
    """Base64 of WebP for each item. Raises Refused."""
    rows = [dict(zip(_NEEDED, values, strict=True)) for values in asked]
    return list(child.answer(child.python("pipelines.thumbnails", run), SECONDS, rows))
