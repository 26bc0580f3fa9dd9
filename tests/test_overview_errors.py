"""A report without failure modes: what the job did not look for, the most confident errors with pictures, and "
"warnings on top."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from audit.config import parse_job
from audit.exporters.html import page
from audit.results import queries
from audit.results.sql import Run
from audit.results.store import Store
from audit.results.warnings import RunWarning, warning_rows
from tests.report_server import CHROMIUM, served

HOSTILE = "<script>document.title='hacked'</script>"
WARNINGS = (
    RunWarning("small_images", f"few pixels {HOSTILE}", "m", blocks_gate=False),
    RunWarning("odd_order", "m is right on none", "m"),
)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    st.cache_resource.clear()
    st.cache_data.clear()


def screened(folder: Path, stages: tuple[str, ...] = ("screen",), errors: int = 30) -> Run:
    """A run of these stages over images, of which the first are errors: the later, the surer; and one right answer."""
    (folder / "data").mkdir(parents=True)
    items, predictions = [], []
    for number in range(errors + 1):
        path = folder / "data" / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        item_id = hashlib.sha256(path.read_bytes()).hexdigest()
        label = ("cat", HOSTILE)[number % 2]
        wrong = number < errors
        item = {"item_id": item_id, "role": "data", "position": number, "status": "ok", "label": label}
        items.append({**item, "uri": path.name, "display_name": path.name})
        predicted = "dog" if wrong else label
        row = {"item_id": item_id, "role": "data", "model_id": "m", "label": label, "status": "ok"}
        predictions.append({**row, "predicted": predicted, "correct": not wrong, "confidence": 0.5 + number / 100})
    raw: dict[str, Any] = {
        "version": 1,
        "name": "made",
        "data": {"source": "folder", "path": "data"},
        "models": [{"id": "m", "loader": "hf", "ref": "zoo:reference"}],
        "stages": [{"kind": kind} for kind in stages],
    }
    store = Store(folder / "run")
    record = {"job": parse_job(raw, folder).numbers(), "compute": {}, "digests": {}}
    store.create("job.json", json.dumps(record).encode())
    store.commit("run", "run", {"runs": [{"name": "made", "created_at": datetime(2026, 1, 2, tzinfo=UTC)}]})
    rows = {"items": items, "predictions": predictions, "warnings": warning_rows(WARNINGS)}
    store.commit("u", "1-screen", rows)
    return Run(folder / "run")


def opened(run: Run, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("AUDIT_RUN", str(run.location))
    app = AppTest.from_string("from dashboard import pages\npages.overview()", default_timeout=120).run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


def test_the_surest_errors_come_first_and_each_once(tmp_path: Path) -> None:
    run = screened(tmp_path)
    found = queries.surest_errors(run, "m", 24)
    assert [row["display_name"] for row in found] == [f"{number}.png" for number in range(29, 5, -1)]
    assert {row["predicted"] for row in found} == {"dog"}
    assert found[0]["confidence"] == pytest.approx(0.79)
    run.store.commit("again", "1-screen", {"predictions": run.rows("select * from predictions")})
    run.refresh()
    assert len({row["item_id"] for row in queries.surest_errors(run, "m", 24)}) == 24


def test_without_discovery_the_page_says_what_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(screened(tmp_path), monkeypatch)
    assert "did not look for failure modes" in app.info[0].value
    assert {metric.label for metric in app.metric} == {"images under audit", "images in the pool"}
    first, second = (block.value for block in app.code)
    assert first.splitlines()[0].startswith("embedder: {loader: clip")
    assert first.splitlines()[-1] == "  - {kind: discover}"
    assert "generator: {loader: diffusers" in second
    assert "maximise: m, minimise: <a second model>" in second
    shown = html(app)
    assert shown.count("data:image/webp;base64,") == 24
    assert shown.count("<b>dog</b> 79%") == 1
    assert "<b>dog</b> 55%" not in shown  # the 25th surest
    assert "<script" not in shown
    assert "model=m" in [link.proto.query_string for link in app.get("page_link")]


def test_with_discovery_the_page_says_that_nothing_was_found(tmp_path: Path) -> None:
    missing = queries.not_asked(screened(tmp_path / "a"))
    assert missing[0].lines[-1].strip() == "- {kind: discover}"
    assert len(missing) == 2
    run = screened(tmp_path / "b")
    record = json.loads(run.store.read("job.json") or b"")
    record["job"]["stages"].append({"plugin": "discover"})
    record["job"]["embedder"] = {"plugin": "clip"}
    (run.root / "job.json").write_text(json.dumps(record))
    (one,) = queries.not_asked(run)
    assert not [line for line in one.lines if line.startswith("embedder") or "discover" in line]
    assert "did not look for failure modes" not in page(run)


def test_warnings_stand_on_top_those_that_block_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = screened(tmp_path, errors=2)
    shown = html(opened(run, monkeypatch))
    for text in (shown, page(run)):
        blocking, other = text.index("m is right on none"), text.index("few pixels")
        assert blocking < other
        assert "m: few pixels" in text  # of which model
        assert text.count("Blocking warning") == 1
        assert text.index("Blocking warning") < blocking
        assert "<script" not in text
        assert "&lt;script&gt;" in text
    assert shown.index("few pixels") < shown.index("data:image/webp")


def test_the_exported_page_has_the_errors_too(tmp_path: Path) -> None:
    run = screened(tmp_path)
    text = page(run)
    assert text.count("data:image/webp;base64,") == 24
    assert "This job did not look for failure modes" in text
    assert "confirmed failure modes" not in text
    assert "- {kind: discover}" in text
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    assert page(run).count("no picture") == 24


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
def test_the_overview_opens_by_its_documented_address(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    run = screened(tmp_path, errors=3)
    with served(run.root) as address, sync_playwright() as playwright:
        with urllib.request.urlopen(f"{address}/overview?a=b") as answer:
            assert answer.geturl() == f"{address}/?a=b"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto(f"{address}/overview")
        expect(shown.get_by_role("heading", name="Most confident errors")).to_be_visible(timeout=60_000)
        expect(shown.get_by_role("alert").first).to_contain_text("Blocking warning", timeout=60_000)
        expect(shown.get_by_role("img", name="wrong on: 2.png")).to_be_visible(timeout=60_000)
        expect(shown.get_by_text("Page not found")).to_have_count(0)
        expect(shown.locator("canvas, svg.marks").first).to_be_visible(timeout=60_000)
        browser.close()
