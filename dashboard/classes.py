"""The report's page of classes: all of them as a table, and one with all that the run knows of it."""

from __future__ import annotations

from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import streamlit as st

from audit import sentences
from audit.results.sql import CONCERNING, Run
from dashboard import components, originals, paging
from dashboard.cached import Snapshot, snapshot

Row = dict[str, Any]

PAGE_SIZE = 25
IMAGES = 12
MODES = 12
SAID = 50  # confusions, and neurons, of one class
_ACCURACY = "accuracy of "

_CLASSES = (
    "with labels as (select label as class, count(*) as images from items "
    "where role = 'data' and status = 'ok' and label is not null group by label), "
    "measured as (select subject_id as class, max(value) filter (name = 'agreement') as agreement, "
    "max(value) filter (name = 'kid') as kid, max(value) filter (name = 'auditable') as auditable, "
    "max(reason) filter (name = 'auditable' and value = 0) as reason "
    "from measurements where name in ('agreement', 'kid', 'auditable') group by subject_id), "
    "modes as (select class_name as said, count(*) filter (verdict = 'confirmed') as confirmed, "
    f"count(*) filter (verdict = 'hypothesis') as hypotheses from {CONCERNING} group by all) "
    "select class, coalesce(images, 0) as images, agreement, kid, "
    "case when auditable is null then 'not tried' when auditable > 0 then 'yes' else coalesce(reason, 'no') end "
    "as auditable, coalesce(confirmed, 0) as confirmed, coalesce(hypotheses, 0) as hypotheses "
    "from labels full join measured using (class) left join modes on said = class order by class"
)


def table(run: Run) -> pa.Table:
    """A row a class: class, images, agreement, kid, auditable ('yes', 'not tried' or why not), confirmed, hypotheses
    (failure modes that concern it), and 'accuracy of <model>' for every model."""
    found = run.sql(_CLASSES)
    accuracy = run.sql("select model_id, label, accuracy from accuracy")
    models = sorted(set(accuracy.column("model_id").to_pylist()))
    columns = ", ".join(f"max(accuracy) filter (model_id = ?) as {_quoted(_ACCURACY + name)}" for name in models)
    with duckdb.connect() as connection:
        connection.register("found", found)
        connection.register("accuracy", accuracy)
        if not models:
            return found
        return connection.sql(
            f"select found.*, a.* exclude (label) from found left join (select label, {columns} from accuracy "
            "group by label) a on found.class = a.label order by class",
            params=models,
        ).to_arrow_table()


def found_in(classes: pa.Table, search: str) -> pa.Table:
    """The classes with `search` in their name, whatever the case."""
    with duckdb.connect() as connection:
        connection.register("classes", classes)
        return connection.sql(
            "select * from classes where contains(lower(class), lower(?)) order by class", params=[search.strip()]
        ).to_arrow_table()


def page_of(classes: pa.Table, order: str, down: bool, number: int) -> pd.DataFrame:
    """A page of classes in an order. `order`: a column of `table`."""
    with duckdb.connect() as connection:
        connection.register("classes", classes)
        return connection.sql(
            f"select * from classes order by {_quoted(order)} {'desc' if down else 'asc'} nulls last, class "
            f"limit {PAGE_SIZE} offset {(number - 1) * PAGE_SIZE}"
        ).df()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@st.cache_resource(max_entries=4, show_spinner="Counting classes ...")
def _table(_run: Run, of: Snapshot) -> pa.Table:  # noqa: ARG001
    return table(_run)


def show(run: Run, mode_page: Any, neuron_page: Any, confusion_page: Any) -> None:
    """The page: the class that the address names, else all of them. The other pages are what its links lead to."""
    classes = _table(run, snapshot(run))
    name = st.query_params.get("name")
    if name is None:
        _all(classes)
        return
    rows = classes.filter(pa.compute.equal(classes["class"], name)).to_pylist()
    if not rows:
        st.title("No such class")
        st.text(f"This run has no class {name!r}, neither in its data nor drawn by a generator.")
        st.button("All classes", on_click=_choose, args=(None,))
        return
    _one(run, rows[0], mode_page, neuron_page, confusion_page)


def _choose(name: str | None) -> None:
    if name is None:
        st.query_params.pop("name", None)
    else:
        st.query_params["name"] = name


def _all(classes: pa.Table) -> None:
    st.title("Classes")
    if not len(classes):
        st.info("No classes yet: no labelled image is listed, and the stage `adequacy` has drawn none.")
        return
    columns = classes.column_names
    cells = st.columns([3, 3, 2], vertical_alignment="bottom")
    search = cells[0].text_input("Search for a class", key="q", bind="query-params", on_change=paging.first_page)
    order = cells[1].selectbox("Sort by", columns, key="by", bind="query-params", on_change=paging.first_page)
    down = cells[2].toggle("Largest first", key="down", bind="query-params", on_change=paging.first_page)
    found = found_in(classes, search or "")
    if not len(found):
        st.info("No class has this in its name.")
        return
    st.caption("Choose a row to see the class. A class that the generator cannot draw gets no findings from it.")
    place = st.container()
    number = paging.number(paging.pages(len(found), PAGE_SIZE))
    frame = page_of(found, order, down, number)
    chosen = place.dataframe(
        frame,
        height="content",
        hide_index=True,
        column_order=[name for name in columns if name != "auditable"] + ["auditable"],
        column_config=_columns(columns),
        on_select="rerun",
        selection_mode="single-row",
    )
    if chosen.selection.rows:
        _choose(str(frame["class"].iloc[chosen.selection.rows[0]]))
        st.rerun()


