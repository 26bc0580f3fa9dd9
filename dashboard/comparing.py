"""The report's page of comparisons: what changed between two runs that lie side by side, or two models of one."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import streamlit as st

from audit import sentences
from audit.comparison import Change, Comparison, compare, models_of
from audit.errors import AuditError
from audit.locations import absolute, located, name_of
from audit.results import queries
from audit.results.sql import Run
from audit.runs import open_beside, unfinished
from dashboard import components, siblings
from dashboard.cached import Snapshot, snapshot

Row = dict[str, Any]

PAGE_SIZE = 10
REAL = 4  # images of a failure mode's evidence
STATUSES = {"new": "#b3261e", "unclear": "#555555", "unchanged": "#8a6d1a", "fixed": "#1a7f4b"}


def show(run: Run, mode_page: Any) -> None:
    """The page. Other run, models and statuses are its address; `mode_page` is what links to failure modes lead to."""
    st.title("Compare")
    try:
        other = _other(run)
        if other is not None:
            _compared(run, other, mode_page)
    except AuditError as error:
        st.error("These cannot be compared.")
        st.text(str(error))


def _other(run: Run) -> Run | None:
    """The run that the address names, if it lies beside this one; None where none is chosen. Raises ConfigError."""
    here, there = name_of(located(absolute(run.location))), siblings.names(run)
    asked = st.query_params.get("with")
    st.selectbox(
        "Compare this run with",
        there,
        index=there.index(asked) if asked in there else None,
        format_func=lambda name: f"{name} (this run: two of its models)" if name == here else name,
        placeholder="choose a run of the same folder",
        key="other",
        on_change=_chosen,
    )
    if asked is None:
        st.text("What is new, fixed and unchanged since the earlier one of two runs, or from one model to another.")
        return None
    if asked == here:
        return run
    return _opened(absolute(run.location), asked)


@st.cache_resource(max_entries=4, ttl=600, show_spinner="Opening the run ...")
def _opened(location: str, name: str) -> Run:
    return open_beside(located(location), name)


def _chosen() -> None:
    for name in ("with", "old", "new", "page"):
        st.query_params.pop(name, None)
    if st.session_state["other"] is not None:
        st.query_params["with"] = st.session_state["other"]


def _compared(run: Run, other: Run, mode_page: Any) -> None:
    other.refresh()
    before, after = in_order(run, other)
    for side in (before, after):
        left = unfinished(side)
        if left:
            st.info("One of the runs is not finished: what it did not look for, it could not find.")
            st.text(f"{name_of(side.location)}: {left}. The command 'audit run' with its job file goes on.")
            return
    old, new = _models(before, after)
    if before is after and None in (old, new):
        st.info("Choose two models of this run.")
        return
    st.text(f"before: {_named(before, old)}\nafter: {_named(after, new)}")
    models = ((old, new),) if old and new else ()
    found = _comparison(before, after, snapshot(before), snapshot(after), models)
    _accuracy(found)
    _changes(run, before, after, found, mode_page)


def in_order(run: Run, other: Run) -> tuple[Run, Run]:
    """The run that was started earlier, and the later one; this one is the later of two that are not known."""
    mine, others = _started(run), _started(other)
    if mine is not None and others is not None and mine < others:
        return run, other
    return other, run


def _started(run: Run) -> datetime | None:
    started: datetime | None = run.rows("select any_value(created_at) as at from runs")[0]["at"]
    return started


def _named(run: Run, model_id: str | None) -> str:
    started = _started(run)
    at = "" if started is None else f", started on {started.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{'' if model_id is None else f'{model_id} of '}{name_of(run.location)}{at}"


def _models(before: Run, after: Run) -> tuple[str | None, str | None]:
    """Which model of each run to compare; None and None: those of one name."""
    left, right = st.columns(2)
    chosen = []
    for cell, title, key, run in ((left, "Model before", "old", before), (right, "Model after", "new", after)):
        there, same = models_of(run), "those of the same name"
        chosen.append(cell.selectbox(title, there, None, key=key, bind="query-params", placeholder=same))
    if (chosen[0] is None) != (chosen[1] is None):
        st.info("Choose a model on both sides, or none.")
        return None, None
    return chosen[0], chosen[1]


@st.cache_resource(max_entries=8, show_spinner="Comparing ...")
def _comparison(
    _before: Run,
    _after: Run,
    earlier: Snapshot,  # noqa: ARG001 - part of the key
    later: Snapshot,  # noqa: ARG001
    models: tuple[tuple[str, str], ...],
) -> Comparison:
    return compare(_before, _after, dict(models) or None)


def _accuracy(found: Comparison) -> None:
    st.header("On the labelled images that both have")
    frame = pd.DataFrame([one.__dict__ for one in found.accuracy if one.images])
    if frame.empty:
        st.info("No labelled image was answered by both.")
        return
    frame.columns = ["model", "images", "before", "after", "fixed", "broken", "p"]
    shares = {name: st.column_config.NumberColumn(format="percent") for name in ("before", "after")}
    help_ = "McNemar's exact test that as many were fixed as broken"
    st.dataframe(frame, hide_index=True, column_config=shares | {"p": st.column_config.NumberColumn(help=help_)})


def _changes(run: Run, before: Run, after: Run, found: Comparison, page: Any) -> None:
    st.header("Failure modes")
    if not found.changes:
        st.info("Neither side has confirmed a failure mode of these models.")
        return
    for cell, status in zip(st.columns(len(STATUSES)), STATUSES, strict=True):
        cell.metric(status, sum(change.status == status for change in found.changes))
    chosen = st.segmented_control(
        "Show", list(STATUSES), selection_mode="multi", key="status", bind="query-params", help="none chosen: all"
    )
    changes = [change for change in found.changes if not chosen or change.status in chosen]
    if not changes:
        st.info("No failure mode of this kind.")
        return
    pages = -(-len(changes) // PAGE_SIZE)
    place = st.container()
    number = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    with place:
        for change in changes[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]:
            _card(run, before, after, change, page)


def _card(run: Run, before: Run, after: Run, change: Change, page: Any) -> None:
    """One change: what it is and why, the pictures of the run that confirmed it, and links to its rows."""
    source = after if change.shown is change.after else before
    with st.container(border=True):
        status = components.badge(change.status, STATUSES[change.status])
        st.html(components.heading(sentences.claim(change.shown), 3) + status)
        impact = f"{_impact(change.before)} before, {_impact(change.after)} after"
        st.text(f"Because {change.reason}.\nImpact on the pool: {impact}.")
        st.html(components.grid(_pictures(run, source, change.shown)))
        for title, side, row in (("before", before, change.before), ("after", after, change.after)):
            if row is not None and side is run:
                st.page_link(page, label=f"Evidence ({title})", query_params={"id": row["failure_mode_id"]})
            elif row is not None:
                st.text(f"{title}: {row['verdict']} in {name_of(side.location)}, as {row['failure_mode_id']}")


def _impact(row: Row | None) -> str:
    return "-" if row is None or row["impact"] is None else f"{row['impact']:.1%}"


def _pictures(run: Run, source: Run, mode: Row) -> list[str]:
    """Start and result of the most typical search, and the first real images."""
    shown = queries.exemplars(source, (mode["exemplars"] or [])[:1])
    wanted = [
        (row[key], title) for row in shown for key, title in (("start_image_id", "start"), ("image_id", "result"))
    ]
    real = queries.kept(source, mode["evidence"] or [], REAL)
    wanted += [(item_id, f"real image {i}") for i, item_id in enumerate(real, 1)]
    urls = _urls(run, source, [image_id for image_id, _ in wanted])
    return [components.framed(urls.get(image_id), title, [], title) for image_id, title in wanted]


def _urls(run: Run, source: Run, ids: list[str]) -> dict[str, str]:
    """Pictures of the run that is shown are served; those of another one, as small pictures in the page."""
    if source is run:
        return {image_id: f"/evidence/{image_id}" for image_id in ids}
    rows = source.rows("select image_id, thumbnail from images where image_id in (select unnest(?))", [ids])
    return {
        row["image_id"]: f"data:image/webp;base64,{base64.b64encode(row['thumbnail']).decode()}"
        for row in rows
        if row["thumbnail"]
    }
