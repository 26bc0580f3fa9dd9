"""The report's page of confusions: what a model says instead of the label, as a matrix, and the images themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from audit.class_names import folded, resolve
from audit.results.sql import Run
from dashboard import components, originals, paging
from dashboard.cached import Snapshot, snapshot
from dashboard.filters import left_out

Row = dict[str, Any]

MOST = 30  # classes on a side of the matrix
PAGE_SIZE = 24
_LISTED = 200
_WRONG, _RIGHT = "says another class", "says the label"
_COLOURS = {_WRONG: "#d1651f", _RIGHT: "#4a7fc1"}
# The images that the other model gets right; every query below may be held to them.
_OTHER_RIGHT = (
    "and not correct and item_id in "
    "(select item_id from predictions where role = 'data' and model_id = ? and correct is true)"
)


def counted(run: Run, model_id: str, right: str | None) -> pd.DataFrame:
    """Labelled images by label and answer: label, predicted, says (the label that the answer names, or itself),
    correct, images. `right`: only images that the model gets wrong and that one gets right."""
    frame = run.frame(
        "select label, predicted, bool_and(correct) as correct, count(*) as images from predictions "
        f"where role = 'data' and correct is not null and model_id = ? {_OTHER_RIGHT if right else ''} "
        "group by label, predicted order by label, predicted",
        [model_id, right] if right else [model_id],
    )
    frame["says"] = frame["predicted"]
    return frame


def images(
    run: Run, model_id: str, right: str | None, label: str | None, said: list[str] | None, number: int
) -> list[Row]:
    """A page of labelled images, the ones that the model is surest of first. said: what it says, as it writes it.

    Neither label nor `said`: all that it gets wrong.
    """
    where = ""
    parameters: list[Any] = [model_id]
    if right:
        where, parameters = _OTHER_RIGHT, [model_id, right]
    if label is not None and said is not None:
        where, parameters = f"{where} and label = ? and predicted in (select unnest(?))", [*parameters, label, said]
    else:
        where += " and not correct"
    rows = run.rows(
        "select item_id, label, confidence from predictions "
        f"where role = 'data' and correct is not null and model_id = ? {where} "
        f"order by confidence desc nulls last, item_id limit {PAGE_SIZE} offset ?",
        [*parameters, (number - 1) * PAGE_SIZE],
    )
    places = run.rows(
        "select item_id, any_value(uri) as uri, any_value(display_name) as display_name from items "
        "where role = 'data' and item_id in (select unnest(?)) group by item_id",
        [[row["item_id"] for row in rows]],
    )
    by_id = {row["item_id"]: row for row in places}
    return [{"role": "data", "uri": None, "display_name": None, **row, **by_id.get(row["item_id"], {})} for row in rows]


def chosen_classes(frame: pd.DataFrame, search: str) -> list[str]:
    """The classes of the matrix: all where they are few, else the most confused; those that are searched for go first,
    then what they are most often confused with."""
    wrong = frame[~frame["correct"]]
    often, every = _often(wrong), sorted({*frame["label"], *frame["says"]})
    if not search.strip():
        return sorted(every if len(every) <= MOST else often[:MOST])
    wanted = folded(search)
    found = [name for name in every if wanted in folded(name)]
    found = [*(name for name in often if name in found), *(name for name in found if name not in often)][:MOST]
    near = _often(wrong[wrong["label"].isin(found) | wrong["says"].isin(found)]) if found else []
    return sorted([*found, *(name for name in near if name not in found)][:MOST])


def _often(wrong: pd.DataFrame) -> list[str]:
    """Classes by the number of mistakes that they are in, as the label or as the answer."""
    parts = [wrong[[side, "images"]].set_axis(["name", "images"], axis=1) for side in ("label", "says")]
    counts = pd.concat(parts).groupby("name")["images"].sum()
    return list(counts.sort_values(ascending=False, kind="stable").index)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """label, says, images, share of the label's images here, kind; a row a cell of the matrix."""
    summed = frame.groupby(["label", "says"], as_index=False).agg(images=("images", "sum"), correct=("correct", "all"))
    summed["share"] = summed["images"] / summed.groupby("label")["images"].transform("sum")
    summed["kind"] = summed.pop("correct").map({True: _RIGHT, False: _WRONG})
    return summed


