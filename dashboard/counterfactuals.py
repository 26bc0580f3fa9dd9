"""The report's page of counterfactuals: what would have to change on an image for another decision."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import Any

import streamlit as st

from audit.results import gallery
from audit.results.sql import Run
from dashboard import components, explanation, explanations, filters, paging
from dashboard.answers import kept

Row = dict[str, Any]

PAGE_SIZE = 10
_UVCE = "method = 'uvce' and status = 'ok'"
_SHOWN = (
    ("start_image_id", "original"),
    ("edit_image_id", "prompt edit alone"),
    ("image_id", "counterfactual"),
    ("difference_image_id", "what changed"),
    ("mask_image_id", "free to change"),
)


def stages(run: Run) -> list[Row]:
    """Stages with counterfactuals: how many, how many flipped, and the means over the flipped ones."""
    return run.rows(
        "with measured as (select subject_id, "
        "max(value) filter (name = 'background_rmse' and key = 'result') as background, "
        "max(value) filter (name = 'background_rmse' and key = 'autoencoder') as floor, "
        "max(value) filter (name = 'flipped' and key = 'edit') as edit_flipped "
        "from measurements group by subject_id) "
        "select stage, model_id, count(*) as items, avg(flipped::int) as flipped, avg(edit_flipped) as edit_flipped, "
        "avg(background) filter (flipped) as background, avg(floor) as floor "
        "from explanations join measured on subject_id = explanation_id "
        "where method = 'uvce' and status = 'ok' group by stage, model_id order by stage, model_id"
    )


def show(run: Run, page: Any) -> None:
    """The page: counterfactuals by stage. `page` is what the link of each leads to."""
    st.title("Counterfactuals")
    found = kept(stages, run)
    if not found:
        st.info("No counterfactuals: the job has no counterfactual stage, or it has not ended yet.")
        return
    st.text("The smallest realistic change of an image with which the model decides otherwise.")
    heads = ["stage", "model", "images", "flipped", "by the prompt edit", "background RMSE", "autoencoder's RMSE"]
    rows = [
        [row["stage"], row["model_id"], f"{row['items']:,}"]
        + [_known(row[name], ".0%") for name in ("flipped", "edit_flipped")]
        + [_known(row[name], ".3f") for name in ("background", "floor")]
        for row in found
    ]
    st.html(components.table(heads, rows))
    _gallery(run, [row["stage"] for row in found], page)


def _gallery(run: Run, named: list[str], page: Any) -> None:
    cells = st.columns(5)
    filters.left_out(cells[0], "stage", named)
    stage = cells[0].selectbox("stage", named, key="stage", bind="query-params", on_change=paging.first_page)
    of_stage = gallery.Explanations(stage=stage, method="uvce", status="ok")
    source = filters.select(cells[1], "from", kept(gallery.values_of, run, "explanations", "source_class", _UVCE))
    target = filters.select(cells[2], "to", kept(gallery.values_of, run, "explanations", "target_class", _UVCE))
    flipped = filters.select(cells[3], "decision", list(explanations.FLIPPED))
    sort = filters.order(cells[4], gallery.EXPLANATION_SORTS)
    decided = None if flipped is None else explanations.FLIPPED[flipped]
    chosen = replace(of_stage, source_class=source, target_class=target, flipped=decided)
    found = kept(gallery.count_explanations, run, chosen)
    if not found:
        st.info("No counterfactual of this kind. Take a filter away.")
        return
    place = st.container()
    number = paging.number(paging.pages(found, PAGE_SIZE))
    with place:
        st.caption(f"{found:,} counterfactual{'s' * (found != 1)}. N and P turn the page.")
        for row in kept(gallery.explanations, run, chosen, sort, number, PAGE_SIZE):
            heading = f"<h4 style='margin:0;overflow-wrap:anywhere'>{explanation.title(row)}</h4>"
            st.html(heading + components.grid(_pictures(row)))
            st.page_link(page, label="Steps and measurements", query_params={"id": row["explanation_id"]})


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _pictures(row: Row) -> list[str]:
    """Original, edit, counterfactual, difference and mask; confidences under the first and the third."""
    source, target = escape(row["source_class"]), escape(row["target_class"])
    lines = {
        "start_image_id": [f"{source} <b>{row['source_before']:.0%}</b>", f"{target} {row['score_before']:.0%}"],
        "image_id": [f"{source} {row['source_after']:.0%}", f"{target} <b>{row['score_after']:.0%}</b>"],
    }
    return [
        components.figure(
            row[column], f"{title}, {row['source_class']} to {row['target_class']}", lines.get(column, []), title
        )
        for column, title in _SHOWN
        if row[column]
    ]
