"""Runs that lie side by side: which there are, how far they are, and the report's pages that list and compare them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from audit.errors import ConfigError, StoreError
from audit.pictures import image_row
from audit.results.progress import stages_of
from audit.results.sql import Run
from audit.runs import beside, open_beside, unfinished
from dashboard import comparing, siblings
from tests.audited import against, audited, mode, said
from tests.report_server import CHROMIUM, served

HOSTILE = "<b>*half*"
PICTURES = [image_row(np.full((8, 8, 3), 40 * i, np.uint8), "start") for i in range(4)]
IDS = [picture["image_id"] for picture in PICTURES]


def search(name: str, concept: str, evidence: str = "") -> dict[str, object]:
    interval = {"impact_low": 0.05, "impact_high": 0.2}
    return mode(name, concept, evidence=evidence, exemplars=["x"], support=1, seeds=4, **interval)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1 and v2 are finished: one mode was fixed, one came, one stayed, of one nobody can tell. What else lies there is
    no run, not whole, not finished, or leads elsewhere."""
    root = tmp_path_factory.mktemp("runs")
    made = {
        "v1": (
            [search("crab", "gone", "abcde"), search("crab", "red")],
            against({**dict.fromkeys("abcde", "crab"), **dict.fromkeys("vwxyz", "boat")}),
        ),
        "v2": (
            [search("crab", "added", "vwxyz"), search("crab", "red")],
            against({**dict.fromkeys("abcde", "boat"), **dict.fromkeys("vwxyz", "crab")}),
        ),
    }
    made["v1"][0].append(search("boat", "old"))
    labels = {"v1": "cat", "v2": "dog"}
    for day, (name, (modes, predictions)) in enumerate(made.items(), 3):
        answers = said("data", "v", {"i": "dog", "j": labels[name]}, "dog")
        run = audited(root / name, modes, predictions + answers)
        explanation = {"explanation_id": "x", "status": "ok", "start_image_id": IDS[day - 3], "image_id": IDS[3]}
        explanation |= {"target_class": "crab", "model_id": "v", "other_model_id": "reference"}
        about = {"name": name, "created_at": datetime(2026, 5, day, tzinfo=UTC)}
        run.store.commit("run", "run", {"runs": [about], "images": PICTURES, "explanations": [explanation]})
    audited(root / HOSTILE, [], [], done=("0-inventory",))
    (root / "broken").mkdir()
    (root / "broken" / "job.json").write_text("{}")
    (root / "no run").mkdir()
    elsewhere = audited(root.parent / "elsewhere", [], [])
    (root / "link").symlink_to(elsewhere.root)
    (root / "file").touch()
    return root


@pytest.fixture(scope="module", autouse=True)
def forget_runs() -> Iterator[None]:
    """Streamlit would keep the opened run beyond the end of the interpreter's modules."""
    yield
    st.cache_resource.clear()
    st.cache_data.clear()


def test_runs_beside_are_those_of_the_same_root(root: Path) -> None:
    assert beside(root / "v2") == [HOSTILE, "broken", "v1", "v2"]
    assert open_beside(root / "v2", "v1").root == root / "v1"


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere",
        "..",
        ".",
        "",
        "link",
        "no run",
        "v1/",
        "v1/../v1",
        "./v1",
        "/etc",
        "s3://bucket/run",
        "v1\0",
        "%2e%2e",
    ],
)
def test_nothing_else_is_opened(root: Path, name: str) -> None:
    for asked in (name, str(root / name.replace("\0", "")), f"file://{root / 'v1'}"):
        with pytest.raises(ConfigError, match="unknown run"):
            open_beside(root / "v2", asked)


