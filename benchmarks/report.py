"""The report over a run of a million explanations, in a real browser: how long people wait, and what the server holds.

    python -m benchmarks.report

By the browser's own clock, from asking for an address with nothing in its cache: its first paint and its first
contentful paint (W3C Paint Timing; the frame of the page), and the frame in which the page's own content is to be seen.
A change: from the click or key until the list below shows what was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, expect, sync_playwright
from rich.console import Console
from rich.table import Column, Table

from audit.results.sql import Run
from benchmarks.large_run import MODELS, explanation_id, make, mode_id
from benchmarks.sessions import served

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
PATIENCE = 120_000  # milliseconds
Action = Callable[[Page], None]

# A page, its address, and what of it is its own: a piece of the data, not of the frame around it.
PAGES = {
    "overview": ("/overview", "main h3"),
    "failure modes": ("/modes", "main h3"),
    "failure modes, filtered": ("/modes?class=class+003&sort=newest+review", "main h3"),
    "failure modes, page 400": ("/modes?page=400", "main h3"),
    "one failure mode": ("/mode?id={mode}", "main img[alt^='result']"),
    "counterfactuals": ("/counterfactuals", "main h4"),
    "explanations": ("/explanations", "main h4"),
    "explanations, page 50,000": ("/explanations?page=50000", "main h4"),
    "one explanation": ("/explanation?id={explanation}", "main img[alt^='result']"),
    "neurons": ("/neurons", "main h3"),
    "one neuron": ("/neuron?id={neuron}", "main h1"),
    "classes": ("/classes", "main [data-testid=stDataFrame]"),
    "one class": ("/classes?name=class+003", "main h2"),
    "confusions": ("/confusions", "main [data-testid=stVegaLiteChart]"),
    "runs": ("/runs", "main [data-testid=stDataFrame]"),
    "compare, two models of the run": ("/compare?with={run}&old={old}&new={new}", "main h3"),
    "blinded comparison": ("/study", "main [data-testid=stAlert]"),
    "real images by words": ("/retrieval", "main [data-testid=stForm]"),
    "SQL": ("/sql", "main textarea"),
}


MOMENTS = ("first paint", "first contentful paint", "own content")
_WATCH = """
const look = () => {
    if (document.querySelector(%s)) window.contentSeen = performance.now();
    else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
_PAINTS = "performance.getEntriesByType('paint').map((entry) => [entry.name.replaceAll('-', ' '), entry.startTime])"


def visit(browser: Browser, address: str, selector: str) -> dict[str, float]:
    """Seconds to each of MOMENTS, with nothing in the browser's cache."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(_WATCH % json.dumps(selector))
    page.goto(address, wait_until="commit")
    page.wait_for_function("window.contentSeen", timeout=PATIENCE, polling=100)
    told = {"own content": page.evaluate("window.contentSeen"), **dict(page.evaluate(_PAINTS))}
    context.close()
    return {moment: told[moment] / 1000 for moment in MOMENTS}


def choose(label: str, option: str) -> tuple[Action, Action]:
    """Open a list of choices, and take one."""
    return (
        lambda page: page.get_by_label(label, exact=True).first.click(),
        lambda page: page.get_by_role("option", name=option, exact=True).first.click(),
    )


def press(key: str) -> tuple[Action, Action]:
    return (lambda page: page.locator("main h1, main h2").first.click(), lambda page: page.keyboard.press(key))


CHANGES: dict[str, tuple[str, str, tuple[Action, Action]]] = {
    "failure modes: a filter": ("/modes", "main h3", choose("class", "class 001")),
    "failure modes: a sort": ("/modes", "main h3", choose("sort by", "effect")),
    "failure modes: a page": ("/modes", "main h3", press("n")),
    "counterfactuals: a filter": ("/counterfactuals", "main h4", choose("to", "class 001")),
    "counterfactuals: a sort": ("/counterfactuals", "main h4", choose("sort by", "largest change")),
    "counterfactuals: a page": ("/counterfactuals", "main h4", press("n")),
    "explanations: a filter": ("/explanations", "main h4", choose("to", "class 001")),
    "explanations: a sort": ("/explanations", "main h4", choose("sort by", "class")),
    "explanations: a page": ("/explanations", "main h4", press("n")),
}


def change(page: Page, address: str, selector: str, actions: tuple[Action, Action]) -> float:
    """Seconds until the links below lead elsewhere."""
    page.goto(address)
    links = page.locator("main a[href*='id=']")
    links.first.wait_for(timeout=PATIENCE)
    page.locator(selector).first.wait_for(timeout=PATIENCE)
    page.wait_for_load_state("networkidle", timeout=PATIENCE)
    before = links.first.get_attribute("href")
    ready, act = actions
    ready(page)
    began = time.monotonic()
    act(page)
    expect(links.first).not_to_have_attribute("href", str(before), timeout=PATIENCE)
    return time.monotonic() - began


def measure(run: Path, repeats: int, views: int, names: Sequence[str]) -> dict[str, Any]:
    """These pages and all changes, so many times each, then so many views in turn."""
    pages = {name: PAGES[name] for name in names}
    there = Run(run).rows("select failure_mode_id from failure_modes where len(exemplars) > 0 order by 1 limit 1")
    ids = {"mode": there[0]["failure_mode_id"] if there else mode_id(0), "explanation": explanation_id(0)}
    ids |= {"neuron": mode_id(-1), "run": run.name, "old": MODELS[0], "new": MODELS[1]}
    visited: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
    worked: dict[str, list[float]] = {name: [] for name in pages}
    changed: dict[str, list[float]] = {name: [] for name in CHANGES}
    load = [os.getloadavg()[0]]
    with served(run) as (where, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        address = f"http://{where}"
        at_start = server.memory_info().rss / 2**20
        first = visit(browser, f"{address}/overview", "main h3")
        for _ in range(repeats):
            for name, (path, selector) in pages.items():
                used = _cpu(server)
                visited[name].append(visit(browser, address + path.format(**ids), selector))
                worked[name].append(_cpu(server) - used)
                _say(name, visited[name][-1]["own content"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            for name, (path, selector, actions) in CHANGES.items():
                changed[name].append(change(page, address + path, selector, actions))
                _say(name, changed[name][-1])
            page.close()
            load.append(os.getloadavg()[0])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        paths = [(path.format(**ids), selector) for path, selector in pages.values()]
        for number in range(views):
            path, selector = paths[number % len(paths)]
            page.goto(address + path)
            page.locator(selector).first.wait_for(state="attached", timeout=PATIENCE)
        memory = server.memory_info().rss / 2**20
        browser.close()
    load.append(os.getloadavg()[0])
    return {
        "visit_seconds": visited,
        "server_cpu_seconds": worked,
        "change_seconds": changed,
        "first_visit_after_start_seconds": first,
        "server_mib_at_start": at_start,
        "server_mib_after_views": memory,
        "views": views,
        "load": load,
        "cpus": os.cpu_count(),
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """Medians of each page and change; what other processes on the machine do stretches all but the server's CPU."""
    pages = Table(Column("page, in seconds", no_wrap=True), *MOMENTS, "most", "server's CPU")
    for name, visits in found["visit_seconds"].items():
        figures = [median(each[moment] for each in visits) for moment in MOMENTS]
        figures += [max(each["own content"] for each in visits), median(found["server_cpu_seconds"][name])]
        pages.add_row(name, *(f"{value:.2f}" for value in figures))
    changes = Table("change, in seconds", "median", "most")
    for name, seconds in found["change_seconds"].items():
        changes.add_row(name, f"{median(seconds):.2f}", f"{max(seconds):.2f}")
    return [pages, changes]


def _cpu(process: psutil.Process) -> float:
    """Seconds of processor that it has used, which other processes do not stretch."""
    used = process.cpu_times()
    return float(used.user + used.system)


def _say(name: str, seconds: float) -> None:
    print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--explanations", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=50_000, help="kept as PNG and thumbnail")
    parser.add_argument("--modes", type=int, default=5_000)
    parser.add_argument("--items", type=int, default=100_000, help="images under audit, and as many in the pool")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--views", type=int, default=200)
    parser.add_argument("--pages", nargs="*", default=list(PAGES), choices=list(PAGES), metavar="PAGE")
    parser.add_argument("--run", type=Path, help="where the run is, or goes; default: a temporary folder")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="audit-report-") as folder:
        run = given.run or Path(folder) / "run"
        if not (run / "job.json").exists():
            make(run, given.explanations, given.images, given.modes, given.items)
        found = measure(run, given.repeats, given.views, given.pages)
    for made in tables(found):
        Console().print(made)
    print(
        f"server: {found['server_mib_at_start']:.0f} MiB at its start, {found['server_mib_after_views']:.0f} MiB after "
        f"{found['views']} views; load {', '.join(f'{one:.1f}' for one in found['load'])} on {found['cpus']} CPUs"
    )
    if given.output:
        given.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
