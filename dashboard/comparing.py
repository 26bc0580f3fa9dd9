"""The report's page of comparisons: what changed between two runs that lie side by side, or two models of one."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import streamlit as st

from audit import sentences
from audit.comparison import Change, Comparison, compare, models_of
from audit.errors import AuditError
from audit.locations import absolute, located, name_of
from audit.results import queries
from audit.results.sql import Run
from audit.runs import open_beside, unfinished
from dashboard import components, paging, siblings
from dashboard.cached import FRESH, Snapshot, snapshot

Row = dict[str, Any]

PAGE_SIZE = 10
_ENDS = (("start_image_id", "start"), ("image_id", "result"))
WORSE = 20  # classes that got worse
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
    for name, empty in (("old", None), ("new", None), ("page", 1)):
        if name in st.session_state:  # what a widget is bound to follows the widget
            st.session_state[name] = empty
        else:
            st.query_params.pop(name, None)
    st.query_params.pop("with", None)
    if st.session_state["other"] is not None:
        st.query_params["with"] = st.session_state["other"]


def _compared(run: Run, other: Run, mode_page: Any) -> None:
    other.refresh(within=FRESH)
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
    rows = [
        [
            *(one.model_id, f"{one.images:,}", f"{one.before:.1%}", f"{one.after:.1%}"),
            *(f"{one.fixed:,}", f"{one.broken:,}", f"{one.p_value:.2g}"),
        ]
        for one in found.accuracy
        if one.images
    ]
    for one in found.accuracy:
        if one.note:
            st.text(one.note)
    if not rows:
        st.info("No labelled image was answered by both.")
        return
    st.html(components.table(["model", "images", "before", "after", "fixed", "broken", "p"], rows))
    st.caption("p: McNemar's exact test that as many were fixed as broken.")
    if found.worse:
        st.subheader("Classes that got worse")
        rows = [
            [
                *(one.model_id, one.class_name, f"{one.images:,}"),
                *(f"{one.before:.1%}", f"{one.after:.1%}", f"{one.p_corrected:.2g}"),
            ]
            for one in found.worse[:WORSE]
        ]
        st.html(components.table(["model", "class", "images", "wrong before", "wrong after", "p"], rows))
        more = f" {len(found.worse) - WORSE:,} more classes got worse." if len(found.worse) > WORSE else ""
        st.caption(f"p: McNemar's exact test, one-sided, after Holm's correction over the classes.{more}")


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
    st.caption(
        "The excess is a model's error rate on images with the feature minus that on control images of the same "
        "classes, with its 95 % interval. The status follows from the change of the excess on the images that both "
        "runs screened."
    )
    place = st.container()
    number = paging.number(paging.pages(len(changes), PAGE_SIZE))
    shown = changes[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    later = [change.shown for change in shown if change.shown is change.after]
    earlier = [change.shown for change in shown if change.shown is not change.after]
    pictures = {True: iter(_pictures(run, after, later)), False: iter(_pictures(run, before, earlier))}
    there = [row["failure_mode_id"] for change in shown for row in (change.before, change.after) if row is not None]
    said = queries.verdicts(run, there)
    with place:
        for change in shown:
            _card(run, before, after, change, next(pictures[change.shown is change.after]), said, page)


def _card(
    run: Run, before: Run, after: Run, change: Change, pictures: list[str], said: dict[str, str], page: Any
) -> None:
    """One change: what it is and why, the pictures of the run that confirmed it, links to its rows, and what people
    `said` of those."""
    with st.container(border=True):
        status = components.badge(change.status, STATUSES[change.status])
        impact = f"{_impact(change.before)} before, {_impact(change.after)} after"
        st.html(
            components.heading(sentences.claim(change.shown), 3)
            + status
            + components.paragraph(f"Because {change.reason}.")
            + components.paragraph(f"Impact on the pool: {impact}.")
            + components.grid(pictures)
        )
        for title, side, row in (("before", before, change.before), ("after", after, change.after)):
            if row is not None and side is run:
                st.page_link(page, label=f"Evidence ({title})", query_params={"id": row["failure_mode_id"]})
                if row["failure_mode_id"] in said:
                    st.html(components.reviewed(said[row["failure_mode_id"]]))
            elif row is not None:
                st.text(f"{title}: {row['verdict']} in {name_of(side.location)}, as {row['failure_mode_id']}")


def _impact(row: Row | None) -> str:
    return "-" if row is None or row["impact"] is None else f"{row['impact']:.1%}"


def _pictures(run: Run, source: Run, modes: list[Row]) -> list[list[str]]:
    """Of each failure mode start and result of its most typical search, and real images; looked up at once."""
    real = queries.kept(source, [mode["evidence"] or [] for mode in modes], REAL)
    wanted = [
        [
            *((search[key], title) for key, title in _ENDS if search),
            *((item_id, f"real image {place}") for place, item_id in enumerate(items, 1)),
        ]
        for search, items in zip(queries.typical(source, modes), real, strict=True)
    ]
    urls = _urls(run, source, [image_id for image_id, _ in chain(*wanted)])
    return [[components.framed(urls.get(image_id), title, [], title) for image_id, title in each] for each in wanted]


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
