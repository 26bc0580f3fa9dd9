"""The report's first page: what was audited, how far the run is, what it found, and what failed."""

from __future__ import annotations

from datetime import UTC
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from audit.locations import name_of
from audit.results import gallery, progress, queries
from audit.results.queries import Row
from audit.results.sql import Run
from audit.review.warnings import warnings_of
from dashboard import components, errors, failure_modes
from dashboard.answers import kept

EVERY = 3.0  # seconds between two looks at a run that goes on
TOP = 6
NO_MODES = "No failure modes. Either no search has ended yet, or none of the searches found a group."
NOT_LOOKED_FOR = (
    "This job did not look for failure modes: it has no stage `discover`. Below are the most confident errors."
)


def show(run: Run, listed: Any, one: Any, confused: Any) -> None:
    """The page. `listed`, `one` and `confused` are those of all failure modes, of one, and of confusions."""
    head = kept(queries.header, run)
    st.html(components.heading(f"Audit: {head['name'] or name_of(run.location)}", 1))
    found = kept(warnings_of, run)
    if found:
        st.html(components.warned(found))
    state(run)
    if head["name"] is None:
        st.info("Nothing is committed yet. This page shows more as the run goes on.")
        return
    discovered = "discover" in queries.kinds(run) or bool(head["confirmed"] or head["hypotheses"])
    _figures(head, discovered)
    named = kept(queries.audited, run)
    if named:
        with st.expander(f"What was audited, on {head['created_at'].astimezone(UTC):%Y-%m-%d %H:%M} UTC"):
            st.dataframe(pd.DataFrame(named), hide_index=True)
    _models(run)
    _top(run, listed, one, discovered)
    if not (head["confirmed"] or head["hypotheses"]):
        errors.show(run, confused)
    _not_asked(run)
    _failures(run)
    _coverage(run)
    _disagreement(run)


def _figures(head: Row, discovered: bool) -> None:
    """Counts of images and, where it was looked for, of what was found."""
    figures = {"images under audit": head["images"], "images in the pool": head["pool"]}
    if discovered:
        figures |= {"confirmed failure modes": head["confirmed"], "hypotheses": head["hypotheses"]}
    elif head["refused"]:
        figures |= {"images that cannot be used": head["refused"]}
    for cell, (name, value) in zip(st.columns(4), figures.items(), strict=False):
        cell.metric(name, f"{value:,}")


def state(run: Run) -> None:
    """How far the run is; shown anew every few seconds while its driver is at work."""
    said = progress.live(run.store)
    going = progress.going(said)
    seen = _seen(run, said)
    st.fragment(partial(_state, run, seen), run_every=EVERY if going else None)()


def _state(run: Run, seen: tuple[Any, ...]) -> None:
    """The fragment. Where a stage has ended since the page was made, or the run, the whole page is made anew."""
    run.refresh(within=EVERY / 2)
    said = progress.live(run.store)
    if _seen(run, said) != seen:
        st.rerun()
    stages = progress.stages_of(run)
    finished = bool(stages) and all(stage["units"] is not None and stage["done"] >= stage["units"] for stage in stages)
    st.text(sentence(said, finished))
    if not stages:
        return
    if finished:
        with st.expander("Stages"):
            _stages(stages, said)
    else:
        _stages(stages, said)


def _seen(run: Run, said: Row | None) -> tuple[Any, ...]:
    """What the rest of the page depends on: whether there is anything, the stages that ended, whether it goes on."""
    ended = sorted(name for name, stage in ((said or {}).get("stages") or {}).items() if stage.get("ended"))
    return bool(run.commits), ended, progress.going(said)


def sentence(said: Row | None, finished: bool) -> str:
    """The state of the run in words, as plain text. `said`: what its driver said last."""
    if said is not None and progress.going(said):
        workers = said.get("workers") or {}
        text = f"Running on {said.get('host')}: {workers.get('busy', 0)} of {workers.get('started', 0)} workers busy"
        waiting = said.get("retries_waiting")
        text += f", {waiting} units to be tried again" if waiting else ""
        return f"{text}. Last heard of {progress.silent_for(said).total_seconds():.0f} s ago."
    if finished:
        return "Finished: all units of all stages are done."
    if said is None:
        return "Not finished, and no driver is at work: 'audit run' with its job file goes on."
    if said.get("ended"):
        return (
            f"Not finished. Its driver ended at {said['at']}: {said['ended']}. 'audit run' with its job file goes on."
        )
    return f"Not finished. Its driver was last heard of at {said['at']}: 'audit run' with its job file goes on."


