"""The report's page of one explanation: a search, a neuron's, or a counterfactual; how it looks and how it was made."""

from __future__ import annotations

import json
import shlex
from html import escape
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from audit import sentences
from audit.locations import absolute
from audit.results import queries
from audit.results.sql import Run
from dashboard import components, reviewing, viewers

Row = dict[str, Any]

_SHOWN = (
    ("start_image_id", "start"),
    ("reconstruction_image_id", "inversion alone"),
    ("edit_image_id", "prompt edit alone"),
    ("image_id", "result"),
    ("difference_image_id", "what changed"),
    ("mask_image_id", "free to change"),
    ("attention_image_id", "attention"),
)
_LAYERS = {
    "what changed": "difference_image_id",
    "free to change": "mask_image_id",
    "attention": "attention_image_id",
}


def show(run: Run, mode_page: Any) -> None:
    """The page of the explanation that the address names. `mode_page` is what links to failure modes lead to."""
    asked = st.query_params.get("id", "")
    rows = run.rows("select * from explanations where explanation_id = ?", [asked])
    if not rows:
        st.title("No such explanation" if asked else "Choose an explanation")
        st.text("Failure modes, neurons and counterfactuals lead to the explanations that they rest on.")
        return
    row = rows[0]
    said = queries.verdict(run, row["explanation_id"])
    badge = "" if said is None else components.reviewed(said["verdict"])
    st.html(f"<h2 style='margin:0;overflow-wrap:anywhere'>{title(row)} {badge}</h2>")
    if row["status"] != "ok":
        st.text(f"This one failed: {row['reason']}.")
    else:
        _pictures(run, row)
        _steps(run, row)
        _measurements(run, row)
    _modes(run, row, mode_page)
    reviewing.show(run, row["explanation_id"])
    _how(run, row)


def title(row: Row) -> str:
    """What was asked and what became of it, as HTML."""
    if row["neuron"] is not None:
        words = f"neuron {row['neuron']} of {row['model_id']}, beside {row['target_class']}"
    elif row["other_model_id"] is not None:
        words = f"{row['model_id']} is to say {row['target_class']}, {row['other_model_id']} is not"
    else:
        words = f"{row['source_class']} to {row['target_class']}"
    if row["flipped"] is None:
        return escape(words)
    badge = components.badge(*(("flipped", "#1a7f4b") if row["flipped"] else ("held", "#8a6d1a")))
    return f"{escape(words)} {badge}"


def _pictures(run: Run, row: Row) -> None:
    """The slider, and every image of it with what each model says."""
    ids = [row[key] for key, _ in _SHOWN if row[key]]
    if row["start_image_id"] and row["image_id"]:
        layers = {name: row[key] for name, key in _LAYERS.items() if row[key]}
        viewers.before_after(
            row["start_image_id"], row["image_id"], layers, str(row["target_class"]), f"slider-{row['explanation_id']}"
        )
    said = queries.said(run, ids)
    st.html(
        components.grid(
            [
                components.figure(
                    row[key], f"{name}, {row['target_class']}", components.verdicts(said.get(row[key], [])), name
                )
                for key, name in _SHOWN
                if row[key]
            ]
        )
    )
    scores = [
        {
            "model": row["model_id"],
            "class": row["target_class"],
            "before": row["score_before"],
            "after": row["score_after"],
        },
        {
            "model": row["other_model_id"],
            "class": row["target_class"],
            "before": row["other_before"],
            "after": row["other_after"],
        },
        {
            "model": row["model_id"],
            "class": row["source_class"],
            "before": row["source_before"],
            "after": row["source_after"],
        },
    ]
    told = [one for one in scores if one["before"] is not None and one["model"] and one["class"]]
    if told:
        shares = {name: st.column_config.NumberColumn(format="percent") for name in ("before", "after")}
        st.dataframe(pd.DataFrame(told), hide_index=True, column_config=shares)


