"""The real images of a failure mode as a data set of their own: to look at, to label, to train or to test with."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.errors import ConfigError, unknown
from audit.originals import contents
from audit.results.sql import Run

_KINDS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


@dataclass(frozen=True)
class Slice:
    """What was written: `images` of them, and how many are gone from their data set or are others now."""

    images: int
    gone: int


def write_slice(run: Run, failure_mode_id: str, folder: Path) -> Slice:
    """Write the images that are a mode's evidence, as their data set has them, to a new folder with `metadata.csv`.

    Evidence is of the half of the real images that was asked about the mode, and 1,000 of them at most. Columns:
    file_name; label, the data set's, empty for images of the pool; suggested_label, the same or, for those, what the
    mode's other model says, which nobody has checked, and empty where none is held against it; says, what the mode's
    model says; item_id and uri in the run. The folder is a `folder` source of a job file. Raises ConfigError for a mode
    that the run does not have or that has no real images, and where the folder exists.
    """
    modes = {row["failure_mode_id"]: row for row in run.rows("select * from failure_modes")}
    if failure_mode_id not in modes:
        raise ConfigError(unknown("failure mode", failure_mode_id, modes))
    mode = modes[failure_mode_id]
    rows = _images(run, mode)
    if not rows:
        raise ConfigError(f"failure mode {failure_mode_id} is a {mode['verdict']} without real images")
    if folder.exists():
        raise ConfigError(f"{folder} exists; name another folder")
    folder.mkdir(parents=True)
    gone = 0
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file_name", "label", "suggested_label", "says", "item_id", "uri"))
        for row, data in zip(rows, contents(run.store, rows), strict=True):
            if data is None:
                gone += 1
                continue
            name = f"{row['item_id'][:16]}{_ending(data)}"
            (folder / name).write_bytes(data)
            table.writerow((name, row["label"], row["suggested_label"], row["says"], row["item_id"], row["uri"]))
    return Slice(len(rows) - gone, gone)


def _images(run: Run, mode: dict[str, Any]) -> list[dict[str, Any]]:
    """A mode's evidence, nearest first, and what its model says and what is held against it; an image that is both
    labelled and in the pool is taken from the labelled ones."""
    return run.rows(
        "with e as (select unnest(?::varchar[]) as item_id, generate_subscripts(?::varchar[], 1) as rank), "
        "p as (select item_id, role, any_value(label) as label, any_value(predicted) filter (model_id = ?) as says, "
        "coalesce(any_value(label), any_value(predicted) filter (model_id = ?)) as suggested_label from predictions "
        "where status = 'ok' and item_id in (select item_id from e) group by item_id, role) "
        "select e.item_id, i.role, i.uri, p.label, p.says, p.suggested_label from e "
        "join (select item_id, min(role) as role, arg_min(uri, (role, uri)) as uri from items "
        "where item_id in (select item_id from e) group by item_id) i using (item_id) "
        "left join p using (item_id, role) order by rank",
        [mode["evidence"] or [], mode["evidence"] or [], mode["model_id"], mode["other_model_id"]],
    )


def _ending(data: bytes) -> str:
    """The usual end of a file's name, by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((ending for start, ending in _KINDS if data.startswith(start)), "")
