"""The report's pages: overview, gallery of failure modes, one failure mode."""

from __future__ import annotations

import os
from datetime import UTC

import altair as alt
import pandas as pd
import streamlit as st

from audit import sentences
from audit.locations import located, name_of
from audit.results import queries
from audit.results.queries import NOT_REVIEWED
from audit.results.sql import Run
from audit.reviews import VERDICTS
from dashboard import (
    asking,
    classes,
    comparing,
    components,
    confusions,
    counterfactuals,
    explanation,
    neurons,
    retrieval,
    reviewing,
    siblings,
    study,
)

PAGE_SIZE = 12
REAL_IMAGES = 24


@st.cache_resource
def _opened(folder: str) -> Run:
    return Run(located(folder))


def opened() -> Run:
    """The run, with what is committed by now."""
    run = _opened(os.environ["AUDIT_RUN"])
    run.refresh()
    return run


def overview() -> None:
    run = opened()
    head = queries.header(run)
    st.html(components.heading(f"Audit: {head['name'] or name_of(run.location)}", 1))
    if head["name"] is None:
        st.info("Nothing is committed yet. This page shows more as the run goes on: reload it.")
        return
    cells = st.columns(4)
    cells[0].metric("images under audit", f"{head['images']:,}")
    cells[1].metric("images in the pool", f"{head['pool']:,}")
    cells[2].metric("confirmed failure modes", head["confirmed"])
    cells[3].metric("hypotheses", head["hypotheses"])
    named = queries.audited(run)
    if named:
        with st.expander(f"What was audited, on {head['created_at'].astimezone(UTC):%Y-%m-%d %H:%M} UTC"):
            st.dataframe(pd.DataFrame(named), hide_index=True)

    st.header("How good the models look on their own data")
    tiles = [
        components.metric(
            model["model_id"], f"{model['accuracy']:.1%}", f"accuracy on {model['images']:,} labelled images"
        )
        for model in queries.models(run)
    ]
    st.html(components.grid(tiles))

    st.header("What the audit found")
    found = queries.modes(run)
    if not found:
        st.info("No failure modes. Either no search ran, or none of the searches found a group.")
    for mode in found[:6]:
        _mode_card(run, mode)
    if len(found) > 6:
        st.page_link(GALLERY, label=f"All {len(found)} failure modes")

    classes = queries.classes(run)
    if classes:
        st.header("Classes")
        st.caption("Agreement: share of images drawn for the class on which at least half of the models see it.")
        st.dataframe(pd.DataFrame(classes), hide_index=True)
    refused = queries.refused(run)
    if refused:
        st.header("Images that could not be used")
        st.dataframe(pd.DataFrame(refused), hide_index=True)
    st.header("Where the models disagree on the data")
    for pair in queries.pairs(run):
        st.text(f"{pair['model']} and {pair['other']}: {pair['disagreement']:.1%} of {pair['images']:,} images")
    share = {"disagreement": st.column_config.NumberColumn(format="percent")}
    st.dataframe(pd.DataFrame(queries.disagreements(run)), hide_index=True, column_config=share)
    confused = queries.confusions(run)
    if confused:
        st.header("What the models say instead of the label")
        share = {"share": st.column_config.NumberColumn(format="percent", help="of the label's images")}
        st.dataframe(pd.DataFrame(confused), hide_index=True, column_config=share)


def gallery() -> None:
    run = opened()
    st.title("Failure modes")
    chosen = st.segmented_control(
        "verdict",
        ["confirmed", "hypothesis"],
        selection_mode="multi",
        default=["confirmed", "hypothesis"],
        key="verdict",
        bind="query-params",
    )
    reviewed = st.segmented_control(
        "reviewed as",
        [*VERDICTS, NOT_REVIEWED],
        selection_mode="multi",
        key="reviewed",
        bind="query-params",
        help="a person's last verdict; none chosen: whatever it is",
    )
    found = queries.modes(run, list(chosen), list(reviewed))
    if not found:
        st.info("No failure mode with these verdicts.")
        return
    pages = -(-len(found) // PAGE_SIZE)
    page = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    for mode in found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]:
        _mode_card(run, mode)


def _mode_card(run: Run, mode: queries.Row) -> None:
    """One failure mode in a line: its best start and result, the sentence, the link."""
    with st.container(border=True):
        picture, text = st.columns([2, 3])
        shown = queries.exemplars(run, (mode["exemplars"] or [])[:1])
        with picture:
            if shown:
                st.html(components.pair(shown[0], queries.said(run, components.images_of(shown)), models=False))
        with text:
            st.html(components.headline(mode, queries.verdict(run, mode["failure_mode_id"])))
            st.text(sentences.sentence(mode))
            st.page_link(ONE, label="Evidence", query_params={"id": mode["failure_mode_id"]})


