"""What `audit retrieve` prints and writes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from audit.errors import ConfigError
from audit.originals import contents, thumbnails
from audit.results.sql import Run
from audit.retrieval import EXACT, Retrieval

Row = dict[str, Any]


def with_thumbnails(run: Run, found: Retrieval) -> Row:
    """Plain values, each row with its picture as base64 of WebP, None where the image cannot be read any more."""
    small = thumbnails(run.store, found.rows)
    encoded = [None if data is None else base64.b64encode(data).decode() for data in small]
    rows = [{**row, "thumbnail": data} for row, data in zip(found.rows, encoded, strict=True)]
    return {**found.as_dict(), "rows": rows}


def write_images(run: Run, found: Retrieval, folder: Path) -> int:
    """Write the bytes of the retrieved images to a new folder, '<rank>-<similarity>-<name>'; returns how many.

    Images that are gone or changed since the run are left out. Raises ConfigError where the folder exists or cannot
    be made.
    """
    data = contents(run.store, found.rows)
    try:
        folder.mkdir()
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}; name a new one") from error
    written = [(row, one) for row, one in zip(found.rows, data, strict=True) if one is not None]
    for row, one in written:
        (folder / file_name(row)).write_bytes(one)
    return len(written)


def file_name(row: Row) -> str:
    """A file's name for a retrieved image: names of data sets hold slashes, and worse."""
    name = re.sub(r"[^\w.-]+", "_", row["display_name"] or row["item_id"][:12])
    return f"{row['rank']:04d}-{row['similarity']:.4f}-{name[-60:]}"


def tables(found: Retrieval) -> Iterator[Table | str]:
    """The retrieved images, what the models say of them, and the test of the failure mode, for people."""
    models = [said["model_id"] for said in found.rows[0]["said"]]
    table = Table(title=escape(f"{len(found.rows)} of {found.images} images: {found.query}"), title_justify="left")
    for column in ("rank", "similarity", "image", "role", *models):
        table.add_column(escape(column), overflow="fold", justify="right" if column == "rank" else "left")
    for row in found.rows:
        said = {s["model_id"]: _words(s) for s in row["said"]}
        name = row["display_name"] or row["item_id"][:12]
        cells = [str(row["rank"]), f"{row['similarity']:.4f}", name, row["role"], *(said.get(m, "") for m in models)]
        table.add_row(*map(escape, cells), style="bold" if row["disagrees"] else None)
    yield table
    if found.approximate:
        yield "Proposed by an index: a few others may be as similar."
    elif found.images > EXACT:
        yield r"Compared one by one. With an index this is quicker: pip install 'audit\[index]'"
    yield _summary(found)
    if found.mode is not None:
        yield escape(sentence(found.mode))


def _words(said: Row) -> str:
    return f"{said['predicted']} {said['confidence']:.0%}" if said["predicted"] is not None else f"({said['reason']})"


def _summary(found: Retrieval) -> Table:
    table = Table(title="what the models say", title_justify="left")
    for column in ("model", "class", "of these images", "of all images"):
        table.add_column(column, justify="left" if column in ("model", "class") else "right")
    for row in found.said:
        if row["retrieved"]:
            table.add_row(
                escape(row["model_id"]), escape(row["says"]), f"{row['share_retrieved']:.0%}", f"{row['share']:.1%}"
            )
    return table


def sentence(mode: Row) -> str:
    """The test of a failure mode in words."""
    against = mode["other_model_id"] or "the label"
    claim = f"{mode['model_id']} says {mode['class_name']} and {against} does not"
    if mode["retrieved_rate"] is None or mode["rest_rate"] is None:
        labelled = "" if mode["other_model_id"] else "; only images under audit have labels: ask among those"
        return f"{claim}: no images on one side to compare{labelled}"
    return (
        f"{claim}: on {mode['retrieved_rate']:.0%} of these {mode['retrieved_images']} images, on "
        f"{mode['rest_rate']:.1%} of the other {mode['rest_images']} (p = {mode['p_value']:.1g}, of this query alone)"
    )
