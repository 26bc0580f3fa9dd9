"""The blinded comparison: planted answers with results worked out by hand, and a person at the page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from audit import study
from audit.errors import ConfigError
from audit.pictures import image_row
from audit.results.sql import Run, open_run
from audit.results.store import Store
from tests.report_server import CHROMIUM, served

OLD, NEW = "3-counterfactual uvce", "4-counterfactual uvce"
HOSTILE = "<script>alert(1)</script>"


def write(root: Path) -> Run:
    """Four images that two stages explain; on the fourth one stage is not sure; a fifth has one stage only, and there
    is another target, another model and a failure."""
    store = Store(root)
    store.create("job.json", b"{}")
    rng = np.random.default_rng(0)
    made = [image_row(rng.integers(0, 255, (32, 32, 3), np.uint8), "original") for _ in range(15)]
    ids = [row["image_id"] for row in made]
    rows, items = [], []
    for i in range(5):
        items.append({"item_id": ids[i], "role": "data", "label": "water_bottle" if i else "crab", "status": "ok"})
        for place, stage in enumerate(("3-counterfactual", "4-counterfactual")):
            if (i, place) == (4, 0):
                continue
            sure = 0.79 if (i, place) == (3, 1) else 0.8
            rows.append(
                {"explanation_id": f"{place}{i}", "stage": stage, "method": "uvce", "item_id": ids[i], "status": "ok"}
                | {"model_id": "v", "source_class": "crab", "target_class": "water_bottle", "score_after": sure}
                | {"start_image_id": ids[i], "image_id": ids[5 + 5 * place + i]}
            )
    first = rows[0]
    rows.append({**first, "explanation_id": "z0", "target_class": HOSTILE})
    rows.append({**first, "explanation_id": "z1", "stage": "4-counterfactual", "model_id": "w"})
    rows.append(
        {**first, "explanation_id": "z2", "stage": "4-counterfactual", "status": "failed", "target_class": HOSTILE}
    )
    store.commit("u", "3-x", {"explanations": rows, "images": made, "items": items})
    return Run(root)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write(tmp_path / "run")


def explanation(pair: study.Pair, letter: str, rater: str) -> str:
    return pair.shown(rater)["AB".index(letter)][0]


def letter(pair: study.Pair, stage: str, rater: str) -> str:
    """Under which letter this person sees the result of a stage; '0' is the old one, '1' the new."""
    return "A" if pair.shown(rater)[0][0].startswith(stage) else "B"


def test_pairs_are_what_both_explain_and_are_sure_of(run: Run) -> None:
    assert study.comparable(run) == [{"first": OLD, "second": NEW, "pairs": 4}]
    found = study.pairs(run, OLD, NEW)
    assert sorted(pair.results[0][0] + pair.results[1][0] for pair in found) == ["0010", "0111", "0212"]
    assert len(study.pairs(run, OLD, NEW, 0.79)) == 4
    assert study.pairs(run, OLD, NEW, 0.81) == []
    assert {pair.target_class for pair in found} == {"water_bottle"}
    (one,) = [pair for pair in found if pair.results[0][0] == "00"]
    items = {row["item_id"]: row["label"] for row in run.rows("select * from items")}
    assert items[one.original] == "crab"
    shown = study.references(run, "water_bottle", one.original)
    assert len(shown) == 4
    assert {items[image] for image in shown} == {"water_bottle"}
    assert len(study.references(run, "water_bottle", shown[0])) == 3


def test_which_is_a_is_drawn_for_each_person_and_image_and_stays(run: Run) -> None:
    pair = study.pairs(run, OLD, NEW)[0]
    people = [f"person {i}" for i in range(200)]
    as_a = [pair.shown(name)[0] for name in people]
    assert as_a == [pair.shown(name)[0] for name in people]
    assert 60 < sum(one == pair.results[0] for one in as_a) < 140
    found = study.pairs(run, OLD, NEW)
    orders = {tuple(pair.pair_id for pair in study.ordered(found, name)) for name in people}
    assert len(orders) == 6  # all there are of three
    other = [study.Pair(f"{i:032x}", "o", "s", "t", pair.results).shown("Ada")[0] for i in range(200)]
    assert 60 < sum(one == pair.results[0] for one in other) < 140


def wilson(yes: int, n: int) -> tuple[float, float]:
    """Wilson 1927, as it is written."""
    z, p = 1.959963984540054, yes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def test_results_are_those_of_the_planted_answers(run: Run) -> None:
    """Ada finds the new stage better on all three images, Grace on one, the old one on one, and one equal."""
    found = {pair.results[0][0]: pair for pair in study.pairs(run, OLD, NEW)}
    for key, pair in found.items():
        new, old = letter(pair, "1", "Ada"), letter(pair, "0", "Ada")
        said = {"realistic": "both", "features": new, "object": "neither", "better": old}
        study.answer(run, pair, said, "Ada")  # a slip: the next answers count
        study.answer(run, pair, {**said, "better": new}, " Ada ")
        new, old = letter(pair, "1", "Grace"), letter(pair, "0", "Grace")
        better = {"00": new, "01": old, "02": "equal"}[key]
        study.answer(run, pair, {"realistic": new, "features": old, "object": "both", "better": better}, "Grace")
    assert len(run.rows("select * from answers")) == 3 * 3 * 4
    assert study.answered(run, "Ada") == {pair.pair_id for pair in found.values()}
    shares = {(row["question"], row["variant"]): row for row in study.shares(run, OLD, NEW)}
    yes = {
        ("realistic", OLD): 3,
        ("realistic", NEW): 6,
        ("features", OLD): 3,
        ("features", NEW): 3,
        ("object", OLD): 3,
        ("object", NEW): 3,
        ("better", OLD): 1,
        ("better", NEW): 4,
    }
    assert {key: row["yes"] for key, row in shares.items()} == yes
    for key, row in shares.items():
        assert (row["answers"], row["raters"]) == (6, 2)
        assert row["share"] == pytest.approx(yes[key] / 6)
        assert (row["low"], row["high"]) == pytest.approx(wilson(yes[key], 6), abs=1e-9)
    tests = {row.pop("question"): row for row in study.sign_tests(run, OLD, NEW)}
    # realistic: Grace alone tells them apart, for the new one on all three: 2 * (1/2)^3
    assert tests["realistic"] == {"images": 3, "first": 0, "second": 3, "tied": 0, "p_value": 0.25}
    # features and object: they cancel out, or nobody tells them apart
    assert tests["features"] == {"images": 3, "first": 0, "second": 0, "tied": 3, "p_value": 1.0}
    assert tests["object"] == {"images": 3, "first": 0, "second": 0, "tied": 3, "p_value": 1.0}
    # better: on 00 both, on 02 Ada, on 01 they cancel out: 2 * (1/2)^2
    assert tests["better"] == {"images": 3, "first": 0, "second": 2, "tied": 1, "p_value": 0.5}
    backwards = {row["question"]: row for row in study.sign_tests(run, NEW, OLD)}
    assert (backwards["better"]["first"], backwards["better"]["second"]) == (2, 0)
    seen = open_run(run.root).rows(
        "select stage, avg(yes::int) as share from ratings where question = 'better' group by stage order by stage"
    )
    assert seen == [
        {"stage": "3-counterfactual", "share": pytest.approx(1 / 6)},
        {"stage": "4-counterfactual", "share": pytest.approx(4 / 6)},
    ]


def test_nothing_answered_gives_no_share(run: Run) -> None:
    assert {row["share"] for row in study.shares(run, OLD, NEW)} == {None}
    assert {row["p_value"] for row in study.sign_tests(run, OLD, NEW)} == {1.0}


def test_half_an_answer_is_refused_and_nothing_of_it_kept(run: Run) -> None:
    pair = study.pairs(run, OLD, NEW)[0]
    whole = {"realistic": "A", "features": "A", "object": "A", "better": "A"}
    for wrong, message in (
        ({"realistic": "A"}, "unknown answer 'None'"),
        ({**whole, "better": "both"}, "unknown answer 'both'"),
        ({**whole, "nicer": "A"}, "unknown question 'nicer'"),
    ):
        with pytest.raises(ConfigError, match=message):
            study.answer(run, pair, wrong, "Ada")
    with pytest.raises(ConfigError, match="a reviewer's name"):
        study.answer(run, pair, whole, "\x1b[31m")
    assert run.rows("select * from answers") == []


@pytest.fixture(autouse=True)
def forget_runs() -> Iterator[None]:
    yield
    st.cache_resource.clear()


def page(run: Run, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_string("from dashboard import pages\npages.blinded()", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def test_the_page_says_what_it_lacks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "empty").create("job.json", b"{}")
    assert "Nothing to compare" in page(Run(tmp_path / "empty"), monkeypatch).info[0].value
    named = {"a": OLD, "b": NEW, "rater": "Ada"}
    assert "On no image do both reach 90%" in page(run, monkeypatch, **named, least="0.9").info[0].value
    assert "Nobody has answered yet" in page(run, monkeypatch, a=OLD, b=NEW, results="1").info[0].value
    told = page(run, monkeypatch, **named, results="1").info[0].value
    assert told == "You have 3 images to go. The results say which is which."
    for query in ({}, {"a": OLD, "b": "none", "rater": "Ada"}, {"a": OLD, "b": NEW}):
        assert [button.label for button in page(run, monkeypatch, **query).button] == ["Begin", "Results"]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
def test_a_person_answers_by_keys_and_then_sees_the_table(run: Run) -> None:
    from playwright.sync_api import TimeoutError, expect, sync_playwright

    found = study.ordered(study.pairs(run, OLD, NEW), "Ada")
    with served(run.root) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.goto(f"{address}/study")
        opened.get_by_label("Your name").fill("Ada", timeout=60_000)
        opened.get_by_role("button", name="Begin").click()
        opened.get_by_role("heading", name="1. Which of the two is realistic?").wait_for()
        assert "rater=Ada" in opened.url

        def sees(pair: study.Pair) -> None:
            for image, name in zip(pair.shown("Ada"), "AB", strict=True):
                expect(opened.get_by_alt_text(f"counterfactual {name}")).to_have_attribute(
                    "src", f"/evidence/{image[1]}"
                )
            assert "counterfactual uvce" not in opened.inner_text("main")  # which is which is not told

        def presses(pair: study.Pair, *keys: str, first: int = 0) -> None:
            """Each when its question is there, and again where a busy browser did not hear it."""
            for question, key in zip(list(study.QUESTIONS)[first:], keys, strict=False):
                button = opened.locator(f".st-key-{pair.pair_id[:8]}-{question}-A button")
                button.wait_for()
                for _ in range(4):
                    opened.keyboard.press(key)
                    try:
                        button.wait_for(state="detached", timeout=10_000)
                        break
                    except TimeoutError:
                        continue

        sees(found[0])
        opened.reload()
        opened.get_by_role("heading", name="1. Which").wait_for(timeout=60_000)
        sees(found[0])
        presses(found[0], "1", "3")
        opened.get_by_role("heading", name="3. ").wait_for()
        presses(found[0], "ArrowLeft", first=2)  # back to the second
        opened.get_by_role("heading", name="2. ").wait_for()
        presses(found[0], "2", "0", "1", first=1)
        opened.get_by_text("Image 2 of 3, 2 to go").wait_for()
        sees(found[1])
        presses(found[1], "3", "3", "3", "0")
        opened.get_by_text("Image 3 of 3, 1 to go").wait_for()
        sees(found[2])
        opened.goto(f"{opened.url}&results=1")
        opened.get_by_text("You have 1 images to go.").wait_for(timeout=60_000)
        opened.get_by_role("button", name="Go on").click()
        presses(found[2], "0", "2", "2", "2")
        opened.get_by_text("You have answered all 3 images.").wait_for()
        opened.get_by_role("button", name="Results").click()
        opened.get_by_role("heading", name="How often people said yes").wait_for()
        expect(opened.get_by_test_id("stDataFrame")).to_have_count(2)
        browser.close()
    run.refresh()
    kept = run.rows("select pair_id, question, answer from answers where rater = 'Ada'")
    given = {(row["pair_id"], row["question"]): row["answer"] for row in kept}
    expected = (("A", "B", "neither", "A"), ("both", "both", "both", "equal"), ("neither", "B", "B", "B"))
    assert given == {
        (pair.pair_id, question): said
        for pair, answers in zip(found, expected, strict=True)
        for question, said in zip(study.QUESTIONS, answers, strict=True)
    }
    for pair, row in zip(found, ("A", None, "B"), strict=True):
        better = run.rows(
            "select explanation_id from ratings where question = 'better' and yes and pair_id = ?", [pair.pair_id]
        )
        assert [one["explanation_id"] for one in better] == ([explanation(pair, row, "Ada")] if row else [])
