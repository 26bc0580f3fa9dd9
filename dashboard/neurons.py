"""The report's page of neurons: all of them by verdict, and one with its searches, its real images, its attack."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from audit import sentences
from audit.results import queries
from audit.results.queries import NOT_REVIEWED, Row
from audit.results.sql import Run
from dashboard import components, paging, reviewing
from dashboard.filters import left_out

PAGE_SIZE = 12
FILTERS = {  # what the list can be held to: the name in the address, and the column
    "model": "n.model_id",
    "class": "n.class_name",
    "verdict": "coalesce(n.verdict, 'no evidence')",
    "reviewed": f"coalesce(v.verdict, '{NOT_REVIEWED}')",
}
_TITLES = {"model": "Model", "class": "Class", "verdict": "Verdict", "reviewed": "Reviewed as"}
_ARMS = {
    ("neuron", "maximise"): "of the class, maximised",
    ("neuron", "minimise"): "of the class, minimised",
    ("neuron", "others"): "of other classes, maximised",
    ("feature_attack", "maximise"): "of the class, by feature attack",
}
_SAME = ("stage", "model_id", "layer", "class_name", "neuron")
_COLOURS = {"harmful": "#b3261e", "spurious": "#8a6d1a", "core": "#1a7f4b"}


def count(run: Run, filters: Mapping[str, str]) -> int:
    """How many neurons there are. filters: of `FILTERS`, the value of each that is held to."""
    where, values = _where(filters)
    return int(run.rows(f"select count(*) as found {where}", values)[0]["found"])


def listed(run: Run, filters: Mapping[str, str], number: int) -> list[Row]:
    """A page of neurons, harmful ones first, then by class and rank; `reviewed` is a person's last verdict."""
    where, values = _where(filters)
    return run.rows(
        f"select n.*, v.verdict as reviewed {where} "
        "order by list_position(['harmful', 'spurious', 'core'], n.verdict) nulls last, "
        f"model_id, class_name, rank nulls last, stage, neuron limit {PAGE_SIZE} offset ?",
        [*values, (number - 1) * PAGE_SIZE],
    )


def _where(filters: Mapping[str, str]) -> tuple[str, list[str]]:
    held = "".join(f" and {FILTERS[name]} = ?" for name in filters)
    return f"from neurons n left join verdicts v on subject_id = neuron_id where true{held}", list(filters.values())


def choices(run: Run) -> dict[str, list[str]]:
    """What each filter can be held to, among the neurons of the run."""
    return {
        name: [
            row["value"]
            for row in run.rows(
                f"select distinct {column} as value from neurons n left join verdicts v on subject_id = neuron_id "
                "order by value"
            )
        ]
        for name, column in FILTERS.items()
    }


def one(run: Run, neuron_id: str) -> Row | None:
    rows = run.rows("select * from neurons where neuron_id = ?", [neuron_id])
    return rows[0] if rows else None


def searches(run: Run, neuron: Row) -> list[Row]:
    """A neuron's searches and feature attacks that ended, by number."""
    return run.rows(
        "select * from explanations where stage = ? and model_id = ? and layer = ? and target_class = ? and neuron = ? "
        "and status = 'ok' order by seed, method, arm",
        [neuron[key] for key in _SAME],
    )


def raised(run: Run, found: list[Row]) -> dict[str, Row]:
    """Of each of these neurons, by id, the search from another class that raised it most."""
    rows = run.rows(
        "select neuron_id, x.* from explanations x join neurons n on x.stage = n.stage and x.model_id = n.model_id "
        "and x.layer = n.layer and x.target_class = n.class_name and x.neuron = n.neuron "
        "where method = 'neuron' and arm = 'others' and status = 'ok' and neuron_id in (select unnest(?)) "
        "qualify row_number() over "
        "(partition by neuron_id order by activation_after - activation_before desc, explanation_id) = 1",
        [[neuron["neuron_id"] for neuron in found]],
    )
    return {row["neuron_id"]: row for row in rows}


def arms(run: Run, neuron: Row) -> list[Row]:
    """How far each kind of search moved the neuron: activations before and after, means and extremes."""
    return run.rows(
        "select method, arm, count(*) as searches, avg(activation_before) as before, avg(activation_after) as after, "
        "min(activation_after) as lowest, max(activation_after) as highest from explanations "
        "where stage = ? and model_id = ? and layer = ? and target_class = ? and neuron = ? and status = 'ok' "
        "group by method, arm order by method desc, arm",
        [neuron[key] for key in _SAME],
    )