def show(run: Run) -> None:
    """The page. Model, cell, other model, search and page are its address."""
    st.title("Confusions")
    models = [row["model_id"] for row in _models(run, snapshot(run))]
    if not models:
        st.info("No labelled images with answers yet: the stage `screen` of a job asks the models.")
        return
    left, middle, search_cell = st.columns(3)
    left_out(left, "model", models)
    left_out(middle, "right", models)
    model_id = left.selectbox("Model", models, key="model", bind="query-params", on_change=paging.first_page)
    right = middle.selectbox(
        "Only images that this model gets right",
        [name for name in models if name != model_id],
        index=None,
        placeholder="all images",
        key="right",
        bind="query-params",
        on_change=paging.first_page,
        help="What the first model gets wrong and this one right",
    )
    search = search_cell.text_input("Search for a class", key="class", bind="query-params")
    frame = _counted(run, snapshot(run), model_id, right)
    if frame.empty:
        st.info("No such image: the other model gets none of them right." if right else "This model answered nothing.")
        return
    label, says = _cell_of(frame)
    _overview(frame, search or "", label, says)
    _found(run, frame, model_id, right, label, says)


def _cell_of(frame: pd.DataFrame) -> tuple[str | None, str | None]:
    """The cell that the address names; what the model says may be written as the model does."""
    label, says = st.query_params.get("label"), st.query_params.get("says")
    return label, None if says is None else resolve(says, frame["says"]) or says


@st.cache_data(max_entries=16)
def _models(_run: Run, of: Snapshot) -> list[Row]:  # noqa: ARG001
    """The one that is wrong most often first."""
    return _run.rows(
        "select model_id from predictions where role = 'data' and correct is not null group by model_id "
        "order by avg(correct::int), model_id"
    )


@st.cache_data(max_entries=16, show_spinner="Counting answers ...")
def _counted(_run: Run, of: Snapshot, model_id: str, right: str | None) -> pd.DataFrame:  # noqa: ARG001
    return counted(_run, model_id, right)


@st.cache_data(max_entries=100, show_spinner="Looking for images ...")
def _images(
    _run: Run,
    of: Snapshot,  # noqa: ARG001
    model_id: str,
    right: str | None,
    label: str | None,
    said: list[str] | None,
    number: int,
) -> list[Row]:
    return images(_run, model_id, right, label, said, number)


def _overview(frame: pd.DataFrame, search: str, label: str | None, says: str | None) -> None:
    """The matrix, and the same as a table; a cell or a row that is chosen goes into the address."""
    names = chosen_classes(frame, search)
    if not names:
        st.info("No class has this in its name.")
        return
    shown = cells(frame)
    if (frame["label"] == label).any() and (frame["says"] == says).any():
        names = sorted({*names, str(label), str(says)})
    every = len({*frame["label"], *frame["says"]})
    matrix, table = st.tabs(["Matrix", "Table"], key="view", bind="query-params")  # only what is open is made
    if matrix.open:
        with matrix:
            _matrix(shown, names, every, search, label, says)
    else:
        with table:
            _table(shown, names, search)


def _matrix(
    shown: pd.DataFrame, names: list[str], every: int, search: str, label: str | None, says: str | None
) -> None:
    if search.strip():
        st.caption("The classes with this in their name, and what they are confused with most.")
    elif every > len(names):
        st.caption(f"{len(names)} of {every:,} classes: those that are confused most. Search for others.")
    inside = shown[shown["label"].isin(names) & shown["says"].isin(names)]
    drawn = chart(inside.assign(chosen=(inside["label"] == label) & (inside["says"] == says)))
    st.altair_chart(drawn, width="content", key="matrix", on_select=_cell_chosen, selection_mode="cell")
    st.caption("Choose a cell to see its images.")