def _steps(run: Run, row: Row) -> None:
    """How it came about: the frames that were kept, and what the models said at every step."""
    steps = run.rows("select * from traces where explanation_id = ? order by step", [row["explanation_id"]])
    if not steps:
        return
    st.header("Trajectory")
    st.caption("Every step of the optimisation; the one with the lowest loss is the result.")
    frames = [step for step in steps if step["image_id"]]
    if frames:
        labels = [(step["image_id"], _label(step, row)) for step in frames]
        best = next((i for i, step in enumerate(frames) if step["step"] == row["best_step"]), len(frames) - 1)
        viewers.player(labels, best, f"player-{row['explanation_id']}")
    st.altair_chart(chart(pd.DataFrame(steps), row))


def _label(step: Row, row: Row) -> str:
    kept = " (kept)" if step["step"] == row["best_step"] else ""
    said = "" if step["score"] is None else f": {row['target_class']} {step['score']:.0%}"
    return f"step {step['step']}{kept}{said}"


def chart(steps: pd.DataFrame, row: Row) -> alt.Chart:
    """A line a model and class, over the steps."""
    names = {
        "score": f"{row['model_id']}: {row['target_class']}",
        "other_score": f"{row['other_model_id']}: {row['target_class']}",
        "source_score": f"{row['model_id']}: {row['source_class']}",
    }
    drawn = [column for column in names if column in steps and steps[column].notna().any()]
    long = steps.melt(["step"], drawn, "line", "probability").replace({"line": names})
    return (
        alt.Chart(long, title="probability at every step")
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="optimisation step"),
            y=alt.Y("probability:Q", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("line:N", title=None),
            tooltip=["step:Q", "line:N", alt.Tooltip("probability:Q", format=".1%")],
        )
    )


def _measurements(run: Run, row: Row) -> None:
    found = queries.measured(run, row["explanation_id"])
    if found:
        st.header("Measurements")
        st.dataframe(pd.DataFrame(found), hide_index=True)


def _modes(run: Run, row: Row, page: Any) -> None:
    """The failure modes that rest on it."""
    modes = run.rows(
        "select * exclude (showing) from failure_modes where list_contains(exemplars, ?) order by source, verdict",
        [row["explanation_id"]],
    )
    if modes:
        st.header("Failure modes that rest on it")
        for mode in modes:
            st.text(sentences.claim(mode))
            st.page_link(page, label="Evidence", query_params={"id": mode["failure_mode_id"]})


def _how(run: Run, row: Row) -> None:
    """What it was made from, and the command that makes it again."""
    st.header("How it was made")
    unit = run.rows("select seconds, worker, attempt from units where unit_id = ?", [row["unit_id"] or ""])
    facts = {"prompt": row["prompt"], "seed": row["seed"], "stage": row["stage"], "unit": row["unit_id"]}
    facts |= {"seconds of the search": row["seconds"], "image": row["item_id"]}
    if unit:
        facts |= {"seconds of its unit": unit[0]["seconds"], "worker": unit[0]["worker"]}
    facts |= {f"option {name}": value for name, value in _options(run, row["stage"]).items()}
    told = [{"": name, " ": _text(value)} for name, value in facts.items() if value is not None]
    st.dataframe(pd.DataFrame(told), hide_index=True)
    st.caption("Make it again, and compare it with this one:")
    st.code(shlex.join(["audit", "reproduce", absolute(run.location), row["explanation_id"]]), language=None)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _options(run: Run, stage: str | None) -> Row:
    """Of a stage, as the job had them."""
    rows = run.rows("select any_value(config) as config from runs")
    stages = json.loads(rows[0]["config"] or "{}").get("stages", [])
    place = int(str(stage).partition("-")[0]) - 1 if stage and stage[0].isdigit() else -1
    return {k: v for k, v in stages[place].items() if k != "plugin"} if 0 <= place < len(stages) else {}
