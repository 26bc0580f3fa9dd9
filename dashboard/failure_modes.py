"""The report's pages of failure modes: the gallery, and one with what speaks for it."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from audit import sentences
from audit.results import gallery, queries
from audit.results.queries import NOT_REVIEWED, Row
from audit.results.sql import Run
from audit.reviews import VERDICTS
from dashboard import components, filters, paging, reviewing
from dashboard.answers import kept

PAGE_SIZE = 9  # as many as there are keys that open one
REAL_IMAGES = 24
RELATED = 8
_EVIDENCE = {"with": True, "without": False}


def show_gallery(run: Run, page: Any) -> None:
    """The gallery. `page` is that of one failure mode."""
    st.title("Failure modes")
    chosen, sort = _chosen(run)
    found = gallery.count_modes(run, chosen)
    if not found:
        _nothing(chosen)
        return
    place = st.container()
    number = paging.number(paging.pages(found, PAGE_SIZE))
    rows = gallery.modes(run, chosen, sort, number, PAGE_SIZE)
    with place:
        several = "" if found == 1 else "s"
        st.caption(f"{found:,} failure mode{several}. Keys: 1 to 9 open one, N and P turn the page.")
        cards(run, rows, page, keys=True)


def _nothing(chosen: gallery.Modes) -> None:
    if chosen == gallery.Modes():
        st.info("No failure modes. Either no search has ended yet, or none of the searches found a group.")
    else:
        st.info("No failure mode of this kind. Take a filter away.")


def _chosen(run: Run) -> tuple[gallery.Modes, str]:
    """What the filters are held to and the order; all of them are part of the address."""
    search = "listed"
    cells = st.columns(4)
    asked: Row = {}
    for cell, (name, (chosen_by, column)) in zip(cells, _COLUMNS.items(), strict=False):
        values = kept(gallery.values_of, run, "failure_modes", column, search)
        asked[chosen_by] = filters.select(cell, name, values)
    evidence = filters.select(cells[3], "real images", list(_EVIDENCE))
    cells = st.columns(4)
    verdicts = filters.several(cells[0], "verdict", ["confirmed", "hypothesis"], "the audit's; none chosen: any")
    reviewed = filters.several(
        cells[1], "reviewed", [*VERDICTS, NOT_REVIEWED], "a person's last verdict; none chosen: any"
    )
    effect = filters.least(cells[2], "effect", "of the shift, in standard deviations", 0.5, "%.1f")
    impact = filters.least(cells[3], "impact", "on the pool, as a share", 0.005, "%.3f")
    sort = filters.order(st.columns(4)[0], gallery.MODE_SORTS)
    chosen = gallery.Modes(
        **asked,
        evidence=None if evidence is None else _EVIDENCE[evidence],
        least_effect=effect,
        least_impact=impact,
        verdicts=tuple(verdicts),
        reviewed=tuple(reviewed),
    )
    return chosen, sort


_COLUMNS = {
    "class": ("class_name", "class_name"),
    "model": ("model_id", gallery.AT_FAULT),
    "kind": ("kind", "kind"),
}


def cards(run: Run, modes: list[Row], page: Any, keys: bool = False) -> None:
    """Failure modes in a line each. `modes` have `reviewed`, a person's last verdict; with `keys` 1 to 9 open one."""
    searches = queries.typical(run, modes)
    wanted = [
        [] if search else (mode["evidence"] or [])[:REAL_IMAGES] for mode, search in zip(modes, searches, strict=True)
    ]
    real = queries.kept(run, wanted, 2)
    for number, (mode, search, items) in enumerate(zip(modes, searches, real, strict=True), 1):
        pictures = [components.pair(search, {}, models=False)] if search else []
        pictures += [components.real(mode, item_id, []) for item_id in items]
        with st.container(border=True):
            _card(mode, components.grid(pictures), page, str(number) if keys else None)


