"""The report: a made-up run with hostile names, over HTTP and, where there is a Chromium, as a person sees it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np
import pytest

from audit import sentences
from audit.pictures import image_row
from audit.results import queries
from audit.results.sql import Run
from audit.results.store import Store
from dashboard import components
from pipelines.report import command
from tests.report_server import CHROMIUM, served

HOSTILE = "<script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two modes of the search, one that is not listed; one class name is hostile."""
    store = Store(tmp_path_factory.mktemp("run"))
    store.create("job.json", b'{"job": {"stages": []}}')
    rng = np.random.default_rng(0)
    pictures = [image_row(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "start") for _ in range(6)]
    ids = [p["image_id"] for p in pictures]
    explanations, traces, predictions = [], [], []
    for i in range(2):
        name = f"x{i}"
        explanations.append(
            {"explanation_id": name, "target_class": HOSTILE, "model_id": "new", "other_model_id": "old"}
            | {"status": "ok", "start_image_id": ids[2 * i], "image_id": ids[2 * i + 1], "flipped": True}
        )
        traces += [
            {"explanation_id": name, "step": k, "loss": -k, "score": 0.2 * k, "other_score": 0.5} for k in range(4)
        ]
    for image_id in ids:
        for model in ("new", "old"):
            predictions.append(
                {"item_id": image_id, "role": "generated", "model_id": model, "predicted": HOSTILE, "confidence": 0.9}
                | {"status": "ok"}
            )
    for k in range(10):
        for model in ("new", "old"):
            predictions.append(
                {"item_id": f"d{k}", "role": "data", "model_id": model, "label": "crab", "status": "ok"}
                | {"predicted": "crab" if k < 8 or model == "new" else "car", "confidence": 0.9}
                | {"correct": k < 8 or model == "new"}
            )
    mode = {"kind": "disagreement", "model_id": "new", "other_model_id": "old", "class_name": HOSTILE, "seeds": 4}
    mode |= {"listed": True, "effect": 3.0, "effect_low": 2.0, "effect_high": 4.0, "support": 2}
    evidence = {"evidence_rate": 0.9, "control_rate": 0.1, "evidence_images": 20, "control_images": 21, "impact": 0.1}
    evidence |= {"impact_low": 0.05, "impact_high": 0.15, "evidence": ids[4:], "p_corrected": 1e-6}
    modes = [
        {**mode, **evidence, "failure_mode_id": "m1", "name": "on sand", "source": "search", "verdict": "confirmed"},
        {
            **mode,
            "failure_mode_id": "m2",
            "name": "purple",
            "source": "search",
            "verdict": "hypothesis",
            "reason": "no pool",
        },
        {**mode, **evidence, "failure_mode_id": "m3", "name": "grass", "verdict": "confirmed", "source": "screen"},
    ]
    modes[2]["listed"] = False
    modes[0]["exemplars"] = modes[1]["exemplars"] = ["x0", "x1"]
    rows = {"explanations": explanations, "traces": traces, "predictions": predictions, "images": pictures}
    config = {
        "data": {"plugin": "folder", "path": "/photos"},
        "models": {"new": {"plugin": "hf", "ref": "zoo:reference"}, "lite": {"plugin": "lite", "variant": 2}},
        "pool": None,
    }
    about = {"run_id": "r", "name": "made up", "config": json.dumps(config)}
    about["created_at"] = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
    rows |= {"failure_modes": modes, "runs": [about]}
    against = [("lite", "holds_against", 0.75), ("lite", "alike", 0.934), ("lite", "both_confirmed", 1.0)]
    against += [(HOSTILE, "holds_against", None), (HOSTILE, "alike", None), (HOSTILE, "both_confirmed", 0.0)]
    rows["measurements"] = [
        {"subject_id": "m1", "name": name, "key": key, "value": value} for key, name, value in against
    ]
    rows["measurements"] += [{"subject_id": "m2", "name": "holds_against", "key": "lite", "value": 0.5}]
    rows |= {
        "items": [
            {"item_id": "q", "role": "data", "status": "quarantined", "reason": "truncated", "display_name": HOSTILE}
        ]
    }
    store.commit("u", "1-x", rows)
    return Run(store.root)