def test_how_far_a_run_is_follows_from_its_files(root: Path, tmp_path: Path) -> None:
    assert unfinished(Run(root / "v1")) == ""
    half = Run(root / HOSTILE)
    assert unfinished(half) == "stage 1-screen has done 0 of 1 units"
    assert [(row["stage"], row["units"], row["done"], row["items"]) for row in stages_of(half)] == [
        ("0-inventory", 1, 1, 1),
        ("1-screen", 1, 0, 1),
        ("2-discover", 1, 0, 1),
    ]
    with pytest.raises(ConfigError, match=r"job\.json is not whole"):
        stages_of(Run(root / "broken"))
    made = audited(tmp_path / "run", [], [], done=("0-inventory",))
    made.store.commit("u1", "1-screen", {}, status="quarantined", error="why")
    (tmp_path / "run" / "plan" / "2-discover.json").unlink()
    made.refresh()
    assert unfinished(made) == "stage 2-discover has done 0 of its units"
    assert stages_of(made)[1]["quarantined"] == 1
    (tmp_path / "run" / "plan" / "2-discover.json").write_text("{}")
    with pytest.raises(StoreError, match=r"2-discover\.json is not whole"):
        stages_of(made)


@pytest.mark.parametrize(
    ("live", "words"),
    [
        (None, "not finished: stage 1-screen has done 0 of 1 units"),
        ({"at": "noon", "ended": None}, "running, heard of at noon: stage 1-screen has done 0 of 1 units"),
        ({"at": "noon", "ended": "Terminated: x"}, "stopped (Terminated: x): stage 1-screen has done 0 of 1 units"),
        ([], "not finished: stage 1-screen has done 0 of 1 units"),
    ],
)
def test_the_state_of_a_run_in_words(tmp_path: Path, live: object, words: str) -> None:
    made = audited(tmp_path / "run", [], [], done=("0-inventory",))
    if live is not None:
        (tmp_path / "run" / "live.json").write_text(json.dumps(live))
    assert siblings.state(made) == words


