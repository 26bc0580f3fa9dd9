"""Test whether a finished run could have confirmed a failure mode at all. If not, its lack of failure modes proves
nothing.

A claim is that a model predicts a class for images of something else. The condition is necessary, not sufficient: if it
fails, no claim could have been confirmed, whatever the model predicts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from audit.class_names import resolve
from audit.results.sql import Run

LEVEL = 0.01  # p-value that confirms, where the job names none
FEWEST = 3  # images of the discovery split from which a name is proposed


@dataclass(frozen=True)
class _Images:
    """Usable images of one role: with an embedding, a prediction of every model and, in the data set, a label.

    `proposing`: number in the half that proposes names. `asked`: number in the half that tests them.
    """

    role: str
    proposing: int
    asked: int


def unaskable(run: Run, models: Sequence[str], classes: Sequence[str] | None = None) -> str | None:
    """Why no claim about one of these models could be tested, in one line; None if every model has at least one claim.

    classes: restrict the claims to these classes.
    """
    wanted = [str(row["name"]) for row in run.rows(_CLASSES)]
    if not wanted:
        return "none of its images has a label, and the data set declares no classes"
    if not run.rows(f"{_EMBEDDED} and values is not null limit 1"):
        return "no real image has an embedding"
    return _too_few(run) or next((why for model in models if (why := _no_names(run, model, wanted, classes))), None)


_CLASSES = (
    "select label as name from items where role = 'data' and label is not null union select class_name from classes"
)
_EMBEDDED = "select subject_id, role from arrays where name = 'embedding' and role in ('data', 'pool')"


def _too_few(run: Run) -> str | None:
    """Too few usable images for the exact test to get below its level, however the images fall."""
    job = json.loads(run.store.read("job.json") or b"{}")["job"]
    level = next((stage["level"] for stage in job["stages"] if stage["plugin"] == "discover"), LEVEL)
    alone = len(job["models"]) < 2 and not run.rows("select 1 from explanations limit 1")
    usable = [each for each in _usable(run, len(job["models"])) if not (each.role == "pool" and alone)]
    if any(each.proposing >= FEWEST and math.comb(each.asked, each.asked // 2) * level > 1 for each in usable):
        return None
    counts = ", ".join(f"{each.proposing + each.asked} of the {each.role}" for each in usable) or "none"
    return f"too few real images have an embedding, a prediction of every model and, in the data set, a label: {counts}"


def _usable(run: Run, models: int) -> list[_Images]:
    rows = run.rows(
        "with p as (select item_id, role from predictions where status = 'ok' and role in ('data', 'pool') "
        "and (role = 'pool' or label is not null) group by item_id, role having count(distinct model_id) = ?), "
        # a row without values has a reason; the values of a million images are not read for this
        f"e as (select distinct subject_id as item_id, role from ({_EMBEDDED} and reason is null)), "
        # the halves of `audit.screened.naming_half`: by the parity of the first 32 bits
        "u as (select role, substr(item_id, 8, 1) in ('0', '2', '4', '6', '8', 'a', 'c', 'e') as proposes "
        "from p join e using (item_id, role)) "
        "select role, count(*) filter (proposes) as proposing, count(*) filter (not proposes) as asked "
        "from u group by role order by role",
        [models],
    )
    return [_Images(**row) for row in rows]


def _no_names(run: Run, model: str, wanted: list[str], classes: Sequence[str] | None) -> str | None:
    """Why the model's predictions and the data set's classes, or the chosen classes, have no name in common."""
    answers = {row["name"] for row in run.rows(_ANSWERS, [model, model])}
    if not answers:
        return f"{model} has no prediction for a real image"
    if answers.isdisjoint(wanted):
        return (
            f"{model} predicts no class of the data set: it predicts {_some(answers)}, the labels are {_some(wanted)}"
        )
    scored = run.rows(
        "select count(*) as labelled, count(correct) as scored from predictions "
        "where model_id = ? and role = 'data' and status = 'ok' and label is not null",
        [model],
    )[0]
    if scored["labelled"] and not scored["scored"]:
        return f"{model} has no class for the label of any of the {scored['labelled']} labelled images"
    meant = [meant for name in classes or () if (meant := resolve(name, wanted))]
    if meant and answers.isdisjoint(meant):
        return f"{_some(meant)} is never among the five most probable classes of {model}"
    return None


_ANSWERS = (
    "select predicted as name from predictions where model_id = ? and role in ('data', 'pool') "
    "and predicted is not null union select unnest(top_classes) from predictions "
    "where model_id = ? and role in ('data', 'pool')"
)


def _some(names: Iterable[str], most: int = 3) -> str:
    told = sorted(names)
    return ", ".join(f"“{name}”" for name in told[:most]) + (" ..." if len(told) > most else "")
