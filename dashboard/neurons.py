"""The report's page of neurons: all of them by verdict, and one with its searches, its real images, its attack."""

from __future__ import annotations

from html import escape
from typing import Any

import streamlit as st

from audit.results import queries
from audit.results.queries import Row
from audit.results.sql import Run
from dashboard import components

_COLOURS = {"harmful": "#b3261e", "spurious": "#8a6d1a", "core": "#1a7f4b"}


def listed(run: Run) -> list[Row]:
    """All neurons, harmful ones first, then by class and rank."""
    return run.rows(
        "select * from neurons order by list_position(['harmful', 'spurious', 'core'], verdict) nulls last, "
        "model_id, class_name, rank nulls last, stage, neuron"
    )


def one(run: Run, neuron_id: str) -> Row | None:
    rows = run.rows("select * from neurons where neuron_id = ?", [neuron_id])
    return rows[0] if rows else None


def searches(run: Run, neuron: Row) -> list[Row]:
    """A neuron's searches and feature attacks that ended, by number."""
    return run.rows(
        "select * from explanations where stage = ? and model_id = ? and layer = ? and target_class = ? and neuron = ? "
        "and status = 'ok' order by seed, method, arm",
        [neuron[key] for key in ("stage", "model_id", "layer", "class_name", "neuron")],
    )


def show(run: Run, page: Any) -> None:
    """The page: the neuron that the address names, else the list. `page` is what links lead to."""
    asked = st.query_params.get("id")
    found = one(run, asked) if asked else None
    if found is not None:
        _detail(run, found, page)
        return
    st.title("Neurons" if asked is None else "No such neuron")
    rows = listed(run)
    if not rows:
        st.info("No neurons. The stage `neuron` of a job explains them.")
        return
    st.caption(
        "harmful: maximised on images of other classes, it makes the model say the class without the object. "
        "core: it shows the object. spurious: it shows something else."
    )
    for row in rows:
        _card(run, row, page)


def _card(run: Run, neuron: Row, page: Any) -> None:
    """One neuron in a line: the search from another class that raised it most, verdict, reason, link."""
    made = [x for x in searches(run, neuron) if (x["method"], x["arm"]) == ("neuron", "others")]
    made.sort(key=lambda x: x["activation_before"] - x["activation_after"])
    with st.container(border=True):
        picture, text = st.columns([1, 1], gap="medium")
        with picture:
            if made:
                st.html(_pair(made[0], neuron, brief=True))
        with text:
            st.html(_headline(neuron, 3))
            st.text(_sentence(neuron))
            st.page_link(page, label="Evidence", query_params={"id": neuron["neuron_id"]})


def _detail(run: Run, neuron: Row, page: Any) -> None:
    st.html(_headline(neuron, 1))
    st.text(_sentence(neuron))
    _figures(neuron)
    found = searches(run, neuron)
    name = neuron["class_name"]
    by_seed: dict[int, dict[tuple[str, str], Row]] = {}
    for row in found:
        by_seed.setdefault(row["seed"], {})[row["method"], row["arm"]] = row
    rows = [_row(arms, neuron) for arms in by_seed.values() if ("neuron", "maximise") in arms]
    if rows:
        st.header("The same starts, minimised and maximised")
        st.text(f"Each row begins with one image drawn for {name}. The feature attack changes its pixels directly.")
        st.html("".join(f"<div style='white-space:nowrap;overflow-x:auto'>{row}</div>" for row in rows))
    others = [row for row in found if (row["method"], row["arm"]) == ("neuron", "others")]
    if others:
        st.header("Images of other classes, maximised")
        st.text(f"Where the model says {name} and the check sees none, the neuron misleads it.")
        st.html(components.grid([_pair(row, neuron) for row in others]))
    if neuron["top_items"]:
        st.header("Real images that activate it most")
        st.html(components.grid(_real(run, neuron)))
    st.page_link(page, label="All neurons")


def _headline(neuron: Row, level: int) -> str:
    verdict = neuron["verdict"] or "no evidence"
    colour = _COLOURS.get(verdict, "#555555")
    words = f"{escape(neuron['model_id'])}: neuron {neuron['neuron']} for “{escape(neuron['class_name'])}”"
    badge = f"<span style='background:{colour};color:white;border-radius:4px;padding:2px 8px;font-size:0.8rem'>"
    return f"<h{level} style='margin:0;overflow-wrap:anywhere'>{words}</h{level}>{badge}{escape(verdict)}</span>"


def _sentence(neuron: Row) -> str:
    reason = neuron["reason"] or ""
    return f"{reason[:1].upper()}{reason[1:]}."