def test_queries_count_what_was_stored(run: Run) -> None:
    head = queries.header(run)
    assert (head["name"], head["confirmed"], head["hypotheses"], head["refused"]) == ("made up", 1, 1, 1)
    assert [(m["model_id"], m["accuracy"]) for m in queries.models(run)] == [("new", 1.0), ("old", 0.8)]
    assert [m["failure_mode_id"] for m in queries.modes(run)] == ["m1", "m2"]
    assert [x["explanation_id"] for x in queries.exemplars(run, ["x1", "gone", "x0"])] == ["x1", "x0"]
    assert queries.disagreements(run)[0]["disagreement"] == pytest.approx(1.0)
    assert queries.pairs(run) == [{"model": "new", "other": "old", "images": 10, "disagreement": 0.2}]
    assert queries.confusions(run) == [{"model": "old", "label": "crab", "says": "car", "images": 2, "share": 0.2}]
    assert len(queries.traces(run, ["x0"])) == 4
    assert queries.mode(run, "none") is None
    assert queries.audited(run) == [
        {"what": "data", "read by": "folder", "from": "/photos"},
        {"what": "model new", "read by": "hf", "from": "zoo:reference"},
        {"what": "model lite", "read by": "lite", "from": ""},
    ]


def test_a_line_says_whether_a_mode_depends_on_the_other_model(run: Run) -> None:
    first, second, third = (queries.mode(run, name) for name in ("m1", "m2", "m3"))
    assert first
    assert second
    assert third
    assert sentences.others(first, queries.against_others(run, "m1")) == (
        f"searching against {HOSTILE} did not find it. lite does not say {HOSTILE} on 75% of them either, and "
        "searching against lite found the same (cosine 0.93; both are confirmed)."
    )
    assert (
        sentences.others(second, queries.against_others(run, "m2"))
        == f"lite does not say {HOSTILE} on 50% of them either."
    )
    assert sentences.others(third, queries.against_others(run, "m3")) == ""


def test_of_an_image_that_two_searches_share_each_model_speaks_once(tmp_path: Path) -> None:
    """Asked in batches of two sizes, the model is as sure up to rounding."""
    store = Store(tmp_path)
    store.create("job.json", b'{"job": {"stages": []}}')
    row = {"item_id": "i", "role": "generated", "model_id": "new", "predicted": "crab", "status": "ok"}
    store.commit("u", "1-x", {"predictions": [{**row, "confidence": 0.9}, {**row, "confidence": 0.9000001}]})
    assert queries.said(Run(tmp_path), ["i"]) == {
        "i": [{"item_id": "i", "model_id": "new", "predicted": "crab", "confidence": 0.9000001}]
    }


def test_sessions_share_a_run_that_grows(tmp_path: Path) -> None:
    """Many threads ask and refresh while units are committed; none meets an error, and all is seen at the end."""
    store = Store(tmp_path)
    store.create("job.json", b'{"job": {"stages": []}}')
    shared = Run(tmp_path)

    def session(number: int) -> int:
        for k in range(8):
            if number == 0:
                store.commit(f"u{k}", "1-x", {"images": [{"image_id": f"i{k}", "kind": "start"}]})
            shared.refresh()
            seen = shared.rows("select count(*) as n from images")[0]["n"]
        return int(seen)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(session, range(4)))
    shared.refresh()
    assert shared.rows("select count(*) as n from images") == [{"n": 8}]