def _columns(names: list[str]) -> dict[str, Any]:
    """How the table shows its numbers."""
    shares = {name: st.column_config.NumberColumn(format="percent") for name in names if name.startswith(_ACCURACY)}
    seen = "share of the images drawn for the class on which at least half of the models see it"
    shares["agreement"] = st.column_config.NumberColumn("agreement", format="percent", help=seen)
    far = "distance of the drawn images to those of the data (squared MMD)"
    shares["kid"] = st.column_config.NumberColumn("KID", format="%.4f", help=far)
    named = "failure modes in which a model says the class"
    return shares | {name: st.column_config.NumberColumn(name, help=named) for name in ("confirmed", "hypotheses")}


def _one(run: Run, row: Row, mode_page: Any, neuron_page: Any, confusion_page: Any) -> None:
    name = row["class"]
    st.html(components.heading(name, 1))
    st.button("All classes", on_click=_choose, args=(None,))
    tiles = [("images in the data", f"{row['images']:,}")]
    if row["agreement"] is not None:
        tiles.append(("drawn images recognised", f"{row['agreement']:.0%}"))
    if row["kid"] is not None:
        tiles.append(("KID of drawn images", f"{row['kid']:.4f}"))
    tiles.append(("confirmed failure modes", str(row["confirmed"])))
    for cell, (label, value) in zip(st.columns(4), tiles, strict=False):
        cell.metric(label, value)
    if row["auditable"] not in ("yes", "not tried"):
        st.text(f"{row['auditable'][:1].upper()}{row['auditable'][1:]}.")
    _models(run, name, confusion_page)
    _modes(run, name, mode_page)
    _neurons(run, name, neuron_page)
    _images(run, name)


def _models(run: Run, name: str, confusion_page: Any) -> None:
    """Accuracy of each model, and what it says instead; a row that is chosen leads to its images."""
    accuracy = run.frame(
        "select model_id as model, images, accuracy from accuracy where label = ? order by model_id", [name]
    )
    if accuracy.empty:
        return
    st.header("How good the models are on it")
    share = st.column_config.NumberColumn(format="percent")
    st.dataframe(accuracy, hide_index=True, column_config={"accuracy": share})
    said = run.frame(
        "select model_id as model, predicted as says, images, share from confusions where label = ? "
        f"order by images desc, model_id, predicted limit {SAID}",
        [name],
    )
    if said.empty:
        st.text("No model is wrong on any of these images.")
        return
    st.header("What they say instead")
    st.caption("Choose a row to see the images.")
    chosen = st.dataframe(
        said, hide_index=True, column_config={"share": share}, on_select="rerun", selection_mode="single-row"
    )
    if chosen.selection.rows:
        row = said.iloc[chosen.selection.rows[0]]
        st.switch_page(confusion_page, query_params={"model": row["model"], "label": name, "says": row["says"]})


def _modes(run: Run, name: str, page: Any) -> None:
    """Failure modes in which a model says the class, or misses it."""
    where = f"from {CONCERNING} m left join verdicts v on v.subject_id = m.failure_mode_id "
    where += "where class_name = ?"
    modes = run.rows(
        f"select m.* exclude (showing), v.verdict as reviewed {where} "
        f"order by m.verdict, impact desc nulls last, failure_mode_id limit {MODES}",
        [name],
    )
    if not modes:
        return
    st.header("Failure modes that concern it")
    for mode in modes:
        with st.container(border=True):
            st.html(components.headline(mode, mode["reviewed"]))
            st.text(sentences.sentence(mode))
            st.page_link(page, label="Evidence", query_params={"id": mode["failure_mode_id"]})
    total = run.rows(f"select count(*) as n {where}", [name])[0]["n"]
    if total > MODES:
        st.text(f"{total - MODES} more are among all failure modes.")


def _neurons(run: Run, name: str, page: Any) -> None:
    found = run.frame(
        "select n.model_id as model, neuron, n.verdict, v.verdict as reviewed, weight, importance, suspicion, reason "
        "from neurons n left join verdicts v on v.subject_id = neuron_id where class_name = ? "
        "order by list_position(['harmful', 'spurious', 'core'], n.verdict) nulls last, model_id, rank nulls last "
        f"limit {SAID}",
        [name],
    )
    if found.empty:
        return
    st.header("Neurons")
    st.dataframe(found, hide_index=True, column_config={"suspicion": st.column_config.NumberColumn(format="percent")})
    st.page_link(page, label="These neurons with their images", query_params={"class": name})


def _images(run: Run, name: str) -> None:
    """Images that the generator drew for the class, and labelled ones of the data."""
    drawn = run.rows(
        "select distinct image_id from images join predictions on item_id = image_id "
        f"where kind = 'sample' and role = 'generated' and label = ? order by image_id limit {IMAGES}",
        [name],
    )
    if drawn:
        st.header("Images drawn for it")
        originals.kept(run, [row["image_id"] for row in drawn], "drawn image")
    rows = run.rows(
        "select item_id, role, any_value(uri) as uri, any_value(display_name) as display_name, label from items "
        f"where role = 'data' and status = 'ok' and label = ? group by all order by min(position) limit {IMAGES}",
        [name],
    )
    if rows:
        st.header("Images of it in the data")
        originals.show(run, rows, "labelled image")