def _card(mode: Row, pictures: str, page: Any, key: str | None) -> None:
    """One failure mode: its best start and result, or real images, as HTML; the sentence, the link."""
    query = {"id": mode["failure_mode_id"]}
    headline = components.headline(mode, mode["reviewed"])
    words = components.paragraph(sentences.sentence(mode)) + components.paragraph(_brief(mode), 0.65)
    st.html(components.beside(pictures, headline + words))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(page, label="Evidence", query_params=query)
        if key is not None and st.button("Open", key=f"open-{key}", shortcut=key, type="tertiary"):
            st.switch_page(page, query_params=query)


def _brief(mode: Row) -> str:
    """Impact, effect and support, as far as they are known."""
    parts = []
    if mode["impact"] is not None:
        parts.append(f"impact {mode['impact']:.2%}")
    if mode["effect"] is not None:
        parts.append(f"effect {mode['effect']:.1f} sd")
    if mode["support"] is not None:
        parts.append(f"support {mode['support']}")
    return " · ".join(parts)


def show_one(run: Run, listed: Any, explanation: Any, retrieval: Any, neurons: Any, here: Any) -> None:
    """The failure mode that the address names. The other arguments are the pages that it leads to."""
    found = queries.mode(run, st.query_params.get("id", ""))
    if found is None:
        st.title("No such failure mode" if "id" in st.query_params else "Choose a failure mode")
        st.text("Each failure mode has a page of its own, with what speaks for it.")
        st.page_link(listed, label="All failure modes")
        return
    _beside(run, found, here)
    said = queries.verdict(run, found["failure_mode_id"])
    st.html(components.headline(found, said["verdict"] if said else None, level=1))
    st.text(sentences.sentence(found))
    if found["reason"]:
        st.text(f"Not confirmed: {found['reason']}.")
    if found["to_confirm"]:
        st.text(f"What it would take: {found['to_confirm']}.")
    others = sentences.others(found, queries.against_others(run, found["failure_mode_id"]))
    if others:
        st.text(f"What other models make of these images: {others}")
    _figures(found)
    if sure := sentences.certainty(found):
        st.text(sure)
    _parts(run, found, here)
    _searches(run, found, explanation)
    _real(run, found)
    st.page_link(retrieval, label="Look for real images by words", query_params={"id": found["failure_mode_id"]})
    reviewing.show(run, found["failure_mode_id"])
    _neurons(run, found, neurons)
    _related(run, found, here)
    _traces(run, found)


def _beside(run: Run, mode: Row, here: Any) -> None:
    """Buttons to the failure modes of next larger and smaller impact."""
    before, after = gallery.beside(run, mode["failure_mode_id"])
    with st.container(horizontal=True):
        for name, key, to in (("Previous by impact", "P", before), ("Next by impact", "N", after)):
            if st.button(name, shortcut=key, disabled=to is None) and to is not None:
                st.switch_page(here, query_params={"id": to})


def _figures(mode: Row) -> None:
    """The numbers of a failure mode that are known, as tiles."""
    cells = st.columns(4)
    if mode["support"] is not None:
        shown = f"{mode['support']} of {mode['seeds']}" if mode["seeds"] else mode["support"]
        cells[0].metric(sentences.support(mode), shown)
    if mode["effect"] is not None:
        cells[1].metric("shift against controls", f"{mode['effect']:.1f} sd")
    if mode["evidence_rate"] is not None:
        others = None if mode["control_rate"] is None else f"{mode['control_rate']:.1%} of others"
        cells[2].metric(
            "of real images that show it",
            f"{mode['evidence_rate']:.0%}",
            others,
            delta_color="off",
            delta_arrow="off",
            help=f"others: {sentences.control(mode)}",
        )
    if mode["impact"] is not None:
        cells[3].metric("impact", f"{mode['impact']:.1%}")


