"""The report's page for a blinded comparison of two kinds of counterfactuals, and what came of it (`audit/study.py`).

Its address says what is compared and who looks: `/study?a=...&b=...&rater=Ada`; `image=3` is one of that person's
images, `results=1` the outcome. Nobody who still has images to look at is told which is which.
"""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from audit import study
from audit.errors import AuditError
from audit.results.sql import Run
from audit.reviews import person
from audit.study import Pair
from dashboard.viewers import url

_ASKED = {
    "realistic": "Which of the two is realistic?",
    "features": "Which shows meaningful features of the target class?",
    "object": "Which changes mainly the class object?",
    "better": "Which one is better?",
}
_TOLD = {
    "realistic": "is realistic",
    "features": "shows meaningful features of the target class",
    "object": "changes mainly the class object",
    "better": "is the better one",
}
_KEYS = {"A": "1", "B": "2", "both": "3", "neither": "0", "equal": "0"}


def show(run: Run) -> None:
    """The page: a form to begin with, one image after the other, or the results."""
    st.title("Blinded comparison")
    choices = {(row["first"], row["second"]): row["pairs"] for row in study.comparable(run)}
    if not choices:
        st.info(
            "Nothing to compare: the run has no two stages with counterfactuals of the same images. Give a job two "
            "stages `counterfactual` that differ in what is to be compared, on the same images."
        )
        return
    asked = st.query_params
    chosen = (asked.get("a", ""), asked.get("b", ""))
    rater = " ".join(asked.get("rater", "").split())
    if chosen not in choices or not (rater or asked.get("results")):
        _beginning(choices)
        return
    found = study.ordered(study.pairs(run, *chosen, _least()), rater)
    done = study.answered(run, rater)
    left = [pair for pair in found if pair.pair_id not in done]
    if asked.get("results"):
        _results(run, chosen, len(left) if rater else 0)
    elif not found:
        st.info(f"On no image do both reach {_least():.0%} confidence in the target class.")
        st.button("Begin anew", on_click=_go, kwargs={"rater": None})
    elif not left and "image" not in asked:
        st.success(f"Thank you. You have answered all {len(found)} images.")
        st.button("Results, and which was which", on_click=_go, kwargs={"results": "1"}, type="primary")
    else:
        _asking(run, found, left, rater)


def _least() -> float:
    try:
        return min(1.0, max(0.0, float(st.query_params.get("least", study.LEAST_CONFIDENCE))))
    except ValueError:
        return study.LEAST_CONFIDENCE


def _go(**parameters: str | None) -> None:
    """To the same page with other parameters; None takes one away."""
    for name, value in parameters.items():
        if value is not None:
            st.query_params[name] = value
        elif name in st.query_params:
            del st.query_params[name]


def _beginning(choices: dict[tuple[str, str], int]) -> None:
    st.text(
        "You see an image and two counterfactuals of it, A and B, and answer four questions on them. Which of two\n"
        "ways made which is not told before the end, and differs from image to image."
    )
    with st.form("begin"):
        chosen = st.selectbox(
            "What to compare",
            list(choices),
            format_func=lambda pair: f"{pair[0]} and {pair[1]}, {choices[pair]} images",
        )
        name = st.text_input("Your name", st.session_state.get("reviewer", ""))
        least = st.number_input(
            "Least confidence of both in the target class", 0.0, 1.0, study.LEAST_CONFIDENCE, help="the study's: 0.8"
        )
        with st.container(horizontal=True):
            begin = st.form_submit_button("Begin", type="primary")
            results = st.form_submit_button("Results")
    if not (begin or results):
        return
    named = {"a": chosen[0], "b": chosen[1], "least": f"{least:g}"}
    try:
        named |= {"results": "1"} if results else {"rater": person(name)}
    except AuditError as error:
        st.error("A name is needed, to keep your answers apart from those of others.")
        st.text(str(error))
        return
    st.session_state["reviewer"] = name
    st.query_params.from_dict(named)
    st.rerun()


