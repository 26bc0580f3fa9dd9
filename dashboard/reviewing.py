"""A person's verdict on a finding: the form that keeps it, and what was said before."""

from __future__ import annotations

import getpass

import pandas as pd
import streamlit as st

from audit.errors import AuditError
from audit.results.sql import Run
from audit.reviews import VERDICTS, review


def show(run: Run, subject_id: str) -> None:
    """The form for one finding, and its history."""
    st.header("Your verdict")
    with st.form(f"review-{subject_id}", clear_on_submit=True):
        verdict = st.segmented_control(
            "It is", VERDICTS, help="Kept with the run; earlier verdicts stay, the last one counts"
        )
        note = st.text_input("Why", placeholder="optional")
        name = st.text_input("Your name", value=st.session_state.get("reviewer", getpass.getuser()))
        if st.form_submit_button("Keep", type="primary"):
            _keep(run, subject_id, verdict, note, name)
    rows = run.rows(
        "select reviewed_at, verdict, reviewer, note from reviews where subject_id = ? order by reviewed_at desc",
        [subject_id],
    )
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True)


def _keep(run: Run, subject_id: str, verdict: str | None, note: str, name: str) -> None:
    if verdict is None:
        st.warning("Choose one of the verdicts first.")
        return
    st.session_state["reviewer"] = name
    try:
        review(run, subject_id, verdict, note, name)
    except AuditError as error:
        st.error("The verdict was not kept.")
        st.text(str(error))
        return
    st.rerun()
