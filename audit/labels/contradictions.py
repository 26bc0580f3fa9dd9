"""Warn of images that a data set lists under several labels: only the first of these labels counts."""

from __future__ import annotations

from audit.results.sql import Run
from audit.results.warnings import RunWarning

MOST = 0.001  # share of the images of the data above which a gate does not pass


def contradictory_labels(run: Run) -> list[RunWarning]:
    """A warning for each role in which equal files have different labels. It blocks a gate if these images could change
    the accuracy by more than `MOST`."""
    rows = run.rows(
        "with several as (select role, arg_min(display_name, position) as name, min(position) as position, "
        "min(label) as one, max(label) as other from items where status = 'ok' and label is not null "
        "group by role, item_id having min(label) <> max(label)) "
        "select role, count(*) as images, arg_min(name, position) as name, arg_min(one, position) as one, "
        "arg_min(other, position) as other from several group by role order by role"
    )
    found = []
    for row in rows:
        (every,) = run.rows(
            "select count(distinct item_id) as images from items where status = 'ok' and role = ?", [row["role"]]
        )
        message = (
            f"images of the {row['role']} that are listed with several labels: {row['images']:,}, such as "
            f"{row['name']!r}, with {row['one']!r} and {row['other']!r}. Equal files are one image, and the label that "
            "is listed first counts. Delete the copies with the wrong label"
        )
        blocks = row["role"] == "data" and row["images"] > MOST * every["images"]
        found.append(RunWarning("contradictory_labels", message, None, row["role"], row["images"], blocks_gate=blocks))
    return found
