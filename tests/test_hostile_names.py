"""Every page of the report, and the exported one, with names that try to be more than text: in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from audit.exporters import export
from audit.results.sql import Run
from dashboard import failure_modes, neurons
from tests.hostile import FOREIGN, NAMES, hostile
from tests.report_server import CHROMIUM, served

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")

QUERY = 'select model_id, label, predicted, images as "<img src=x onerror=window.hacked=1>" from confusions'
DETAILS = (1, 3, 5, len(NAMES) - 1)  # names whose own pages are opened; the lists show all
PAGES = {
    "overview": "/",
    "gallery": "/modes",
    "gallery, second page": "/modes?page=2",
    "classes": "/classes",
    "confusions": "/confusions",
    "neurons": "/neurons",
    "runs": "/runs",
    "no other run": "/compare",
    "no such run": f"/compare?with={quote(NAMES[1])}",
    "counterfactuals": "/counterfactuals",
    "words": "/retrieval?id=mode-0",
    "comparison": f"/study?a={quote('3-counterfactual uvce')}&b={quote('4-counterfactual uvce')}&rater=Ada",
    "results": f"/study?a={quote('3-counterfactual uvce')}&b={quote('4-counterfactual uvce')}&results=1",
    "SQL": f"/sql?q={quote(QUERY)}",
    "no such mode": f"/mode?id={quote(NAMES[1])}",
    "no such explanation": f"/explanation?id={quote(NAMES[1])}",
    "no such neuron": f"/neuron?id={quote(NAMES[1])}",
    "no such query": f"/sql?q={quote(NAMES[1])}",
}
for number in DETAILS:
    PAGES[f"mode {number}"] = f"/mode?id=mode-{number}"
    PAGES[f"explanation {number}"] = f"/explanation?id=3{number:031x}"
    PAGES[f"neuron {number}"] = f"/neuron?id=neuron-{number}"
    PAGES[f"class {number}"] = f"/classes?name={quote(NAMES[number])}"
    PAGES[f"confusion {number}"] = f"/confusions?label={quote(NAMES[number])}&says={quote(NAMES[0])}"
PAGES["confusions, table"] = "/confusions?view=Table"
PAGES["a search"] = f"/explanation?id={0:032x}"
PAGES["a failure"] = f"/explanation?id=f{len(NAMES) - 1:031x}"

# What no name may become, and what no name may break; Streamlit's own icons and anchors are no names.
WRONG = f"""() => {{
    const found = [];
    const all = (selector) => [...document.querySelectorAll(selector)];
    if (window.hacked) found.push('a script ran');
    const leads = (one) => new URL(one.getAttribute('href') ?? one.getAttribute('src'), location).hostname;
    for (const one of all('[onload], [onerror], [href^="javascript"]'))
        found.push('markup: ' + one.outerHTML.slice(0, 200));
    for (const one of all('[href*="{FOREIGN}"], [src*="{FOREIGN}"]'))  // a name may be in the query of our own links
        if (leads(one).includes('{FOREIGN}')) found.push('leads elsewhere: ' + one.outerHTML.slice(0, 200));
    for (const one of all('main [data-testid=stIconMaterial]'))
        if (!one.closest('button, summary, [data-testid=stTooltipIcon]')) found.push('an icon: ' + one.textContent);
    for (const one of all('.katex, .katex-display, main strong, main em, main del, main li'))
        found.push('markdown: ' + one.outerHTML.slice(0, 200));
    for (const one of all('[data-testid=stMain], [data-testid=stMainBlockContainer], html, body'))
        if (one.scrollWidth > one.clientWidth + 1)
            found.push(`${{one.tagName}} is ${{one.scrollWidth}} wide, not ${{one.clientWidth}}`);
    return found;
}}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    with served(run.root) as where:
        yield where


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def context(browser: Any) -> Any:
    """Of pages that share what they have fetched."""
    return browser.new_context(viewport={"width": 1280, "height": 900})