def one() -> None:
    run = opened()
    found = queries.mode(run, st.query_params.get("id", ""))
    if found is None:
        st.title("No such failure mode" if "id" in st.query_params else "Choose a failure mode")
        st.text("Each failure mode has a page of its own, with what speaks for it.")
        st.page_link(GALLERY, label="All failure modes")
        return
    st.html(components.headline(found, queries.verdict(run, found["failure_mode_id"]), level=1))
    st.text(sentences.sentence(found))
    if found["reason"]:
        st.text(f"Not confirmed: {found['reason']}.")
    others = sentences.others(found, queries.against_others(run, found["failure_mode_id"]))
    if others:
        st.text(f"What other models make of these images: {others}")
    cells = st.columns(4)
    cells[0].metric(
        "searches that show it", f"{found['support']} of {found['seeds']}" if found["seeds"] else found["support"]
    )
    if found["effect"] is not None:
        cells[1].metric(
            "shift against controls", f"{found['effect']:.1f} sd", help=_interval(found, "effect", "{:.1f}")
        )
    if found["evidence_rate"] is not None:
        cells[2].metric(
            "disagreement near it",
            f"{found['evidence_rate']:.0%}",
            f"{found['control_rate']:.0%} near the starts",
            delta_color="off",
        )
    if found["impact"] is not None:
        cells[3].metric("impact on the pool", f"{found['impact']:.1%}", help=_interval(found, "impact", "{:.2%}"))

    shown = queries.exemplars(run, found["exemplars"])
    if shown:
        st.header("What the search made of its starts")
        said = queries.said(run, components.images_of(shown))
        st.html(components.grid([components.pair(search, said) for search in shown]))
        links = st.columns(6)
        for number, search in enumerate(shown):
            query = {"id": search["explanation_id"]}
            links[number % 6].page_link(EXPLANATION, label=f"Search {number + 1}", query_params=query)
    real = queries.kept(run, found["evidence"] or [], REAL_IMAGES)
    if real:
        st.header("Real images on which it happens")
        said = queries.said(run, real)
        st.html(components.grid([components.real(item_id, said.get(item_id, [])) for item_id in real]))
    st.page_link(RETRIEVAL, label="Look for real images by words", query_params={"id": found["failure_mode_id"]})
    reviewing.show(run, found["failure_mode_id"])
    traced = queries.traces(run, found["exemplars"])
    if traced:
        st.header("How the searches went")
        st.altair_chart(_trace_chart(pd.DataFrame(traced), found))


def by_words() -> None:
    retrieval.show(opened())


def counterfactual_pages() -> None:
    counterfactuals.show(opened(), EXPLANATION)


def one_explanation() -> None:
    explanation.show(opened(), ONE)


def _interval(row: queries.Row, name: str, form: str) -> str | None:
    if row[f"{name}_low"] is None or row[f"{name}_high"] is None:
        return None
    return f"95 % interval: {form.format(row[f'{name}_low'])} to {form.format(row[f'{name}_high'])}"


def _trace_chart(frame: pd.DataFrame, mode: queries.Row) -> alt.Chart:
    names = {"score": mode["model_id"], "other_score": mode["other_model_id"]}
    long = frame.melt(["explanation_id", "step"], list(names), "model", "probability").replace({"model": names})
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


def questions() -> None:
    asking.show(opened())


def class_pages() -> None:
    classes.show(opened(), ONE, NEURONS, CONFUSIONS)


def confusion_page() -> None:
    confusions.show(opened())


def run_page() -> None:
    siblings.show(opened(), COMPARE)


def compare_page() -> None:
    comparing.show(opened(), ONE)


def blinded() -> None:
    study.show(opened())


def neuron_pages() -> None:
    neurons.show(opened(), NEURONS, NEURON)


def one_neuron() -> None:
    neurons.show(opened(), NEURONS, NEURON)


OVERVIEW = st.Page(overview, title="Overview", url_path="overview", default=True)
GALLERY = st.Page(gallery, title="Failure modes", url_path="modes")
ONE = st.Page(one, title="One failure mode", url_path="mode")
CLASSES = st.Page(class_pages, title="Classes", url_path="classes")
CONFUSIONS = st.Page(confusion_page, title="Confusions", url_path="confusions")
NEURONS = st.Page(neuron_pages, title="Neurons", url_path="neurons")
NEURON = st.Page(one_neuron, title="One neuron", url_path="neuron")
COUNTERFACTUALS = st.Page(counterfactual_pages, title="Counterfactuals", url_path="counterfactuals")
EXPLANATION = st.Page(one_explanation, title="One explanation", url_path="explanation")
RETRIEVAL = st.Page(by_words, title="Real images by words", url_path="retrieval")
RUNS = st.Page(run_page, title="Runs", url_path="runs")
COMPARE = st.Page(compare_page, title="Compare", url_path="compare")
STUDY = st.Page(blinded, title="Blinded comparison", url_path="study")
QUESTIONS = st.Page(questions, title="SQL", url_path="sql")

if __name__ == "__main__":
    st.set_page_config(page_title="audit", layout="wide")
    found = [OVERVIEW, GALLERY, ONE, CLASSES, CONFUSIONS, NEURONS, NEURON, COUNTERFACTUALS, EXPLANATION]
    st.navigation([*found, RETRIEVAL, RUNS, COMPARE, STUDY, QUESTIONS]).run()
