"""Screenshots of every page of a run's report, in headless Chromium: part of `make docs`.

`python docs/screenshots.py RUN [FOLDER]` writes report-*.png into the folder, or beside this file. A page of which the
run has no rows is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Page, TimeoutError, sync_playwright

from audit import study
from audit.locations import name_of
from audit.results.sql import Run
from pipelines.report import Access, command, environment

DOCS = Path(__file__).resolve().parent
PAGES = DOCS.parent / "dashboard" / "pages.py"
SHOWN = ("overview", "modes", "mode", "retrieval", "neurons", "neuron")
SHOWN += ("counterfactuals", "explanation", "compare", "study", "sql")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUERY = "select model_id, label, accuracy, images from accuracy order by accuracy limit 100"


@dataclass(frozen=True)
class Shot:
    """A picture to take: `path` of the page, a heading that says it is there (any), a button to press before."""

    name: str
    path: str
    heading: str = ""
    press: str = ""
    dark: bool = False


def shots(run: Run) -> Iterator[Shot | str]:
    """Every page of the report, or why it has no picture."""
    yield Shot("report-overview", "/", "What the audit found", dark=True)
    mode = _first(
        run,
        "select failure_mode_id as id from failure_modes where listed and source = 'search' "
        "order by verdict, impact desc",
    )
    yield Shot("report-modes", "/modes", "Failure modes") if mode else "report-modes: the run has no failure modes"
    if mode:
        yield Shot("report-mode", f"/mode?id={mode}", "Your verdict", dark=True)
        yield Shot("report-retrieval", f"/retrieval?id={mode}", "What the models say of them", "Find images")
    else:
        yield "report-mode, report-retrieval: the run has no failure modes"
    neuron = _first(run, "select neuron_id as id from neurons order by verdict = 'harmful' desc nulls last, rank")
    if neuron:
        yield Shot("report-neurons", "/neurons", "Neurons")
        yield Shot("report-neuron", f"/neuron?id={neuron}")
    else:
        yield "report-neurons, report-neuron: the run has no neurons"
    flipped = _first(run, "select explanation_id as id from explanations where method = 'uvce' and flipped order by 1")
    if flipped:
        yield Shot("report-counterfactuals", "/counterfactuals", "Counterfactuals")
        yield Shot("report-counterfactual", f"/explanation?id={flipped}", "How it was made")
    else:
        yield "report-counterfactuals, report-counterfactual: no counterfactual flipped"
    models = [
        row["model_id"] for row in run.rows("select distinct model_id from failure_modes where listed order by 1")
    ]
    pair = {"with": name_of(run.location), "old": models[0], "new": models[1]} if len(models) > 1 else {}
    yield Shot("report-compare", f"/compare?{urlencode(pair)}", "Failure modes" if pair else "Compare")
    compared = study.comparable(run)
    if compared:
        query = urlencode({"a": compared[0]["first"], "b": compared[0]["second"], "least": 0, "rater": "Ada"})
        yield Shot("report-study", f"/study?{query}", "Which of the two")
    else:
        yield "report-study: the run has no two stages with counterfactuals of the same images"
    yield Shot("report-sql", f"/sql?{urlencode({'q': QUERY})}", "SQL")
    for name in re.findall(r'url_path="(\w+)"', PAGES.read_text("utf-8")):
        if name not in SHOWN:
            yield Shot(f"report-{name}", f"/{name}")


def _first(run: Run, query: str) -> Any:
    rows = run.rows(f"{query} limit 1")
    return rows[0]["id"] if rows else None


def main(run: Path, folder: Path = DOCS, port: int = 8531) -> None:
    server = subprocess.Popen(command(port), env=environment(run, Access()))
    where = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{where}/_stcore/health")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            light, dark = (
                browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
                for scheme in ("light", "dark")
            )
            for shot in shots(Run(run)):
                if isinstance(shot, str):
                    sys.stdout.write(f"left out: {shot}\n")
                    continue
                try:
                    _take(light, where, shot, folder / f"{shot.name}.png")
                    if shot.dark:
                        _take(dark, where, shot, folder / f"{shot.name}-dark.png")
                except TimeoutError:
                    sys.stdout.write(f"left out: {shot.name}: the page did not show {shot.heading or 'a heading'!r}\n")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _take(page: Page, where: str, shot: Shot, file: Path) -> None:
    page.goto(where + shot.path)
    if shot.press:
        page.get_by_role("button", name=shot.press).click(timeout=60_000)
    page.locator("main").get_by_role("heading", name=shot.heading or None).first.wait_for(timeout=60_000)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=60_000)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)  # charts are drawn after their data came
    page.screenshot(path=file)
    sys.stdout.write(f"{file}\n")


def _wait(url: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"no answer from {url}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python docs/screenshots.py", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("folder", type=Path, metavar="FOLDER", nargs="?", default=DOCS)
    given = parser.parse_args()
    main(given.run, given.folder)
