"""What each model gets wrong, for a report without failure modes: the surest errors with their images, the matrix."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from audit.results import queries
from audit.results.sql import Run
from dashboard import confusions, originals
from dashboard.answers import kept

MOST = 24  # images of a model
NUMBERED = 12  # labels up to which the cells of the matrix are numbered


def show(run: Run, page: Any) -> None:
    """The section, a tab a model. `page`: that of confusions, with all images. Nothing where no image has a label."""
    models = [row["model_id"] for row in kept(queries.models, run)]
    if not models:
        return
    st.header("Most confident errors")
    if len(models) == 1:
        _model(run, models[0], page)
        return
    for model_id, tab in zip(models, st.tabs([_plain(name) for name in models], key="errors-of"), strict=True):
        if tab.open:  # only what is open is read
            with tab:
                _model(run, model_id, page)


def _plain(name: str) -> str:
    """A name as the label of a tab, which would be read as Markdown."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()#+-.!:$~<>|" else sign for sign in name)


def _model(run: Run, model_id: str, page: Any) -> None:
    rows = kept(queries.surest_errors, run, model_id, MOST)
    if not rows:
        st.text(f"{model_id} gets no labelled image wrong.")
        return
    st.caption(
        "Labelled images that the model gets wrong. Above each image: its label. Below: the predictions of the models."
    )
    originals.show(run, rows, "wrong on")
    frame = kept(confusions.counted, run, model_id, None)
    names = confusions.chosen_classes(frame, "")
    cells = confusions.cells(frame)
    inside = cells[cells["label"].isin(names) & cells["says"].isin(names)]
    st.header("Confusion matrix")
    every = len({*frame["label"], *frame["says"]})
    if every > len(names):
        st.caption(f"{len(names)} of {every:,} classes: the most confused ones.")
    st.altair_chart(_counted(inside), width="content", key=f"matrix-{model_id}")
    st.page_link(page, label="All errors, by label and prediction", query_params={"model": model_id})


def _counted(cells: pd.DataFrame) -> alt.LayerChart | alt.Chart:
    """The matrix and, where there is room, the number of images in each cell."""
    matrix = confusions.chart(cells.assign(chosen=False))
    if cells["label"].nunique() > NUMBERED:
        return matrix
    numbers = (
        alt.Chart(cells).mark_text(fontSize=12, fontWeight="bold").encode(x="says:N", y="label:N", text="images:Q")
    )
    return alt.layer(matrix, numbers)
