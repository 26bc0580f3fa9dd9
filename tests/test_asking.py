"""The report's page for SQL: answers, refusals, what is cut, and turns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from audit.pictures import image_row
from audit.results.jail import Limits
from audit.results.sql import Run
from dashboard import asking
from tests.audited import audited, mode, said


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    answers = said("data", "v", {"a": "cat", "b": "dog"}, "cat") + said("data", "reference", {"a": "cat"}, "cat")
    yield audited(tmp_path / "run", [mode("crab", "on sand")], answers)
    st.cache_resource.clear()
    st.cache_data.clear()


def opened(run: Run, monkeypatch: pytest.MonkeyPatch, query: str = "") -> AppTest:
    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_string("from dashboard import pages\npages.questions()", default_timeout=120)
    if query:
        app.query_params["q"] = query
    return app.run()


def test_every_example_is_answered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(run, monkeypatch)
    assert len(app.dataframe) == 1  # what can be asked; nothing was asked yet
    assert list(app.dataframe[0].value.columns) == ["table", "column", "type", "comment"]
    for name, query in asking.EXAMPLES.items():
        app.selectbox[0].set_value(name).run()
        app.button[0].click().run()
        assert not app.exception
        assert not app.error
        assert app.query_params["q"] in (query, [query])
        rows = run.rows(query)
        if rows:
            assert app.dataframe[0].value.to_dict("list").keys() == rows[0].keys()
            assert len(app.dataframe[0].value) == len(rows)
        else:
            assert "no rows" in app.info[0].value


def test_a_link_is_answered_and_charted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(run, monkeypatch, "select model_id, accuracy from accuracy order by 1")
    assert app.dataframe[0].value.to_dict("list") == {"model_id": ["reference", "v"], "accuracy": [1.0, 0.5]}
    assert not app.get("vega_lite_chart")
    app.selectbox[1].set_value("model_id").run()
    assert not app.exception
    assert len(app.get("vega_lite_chart")) == 1


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("select date '2026-02-28' as d", "2026-02-28"),
        ("select timestamp '1600-01-01 10:00:00' as d", "1600-01-01 10:00:00.000000"),
        ("select date '290000-01-01' as d", "<value out of range: 105200797>"),
        ("select 'infinity'::timestamp as d", "<value out of range: 9223372036854775807>"),
    ],
)
def test_times_that_no_data_frame_holds_end_no_page(
    run: Run, monkeypatch: pytest.MonkeyPatch, query: str, shown: str
) -> None:
    app = opened(run, monkeypatch, query)
    assert not app.exception
    assert app.dataframe[0].value.to_dict("list") == {"d": [shown]}


def test_nested_times_that_no_data_frame_holds_are_told_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(run, monkeypatch, "select [date '290000-01-01'] as d")
    assert not app.exception
    assert "Cast what is nested to text" in app.error[0].value


def test_another_query_than_the_answered_one_is_not_run_before_it_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(run, monkeypatch, "select 1 as one")
    assert list(app.dataframe[0].value.columns) == ["one"]
    app.text_area[0].set_value("select 2 as two").run()
    assert list(app.dataframe[0].value.columns) == ["table", "column", "type", "comment"]
    app.button[0].click().run()
    assert list(app.dataframe[0].value.columns) == ["two"]


def test_what_is_refused_is_said_as_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(run, monkeypatch, "drop table predictions -- <script>alert(1)</script>")
    assert app.error[0].value == "No answer."
    assert app.code[0].value == "the query failed: one SELECT is answered here, and nothing else"
    assert not app.exception


def test_bytes_are_counted_and_long_answers_cut(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = image_row(np.zeros((4, 4, 3), np.uint8), "generated")
    run.store.commit("more", "1-x", {"images": [picture]})
    app = opened(run, monkeypatch, "select png, null as nothing from images")
    assert app.dataframe[0].value["png"].tolist() == [f"{len(picture['png'])} bytes"]
    monkeypatch.setattr(asking, "LIMITS", Limits(rows=3))
    app = opened(run, monkeypatch, "select * from range(4)")
    assert len(app.dataframe[0].value) == 3
    assert "Only the first 3 rows" in app.warning[0].value


def test_a_query_waits_for_its_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PATIENCE", 0.1)
    turns = asking._turns()
    for _ in range(asking.AT_ONCE):
        turns.acquire()
    app = opened(run, monkeypatch, "select 1")
    assert "Other queries are running" in app.warning[0].value
    turns.release()
    assert not opened(run, monkeypatch, "select 1").warning
    assert turns.acquire(blocking=False)  # it was given back


def test_a_downloaded_answer_holds_no_formula() -> None:
    frame = pd.DataFrame(
        {"=1+1": ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "\t=1", "cat", None], "n": [-1, 2, 3, 4, 5, 6]}
    )
    rows = list(csv.reader(io.StringIO(asking._csv(frame).decode())))
    assert rows[0] == ["'=1+1", "n"]
    assert [row[0] for row in rows[1:]] == ["'=cmd|' /C calc'!A0", "'@SUM(1)", "'+1", "'\t=1", "cat", ""]
    assert [row[1] for row in rows[1:]] == ["-1", "2", "3", "4", "5", "6"]