def show(run: Run, all_page: Any, one_page: Any) -> None:
    """The page: the neuron that the address names, else the list. The pages are what links lead to."""
    asked = st.query_params.get("id")
    found = one(run, asked) if asked else None
    if found is not None:
        _detail(run, found, all_page)
        return
    st.title("Neurons" if asked is None else "No such neuron")
    there = choices(run)
    if not any(there.values()):
        st.info("No neurons. The stage `neuron` of a job explains them.")
        return
    st.caption(
        "harmful: maximised on images of other classes, it makes the model say the class without the object. "
        "core: it shows the object. spurious: it shows something else."
    )
    _list(run, _filtered(there), one_page)


def _filtered(there: Mapping[str, list[str]]) -> dict[str, str]:
    """What the filters are held to; their values are part of the address."""
    chosen = {}
    for cell, (name, values) in zip(st.columns(len(FILTERS)), there.items(), strict=True):
        left_out(cell, name, values)
        value = cell.selectbox(
            _TITLES[name], values, None, key=name, bind="query-params", placeholder="any", on_change=paging.first_page
        )
        if value is not None:
            chosen[name] = value
    return chosen


def _list(run: Run, filters: Mapping[str, str], page: Any) -> None:
    place = st.container()
    found = count(run, filters)
    if not found:
        st.info("No neuron of this kind. Take a filter away.")
        return
    number = paging.number(paging.pages(found, PAGE_SIZE))
    with place:
        st.caption(f"{found:,} neurons. N and P turn the page." if found > 1 else "1 neuron")
        rows = listed(run, filters, number)
        pictures = raised(run, rows)
        for row in rows:
            _card(row, pictures.get(row["neuron_id"]), page)


def _card(neuron: Row, search: Row | None, page: Any) -> None:
    """One neuron in a line: the search from another class that raised it most, verdict, reason, link."""
    with st.container(border=True):
        picture = "" if search is None else _pair(search, neuron, brief=True)
        st.html(components.beside(picture, _headline(neuron, 3) + components.paragraph(_sentence(neuron))))
        st.page_link(page, label="Evidence", query_params={"id": neuron["neuron_id"]})


def _detail(run: Run, neuron: Row, page: Any) -> None:
    said = queries.verdict(run, neuron["neuron_id"])
    st.html(_headline({**neuron, "reviewed": said and said["verdict"]}, 1))
    st.text(_sentence(neuron))
    _figures(neuron)
    _activations(run, neuron)
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
    reviewing.show(run, neuron["neuron_id"])
    st.page_link(page, label="All neurons")


def _activations(run: Run, neuron: Row) -> None:
    """How strongly images activate the neuron: of the class, the strongest real ones, and what searches made of it."""
    known = []
    if neuron["mean_activation"] is not None:
        known.append({"images": "of the class, all labelled ones", "mean": neuron["mean_activation"]})
    if neuron["top_activations"]:
        top = neuron["top_activations"]
        known.append(
            {"images": f"the {len(top)} real ones that activate it most", "mean": sum(top) / len(top)}
            | {"lowest": min(top), "highest": max(top)}
        )
    for row in arms(run, neuron):
        words = f"{row['searches']} {_ARMS.get((row['method'], row['arm']), row['arm'])}"
        known.append({"images": words, "at the start": row["before"], "mean": row["after"]})
        known[-1] |= {"lowest": row["lowest"], "highest": row["highest"]}
    if known:
        st.header("Activations")
        frame = pd.DataFrame(known).reindex(columns=["images", "at the start", "mean", "lowest", "highest"])
        st.dataframe(frame.astype(dict.fromkeys(frame.columns[1:], float)).round(3), hide_index=True)


def _headline(neuron: Row, level: int) -> str:
    verdict = neuron["verdict"] or "no evidence"
    colour = _COLOURS.get(verdict, "#555555")
    words = f"{neuron['model_id']}: {sentences.neuron_name(neuron)} for “{neuron['class_name']}”"
    badges = components.badge(verdict, colour)
    if neuron.get("reviewed"):
        badges += " " + components.reviewed(neuron["reviewed"])
    return components.heading(words, level) + badges


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