def _figures(neuron: Row) -> None:
    """The numbers of a neuron that are known, as tiles."""
    tiles = []
    if neuron["weight"] is not None:
        tiles.append(("weight to the class", f"{neuron['weight']:.3f}", neuron["layer"]))
    if neuron["rank"] is not None:
        auc = "too few images" if neuron["trigger_auc"] is None else f"AUC {neuron['trigger_auc']:.2f}"
        explained = f"importance {neuron['importance']:.3f} = weight x mean activation {neuron['mean_activation']:.3f}"
        tiles.append(("place among suspects", str(neuron["rank"]), f"{explained}; triggers: {auc}"))
    if neuron["suspicion"] is not None:
        said = f"share of the {len(neuron['top_items'])} that activate it most on which the check sees no such object"
        tiles.append(("real images without it", f"{neuron['suspicion']:.0%}", said))
    if neuron["searches"]:
        before, after = neuron["trigger_before"], neuron["trigger_after"]
        said = (
            f"share of {neuron['searches']} searches from other classes whose result is called the class without the "
            f"object; {before:.0%} at the starts, p = {neuron['p_value']:.2g}"
        )
        tiles.append(("called so without it", f"{after:.0%}", said))
    st.html(components.grid([components.metric(*tile) for tile in tiles]))


def _row(arms: dict[tuple[str, str], Row], neuron: Row) -> str:
    """Minimised, start, maximised, attacked."""
    first = arms["neuron", "maximise"]
    cells = []
    if ("neuron", "minimise") in arms:
        cells.append(_end(arms["neuron", "minimise"], neuron, "minimised"))
    cells += [_start(first, neuron, "start"), _end(first, neuron, "maximised")]
    if ("feature_attack", "maximise") in arms:
        cells.append(_end(arms["feature_attack", "maximise"], neuron, "feature attack"))
    return "".join(cells)


def _pair(row: Row, neuron: Row, brief: bool = False) -> str:
    """Start from another class and its maximised result, framed where the class is called without the object."""
    source = row["source_class"].replace("_", " ")
    cells = _start(row, neuron, f"start: {source}", brief) + _end(row, neuron, "maximised", brief)
    colour = _COLOURS["harmful"] if row["flipped"] and not row["seen_after"] and not brief else "transparent"
    frame = f"border-left:3px solid {colour};padding-left:8px"
    return f"<div style='display:inline-block;margin-right:22px;white-space:nowrap;{frame}'>{cells}</div>"


def _start(row: Row, neuron: Row, title: str, brief: bool = False) -> str:
    said = [] if brief else _said(row["activation_before"], row["score_before"], row["seen_before"], neuron)
    return components.figure(row["start_image_id"], f"start for neuron {neuron['neuron']}", said, title)


def _end(row: Row, neuron: Row, title: str, brief: bool = False) -> str:
    said = [] if brief else _said(row["activation_after"], row["score_after"], row["seen_after"], neuron)
    if row["reason"] and not brief:
        said.append(f"<span style='white-space:normal;opacity:0.65'>{escape(row['reason'])}</span>")
    return components.figure(row["image_id"], f"{title}: neuron {neuron['neuron']}", said, title)


def _said(activation: float, score: float, seen: bool, neuron: Row) -> list[str]:
    """Activation, the model's confidence in the class, and what the check says."""
    name, model = escape(neuron["class_name"]), escape(neuron["model_id"])
    return [
        f"<span style='opacity:0.65'>activation</span> <b>{activation:.2f}</b>",
        f"<span style='opacity:0.65'>{model}</span> {name} <b>{score:.0%}</b>",
        f"<span style='opacity:0.65'>{escape(neuron['check_id'])}</span> {'sees it' if seen else 'sees none'}",
    ]


def _real(run: Run, neuron: Row) -> list[str]:
    """The top real images, with what the explained model and the check say of each."""
    ids = neuron["top_items"]
    said = queries.said(run, ids)
    cells = []
    for item_id, activation, seen in zip(ids, neuron["top_activations"], neuron["top_seen"], strict=True):
        lines = [f"<span style='opacity:0.65'>activation</span> <b>{activation:.2f}</b>"]
        lines += components.verdicts([row for row in said.get(item_id, []) if row["model_id"] == neuron["model_id"]])
        lines.append(
            f"<span style='opacity:0.65'>{escape(neuron['check_id'])}</span> {'sees it' if seen else 'sees none'}"
        )
        cells.append(components.figure(item_id, f"real image for neuron {neuron['neuron']}", lines))
    return cells