def _stages(stages: list[Row], said: Row | None) -> None:
    """A row a stage; rates and time left are the driver's."""
    told = (said or {}).get("stages") or {} if progress.going(said) else {}
    rows = [
        {
            "stage": stage["stage"],
            "done": None if not stage["units"] else min(1.0, stage["done"] / stage["units"]),
            "units": f"{stage['done']:,} of {stage['units']:,}" if stage["units"] is not None else "not planned yet",
            "items": f"{stage['items_done']:,} of {stage['items']:,}" if stage["items"] is not None else "",
            "items failed": stage["items_failed"],
            "units given up": stage["quarantined"],
            "items a second": told.get(stage["stage"], {}).get("items_per_second"),
            "minutes left": _minutes(told.get(stage["stage"], {}).get("seconds_left")),
            "hours of work": stage["seconds"] / 3600,
        }
        for stage in stages
    ]
    columns: dict[str, Any] = {"done": st.column_config.ProgressColumn(format="percent", min_value=0.0, max_value=1.0)}
    columns |= {name: st.column_config.NumberColumn(format="%.2f") for name in ("items a second", "hours of work")}
    columns["minutes left"] = st.column_config.NumberColumn(format="%.0f")
    frame = pd.DataFrame(rows)
    st.dataframe(frame.dropna(axis="columns", how="all"), hide_index=True, column_config=columns)


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def _models(run: Run) -> None:
    models = kept(queries.models, run)
    if models:
        st.header("How good the models look on their own data")
        frame = pd.DataFrame(models)[["model_id", "accuracy", "images"]]
        frame.columns = ["model", "accuracy", "labelled images"]
        share = {"accuracy": st.column_config.ProgressColumn(format="percent", min_value=0.0, max_value=1.0)}
        st.dataframe(frame, hide_index=True, column_config=share)


def _top(run: Run, listed: Any, one: Any, discovered: bool) -> None:
    """The failure modes of most impact, confirmed ones first, with pictures."""
    st.header("What the audit found")
    found = gallery.count_modes(run, gallery.Modes())
    if not found:
        st.info(NO_MODES if discovered else NOT_LOOKED_FOR)
        return
    failure_modes.cards(run, gallery.modes(run, gallery.Modes(), "confirmed first", 1, TOP), one)
    if found > TOP:
        st.page_link(listed, label=f"All {found} failure modes")


def _not_asked(run: Run) -> None:
    """What the job did not ask for, and the lines of a job file that would."""
    missing = kept(queries.not_asked, run)
    if not missing:
        return
    st.header("What this job did not look for")
    st.caption("Add these lines to the job file and run it under another name, or with --new-run.")
    for one in missing:
        st.text(f"{one.what[:1].upper()}{one.what[1:]}.")
        st.code("\n".join(one.lines), language="yaml")


def _failures(run: Run) -> None:
    """What could not be done, and why."""
    found = kept(queries.failures, run)
    if found:
        st.header("What failed, and why")
        st.caption("Everything else of the run is not touched by these. The example names one of them.")
        st.dataframe(pd.DataFrame(found), hide_index=True)


def _coverage(run: Run) -> None:
    classes = kept(queries.coverage, run)
    if classes:
        st.header("Classes")
        st.caption(
            "What was looked at of each class. Agreement: share of images drawn for the class on which at least half "
            "of the models see it."
        )
        frame = pd.DataFrame(classes).dropna(axis="columns", how="all")
        numbers = {name: st.column_config.NumberColumn(format="percent") for name in ("accuracy", "agreement")}
        st.dataframe(frame, hide_index=True, column_config=numbers)


def _disagreement(run: Run) -> None:
    share = {"disagreement": st.column_config.NumberColumn(format="percent")}
    pairs = kept(queries.pairs, run)
    if pairs:
        st.header("Where the models disagree on the data")
        st.dataframe(pd.DataFrame(pairs), hide_index=True, column_config=share)
        st.dataframe(pd.DataFrame(kept(queries.disagreements, run)), hide_index=True, column_config=share)
    confused = kept(queries.confusions, run)
    if confused:
        st.header("What the models say instead of the label")
        share = {"share": st.column_config.NumberColumn(format="percent", help="of the label's images")}
        st.dataframe(pd.DataFrame(confused), hide_index=True, column_config=share)
