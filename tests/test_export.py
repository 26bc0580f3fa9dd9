"""What is taken out of a run is what is in it, and one HTML file needs nothing else."""

from __future__ import annotations

import base64
import csv
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

import audit
from audit import registry
from audit.errors import ConfigError
from audit.exporters import export, html
from audit.pictures import image_row
from audit.results.schema import TABLES
from audit.results.sql import Run
from audit.results.views import VIEWS
from audit.reviews import review
from pipelines.cli import app
from tests.audited import audited, mode, said

HOSTILE = "<script>alert(1)</script>"


def picture(image_id: str, seed: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    return {**image_row(pixels, "generated"), "image_id": image_id}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A confirmed mode with a search and two real images, one of them stored; a hypothesis with a hostile name."""
    shown = mode("crab", "on sand", evidence="ab", support=3, seeds=8, exemplars=["e"], evidence_rate=0.4)
    shown |= {"evidence_images": 50, "control_rate": 0.02, "control_images": 49, "p_corrected": 0.0004, "effect": 3.21}
    shown |= {"impact_low": 0.05, "impact_high": 0.15}
    guess = mode(HOSTILE, HOSTILE, "hypothesis", reason=HOSTILE, support=3, seeds=8, impact=None)
    answers = [
        *said("data", "v", {"p": "crab", "q": "boat"}, "crab"),
        *said("data", "reference", {"p": "crab"}, "crab"),
    ]
    answers += [{**row, "confidence": 0.87} for row in said("pool", "v", {"a": "crab", "b": HOSTILE})]
    made = audited(tmp_path / "run", [shown, guess], [{"confidence": 0.5, **row} for row in answers])
    search = {"explanation_id": "e", "start_image_id": "s", "image_id": "r", "target_class": "crab", "status": "ok"}
    images = [picture(name, seed) for seed, name in enumerate("sra")]
    made.store.commit("more", "1-x", {"explanations": [{**search, "method": "disagreement"}], "images": images})
    made.store.commit("run", "run", {"runs": [{"name": f"made {HOSTILE}", "config": "{}"}]})
    review(Run(made.location), "crab on sand", "bug", f"{HOSTILE} & sand", "Ada")
    return Run(made.location)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] != ["style"]:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside[:-1] if self._inside[-1:] == [tag] else self._inside

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_needs_nothing_from_outside_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    export(run, "html", tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text("utf-8")
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links
    assert all(link and link.startswith(("data:image/webp;base64,", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


def test_the_page_shows_the_run_s_numbers_and_pictures(run: Run) -> None:
    page = Page(html.page(run))
    for words in (
        "v says “crab” for what is on sand confirmed",
        "3 of 8 searches ended in images",
        "40% of 50 real images that show it",
        "2% of 49 others of the same classes",
        "0.0004 p, corrected",
        "10.0% impact on real images",
        "50.0% v, on 2 labelled images",
        "100.0% reference, on 1 labelled images",
        f"Ada, {run.rows('select reviewed_at from reviews')[0]['reviewed_at']:%Y-%m-%d}: bug. “{HOSTILE} & sand”",
        f"Not confirmed: {HOSTILE}.",
        "v crab 87%",
    ):
        assert words in page.text, words
    shown = [a["src"] for tag, a in page.tags if tag == "img"]
    stored = {row["image_id"]: row["thumbnail"] for row in run.rows("select image_id, thumbnail from images")}
    assert [base64.b64decode(str(src).partition(",")[2]) for src in shown] == [stored[name] for name in "sra"]


def test_its_numbers_are_those_of_the_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every failure mode all figures but p, which the report leaves to its sentences, and the run's own."""
    text = html.page(run)

    def figures(part: str) -> list[tuple[str, str]]:
        return re.findall(r'<div class="figure"[^>]*><b>(.*?)</b><span>(.*?)</span>', part)

    sections = re.findall(r'<section class="mode" id="mode-(.*?)">(.*?)</section>', text, re.DOTALL)
    assert len(sections) == 2
    for name, section in sections:
        shown = said_by_the_report(run, monkeypatch, "one", id=unescape(name))
        for value, words in figures(section):
            assert value in shown or words == "p, corrected", (name, value, words)
    shown = said_by_the_report(run, monkeypatch, "overview")
    for value, words in figures(text.partition("<section")[0]):
        assert value in shown, (value, words)


def said_by_the_report(run: Run, monkeypatch: pytest.MonkeyPatch, page: str, **query: str) -> str:
    """The text, the tiles and the tables of a page, shares in percent."""
    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_string(f"from dashboard import pages\npages.{page}()", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    st.cache_resource.clear()
    tiles = [f"{tile.value} {tile.delta}" for tile in app.metric]
    cells = [value for frame in app.dataframe for value in frame.value.to_numpy().ravel()]
    tiles += [f"{value:.1%}" if isinstance(value, float) else str(value) for value in cells]
    return " ".join([*tiles, *(text.value for text in app.text), *(one.proto.body for one in app.get("html"))])


def test_a_mode_that_lacks_numbers_has_a_section_without_them(tmp_path: Path) -> None:
    bare = {"other_model_id": None, "impact": None, "exemplars": None, "evidence": None, "kind": "confusion"}
    guess = mode("crab", "sand", "hypothesis", reason="few images", effect=1.0) | bare
    section = Page(html.page(audited(tmp_path / "run", [guess], []))).text.partition("crab")[2]
    assert "1.0 sd shift against controls" in section
    assert "searches that show it" not in section
    assert "real images near it" not in section


def test_pictures_beyond_the_limit_are_left_out_and_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(row["thumbnail"]) for row in run.rows("select thumbnail from images")]
    monkeypatch.setattr(html, "MOST_BYTES", max(sizes) * 2)
    monkeypatch.setattr(html, "MOST_MODES", 1)
    page = Page(html.page(run))
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    assert "1 pictures were left out" in page.text
    assert "1 more are in the run" in page.text


def test_a_run_without_anything_has_a_page_that_says_so(tmp_path: Path) -> None:
    page = Page(html.page(audited(tmp_path / "run", [], [], done=())))
    assert "Nothing is committed of this run yet" in page.text
    assert "No failure modes" in page.text


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tables_come_out_as_they_are(run: Run, tmp_path: Path, kind: str) -> None:
    export(run, kind, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{name}.{kind}" for name in (*TABLES, *VIEWS)}
    for name in (*TABLES, *VIEWS):
        if kind == "parquet":
            seen = duckdb.sql(f"select * from '{tmp_path}/out/{name}.parquet'").to_arrow_table().to_pylist()
            assert sorted(seen, key=repr) == sorted(run.rows(f"select * from {name}"), key=repr)
        else:
            with (tmp_path / "out" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            assert len(rows) == run.rows(f"select count(*) as n from {name}")[0]["n"]
    if kind == "csv":
        with (tmp_path / "out" / "failure_modes.csv").open(encoding="utf-8", newline="") as file:
            first = next(csv.DictReader(file))
        assert (first["class_name"], float(first["evidence_rate"]), json.loads(first["evidence"])) == (
            "crab",
            0.4,
            ["a", "b"],
        )
        header = (tmp_path / "out" / "images.csv").read_text("utf-8").partition("\n")[0].split(",")
        assert "image_id" in header
        assert not {"png", "thumbnail"} & set(header)


def test_the_notebook_s_cells_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, "notebook", tmp_path / "out.ipynb")
    book = json.loads((tmp_path / "out.ipynb").read_text("utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    names: dict[str, Any] = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], names)
    assert "confirmed: v says “crab” for what is on sand" in capsys.readouterr().out
    assert names["run"].location == run.location


def test_failure_modes_show_themselves_in_a_notebook(run: Run) -> None:
    shown = Page(audit.open(run.root).failure_modes()._repr_html_())
    assert "v says “crab” for what is on sand" in shown.text
    assert not {tag for tag, _ in shown.tags} & {"script", "html", "body"}
    assert len([tag for tag, _ in shown.tags if tag == "img"]) == 3


def test_what_is_there_is_not_overwritten_and_nothing_half_written_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.html"
    target.write_text("mine")
    with pytest.raises(ConfigError, match="exists; name another place"):
        export(run, "html", target)
    assert target.read_text() == "mine"
    with pytest.raises(ConfigError, match="no folder"):
        export(run, "html", tmp_path / "nowhere" / "out.html")
    with pytest.raises(ConfigError, match="unknown exporters plugin 'pdf'"):
        export(run, "pdf", tmp_path / "out.pdf")

    def breaks(query: str, path: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(run, "write", breaks)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        export(run, "csv", tmp_path / "tables")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_offers_every_exporter(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "run" / "..")
    shell = CliRunner()
    for kind in registry.names("exporters"):
        told = shell.invoke(app, ["export", str(run.root), "--to", kind, "--json"])
        assert told.exit_code == 0, told.output
        assert Path(json.loads(told.stdout)["written"]).exists()
    assert {"run.html", "run.ipynb", "run-csv", "run-parquet"} <= {path.name for path in tmp_path.iterdir()}
