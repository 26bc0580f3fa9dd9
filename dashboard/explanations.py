"""The report's page of explanations: searches, neurons and counterfactuals in one list, chosen and sorted by DuckDB."""

from __future__ import annotations

from typing import Any

import streamlit as st

from audit.results import gallery
from audit.results.queries import Row
from audit.results.sql import Run
from dashboard import components, explanation, filters, paging
from dashboard.answers import kept

PAGE_SIZE = 12
FLIPPED = {"flipped": True, "held": False}
_COLUMNS = {"stage": "stage", "method": "method", "from": "source_class", "to": "target_class", "model": "model_id"}
_STATUS = ("ok", "failed")


def show(run: Run, page: Any) -> None:
    """The page. `page` is that of one explanation."""
    st.title("Explanations")
    cells = st.columns(4) + st.columns(4)
    asked = {
        column: filters.select(cell, name, kept(gallery.values_of, run, "explanations", column))
        for cell, (name, column) in zip(cells, _COLUMNS.items(), strict=False)
    }
    flipped = filters.select(cells[5], "decision", list(FLIPPED))
    status = filters.select(cells[6], "status", list(_STATUS))
    sort = filters.order(cells[7], gallery.EXPLANATION_SORTS)
    chosen = gallery.Explanations(**asked, flipped=None if flipped is None else FLIPPED[flipped], status=status)
    found = kept(gallery.count_explanations, run, chosen)
    if not found:
        st.info(
            "No explanation of this kind. Take a filter away."
            if chosen != gallery.Explanations()
            else "No explanations: no stage that makes them has ended a unit yet."
        )
        return
    place = st.container()
    number = paging.number(paging.pages(found, PAGE_SIZE))
    with place:
        st.caption(f"{found:,} explanation{'s' * (found != 1)}. N and P turn the page.")
        for row in kept(gallery.explanations, run, chosen, sort, number, PAGE_SIZE):
            with st.container(border=True):
                _card(row, page)


def _card(row: Row, page: Any) -> None:
    """Start and result with what the models say of them, or why there is none."""
    heading = f"<h4 style='margin:0;overflow-wrap:anywhere'>{explanation.title(row)}</h4>"
    if row["status"] == "ok" and row["start_image_id"] and row["image_id"]:
        heading += components.scored(row)
    st.html(heading)
    if row["status"] != "ok":
        st.text(f"This one failed: {row['reason']}.")
    st.page_link(page, label="Steps and measurements", query_params={"id": row["explanation_id"]})
