"""The report's pages: what each is called, where it is, and the run that all of them show."""

from __future__ import annotations

import os

import streamlit as st

from audit.locations import located
from audit.results.sql import Run
from dashboard import (
    asking,
    classes,
    comparing,
    confusions,
    counterfactuals,
    explanation,
    explanations,
    failure_modes,
    neurons,
    retrieval,
    siblings,
    study,
)
from dashboard import overview as first
from dashboard.cached import FRESH


@st.cache_resource
def _opened(folder: str) -> Run:
    return Run(located(folder))


def opened() -> Run:
    """The run, with what is committed by now."""
    run = _opened(os.environ["AUDIT_RUN"])
    run.refresh(within=FRESH)
    return run


def overview() -> None:
    first.show(opened(), GALLERY, ONE, CONFUSIONS)


def gallery() -> None:
    failure_modes.show_gallery(opened(), ONE)


def one() -> None:
    failure_modes.show_one(opened(), GALLERY, EXPLANATION, RETRIEVAL, NEURON, ONE)


def by_words() -> None:
    retrieval.show(opened())


def counterfactual_pages() -> None:
    counterfactuals.show(opened(), EXPLANATION)


def explanation_pages() -> None:
    explanations.show(opened(), EXPLANATION)


def one_explanation() -> None:
    explanation.show(opened(), ONE)


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
ONE = st.Page(one, title="One failure mode", url_path="mode", visibility="hidden")
CLASSES = st.Page(class_pages, title="Classes", url_path="classes")
CONFUSIONS = st.Page(confusion_page, title="Confusions", url_path="confusions")
NEURONS = st.Page(neuron_pages, title="Neurons", url_path="neurons")
NEURON = st.Page(one_neuron, title="One neuron", url_path="neuron", visibility="hidden")
COUNTERFACTUALS = st.Page(counterfactual_pages, title="Counterfactuals", url_path="counterfactuals")
EXPLANATIONS = st.Page(explanation_pages, title="Explanations", url_path="explanations")
EXPLANATION = st.Page(one_explanation, title="One explanation", url_path="explanation", visibility="hidden")
RETRIEVAL = st.Page(by_words, title="Real images by words", url_path="retrieval")
RUNS = st.Page(run_page, title="Runs", url_path="runs")
COMPARE = st.Page(compare_page, title="Compare", url_path="compare")
STUDY = st.Page(blinded, title="Blinded comparison", url_path="study")
QUESTIONS = st.Page(questions, title="SQL", url_path="sql")

if __name__ == "__main__":
    st.set_page_config(page_title="audit", layout="wide")
    sections = {
        "": [OVERVIEW],
        "What was found": [GALLERY, NEURONS, COUNTERFACTUALS, EXPLANATIONS],
        "What the models say": [CLASSES, CONFUSIONS, RETRIEVAL],
        "Ask and compare": [QUESTIONS, RUNS, COMPARE, STUDY],
    }
    st.navigation({**sections, "Reached by links": [ONE, NEURON, EXPLANATION]}, expanded=True).run()
