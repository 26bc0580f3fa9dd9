"""Screenshots of the report of a run, in headless Chromium: part of `make docs`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

from audit.results.sql import Run
from pipelines.report import command

DOCS = Path(__file__).resolve().parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


def main(run: Path, port: int = 8531) -> None:
    server = subprocess.Popen(command(port), env={**os.environ, "AUDIT_RUN": str(run.resolve())})
    try:
        _wait(f"http://127.0.0.1:{port}/_stcore/health")
        opened = Run(run)
        mode = opened.failure_modes()[0]["failure_mode_id"]
        neuron = opened.rows("select neuron_id from neurons order by verdict <> 'harmful', rank limit 1")[0][
            "neuron_id"
        ]
        flipped = "select explanation_id from explanations where method = 'uvce' and flipped order by 1 limit 1"
        counterfactual = opened.rows(flipped)[0]["explanation_id"]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            for name, path, text in (
                ("report-overview", "/", "What the audit found"),
                ("report-modes", "/modes", "Failure modes"),
                ("report-mode", f"/mode?id={mode}", "What the search made of its starts"),
                ("report-neuron", f"/neurons?id={neuron}", "Images of other classes, maximised"),
                ("report-counterfactual", f"/explanation?id={counterfactual}", "Measurements"),
                ("report-retrieval", f"/retrieval?id={mode}", "Real images by words"),
            ):
                page.goto(f"http://127.0.0.1:{port}{path}")
                page.get_by_role("heading", name=text).first.wait_for(timeout=60_000)
                if name == "report-retrieval":
                    page.get_by_role("button", name="Find images").click()
                    page.get_by_role("heading", name="What the models say of them").wait_for(timeout=60_000)
                page.wait_for_load_state("networkidle")
                page.wait_for_timeout(1500)
                page.screenshot(path=DOCS / f"{name}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _wait(url: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"no answer from {url}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
