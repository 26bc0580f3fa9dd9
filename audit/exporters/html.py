"""One HTML file with pictures, that opens anywhere without a network, a server or a script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from audit import sentences
from audit.errors import AuditError
from audit.locations import name_of
from audit.originals import thumbnails
from audit.results import queries
from audit.results.sql import Run
from audit.review.warnings import warnings_of

SUFFIX = ".html"

Row = dict[str, Any]

MOST_BYTES = 10 * 2**20  # of pictures; with base64 and text the file stays under 15 MB
MOST_MODES = 100
SEARCHES, REAL_IMAGES, ROWS = 6, 12, 20
ERRORS = 24  # that a model is surest of


def write(run: Run, target: Path) -> None:
    """What was audited, every failure mode with its evidence, classes, confusions, and what could not be used."""
    target.write_text(page(run), "utf-8")


def page(run: Run) -> str:
    """The whole report. Failure modes beyond `MOST_MODES` are counted, pictures beyond `MOST_BYTES` left out; the page
    says so."""
    head, modes = queries.header(run), run.failure_modes()
    pictures = _Pictures(run)
    return str(
        _template("report.html").render(
            title=head["name"] or name_of(run.location),
            head=head,
            made=head["created_at"] and f"{head['created_at'].astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            audited=queries.audited(run) if head["name"] else [],
            models=queries.models(run),
            modes=[_described(run, mode, pictures) for mode in modes[:MOST_MODES]],
            hidden=len(modes) - len(modes[:MOST_MODES]),
            warnings=warnings_of(run),
            discovered=bool(modes) or "discover" in queries.kinds(run),
            not_asked=queries.not_asked(run),
            errors=[] if modes else _errors(run, pictures),
            classes=queries.classes(run),
            pairs=queries.pairs(run),
            confusions=queries.confusions(run)[:ROWS],
            refused=queries.refused(run),
            left_out=pictures,
        )
    )


def fragment(run: Run, modes: Sequence[Row]) -> str:
    """Failure modes with their pictures, for a page of somebody else's: a notebook."""
    pictures = _Pictures(run)
    return str(
        _template("fragment.html").render(modes=[_described(run, mode, pictures) for mode in modes[:MOST_MODES]])
    )


class _Pictures:
    """Thumbnails as data URLs, until they are too many."""

    def __init__(self, run: Run) -> None:
        self.run, self.bytes, self.count = run, 0, 0

    def of(self, image_ids: Sequence[str]) -> dict[str, str | None]:
        """By image; None for one that the run does not hold, or that is too much: of these there are `count`."""
        rows = self.run.rows(
            "select image_id, any_value(thumbnail) as thumbnail from images where image_id in (select unnest(?)) "
            "group by image_id",
            [list(image_ids)],
        )
        stored = {row["image_id"]: row["thumbnail"] for row in rows}
        return {image_id: self._url(stored.get(image_id)) for image_id in image_ids}

    def of_originals(self, rows: Sequence[Row]) -> list[str | None]:
        """Images of the data set: those that the run holds, the others read anew; None for one that cannot be."""
        urls = self.of([row["item_id"] for row in rows])
        lacking = [row for row in rows if urls[row["item_id"]] is None and row["uri"]]
        try:
            read = thumbnails(self.run.store, lacking)
        except AuditError:  # a source that this machine, or this version, cannot open
            read = [None] * len(lacking)
        urls |= {row["item_id"]: self._url(data) for row, data in zip(lacking, read, strict=True)}
        return [urls[row["item_id"]] for row in rows]

    def _url(self, data: bytes | None) -> str | None:
        if data is None:
            return None
        if self.bytes + len(data) > MOST_BYTES:
            self.count += 1
            return None
        self.bytes += len(data)
        return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _errors(run: Run, pictures: _Pictures) -> list[Row]:
    """Of each model the errors that it is surest of: {model, images: [{url, title, said, of}]}."""
    shown = []
    for model in queries.models(run):
        rows = queries.surest_errors(run, model["model_id"], ERRORS)
        said = queries.said(run, [row["item_id"] for row in rows])
        images = [
            {"url": url, "title": row["label"], "said": said.get(row["item_id"], []), "of": row["predicted"]}
            for row, url in zip(rows, pictures.of_originals(rows), strict=True)
        ]
        shown += [{"model": model["model_id"], "images": images}] if images else []
    return shown


def _described(run: Run, mode: Row, pictures: _Pictures) -> Row:
    """All that the page says of a failure mode."""
    searches = queries.exemplars(run, mode["exemplars"] or [])[:SEARCHES]
    real = queries.kept(run, [mode["evidence"] or []], REAL_IMAGES)[0]
    ids = [row[key] for row in searches for key in ("start_image_id", "image_id")] + real
    said, url = queries.said(run, ids), pictures.of(ids)
    shown = [
        {"title": title, "url": url[row[key]], "said": said.get(row[key], []), "of": row["target_class"]}
        for row in searches
        for title, key in (("start", "start_image_id"), ("optimised", "image_id"))
    ]
    return {
        **mode,
        "claim": sentences.claim(mode),
        "sentence": sentences.sentence(mode),
        "certainty": sentences.certainty(mode),
        "p": None if mode["p_corrected"] is None else sentences.p_value(mode["p_corrected"]).removeprefix("= "),
        "support_word": sentences.support(mode),
        "control_word": sentences.control(mode),
        "evidence_word": sentences.evidence(mode),
        "others": sentences.others(mode, queries.against_others(run, mode["failure_mode_id"])),
        "searches": shown,
        "real": [{"url": url[item], "said": said.get(item, [])} for item in real],
        "review": queries.verdict(run, mode["failure_mode_id"]),
    }


@cache
def _template(name: str) -> Any:
    loader = PackageLoader("audit.exporters", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value, digits=0: "" if value is None else f"{value:.{digits}%}"
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.3g}"
    return environment.get_template(name)