def _table(shown: pd.DataFrame, names: list[str], search: str) -> None:
    wrong = shown[shown["kind"] == _WRONG]
    if search.strip():
        wrong = wrong[wrong["label"].isin(names) | wrong["says"].isin(names)]
    listed = wrong.sort_values(["images", "share", "label", "says"], ascending=[False, False, True, True])
    listed = listed[["label", "says", "images", "share"]].head(_LISTED)
    pairs = listed[["label", "says"]].to_numpy().tolist()
    share = {"share": st.column_config.NumberColumn(format="percent", help="of the label's images")}
    st.dataframe(
        listed,
        hide_index=True,
        column_config=share,
        key="table",
        on_select=partial(_row_chosen, pairs),
        selection_mode="single-row",
    )


def chart(frame: pd.DataFrame) -> alt.Chart:
    """Labels down, answers across: the stronger a cell, the larger its share of the label's images."""
    chosen = alt.selection_point(name="cell", fields=["label", "says"])
    words = [f"{row.label}, called {row.says}: {row.images} images" for row in frame.itertuples()]
    labels, said = sorted(frame["label"].unique()), sorted(frame["says"].unique())
    axis = {"labelLimit": 160, "grid": False}
    colours = {kind: colour for kind, colour in _COLOURS.items() if (frame["kind"] == kind).any()}
    step = max(20, min(44, 600 // max(len(labels), len(said))))
    return (
        alt.Chart(frame.assign(words=words), title="share of each label's images here, by what the model says")
        .mark_rect(cursor="pointer")
        .encode(
            x=alt.X(
                "says:N", title="the model says", scale=alt.Scale(domain=said), axis=alt.Axis(**axis, orient="top")
            ),
            y=alt.Y("label:N", title="label", scale=alt.Scale(domain=labels), axis=alt.Axis(**axis)),
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=list(colours), range=list(colours.values())),
                legend=alt.Legend(orient="bottom"),
            ),
            fillOpacity=alt.FillOpacity(
                "share:Q", scale=alt.Scale(type="sqrt", domain=[0, 1], range=[0.2, 1]), legend=None
            ),
            stroke=alt.condition("datum.chosen", alt.value("#ff4b4b"), alt.value(None)),
            strokeWidth=alt.value(3),
            description="words:N",
            tooltip=["label:N", "says:N", "images:Q", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=alt.Step(step), height=alt.Step(step))
        .add_params(chosen)
    )


def _cell_chosen() -> None:
    """What was clicked in the matrix, into the address."""
    points = st.session_state["matrix"]["selection"].get("cell", [])
    if points:
        _choose(points[0]["label"], points[0]["says"])


def _row_chosen(pairs: list[list[str]]) -> None:
    rows = st.session_state["table"]["selection"]["rows"]
    if rows:
        _choose(*pairs[rows[0]])


def _choose(label: str, says: str) -> None:
    st.query_params["label"], st.query_params["says"] = label, says
    paging.first_page()


def _all_mistakes() -> None:
    for name in ("label", "says"):
        st.query_params.pop(name, None)
    paging.first_page()


def _found(
    run: Run, frame: pd.DataFrame, model_id: str, right: str | None, label: str | None, says: str | None
) -> None:
    """The images of the cell that the address names, else of all mistakes."""
    one_cell = label is not None and says is not None
    own = frame[(frame["label"] == label) & (frame["says"] == says)] if one_cell else frame[~frame["correct"]]
    total = int(own["images"].sum())
    words = f"{model_id} says {says} for {label}" if one_cell else f"What {model_id} gets wrong"
    words += f"{',' if one_cell else ''} and {right} gets right" if right else ""
    st.html(components.heading(f"{words}: {total:,} images"))
    if one_cell:
        st.button("All mistakes", on_click=_all_mistakes)
    if not total:
        st.info("No such images. Choose a cell above.")
        return
    st.caption("Those that the model is surest of come first. Above each image: its label.")
    number = paging.number(paging.pages(total, PAGE_SIZE))
    said = sorted(own["predicted"].unique()) if one_cell else None
    rows = _images(run, snapshot(run), model_id, right, label if one_cell else None, said, number)
    originals.show(run, rows, "labelled image")