def page(run: Path, monkeypatch: pytest.MonkeyPatch, function: str, /, **query: str) -> AppTest:
    monkeypatch.setenv("AUDIT_RUN", str(run))
    app = AppTest.from_string(f"from dashboard import pages\npages.{function}()", default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


def test_the_list_tells_of_every_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(root / "v2", monkeypatch, "run_page")
    rows = {row["run"]: row for row in app.dataframe[0].value.to_dict("records")}
    assert list(rows) == [HOSTILE, "broken", "v1", "v2"]
    assert (rows["v1"]["state"], rows["v1"]["accuracy"], rows["v1"]["confirmed"]) == ("finished", "v 50.0%", 3)
    assert (rows["v2"]["started"], rows["v2"]["accuracy"]) == ("2026-05-04 00:00 UTC", "v 100.0%")
    assert rows["broken"]["state"].startswith("cannot be read: ")
    assert rows[HOSTILE]["state"].startswith("not finished")


def test_a_run_that_lies_alone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = audited(tmp_path / "run", [], [])
    assert "No other run lies here" in page(made.root, monkeypatch, "run_page").info[0].value


def statuses(app: AppTest) -> list[tuple[str, str]]:
    """Claim and status of every card."""
    return re.findall(r"what is (\w+)</h3>.*?>(\w+)</span>", html(app))


def test_the_comparison_has_every_status_with_pictures_and_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(root / "v2", monkeypatch, "compare_page", **{"with": "v1"})
    assert statuses(app) == [("added", "new"), ("old", "unclear"), ("red", "unchanged"), ("gone", "fixed")]
    assert [(metric.label, metric.value) for metric in app.metric] == [
        *(("new", "1"), ("unclear", "1"), ("unchanged", "1"), ("fixed", "1"))
    ]
    assert "before: v1, started on 2026-05-03 00:00 UTC\nafter: v2" in app.text[0].value
    links = [link.proto.query_string for link in app.get("page_link")]
    assert links == ["id=crab+added", "id=crab+red"]
    shown = html(app)
    assert shown.count(f"src='/evidence/{IDS[1]}'") == 2  # of this run, as stored
    assert shown.count("src='data:image/webp;base64,") == 4  # of the other one
    accuracy = re.findall(r"<td[^>]*>([^<]*)</td>", shown)
    assert accuracy == ["v", "2", "50.0%", "100.0%", "1", "0", "1"]
    only = page(root / "v2", monkeypatch, "compare_page", **{"with": "v1", "status": "fixed"})
    assert statuses(only) == [("gone", "fixed")]


def test_the_earlier_run_is_the_one_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is the one that is shown."""
    app = page(root / "v1", monkeypatch, "compare_page", **{"with": "v2"})
    assert statuses(app) == [("added", "new"), ("old", "unclear"), ("red", "unchanged"), ("gone", "fixed")]
    first, second = Run(root / "v1"), Run(root / "v2")
    assert comparing.in_order(first, second) == comparing.in_order(second, first) == (first, second)
    unknown = Run(root / HOSTILE)
    assert comparing.in_order(first, unknown) == (unknown, first)


def test_two_models_of_one_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(root / "v2", monkeypatch, "compare_page", **{"with": "v2"})
    assert app.info[0].value == "Choose two models of this run."
    app.selectbox[1].set_value("v")
    app.selectbox[2].set_value("reference").run()
    assert "before: v of v2" in app.text[0].value
    assert statuses(app) == [("red", "unclear"), ("added", "fixed")]  # the reference is right on its images
    half = page(root / "v2", monkeypatch, "compare_page", **{"with": "v1", "old": "v"})
    assert half.info[0].value == "Choose a model on both sides, or none."


def test_another_run_is_chosen_after_two_models(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of the address are those of the run before, and go with it."""
    app = page(root / "v2", monkeypatch, "compare_page", **{"with": "v2", "old": "v", "new": "reference"})
    assert "before: v of v2" in app.text[0].value
    app.selectbox[0].set_value("v1").run()
    assert not app.exception
    assert statuses(app) == [("added", "new"), ("old", "unclear"), ("red", "unchanged"), ("gone", "fixed")]
    assert app.query_params["with"] == "v1"


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "link", "s3://bucket/run", "..", "file:///etc/passwd"])
def test_the_page_opens_no_other_place(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = {"with": name}
    app = page(root / "v2", monkeypatch, "compare_page", **asked)
    assert app.error[0].value == "These cannot be compared."
    assert f"unknown run {name!r}" in app.text[0].value
    asked = {"with": str(root.parent / "elsewhere")}
    assert "unknown run" in page(root / "v2", monkeypatch, "compare_page", **asked).text[0].value


def test_what_cannot_be_compared_says_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = page(root / "v2", monkeypatch, "compare_page", **{"with": HOSTILE})
    assert "is not finished" in half.info[0].value
    broken = page(root / "v2", monkeypatch, "compare_page", **{"with": "broken"})
    assert "job.json is not whole" in broken.text[0].value
    assert "What is new" in page(root / "v2", monkeypatch, "compare_page").text[0].value


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_compares_a_run_with_another(root: Path, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    with served(root / "v2") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 1400}, color_scheme=scheme)  # type: ignore[arg-type]
        errors: list[str] = []
        opened.on("console", lambda m: errors.append(m.text) if m.type == "error" and "404" not in m.text else None)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        broken: list[str] = []
        opened.on("response", lambda r: broken.append(r.url) if r.status >= 400 and "/_stcore/" not in r.url else None)
        opened.goto(f"{address}/runs")
        table = opened.get_by_test_id("stDataFrame").first
        table.wait_for(timeout=60_000)
        opened.wait_for_load_state("networkidle")
        table.click(position={"x": 15, "y": 120})  # the box before the third row
        opened.get_by_role("heading", name="v says “crab” for what is added").wait_for(timeout=60_000)
        assert "with=v1" in opened.url
        opened.get_by_role("heading", name="v says “crab” for what is gone").wait_for()
        opened.wait_for_function("[...document.querySelectorAll('main img')].every(i => i.naturalWidth > 0)")
        opened.wait_for_load_state("networkidle")
        opened.get_by_role("link", name="Evidence (after)").first.click()
        opened.get_by_role("heading", name="What the search made of its starts").wait_for(timeout=60_000)
        assert "id=crab+added" in opened.url
        assert errors == []
        assert broken == []
        browser.close()