def _asking(run: Run, found: list[Pair], left: list[Pair], rater: str) -> None:
    """One pair, and the first of its questions without an answer. Answers are kept when a pair has all four."""
    number = _number(found, left)
    pair = found[number - 1]
    given: dict[str, str] = st.session_state.setdefault(f"study {rater} {pair.pair_id}", {})
    if len(given) == len(study.QUESTIONS):
        try:
            study.answer(run, pair, given, rater)
        except AuditError as error:
            st.error("Your answers were not kept. Reload the page to try again.")
            st.text(str(error))
            return
        given.clear()
        _go(image=str(number + 1) if "image" in st.query_params and number < len(found) else None)
        st.rerun()
    question = list(study.QUESTIONS)[len(given)]
    st.progress((len(found) - len(left)) / len(found), f"Image {number} of {len(found)}, {len(left)} to go")
    st.html(_pictures(pair, rater, study.references(run, pair.target_class, pair.original)))
    st.subheader(f"{len(given) + 1}. {_ASKED[question]}")
    with st.container(horizontal=True):
        for said in study.QUESTIONS[question]:
            key = f"{pair.pair_id[:8]} {question} {said}"  # a key that comes late answers no other question
            st.button(said, key=key, shortcut=_KEYS[said], on_click=_note, args=(given, question, said))
        st.button("Back", shortcut="Left", on_click=_back, args=(given, number), disabled=number == 1 and not given)


def _number(found: list[Pair], left: list[Pair]) -> int:
    """The image that the address names, from 1, else the first that is left."""
    asked = st.query_params.get("image", "")
    if asked.isdecimal() and 1 <= int(asked) <= len(found):
        return int(asked)
    return found.index(left[0]) + 1 if left else 1


def _note(given: dict[str, str], question: str, said: str) -> None:
    given[question] = said


def _back(given: dict[str, str], number: int) -> None:
    if given:
        given.popitem()
    else:
        _go(image=str(number - 1))


def _pictures(pair: Pair, rater: str, references: list[str]) -> str:
    """Images of the target class, the original, A and B."""
    target, source = escape(pair.target_class), escape(pair.source_class)
    small = "".join(_figure(image, f"image of the class {pair.target_class}", "", 96) for image in references)
    (_, first), (_, second) = pair.shown(rater)
    large = _figure(pair.original, f"original: {pair.source_class}", "original", 256)
    large += _figure(first, "counterfactual A", "A", 256) + _figure(second, "counterfactual B", "B", 256)
    words = f"{source} to <b>{target}</b>" if source else f"to <b>{target}</b>"
    beside = f"<div>images of {target}:</div>{small}" if small else ""
    return f"<div style='overflow-wrap:anywhere'><h3 style='margin:0'>{words}</h3>{beside}<div>{large}</div></div>"


def _figure(image_id: str, alt: str, title: str, size: int) -> str:
    style = f"width:{size}px;max-width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;display:block"
    return (
        f"<div style='display:inline-block;vertical-align:top;margin:0 14px 10px 0'>"
        f"<img src='{url(image_id)}' alt='{escape(alt, quote=True)}' style='{style};border-radius:4px'>"
        f"<div style='opacity:0.65'>{escape(title)}</div></div>"
    )


def _results(run: Run, chosen: tuple[str, str], left: int) -> None:
    """Shares and tests, for whoever has nothing left to look at."""
    if left:
        st.info(f"You have {left} images to go. The results say which is which.")
        st.button("Go on", on_click=_go, kwargs={"results": None}, type="primary")
        return
    shares = study.shares(run, *chosen)
    if not shares[0]["answers"]:
        st.info("Nobody has answered yet.")
        st.button("Begin", on_click=_go, kwargs={"results": None, "rater": None})
        return
    st.header("How often people said yes")
    st.caption("With Wilson's 95 % interval. Each answer counts once, though people and images repeat.")
    percent = st.column_config.NumberColumn(format="percent")
    st.dataframe(
        pd.DataFrame([_share(row) for row in shares]),
        hide_index=True,
        column_config=dict.fromkeys(("share", "from", "to"), percent),
    )
    st.header("Image by image")
    st.caption(
        "On how many images more people said yes of the one than of the other, and the two-sided sign test over these, "
        "of each question alone."
    )
    st.dataframe(pd.DataFrame([_test(row, chosen) for row in study.sign_tests(run, *chosen)]), hide_index=True)


def _share(row: dict[str, Any]) -> dict[str, Any]:
    told = {"it ...": _TOLD[row["question"]], "stage and method": row["variant"], "share": row["share"]}
    return {**told, "from": row["low"], "to": row["high"], "answers": row["answers"], "people": row["raters"]}


def _test(row: dict[str, Any], chosen: tuple[str, str]) -> dict[str, Any]:
    told = {"it ...": _TOLD[row["question"]], f"rather {chosen[0]}": row["first"], f"rather {chosen[1]}": row["second"]}
    return {**told, "as often": row["tied"], "p": row["p_value"]}
