"""The report's page of runs: those in the same root as the one that is shown, how far they are and what they found."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pandas as pd
import streamlit as st

from audit.errors import AuditError
from audit.locations import absolute, located, name_of
from audit.results import queries
from audit.results.progress import live, stages_of
from audit.results.sql import Run
from audit.runs import beside, open_beside, unfinished
from dashboard import paging

Row = dict[str, Any]

PAGE_SIZE = 20
_COLUMNS = ("run", "started", "accuracy", "confirmed", "hypotheses", "state")


def names(run: Run) -> list[str]:
    """The runs of the root, the one that is shown among them. Raises AuditError where it cannot be listed."""
    return _names(absolute(run.location))


@st.cache_data(ttl=30, max_entries=4)
def _names(location: str) -> list[str]:
    return beside(located(location))


def told(run: Run) -> Row:
    """What the table says of a run."""
    head = queries.header(run)
    accuracy = ", ".join(f"{model['model_id']} {model['accuracy']:.1%}" for model in queries.models(run))
    started = head["created_at"]
    return {
        "run": name_of(run.location),
        "state": state(run),
        "started": None if started is None else f"{started.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "accuracy": accuracy or None,
        "confirmed": head["confirmed"],
        "hypotheses": head["hypotheses"],
    }


def state(run: Run) -> str:
    """How far a run is, in words: from its files, and where it is not finished from what its driver said last."""
    left = unfinished(run)
    if not left:
        given_up = sum(stage["quarantined"] for stage in stages_of(run))
        return f"finished; {given_up} units were given up" if given_up else "finished"
    driver = live(run.store) or {}
    if driver.get("ended"):
        return f"stopped ({driver['ended']}): {left}"
    return f"running, heard of at {driver['at']}: {left}" if "at" in driver else f"not finished: {left}"


@st.cache_data(ttl=60, max_entries=200, show_spinner=False)
def _told(location: str, name: str) -> Row:
    """`told` of a run in the root; of one that cannot be read, why."""
    try:
        return told(open_beside(located(location), name))
    except AuditError as error:
        return {"run": name, "state": f"cannot be read: {error}"}


def show(run: Run, compare_page: Any) -> None:
    """The page. `compare_page` is what a row that is chosen leads to."""
    st.title("Runs")
    try:
        there = names(run)
    except AuditError as error:
        st.error("The folder of the runs cannot be listed.")
        st.text(str(error))
        return
    here = name_of(located(absolute(run.location)))
    st.text(f"The runs that lie beside {here}, which this report shows. Choose another one to compare it with.")
    if there == [here]:
        st.info("No other run lies here. Runs with the same 'output' in their job files lie side by side.")
    place = st.container()
    number = paging.number(paging.pages(len(there), PAGE_SIZE))
    shown = there[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    with st.spinner("Reading runs ..."):
        frame = pd.DataFrame([_told(absolute(run.location), name) for name in shown]).reindex(columns=_COLUMNS)
    chosen = place.dataframe(frame, hide_index=True, on_select="rerun", selection_mode="single-row")
    st.caption("Another run's own report: audit dashboard, with its folder.")
    if chosen.selection.rows:
        st.switch_page(compare_page, query_params={"with": shown[chosen.selection.rows[0]]})
