"""What people think of findings: verdicts on failure modes, explanations and neurons, kept append-only.

A verdict is a row of `reviews`, committed like everything else of a run, so that several people may review at once,
also while the run goes on. Nothing is overwritten: the view `verdicts` holds the last one of each subject.
"""

from __future__ import annotations

import getpass
import uuid
from datetime import UTC, datetime
from typing import Any

from audit.errors import ConfigError, unknown
from audit.results.sql import Run

VERDICTS = ("bug", "expected", "needs review", "not a failure")
STAGE = "reviews"  # of the units that hold them; stages of a job begin with a number
LONGEST_NOTE = 10_000
LONGEST_NAME = 200


def review(run: Run, subject_id: str, verdict: str, note: str = "", reviewer: str | None = None) -> dict[str, Any]:
    """Keep a verdict on a failure mode, an explanation or a neuron; returns its row, which the run then shows.

    `reviewer`: a name; None for that of the account. Raises ConfigError for another verdict than `VERDICTS`, for a
    subject that the run does not have, and for a note or a name that is too long or says nothing.
    """
    if verdict not in VERDICTS:
        raise ConfigError(unknown("verdict", verdict, VERDICTS))
    name = person(getpass.getuser() if reviewer is None else reviewer)
    if len(note) > LONGEST_NOTE:
        raise ConfigError(f"the note has {len(note)} characters, more than {LONGEST_NOTE}: shorten it")
    if not run.rows(_SUBJECT, [subject_id] * 3):
        raise ConfigError(
            f"{run.location} has no failure mode, explanation or neuron {subject_id!r}; their ids are in the tables "
            "failure_modes, explanations and neurons"
        )
    row: dict[str, Any] = {"subject_id": subject_id, "verdict": verdict, "note": note.strip() or None, "reviewer": name}
    row |= {"reviewed_at": datetime.now(UTC)}
    run.store.commit(f"review-{uuid.uuid4().hex}", STAGE, {"reviews": [row]})
    run.refresh()
    return row


def person(given: str) -> str:
    """A person's name, with single spaces. Raises ConfigError for one that is empty, too long or not printable."""
    name = " ".join(given.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"a reviewer's name has 1 to {LONGEST_NAME} characters of text, found {name!r:.50}")
    return name


_SUBJECT = (
    "select 1 from failure_modes where failure_mode_id = ? union all select 1 from explanations "
    "where explanation_id = ? union all select 1 from neurons where neuron_id = ? limit 1"
)