class Watched:
    """A browser's page, and all it did that no name may make it do."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.wrong: list[str] = []
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        self.page.on("console", lambda told: self._told(told.text))

    def _asked(self, url: str) -> None:
        if urlsplit(url).scheme in ("http", "https", "ws") and urlsplit(url).hostname != "127.0.0.1":
            self.wrong.append(f"asked for {url}")

    def _told(self, text: str) -> None:
        if "Content Security Policy" in text or FOREIGN in text:
            self.wrong.append(f"console: {text}")


def opened(watched: Watched, address: str) -> None:
    """The page, when all of it is there."""
    watched.page.goto(address)
    watched.page.locator("main h1, main h2, main h3").first.wait_for(timeout=60_000)
    watched.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=60_000)
    watched.page.wait_for_timeout(300)  # what runs came by one message; React draws it
    watched.page.wait_for_function("!document.querySelector('main [data-testid=stSkeleton]')", timeout=60_000)


def words(text: str) -> str:
    """Without what a browser does not show or sets otherwise."""
    return "".join(character for character in text if character.isprintable() and not character.isspace())


@pytest.mark.parametrize("name", PAGES)
def test_names_are_text_on_every_page(address: str, context: Any, name: str) -> None:
    watched = Watched(context)
    opened(watched, address + PAGES[name])
    wrong = watched.wrong + watched.page.evaluate(WRONG)
    assert not watched.page.get_by_test_id("stException").count(), name
    watched.page.close()
    assert wrong == []


def test_the_lists_show_every_name_as_it_is(address: str, context: Any) -> None:
    from playwright.sync_api import expect

    watched = Watched(context)
    sizes = {"modes": failure_modes.PAGE_SIZE, "neurons": neurons.PAGE_SIZE}
    shown = dict.fromkeys(sizes, "")
    for kind, size in sizes.items():
        for first in range(0, len(NAMES), size):
            opened(watched, f"{address}/{kind}?page={first // size + 1}")
            there = min(size, len(NAMES) - first)  # the part that draws HTML comes later than the page
            expect(watched.page.locator("main h3")).to_have_count(there, timeout=60_000)
            shown[kind] += words(watched.page.locator("main").text_content())
    watched.page.close()
    for name, kind in product(NAMES, shown):
        assert words(name) in shown[kind], (kind, name[:80])
    assert watched.wrong == []


def test_what_appears_under_the_pointer_is_text(address: str, context: Any) -> None:
    """Of a chart's point, whose model has a name with markup."""
    watched = Watched(context)
    opened(watched, f"{address}/explanation?id=3{1:031x}")
    chart = watched.page.get_by_test_id("stVegaLiteChart").locator("canvas, svg").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    told = watched.page.locator("#vg-tooltip-element")
    for step in range(120):  # along the line of the constant probability, up and down
        for height in (0.25, 0.35, 0.45, 0.5, 0.55, 0.65):
            watched.page.mouse.move(box["x"] + 40 + step * 2, box["y"] + box["height"] * height)
        if told.is_visible():
            break
    assert words(NAMES[1]) in words(told.text_content())
    wrong = watched.wrong + watched.page.evaluate(WRONG)
    watched.page.close()
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_exported_page_holds_text_and_asks_for_nothing(run: Run, tmp_path: Path, browser: Any, scheme: str) -> None:
    export(run, "html", tmp_path / "out.html")
    watched = Watched(browser.new_context(color_scheme=scheme, offline=True, viewport={"width": 1280, "height": 900}))
    asked: list[str] = []
    watched.page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    watched.page.goto((tmp_path / "out.html").as_uri())
    wrong = watched.wrong + watched.page.evaluate(WRONG)
    shown = words(watched.page.locator("body").text_content())
    watched.page.close()
    assert wrong == []
    assert set(asked) <= {"file", "data"}
    for name in NAMES:
        assert words(name) in shown, name[:80]
