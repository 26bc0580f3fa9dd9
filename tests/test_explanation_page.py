"""The report's page of one explanation, on the made-up runs of the counterfactuals' page; its viewers in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from audit.results import queries
from audit.results.sql import Run
from dashboard import explanation
from tests.report_server import CHROMIUM, served
from tests.test_counterfactual_pages import HOSTILE, html, large, run  # noqa: F401 - fixtures


def page(run: Run, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:  # noqa: F811
    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_string("from dashboard import pages\npages.one_explanation()", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


@pytest.fixture(scope="module", autouse=True)
def forget_runs() -> Iterator[None]:
    """Streamlit would keep the opened run beyond the end of the interpreter's modules."""
    yield
    st.cache_resource.clear()


def test_one_counterfactual_is_shown_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    app = page(run, monkeypatch, id=f"{1:032x}")
    headers = [header.value for header in app.header]
    assert headers == ["Trajectory", "Measurements", "Your verdict", "How it was made"]
    shown = html(app)
    assert "flipped</span>" in shown
    assert shown.count("<img") == 5
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    confidences = app.dataframe[0].value
    assert confidences.to_dict("list") == {
        "model": ["new", "new"],
        "class": [HOSTILE, "crab"],
        "before": [0.01, 0.99],
        "after": [pytest.approx(0.6), 0.05],
    }
    assert app.code[0].value.startswith("audit reproduce ")
    assert app.code[0].value.endswith(f" {1:032x}")


def test_an_explanation_that_is_not_there_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert page(run, monkeypatch, id="f" * 32).title[0].value == "No such explanation"
    assert page(run, monkeypatch).title[0].value == "Choose an explanation"
    failed = page(run, monkeypatch, id="f")
    assert any(element.value.startswith("This one failed") for element in failed.text)


def test_measurements_are_a_row_a_quantity(run: Run) -> None:  # noqa: F811
    rows = {row["name"]: row for row in queries.measured(run, f"{1:032x}")}
    assert rows["background_rmse"]["result"] == pytest.approx(0.2)
    assert rows["background_rmse"]["autoencoder"] == pytest.approx(0.05)
    assert rows["mask_area"]["counterfactual"] == 0.25
    with pytest.raises(ValueError, match="invalid literal"):
        queries.measured(run, "x' or true --")


def test_the_chart_draws_a_line_for_what_was_recorded() -> None:
    frame = pd.DataFrame({"step": [0, 1], "score": [0.1, 0.8], "source_score": [0.9, 0.2], "other_score": [None, None]})
    row = {"target_class": "boat", "source_class": "crab", "model_id": "new", "other_model_id": None}
    (drawn,) = explanation.chart(frame, row).to_dict()["datasets"].values()
    points = {(point["step"], point["line"]): point["probability"] for point in drawn}
    assert points == {(0, "new: boat"): 0.1, (1, "new: boat"): 0.8, (0, "new: crab"): 0.9, (1, "new: crab"): 0.2}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"neuron": 3}, "neuron 3 of a, beside crab"),
        ({"other_model_id": "b"}, "a is to say crab, b is not"),
        ({"source_class": "<b>"}, "&lt;b&gt; to crab"),
    ],
)
def test_the_title_says_what_was_asked(columns: dict[str, object], words: str) -> None:
    row = dict.fromkeys(("neuron", "other_model_id", "source_class", "flipped")) | {"model_id": "a"}
    assert explanation.title({**row, "target_class": "crab", **columns}) == words
    assert "held</span>" in explanation.title({**row, "target_class": "crab", **columns, "flipped": False})


def test_the_stage_s_options_are_those_of_the_job(tmp_path: Path) -> None:
    from tests.audited import audited

    made = audited(tmp_path / "run", [], [])
    config = {"stages": [{"plugin": "screen", "top": 3}, {"plugin": "disagreement", "steps": 7}]}
    made.store.commit("run", "run", {"runs": [{"name": "x", "config": json.dumps(config)}]})
    made.refresh()
    assert explanation._options(made, "2-disagreement") == {"steps": 7}
    assert explanation._options(made, "3-discover") == {}
    assert explanation._options(made, None) == {}


@pytest.fixture
def address(run: Run) -> Iterator[str]:  # noqa: F811
    with served(run.root) as where:
        yield where


_REMEMBER = """label => {
    window.steps = [];
    new MutationObserver(() => window.steps.push(label.textContent)).observe(
        label, { childList: true, characterData: true, subtree: true });
}"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
def test_the_viewers_follow_hand_and_keys(address: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
        errors: list[str] = []
        opened.on("console", lambda m: errors.append(m.text) if m.type == "error" and "404" not in m.text else None)
        opened.goto(f"{address}/explanation?id={1:032x}")
        slider = opened.get_by_role("slider", name="before and after")
        slider.wait_for(timeout=60_000)
        after = opened.get_by_alt_text(f"{HOSTILE}, after")
        expect(after).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
        slider.focus()
        opened.keyboard.press("ArrowRight")
        expect(after).to_have_css("clip-path", "inset(0px 0px 0px 51%)")
        box = after.bounding_box()
        assert box
        opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        opened.mouse.down()
        opened.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
        opened.mouse.up()
        expect(after).to_have_css("clip-path", "inset(0px 0px 0px 25%)")
        changed = opened.get_by_role("button", name="what changed")
        changed.click()
        expect(changed).to_have_attribute("aria-pressed", "true")
        expect(opened.get_by_alt_text("what changed", exact=True).first).to_be_visible()
        changed.click()
        expect(changed).to_have_attribute("aria-pressed", "false")
        label = opened.get_by_text("step 1 (kept)").first  # it begins at the result
        label.wait_for()
        opened.get_by_role("slider", name="step", exact=True).focus()
        opened.keyboard.press("ArrowRight")
        opened.get_by_text(f"step 2: {HOSTILE} 80%").wait_for()
        opened.get_by_text(f"step 2: {HOSTILE} 80%").evaluate(_REMEMBER)  # a step may be over before it is looked for
        opened.get_by_role("button", name="Play").click()
        opened.wait_for_function("window.steps.length >= 3")
        opened.get_by_role("button", name="Play").wait_for()
        assert opened.evaluate("window.steps[0]") == f"step 0: {HOSTILE} 0%"
        assert opened.evaluate("window.steps.at(-1)") == f"step 2: {HOSTILE} 80%"
        assert errors == []
        browser.close()
