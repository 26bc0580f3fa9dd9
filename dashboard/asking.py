"""The report's page for questions in SQL: an answer as a table and as a chart, computed where nothing can be harmed."""

from __future__ import annotations

import threading
from typing import Any

import altair as alt
import pandas as pd
import pyarrow as pa
import streamlit as st

from audit.errors import AuditError
from audit.results.jail import Answer, Limits, ask
from audit.results.sql import Run
from audit.results.sql import open_run as with_comments

EXAMPLES = {
    "How good is each model, class by class?": "select * from accuracy order by accuracy limit 100",
    "What do the models say instead?": "select * from confusions order by images desc limit 100",
    "Where do the models differ?": "select * from disagreements order by disagreement desc limit 100",
    "What was found, and what do people say of it?": (
        "select m.verdict, m.model_id, m.class_name, m.name, m.impact, v.verdict as reviewed, v.reviewer, v.note\n"
        "from failure_modes m left join verdicts v on subject_id = failure_mode_id\n"
        "where listed order by impact desc nulls last"
    ),
    "What failed, and why?": (
        "select status, reason, count(*) as images, min(display_name) as example\n"
        "from items where status <> 'ok' group by all order by images desc"
    ),
}
LIMITS = Limits()
AT_ONCE = 2  # queries of all sessions that run at a time
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a formula begins
PATIENCE = 20.0  # seconds that one waits for its turn


@st.cache_resource
def _turns() -> threading.Semaphore:
    return threading.Semaphore(AT_ONCE)


def show(run: Run) -> None:
    """The page. The query is part of its address, so that an answer can be shared."""
    st.title("SQL")
    st.caption(
        f"One SELECT in DuckDB's dialect over the run's tables: up to {LIMITS.rows:,} rows, {LIMITS.seconds} seconds. "
        "It can change nothing."
    )
    chosen = st.selectbox("Begin with", [None, *EXAMPLES], format_func=lambda name: name or "a query of your own")
    asked = st.query_params.get("q", "")
    query = st.text_area("Query", EXAMPLES[chosen] if chosen else asked, height=160, key=f"query-{chosen}")
    if st.button("Ask", type="primary") and query.strip():
        st.query_params["q"] = asked = query
    if asked.strip() and asked == query:
        _answer(run, asked)
    with st.expander("Tables, views and columns"):
        st.dataframe(pd.DataFrame(_schema(str(run.location))), hide_index=True)


@st.cache_data(max_entries=4)
def _schema(location: str) -> list[dict[str, str]]:
    return with_comments(location).schema()


def _answer(run: Run, query: str) -> None:
    turn = _turns()
    if not turn.acquire(timeout=PATIENCE):
        st.warning("Other queries are running. Ask again in a moment.")
        return
    try:
        with st.spinner("asking"):
            answer = ask(run, query, LIMITS)
    except AuditError as error:
        st.error("No answer.")
        st.code(str(error), language=None)
        return
    finally:
        turn.release()
    _table(answer)


def _table(answer: Answer) -> None:
    try:
        frame = _readable(answer.table).to_pandas()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        st.error("The answer cannot be shown as a table. Cast what is nested to text: column::varchar.")
        st.code(str(error), language=None)
        return
    if frame.empty:
        st.info("The answer has no rows.")
        return
    if not answer.whole:
        st.warning(f"Only the first {LIMITS.rows:,} rows are shown. Add a limit, or count in the query.")
    st.dataframe(frame, hide_index=True)
    st.download_button("Download as CSV", _csv(frame), "answer.csv", "text/csv")
    kinds = {field.name: field.type for field in answer.table.schema}
    numbers = [name for name, kind in kinds.items() if _is_number(kind)]
    others = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_boolean(kind)]
    if numbers and len(frame) > 1:
        cells = st.columns(3)
        x = cells[0].selectbox("Chart: across", [None, *others, *numbers], format_func=lambda name: name or "no chart")
        y = cells[1].selectbox("up", numbers)
        colour = cells[2].selectbox("colour", [None, *others], format_func=lambda name: name or "none")
        if x is not None:
            st.altair_chart(_chart(frame[[*others, *numbers]], x, y, colour))


def _csv(frame: pd.DataFrame) -> bytes:
    """For a spreadsheet: an apostrophe before text that it would take for a formula, also in column names."""

    def harmless(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and cell[:1] in FORMULA else cell

    return frame.map(harmless).rename(columns=harmless).to_csv(index=False).encode()


def _readable(table: pa.Table) -> pa.Table:
    """With the number of bytes in place of them, and times as text: a data frame has no year 10000, nor infinity."""
    for place, field in enumerate(table.schema):
        if pa.types.is_binary(field.type):
            told = [None if value is None else f"{len(value)} bytes" for value in table.column(place).to_pylist()]
            table = table.set_column(place, field.name, pa.array(told, pa.string()))
        elif pa.types.is_temporal(field.type) and not pa.types.is_interval(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
    return table


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _chart(frame: pd.DataFrame, x: str, y: str, colour: str | None) -> alt.Chart:
    """Bars over names, points over numbers."""
    numeric = pd.api.types.is_numeric_dtype(frame[x])
    chart = alt.Chart(frame)
    marked = chart.mark_point() if numeric else chart.mark_bar()
    shown = {"x": alt.X(field=x, type="quantitative" if numeric else "nominal", sort=None)}
    shown["y"] = alt.Y(field=y, type="quantitative")
    if colour is not None:
        shown["color"] = alt.Color(field=colour, type="nominal")
    return marked.encode(**shown, tooltip=[alt.Tooltip(field=str(name)) for name in frame.columns[:10]])
