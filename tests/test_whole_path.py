"""The whole way through the report in a real browser, by mouse, keys and deep links, in light and dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit.pictures import image_row
from audit.results.sql import Run
from tests.audited import audited, mode
from tests.report_server import CHROMIUM, served

SEARCH = f"{1:032x}"
DISAGREES = "v says “crab” for what is on sand"
OTHER = "v says “crab” for what is purple"
SUBPAGE = re.compile(r"http://127\.0\.0\.1:\d+/(modes|mode|explanation)/_stcore/(health|host-config)")


def write(root: Path) -> Run:
    """Two failure modes; a search speaks for the first. Its start is black, its result white."""
    rates = {"evidence_rate": 0.4, "evidence_images": 20, "control_rate": 0.1, "control_images": 20, "support": 1}
    modes = [mode("crab", "on sand", exemplars=[SEARCH], **rates), mode("crab", "purple", exemplars=[], **rates)]
    run = audited(root, modes, [])
    black, white = (image_row(np.full((64, 64, 3), value, np.uint8), "generated") for value in (0, 255))
    search = {"explanation_id": SEARCH, "stage": "2-disagreement", "method": "disagreement", "status": "ok"}
    search |= {"model_id": "v", "other_model_id": "reference", "target_class": "crab", "flipped": True, "best_step": 1}
    search |= {
        "start_image_id": black["image_id"],
        "image_id": white["image_id"],
        "score_before": 0.1,
        "score_after": 0.9,
    }
    traces = [{"explanation_id": SEARCH, "step": step, "score": 0.1 + 0.8 * step} for step in range(2)]
    rows = {
        "explanations": [search],
        "images": [black, white],
        "traces": traces,
        "runs": [{"name": "made", "config": "{}"}],
    }
    run.store.commit("search", "2-disagreement", rows)
    run.refresh()
    return run


def watch(page: Any) -> list[str]:
    """What goes wrong on it from now on, beyond the two requests that Streamlit itself misplaces on sub-pages."""
    wrong: list[str] = []

    def told(message: Any) -> None:
        misplaced = "404" in message.text and SUBPAGE.fullmatch(message.location["url"])
        if message.type == "error" and not misplaced:
            wrong.append(f"{message.text} {message.location['url']}")

    def answered(response: Any) -> None:
        if response.status >= 400 and not (response.status == 404 and SUBPAGE.fullmatch(response.url)):
            wrong.append(f"{response.status} {response.url}")

    page.on("console", told)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", answered)
    return wrong


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_from_the_overview_to_a_verdict_and_back_by_it(tmp_path: Path, scheme: Any) -> None:
    from playwright.sync_api import expect, sync_playwright

    run = write(tmp_path / "run")
    found = run.failure_modes()[0]["failure_mode_id"]
    with served(run.root) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        wrong = watch(page)

        def settle() -> None:
            page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
            page.wait_for_load_state("networkidle")

        page.goto(address)
        page.get_by_text("confirmed failure modes").wait_for()
        page.get_by_role("link", name="Evidence").nth(1).wait_for()
        settle()
        ground = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
        page.locator("[data-testid=stVerticalBlock]", has_text=DISAGREES).get_by_role(
            "link", name="Evidence"
        ).first.click()

        page.get_by_role("heading", name=DISAGREES).wait_for()
        settle()
        page.get_by_role("link", name="Search 1").click()

        page.get_by_role("heading", name="How it was made").wait_for()
        settle()
        assert page.url == f"{address}/explanation?id={SEARCH}"
        slider, after = page.get_by_role("slider", name="before and after"), page.get_by_alt_text("crab, after")
        expect(after).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
        after.scroll_into_view_if_needed()
        box = after.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 30, steps=5)
        page.mouse.up()
        expect(after).to_have_css("clip-path", "inset(0px 0px 0px 75%)")
        slider.focus()
        for key, place in (("ArrowLeft", "74%"), ("Home", "0%"), ("End", "100%")):
            page.keyboard.press(key)
            expect(after).to_have_css("clip-path", f"inset(0px 0px 0px {place})")

        page.get_by_role("link", name="Evidence").click()
        page.get_by_role("heading", name=DISAGREES).wait_for()
        settle()
        page.get_by_role("radio", name="bug").click()
        page.get_by_label("Why").fill("the sand alone does it")
        page.get_by_label("Your name").fill("Ada")
        page.get_by_role("button", name="Keep").click()
        page.locator("span[style*=background]", has_text=re.compile("^bug$")).wait_for()  # the badge: it is kept
        settle()

        page.get_by_role("link", name="Failure modes", exact=True).click()
        page.get_by_role("heading", name=OTHER).wait_for()
        page.get_by_label("reviewed").last.click()
        page.get_by_role("option", name="bug", exact=True).click()
        page.keyboard.press("Escape")  # while the choices are open, the rest is hidden from those who hear pages
        page.get_by_role("heading", name=OTHER).wait_for(state="detached")
        expect(page.get_by_role("heading", name=DISAGREES)).to_have_count(1)
        assert "reviewed=bug" in page.url

        for path, heading, absent in (
            ("/modes?reviewed=bug", DISAGREES, OTHER),
            ("/modes?reviewed=not+reviewed", OTHER, DISAGREES),
            (f"/mode?id={found.replace(' ', '%20')}", DISAGREES, OTHER),
            (f"/explanation?id={SEARCH}", "v is to say crab, reference is not", OTHER),
        ):
            page.goto(address + path)
            page.get_by_role("heading", name=heading).wait_for()
            settle()
            expect(page.get_by_role("heading", name=absent)).to_have_count(0)
        assert wrong == []
        browser.close()
    run.refresh()
    kept = run.rows("select subject_id, verdict, note, reviewer from reviews")
    assert kept == [{"subject_id": found, "verdict": "bug", "note": "the sand alone does it", "reviewer": "Ada"}]
