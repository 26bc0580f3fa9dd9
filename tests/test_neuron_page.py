"""The report's page of neurons, on a made-up run with hostile names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from audit.pictures import image_row
from audit.results.sql import Run
from audit.results.store import Store
from audit.reviews import review
from dashboard import neurons
from tests.report_server import CHROMIUM, served

HOSTILE = "<script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A harmful neuron with all that there is to show, and a core one that was only listed."""
    store = Store(tmp_path_factory.mktemp("run"))
    store.create("job.json", b'{"job": {"stages": []}}')
    rng = np.random.default_rng(0)
    pictures = [image_row(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "start") for _ in range(6)]
    ids = [picture["image_id"] for picture in pictures]
    of = {"stage": "3-neuron", "model_id": "new", "layer": "input of fc", "neuron": 7, "status": "ok", "seed": 0}
    of |= {"activation_before": 0.25, "score_before": 0.1, "seen_before": False, "target_class": HOSTILE}
    ends = [("neuron", "maximise", 1), ("neuron", "minimise", 2), ("neuron", "others", 3)]
    ends += [("feature_attack", "maximise", 4)]
    explanations = [
        {**of, "explanation_id": f"x{i}", "method": method, "arm": arm, "source_class": HOSTILE}
        | {"start_image_id": ids[0], "image_id": ids[i], "activation_after": 1.5 + i, "score_after": 0.75}
        | {"seen_after": False, "flipped": True, "reason": HOSTILE if arm == "minimise" else None}
        for method, arm, i in ends
    ]
    explanations.append({**explanations[0], "explanation_id": "another neuron's", "neuron": 8})
    known = {"stage": "3-neuron", "model_id": "new", "layer": "input of fc", "check_id": "embedder"}
    rows = [
        {**known, "neuron_id": "n2", "class_name": "crab", "neuron": 3, "searches": 0, "verdict": "core"}
        | {"reason": "it sees the class on 100% of the top real images"},
        {**known, "neuron_id": "n3", "class_name": "boat", "neuron": 5, "searches": 0}
        | {"reason": "no search ended and no real images are ranked"},
        {**known, "neuron_id": "n1", "class_name": HOSTILE, "neuron": 7, "weight": 0.5, "mean_activation": 2.0}
        | {"importance": 1.0, "trigger_auc": 0.97, "rank": 1, "suspicion": 0.5, "top_items": [ids[5], ids[0]]}
        | {"top_activations": [9.0, 8.0], "top_seen": [True, False], "searches": 8, "trigger_before": 0.0}
        | {"trigger_after": 0.875, "p_value": 0.001, "seen_after": 0.0, "verdict": "harmful", "reason": HOSTILE},
    ]
    predictions = [
        {"item_id": ids[5], "role": "pool", "model_id": m, "predicted": HOSTILE, "confidence": 0.9, "status": "ok"}
        for m in ("new", "old")
    ]
    store.commit(
        "u", "3-neuron", {"explanations": explanations, "neurons": rows, "images": pictures, "predictions": predictions}
    )
    return Run(store.root)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `page` sets is gone after the test."""
    monkeypatch.setenv("AUDIT_RUN", "")


def page(run: Run, **parameters: str) -> AppTest:
    def script() -> None:
        import os
        from pathlib import Path

        import streamlit as st

        from audit.results.sql import Run
        from dashboard import neurons

        def show() -> None:
            neurons.show(Run(Path(os.environ["AUDIT_RUN"])), only, only)

        only = st.Page(show, title="N", url_path="neurons")
        st.navigation([only]).run()

    os.environ["AUDIT_RUN"] = str(run.root)
    app = AppTest.from_function(script, default_timeout=60)
    for name, value in parameters.items():
        app.query_params[name] = value
    return app.run()


def html_of(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


def images_in(html: str) -> list[str]:
    return re.findall(r"/evidence/([0-9a-f]{64})", html)


def test_the_list_has_harmful_neurons_first_and_links_to_each(run: Run) -> None:
    app = page(run)
    assert not app.exception
    html = html_of(app)
    assert html.index("neuron 7") < html.index("neuron 3")
    assert [link.proto.query_string for link in app.get("page_link")] == ["id=n1", "id=n2", "id=n3"]
    assert "<script" not in html


def test_a_neuron_shows_every_arm_with_what_was_said_of_it(run: Run) -> None:
    app = page(run, id="n1")
    assert not app.exception
    html, ids = html_of(app), {row["explanation_id"]: row for row in run.rows("select * from explanations")}
    shown = images_in(html)
    start = ids["x1"]["start_image_id"]
    ends = [ids[f"x{i}"]["image_id"] for i in (2, 1, 4, 3)]
    # minimised, start, maximised, attacked; then start and maximised of another class; then the real images
    assert shown[:6] == [ends[0], start, ends[1], ends[2], start, ends[3]]
    assert shown[6:] == run.rows("select top_items from neurons where neuron_id = 'n1'")[0]["top_items"]
    tiles = re.findall(r"0.875rem'>(.*?)</div><div style='font-size:2.25rem;line-height:1.3'>(.*?)</div>", html)
    assert tiles == [
        ("weight to the class", "0.500"),
        ("place among suspects", "1"),
        ("real images without it", "50%"),
        ("called so without it", "88%"),
    ]
    for text in ("<b>0.25</b>", "<b>2.50</b>", "<b>75%</b>", "<b>9.00</b>", "sees none", "sees it"):
        assert text in html, text
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 8


def test_a_neuron_without_searches_and_one_that_is_not_there_have_a_page(run: Run) -> None:
    app = page(run, id="n2")
    assert not app.exception
    assert "font-size:2.25rem" not in html_of(app)
    assert images_in(html_of(app)) == []
    app = page(run, id="n3")
    assert not app.exception
    assert "no evidence" in html_of(app)
    app = page(run, id="nothing")
    assert not app.exception
    assert app.title[0].value == "No such neuron"


def test_a_run_without_neurons_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("job.json", b'{"job": {"stages": []}}')
    app = page(Run(tmp_path))
    assert not app.exception
    assert "stage `neuron`" in app.info[0].value


def test_the_list_is_filtered_and_paged(tmp_path: Path) -> None:
    """Model a's neurons are harmful, b's are not judged; of the class 'crab' are the even ones; a person judged n02."""
    store = Store(tmp_path)
    store.create("job.json", b'{"job": {"stages": []}}')
    rows = [
        {"neuron_id": f"n{i:02d}", "model_id": "ab"[i % 3 == 2], "class_name": ["crab", "car"][i % 2], "neuron": i}
        | {"verdict": None if i % 3 == 2 else "harmful", "stage": "3-neuron", "layer": "input of fc", "reason": "why"}
        | {"check_id": "embedder", "searches": 0}
        for i in range(20)
    ]
    store.commit("u", "3-neuron", {"neurons": rows})
    made = Run(tmp_path)
    review(made, "n02", "bug", reviewer="Ada")
    assert neurons.choices(made) == {
        "model": ["a", "b"],
        "class": ["car", "crab"],
        "verdict": ["harmful", "no evidence"],
        "reviewed": ["bug", "not reviewed"],
    }
    assert neurons.count(made, {}) == 20
    assert neurons.count(made, {"model": "b", "class": "crab"}) == len([i for i in range(20) if i % 6 == 2])
    judged = neurons.listed(made, {"reviewed": "bug"}, 1)
    assert [(row["neuron_id"], row["reviewed"]) for row in judged] == [("n02", "bug")]
    unknown = {f"n{i:02d}" for i in range(20) if i % 3 == 2}
    assert {row["neuron_id"] for row in neurons.listed(made, {"verdict": "no evidence"}, 1)} == unknown
    pages = [neurons.listed(made, {}, number) for number in (1, 2, 3)]
    assert [len(rows) for rows in pages] == [neurons.PAGE_SIZE, 20 - neurons.PAGE_SIZE, 0]
    assert len({row["neuron_id"] for rows in pages for row in rows}) == 20
    app = page(made, **{"class": "crab", "verdict": "no evidence"})
    assert not app.exception
    links = [link.proto.query_string for link in app.get("page_link")]
    assert links == [f"id=n{i:02d}" for i in range(20) if i % 6 == 2]
    assert "neuron 2 for" in html_of(app)
    assert ">bug</span>" in html_of(app)
    nobody = page(made, **{"class": "crab", "reviewed": "bug", "verdict": "harmful"})
    assert "Take a filter away" in nobody.info[0].value


def test_a_neuron_says_how_strongly_images_activate_it(run: Run) -> None:
    table = page(run, id="n1").dataframe[0].value.set_index("images")
    assert table.loc["of the class, all labelled ones", "mean"] == 2.0
    assert table.loc["the 2 real ones that activate it most"].tolist()[1:] == [8.5, 8.0, 9.0]
    assert table.loc["1 of the class, minimised"].tolist() == [0.25, 3.5, 3.5, 3.5]
    assert table.loc["1 of other classes, maximised"].tolist() == [0.25, 4.5, 4.5, 4.5]
    assert table.loc["1 of the class, by feature attack", "mean"] == 5.5


def test_a_person_s_verdict_on_a_neuron_is_kept(run: Run) -> None:
    app = page(run, id="n2")
    app.button_group[0].set_value("bug")
    app.text_input[0].set_value(HOSTILE)
    app.text_input[1].set_value("Ada")
    app.button[0].click().run()
    assert not app.exception
    run.refresh()
    kept = run.rows("select subject_id, verdict, note, reviewer from reviews")
    assert kept == [{"subject_id": "n2", "verdict": "bug", "note": HOSTILE, "reviewer": "Ada"}]
    assert ">bug</span>" in html_of(page(run, id="n2"))


def test_of_each_neuron_the_search_that_raised_it_most_is_shown(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("job.json", b'{"job": {"stages": []}}')
    of = {"stage": "3-neuron", "model_id": "a", "layer": "fc"}
    rows = [{**of, "neuron_id": f"n{i}", "class_name": "crab", "neuron": i} for i in range(2)]
    ends = [("near", 0, 1.0, 4.0), ("far", 0, -2.0, 3.0), ("other", 1, 0.0, 9.0), ("class", 1, 0.0, 99.0)]
    explanations = [
        {**of, "explanation_id": name, "target_class": "crab", "neuron": neuron, "method": "neuron", "status": "ok"}
        | {"arm": "maximise" if name == "class" else "others", "activation_before": before, "activation_after": after}
        for name, neuron, before, after in ends
    ]
    store.commit("u", "3-neuron", {"neurons": rows, "explanations": explanations})
    found = neurons.raised(Run(tmp_path), rows)
    assert {key: row["explanation_id"] for key, row in found.items()} == {"n0": "far", "n1": "other"}


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_filters_neurons_and_judges_one(run: Run, scheme: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with served(run.root) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        errors: list[str] = []
        opened.on("console", lambda m: errors.append(m.text) if m.type == "error" and "404" not in m.text else None)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(f"{address}/neurons?verdict=harmful")
        opened.get_by_text("1 neurons").wait_for(timeout=60_000)
        expect(opened.get_by_role("link", name="Evidence")).to_have_count(1)
        opened.wait_for_load_state("networkidle")
        opened.get_by_role("link", name="Evidence").click()
        opened.get_by_role("heading", name="Activations").wait_for(timeout=60_000)
        assert opened.url.endswith("/neuron?id=n1")
        opened.get_by_role("radio", name="expected").click()
        opened.get_by_label("Your name").fill("Grace")
        opened.get_by_role("button", name="Keep").click()
        opened.locator("span", has_text=re.compile("^expected$")).first.wait_for(timeout=60_000)
        assert opened.title() == "audit"
        assert errors == []
        browser.close()


def test_queries_find_only_what_belongs_to_the_neuron(run: Run) -> None:
    found: Any = neurons.one(run, "n1")
    assert [row["explanation_id"] for row in neurons.searches(run, found)] == ["x4", "x1", "x2", "x3"]
    other: Any = neurons.one(run, "n2")
    assert neurons.searches(run, other) == []
    assert neurons.one(run, "none") is None