def _parts(run: Run, mode: Row, here: Any) -> None:
    """What was found too and is no failure by itself, or the failure mode that this one is a part of."""
    if mode["part_of"] is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            whole = queries.mode(run, mode["part_of"])
            why = "beside that one it does not hold"
            if whole and whole["class_name"] != mode["class_name"]:
                why = "most images on which it happens are of that one, or of it and others"
            st.text(f"This is a part of another failure mode: {why}.", width="content")
            st.page_link(here, label="The whole", query_params={"id": mode["part_of"]})
    parts = gallery.parts_of(run, mode["failure_mode_id"], RELATED)
    for part in parts:
        _linked(here, part, f"A part of it: {sentences.claim(part)}.")
    if parts and parts[0]["total"] > len(parts):
        st.text(f"{parts[0]['total'] - len(parts)} more are parts of it.")


def _searches(run: Run, mode: Row, page: Any) -> None:
    shown = queries.exemplars(run, mode["exemplars"] or [])
    if not shown:
        return
    st.header("What the search made of its starts")
    said = queries.said(run, components.images_of(shown))
    st.html(components.grid([components.pair(search, said) for search in shown]))
    links = st.columns(6)
    for number, search in enumerate(shown):
        query = {"id": search["explanation_id"]}
        links[number % 6].page_link(page, label=f"Search {number + 1}", query_params=query)


def _real(run: Run, mode: Row) -> None:
    ids = mode["evidence"] or []
    real = queries.kept(run, [ids], REAL_IMAGES)[0]
    if real:
        st.header("Real images on which it happens")
        count = "One real image is" if len(ids) == 1 else f"{len(ids):,} real images are"
        st.caption(f"{count} its evidence; those nearest to it are shown.")
        said = queries.said(run, real)
        st.html(components.grid([components.real(mode, item_id, said.get(item_id, [])) for item_id in real]))


def _neurons(run: Run, mode: Row, page: Any) -> None:
    found = gallery.neurons_of(run, mode, RELATED)
    if not found:
        return
    st.header("Neurons of the model for this class")
    for number, row in enumerate(found):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.page_link(page, label=sentences.neuron_name(row).capitalize(), query_params={"id": row["neuron_id"]})
            st.text(f"{row['verdict'] or 'no evidence'}: {row['reason'] or row['layer']}", width="content")
        if number == RELATED - 1:
            st.page_link(page, label="All neurons")


def _related(run: Run, mode: Row, here: Any) -> None:
    """Other failure modes, with what they share with this one."""
    found = gallery.related(run, mode, RELATED)
    if not found:
        return
    st.header("Related failure modes")
    for row in found:
        told = [_shares(row), row["verdict"], *([f"reviewed: {row['reviewed']}"] if row["reviewed"] else [])]
        _linked(here, row, f"{sentences.claim(row)} ({'; '.join(told)})")


def _linked(here: Any, mode: Row, text: str) -> None:
    """A line on another failure mode, with the link to it."""
    link, words = st.columns([1, 8], vertical_alignment="center")
    link.page_link(here, label="Evidence", query_params={"id": mode["failure_mode_id"]})
    words.text(text)


def _shares(row: Row) -> str:
    images = "image" if row["shared"] == 1 else "images"
    parts = [f"{row['shared']} real {images} in common"] if row["shared"] else []
    parts += ["the same class"] if row["same_class"] else []
    parts += ["the same model"] if row["same_model"] else []
    return ", ".join(parts)


def _traces(run: Run, mode: Row) -> None:
    traced = queries.traces(run, mode["exemplars"] or [])
    if traced:
        st.header("How the searches went")
        st.altair_chart(_chart(pd.DataFrame(traced), mode))


def _chart(frame: pd.DataFrame, mode: Row) -> alt.Chart:
    names = {"score": mode["model_id"], "other_score": mode["other_model_id"]}
    drawn = {column: name for column, name in names.items() if name is not None}
    long = frame.melt(["explanation_id", "step"], list(drawn), "model", "probability").replace({"model": drawn})
    return (
        alt.Chart(long, title=f"probability of {mode['class_name']} at every step, one line a search and model")
        .mark_line(opacity=0.7)
        .encode(
            x=alt.X("step:Q", title="optimisation step"),
            y=alt.Y("probability:Q", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("model:N", title=None),
            detail="explanation_id:N",
        )
    )
