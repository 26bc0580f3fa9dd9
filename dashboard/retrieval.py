"""The report's page of retrieval: real images by words, beside what the models say of them.

The text model needs torch, which the report never loads: the page asks `audit retrieve` in a process of its own. What
a person types is one argument of that process, after `--`, so it is neither an option nor read by a shell. Pictures
come back in the answer, small and drawn anew from the images' pixels, because the images of a pool are not part of the
run: no route of the report's server has to read files that a run's folder names.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from audit import sentences
from audit.locations import Location, absolute, located
from audit.results import queries
from audit.results.sql import Run
from dashboard import components
from dashboard.child import Refused, answer, python

Row = dict[str, Any]

SECONDS = 180
MOST = 200  # images that are shown


def command(root: Location, query: str, role: str, top: int, mode_id: str | None) -> list[str]:
    """The command that answers a query, as a list of arguments."""
    chosen = ["--mode", mode_id] if mode_id else []
    options = ["--json", "--thumbnails", "--role", role, "--top", str(top), *chosen]
    return python("pipelines.cli", "retrieve", *options, "--", absolute(root), query)


def ask(root: Location, query: str, role: str, top: int, mode_id: str | None) -> Row:
    """What `audit retrieve` answers. Raises Refused where it fails, and where it takes longer than SECONDS."""
    return dict(answer(command(root, query, role, top, mode_id), SECONDS))


@st.cache_data(scope="session", max_entries=20, show_spinner="Looking for images: the text model loads first ...")
def _asked(root: str, commits: int, query: str, role: str, top: int, mode_id: str | None) -> Row:  # noqa: ARG001
    """`ask`, remembered for the session; `commits`, part of the key, tells a run that has grown from what it was."""
    return ask(located(root), query, role, top, mode_id)


def words_for(run: Run, mode: Row) -> str:
    """A query to begin with: what the mode's searches most often started from, with what they gained.

    'a photograph of a car on sand' for what is taken for a crab on sand: on images of the class itself there is
    nothing to disagree on. Searches that started from the class leave only the class to name.
    """
    starts = Counter(row["source_class"] for row in queries.exemplars(run, mode["exemplars"] or []))
    starts.pop(mode["class_name"], None)
    starts.pop(None, None)
    name = max(starts, key=lambda name: (starts[name], name)) if starts else mode["class_name"]
    thing = name.replace("_", " ")
    return f"a photograph of a {(mode['concept'] or '{}').replace('{}', thing)}"


def show(run: Run) -> None:
    """The page: a form, and what was found; both are its address."""
    st.title("Real images by words")
    st.text(
        "Describe images, and see the real ones that are most similar to the words, by their stored embeddings.\n"
        "To confirm a failure mode, describe what the model goes wrong on, not the class that it says."
    )
    modes = {mode["failure_mode_id"]: mode for mode in queries.modes(run)}
    asked = st.query_params.get("id")
    found_mode = queries.mode(run, asked) if asked else None
    chosen = None if found_mode is None else asked
    if chosen and found_mode:
        modes.setdefault(chosen, found_mode)
    with st.form("words"):
        begin = st.query_params.get("q") or (words_for(run, found_mode) if found_mode else "")
        query = st.text_input("what the images show", begin, key=f"query {chosen}")
        left, middle, right = st.columns([3, 1, 1])
        mode_id = left.selectbox(
            "failure mode to test",
            [None, *modes],
            index=[None, *modes].index(chosen),
            format_func=lambda key: sentences.claim(modes[key]) if key else "none",
            key=f"mode {chosen}",
        )
        roles, among = list[str](queries.roles(run)), st.query_params.get("role")
        role = middle.selectbox("among", roles, roles.index(among) if among in roles else 0, key=f"among {chosen}")
        top = right.number_input("how many", 1, MOST, _top(st.query_params.get("top", "")), key=f"top {chosen}")
        submitted = st.form_submit_button("Find images", type="primary")
    if submitted:
        _into_address(query or "", role, int(top), mode_id)
    elif "q" not in st.query_params:
        return
    try:
        found = _asked(str(run.location), len(run.commits or {}), query or "", role, int(top), mode_id)
    except Refused as refused:
        st.error("No images were retrieved.")
        st.text(str(refused))
        return
    _show_found(found)


def _top(asked: str) -> int:
    return int(asked) if asked.isdecimal() and 1 <= int(asked) <= MOST else 40


def _into_address(query: str, role: str, top: int, mode_id: str | None) -> None:
    """So that a link leads to what was found."""
    st.query_params.from_dict({"q": query, "role": role, "top": str(top), **({"id": mode_id} if mode_id else {})})


def _show_found(found: Row) -> None:
    if found["mode"]:
        _show_test(found["mode"], found["said"])
    st.header(f"The {len(found['rows'])} most similar of {found['images']:,} images")
    if found["approximate"]:
        st.caption("Proposed by an index: a few others may be as similar.")
    if found["mode"]:
        st.caption("A bar above an image: it is as the failure mode says.")
    st.html(components.grid([_cell(row) for row in found["rows"]]))
    if any(row["thumbnail"] is None for row in found["rows"]):
        st.text("Images without a picture are not where the run read them, or are others now.")
    st.header("What the models say of them")
    frame = pd.DataFrame([row for row in found["said"] if row["retrieved"]])
    frame = frame[["model_id", "says", "retrieved", "share_retrieved", "share"]]
    frame.columns = ["model", "says", "images", "share of these", "share of all"]
    shares = {name: st.column_config.NumberColumn(format="percent") for name in ("share of these", "share of all")}
    st.dataframe(frame, hide_index=True, column_config=shares)


def _show_test(mode: Row, said: list[Row]) -> None:
    """The failure mode's rates, and a hint where the images show the class itself."""
    st.html(components.heading(sentences.claim(mode), 2))
    cells = st.columns(3)
    rates = [mode["retrieved_rate"], mode["rest_rate"]]
    shown = ["no images" if rate is None else f"{rate:.1%}" for rate in rates]
    against = "the models disagree" if mode["other_model_id"] else "the label is another"
    cells[0].metric(f"{against}, of these images", shown[0])
    cells[1].metric(f"of the other {mode['rest_images']:,}", shown[1])
    cells[2].metric("p", f"{mode['p_value']:.1g}", help="one-sided Fisher test, of this query alone")
    if not mode["other_model_id"] and mode["retrieved_rate"] is None:
        st.text("Only images under audit have labels: look among the data.")
    own = [row for row in said if row["model_id"] == mode["other_model_id"] and row["says"] == mode["class_name"]]
    if own and own[0]["share_retrieved"] > 0.5:
        st.text(
            f"{mode['other_model_id']} says {mode['class_name']} on {own[0]['retrieved']} of them: they seem to show "
            f"the class itself, on which there is nothing to disagree. Describe something else that is {mode['name']}."
        )


def _cell(row: Row) -> str:
    """One retrieved image, what every model says of it, and a bar where the models disagree as the mode says."""
    said = components.verdicts([one for one in row["said"] if one["predicted"] is not None])
    said += [escape(f"{one['model_id']}: {one['reason']}") for one in row["said"] if one["predicted"] is None]
    picture = components.framed(
        f"data:image/webp;base64,{row['thumbnail'] or ''}",
        f"retrieved image {row['rank']}: {row['display_name']}",
        said,
        f"{row['rank']} · {row['similarity']:.3f}",
    )
    colour = "#c2571a" if row["disagrees"] else "transparent"
    bar = f"linear-gradient({colour},{colour}) 0 0/144px 4px no-repeat"
    return f"<div style='display:inline-block;vertical-align:top;padding-top:7px;background:{bar}'>{picture}</div>"