def test_names_are_text_in_every_piece_of_html(run: Run) -> None:
    mode = queries.mode(run, "m1")
    assert mode
    shown = queries.exemplars(run, mode["exemplars"])
    said = queries.said(run, components.images_of(shown))
    html = (
        components.headline(mode)
        + components.pair(shown[0], said)
        + components.real(mode, shown[0]["image_id"], said[shown[0]["image_id"]])
    )
    named = {**shown[0], "model_id": HOSTILE, "other_model_id": HOSTILE, "score_before": 0.1, "other_before": 0.2}
    scored = components.scored(named)
    assert "<script" not in html + scored
    assert html.count("&lt;script&gt;") >= 4
    assert scored.count(f"{escape(HOSTILE)}</span>") == 2
    for text in (components.paragraph(HOSTILE), components.table([HOSTILE], [[HOSTILE]])):
        assert "<script" not in text
        assert "&lt;script&gt;" in text


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    with served(run.root) as where:
        yield where


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_images_are_served_as_their_stored_bytes(run: Run, address: str) -> None:
    row = run.rows("select image_id, png from images order by image_id limit 1")[0]
    with urllib.request.urlopen(f"{address}/evidence/{row['image_id']}", timeout=10) as answer:
        assert answer.read() == row["png"]
        assert answer.headers["Content-Type"] == "image/png"
        assert "immutable" in answer.headers["Cache-Control"]
    assert status(f"{address}/evidence/{'0' * 64}") == 404
    assert status(f"{address}/evidence/..%2f..%2fetc%2fpasswd") in (400, 404)


def test_other_hosts_are_refused(address: str) -> None:
    assert status(f"{address}/", Host="evil.example") == 400
    assert "--server.address=127.0.0.1" in command(1)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
def test_a_person_walks_from_the_overview_to_a_failure_mode(run: Run, address: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        broken: list[str] = []
        page.on("response", lambda r: broken.append(r.url) if r.status >= 400 and "/_stcore/" not in r.url else None)
        page.goto(address)
        page.get_by_text("confirmed failure modes").wait_for(timeout=60_000)
        page.get_by_text("What was audited, on 2026-03-04 05:06 UTC").wait_for()
        pictures = "main img[src^='/evidence/']"
        loaded = f'[...document.querySelectorAll("{pictures}")].every(i => i.naturalWidth > 0)'
        page.get_by_role("link", name="Evidence").nth(1).wait_for()
        page.wait_for_function(loaded)  # a page that is still being built moves under the pointer
        page.wait_for_load_state("networkidle")
        page.get_by_role("link", name="Evidence").first.click()
        page.get_by_role("heading", name="What the search made of its starts").wait_for(timeout=60_000)
        assert "id=m1" in page.url
        page.locator("img[alt^='real image']").first.wait_for()
        page.wait_for_function(loaded)
        widths = page.eval_on_selector_all(pictures, "images => images.map(image => image.naturalWidth)")
        assert len(widths) == 6  # two pairs and two real images, as stored: not rescaled, not re-encoded
        assert set(widths) == {64}
        page.get_by_text("What other models make of these images: ").wait_for()
        assert page.title() == "audit"
        assert page.get_by_text(HOSTILE).count() >= 1
        page.get_by_role("button", name="Keep").click()
        page.get_by_text("Choose one of the verdicts first.").wait_for()
        page.get_by_role("radio", name="bug").click()
        page.get_by_label("Why").fill(HOSTILE)
        page.get_by_label("Your name").fill("Ada")
        page.get_by_role("button", name="Keep").click()
        page.locator("span[style*=background]", has_text=re.compile("^bug$")).wait_for()  # the badge: it is kept
        page.goto(f"{address}/modes?reviewed=bug")
        page.get_by_text("for what is on sand").wait_for(timeout=60_000)
        expect(page.get_by_role("link", name="Evidence")).to_have_count(1)
        page.goto(f"{address}/modes?reviewed=not+reviewed")
        page.get_by_text("for what is purple").wait_for(timeout=60_000)
        expect(page.get_by_role("link", name="Evidence")).to_have_count(1)
        run.refresh()
        kept = run.rows("select subject_id, verdict, note, reviewer from reviews")
        assert kept == [{"subject_id": "m1", "verdict": "bug", "note": HOSTILE, "reviewer": "Ada"}]
        page.goto(f"{address}/mode?id=nothing")  # a deep link to what is not there
        page.get_by_text("No such failure mode").wait_for(timeout=60_000)
        page.goto(f"{address}/mode?id=m2")
        page.get_by_text("no pool").wait_for(timeout=60_000)
        assert broken == []
        browser.close()
