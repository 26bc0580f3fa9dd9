"""The report's first page: how far a run is while it goes on, what failed, and what was looked at of each class."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from audit.methods import Unit
from audit.results import progress, queries
from audit.results.sql import Run
from audit.results.store import Store
from pipelines.units import write_plan
from tests.audited import audited, mode, said
from tests.report_server import CHROMIUM, served

HOSTILE = "<script>document.title='hacked'</script>"
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    st.cache_resource.clear()
    st.cache_data.clear()


def planned(root: Path, units: int = 4) -> Store:
    """A run of a stage `1-screen` of so many units of ten items, of which none is done."""
    store = Store(root)
    job = {"name": "made", "models": {}, "stages": [{"plugin": "screen"}]}
    store.create("job.json", json.dumps({"job": job}).encode())
    write_plan(store, "1-screen", (Unit(f"u{number}", "1-screen", "{}", 10) for number in range(units)))
    return store


def done(store: Store, number: int, status: str = "ok", error: str | None = None) -> None:
    unit = {
        "unit_id": f"u{number}",
        "stage": "1-screen",
        "status": status,
        "items": 10,
        "seconds": 1800.0,
        "error": error,
    }
    failed = 10 if error else 0
    store.commit(f"u{number}", "1-screen", {"units": [unit]}, status=status, error=error, items=10, failed=failed)


def says(store: Store, ago: timedelta = timedelta(0), ended: str | None = None, over: bool = False) -> None:
    """What a driver says of itself."""
    stage = {"items_per_second": 2.5, "seconds_left": 600, "ended": over}
    said = {
        "host": "node-1",
        "at": (datetime.now(UTC) - ago).isoformat(),
        "ended": ended,
        "stages": {"1-screen": stage},
    }
    said |= {"workers": {"started": 8, "busy": 7}, "retries_waiting": 2}
    store.objects.replace("live.json", json.dumps(said).encode())


def opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("AUDIT_RUN", str(store.root))
    app = AppTest.from_string("from dashboard import pages\npages.overview()", default_timeout=60).run()
    assert not app.exception
    return app


def words(app: AppTest) -> str:
    return " ".join(text.value for text in app.text)


def test_before_anything_is_committed_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(planned(tmp_path / "run"), monkeypatch)
    assert "Nothing is committed yet" in app.info[0].value
    assert "no driver is at work" in words(app)


def test_a_run_that_goes_on_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = planned(tmp_path / "run")
    done(store, 0)
    done(store, 1, "quarantined", "Traceback:\n  a line\nValueError: bad " + HOSTILE)
    says(store)
    app = opened(store, monkeypatch)
    assert "Running on node-1: 7 of 8 workers busy, 2 units to be tried again" in words(app)
    inventory, screen = app.dataframe[0].value.to_dict("records")
    assert inventory["units"] == "not planned yet"
    assert (screen["done"], screen["units"], screen["items"]) == (0.5, "2 of 4", "20 of 40")
    assert (screen["items failed"], screen["units given up"]) == (10, 1)
    assert (screen["items a second"], screen["minutes left"], screen["hours of work"]) == (2.5, 10.0, 1.0)


def test_a_driver_that_is_silent_or_has_ended_is_told_from_one_at_work(tmp_path: Path) -> None:
    store = planned(tmp_path / "run")
    from dashboard.overview import sentence

    assert not progress.going(progress.live(store))
    says(store, ago=timedelta(minutes=1))
    assert progress.going(progress.live(store))
    says(store, ago=timedelta(minutes=3))
    assert not progress.going(progress.live(store))
    assert "last heard of" in sentence(progress.live(store), False)
    says(store, ended="LimitReached: too many failed")
    assert not progress.going(progress.live(store))
    assert "LimitReached: too many failed" in sentence(progress.live(store), False)
    assert sentence(progress.live(store), True).startswith("Finished")


def test_what_failed_is_counted_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = audited(tmp_path / "run", [mode("crab", "on sand")], said("data", "v", {"a": "crab", "b": "boat"}, "crab"))
    items = [
        {"item_id": name, "role": "data", "status": "quarantined", "reason": "cut short", "display_name": f"{name}.png"}
        for name in ("x", "y")
    ]
    items.append({"item_id": "a", "role": "data", "status": "ok", "label": "crab"})
    failed = {"item_id": "z", "model_id": "v", "status": "failed", "reason": "not finite", "role": "pool"}
    explanations = [
        {"explanation_id": "e1", "stage": "2-x", "status": "failed", "reason": "no gradient", "target_class": "crab"},
        {"explanation_id": "e2", "stage": "2-x", "status": "ok", "target_class": "crab"},
    ]
    unit = {"unit_id": "q", "stage": "2-x", "status": "quarantined", "error": "Traceback\n  line\nOSError: gone\n"}
    rows = {"items": items, "predictions": [failed], "explanations": explanations, "units": [unit]}
    run.store.commit("q", "2-x", {**rows, "runs": [{"name": HOSTILE, "created_at": datetime(2026, 1, 2, tzinfo=UTC)}]})
    run.refresh()
    found = {(row["what"], row["stage"], row["reason"], row["count"], row["example"]) for row in queries.failures(run)}
    assert found == {
        ("image of the data", "0-inventory", "cut short", 2, "x.png"),
        ("prediction of v", None, "not finite", 1, "z"),
        ("explanation", "2-x", "no gradient", 1, "e1"),
        ("unit given up", "2-x", "OSError: gone", 1, "q"),
    }
    (crab,) = queries.coverage(run)
    assert (crab["class"], crab["labelled images"], crab["accuracy"]) == ("crab", 1, 0.5)
    assert (crab["explanations"], crab["failure modes"], crab["confirmed"], crab["agreement"]) == (1, 1, 1, None)
    app = opened(run.store, monkeypatch)
    shown = "".join(element.proto.body for element in app.get("html"))
    assert "<script" not in shown
    assert "Audit: &lt;script&gt;" in shown
    assert any("OSError: gone" in frame.value.to_string() for frame in app.dataframe)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
def test_the_page_follows_a_run_without_being_reloaded(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    store = planned(tmp_path / "run", units=2)
    says(store)
    with served(tmp_path / "run") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        expect(page.get_by_text("Nothing is committed yet")).to_be_visible(timeout=60_000)
        done(store, 0)
        about = {"name": "made", "created_at": datetime(2026, 1, 2, tzinfo=UTC)}
        store.commit("more", "1-screen", {"runs": [about], "failure_modes": [mode("crab", "on sand", exemplars=[])]})
        says(store)
        expect(page.get_by_text("for what is on sand")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("Running on node-1: 7 of 8 workers busy")).to_be_visible()
        done(store, 1)
        says(store, ended="LimitReached: the time is over", over=True)
        expect(page.get_by_text("LimitReached: the time is over")).to_be_visible(timeout=60_000)
        browser.close()


def test_a_look_that_is_new_enough_is_not_repeated(tmp_path: Path) -> None:
    store = planned(tmp_path / "run")
    run = Run(tmp_path / "run")
    done(store, 0)
    run.refresh(within=3600)
    assert run.rows("select count(*) as n from units") == [{"n": 0}]
    run.refresh(within=0)
    assert run.rows("select count(*) as n from units") == [{"n": 1}]
