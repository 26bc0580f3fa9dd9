"""The report's page of counterfactuals: what would have to change on an image for another decision."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from audit.results.sql import Run
from dashboard import components, explanation

Row = dict[str, Any]

PAGE_SIZE = 10
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


def explained(run: Run, stage: str, source: str | None, target: str | None, flipped: bool | None) -> list[Row]:
    """Counterfactuals of a stage, the surest first."""
    return run.rows(
        "select * from explanations where method = 'uvce' and status = 'ok' and stage = ? "
        "and (? is null or source_class = ?) and (? is null or target_class = ?) and (? is null or flipped = ?) "
        "order by flipped desc, score_after desc, explanation_id",
        [stage, source, source, target, target, flipped, flipped],
    )


def show(run: Run, page: Any) -> None:
    """The page: counterfactuals by stage. `page` is what the link of each leads to."""
    st.title("Counterfactuals")
    found = stages(run)
    if not found:
        st.info("No counterfactuals: the job has no counterfactual stage, or it has not ended yet.")
        return
    st.text("The smallest realistic change of an image with which the model decides otherwise.")
    frame = pd.DataFrame(found)
    frame.columns = [
        *("stage", "model", "images", "flipped", "flipped by the prompt edit alone"),
        *("background RMSE", "of which the autoencoder's"),
    ]
    shares = {name: st.column_config.NumberColumn(format="percent") for name in frame.columns[3:5]}
    numbers = {name: st.column_config.NumberColumn(format="%.3f") for name in frame.columns[5:]}
    st.dataframe(frame, hide_index=True, column_config=shares | numbers)
    _gallery(run, [row["stage"] for row in found], page)


def _gallery(run: Run, named: list[str], page: Any) -> None:
    cells = st.columns(4)
    stage = cells[0].selectbox("stage", named)
    everything = explained(run, stage, None, None, None)
    source = cells[1].selectbox("from", [None, *sorted({row["source_class"] for row in everything})], format_func=_any)
    target = cells[2].selectbox("to", [None, *sorted({row["target_class"] for row in everything})], format_func=_any)
    flipped = cells[3].selectbox(
        "the decision", [None, True, False], format_func=lambda x: {True: "flipped", False: "held"}.get(x, "any")
    )
    chosen = explained(run, stage, source, target, flipped)
    if not chosen:
        st.info("No counterfactual of this kind.")
        return
    pages = -(-len(chosen) // PAGE_SIZE)
    number = st.pagination(pages, key="page") if pages > 1 else 1
    for row in chosen[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]:
        heading = f"<h4 style='margin:0;overflow-wrap:anywhere'>{explanation.title(row)}</h4>"
        st.html(heading + components.grid(_pictures(row)))
        st.page_link(page, label="Steps and measurements", query_params={"id": row["explanation_id"]})


def _any(name: str | None) -> str:
    return name or "any"


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
