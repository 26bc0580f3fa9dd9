"""The output of `audit run` at its end: failure modes, warnings, and commands for the next steps."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import Any

from rich.markup import escape
from rich.table import Table

from audit.comparison import owner
from audit.results.sql import Run
from audit.review.warnings import warnings_of
from audit.sentences import misses
from pipelines.terminal import out, print_warnings

Row = dict[str, Any]

_COLUMNS = ("#", "id", "verdict", "model", "says", "when the image is", "support", "wrong then (others)", "p", "impact")
_RIGHT = ("#", "support", "p", "impact")


def print_end(run: Run, root: str, seconds: float) -> None:
    """root: the run as a user would type it. seconds: duration of the command."""
    modes = run.failure_modes()
    if modes:
        out.print(_table(modes))
    print_warnings(warnings_of(run))
    out.print(f"\nfinished in {seconds:.0f} s: {root}", highlight=False)
    for what, command in commands(run, root, modes):
        out.print(f"{what + ':':<18}{command}", markup=False, highlight=False, soft_wrap=True)


def commands(run: Run, root: str, modes: list[Row]) -> list[tuple[str, str]]:
    """Next steps for a run with these failure modes, each with its command."""
    at = shlex.quote(root)
    found = [("open the report", f"dashboard {at}"), ("ask questions", f'sql {at} "{_question(run, modes)}"')]
    if modes:
        shown = next((rank for rank, mode in enumerate(modes, 1) if mode["evidence"]), None)
        found += [] if shown is None else [("write its images", f"slice {at} {shown} slice-{shown}")]
        found.append(("record a verdict", f"review {at} 1 bug"))
    rows = run.rows(
        "select explanation_id as id from explanations where status = 'ok' order by flipped desc, id limit 1"
    )
    found += [("reproduce one", f"reproduce {at} {row['id']}") for row in rows]
    return [(what, f"{_program()} {command}") for what, command in found]


def _question(run: Run, modes: list[Row]) -> str:
    """A first query that returns rows."""
    if modes:
        return "select * from failure_modes"
    labelled = run.rows("select 1 from predictions where role = 'data' and correct is not null limit 1")
    if labelled:
        return "select * from accuracy"
    return "select model_id, predicted, count(*) as images from predictions group by all order by all"


def _program() -> str:
    """The command by which this program was called."""
    if shutil.which("audit"):
        return "audit"
    if sys.argv[0].endswith("cli.py"):
        return f"{os.path.relpath(sys.executable)} -m pipelines.cli"
    return os.path.relpath(sys.argv[0])


def _table(modes: list[Row]) -> Table:
    table = Table(title="failure modes", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _RIGHT else "left")
    for rank, mode in enumerate(modes, 1):
        style = "bold" if mode["verdict"] == "confirmed" else "dim"
        table.add_row(*map(escape, _cells(rank, mode)), style=style)
    return table


def _cells(rank: int, mode: Row) -> list[str]:
    rates = "no real images"
    if mode["evidence_rate"] is not None:
        rates = f"{mode['evidence_rate']:.0%} ({mode['control_rate']:.0%})"
    return [
        str(rank),
        mode["failure_mode_id"][:8],
        mode["verdict"],
        owner(mode),
        f"not {mode['class_name']}" if misses(mode) else mode["class_name"],
        mode["name"],
        f"{mode['support']}/{mode['seeds']}" if mode["seeds"] else str(mode["support"]),
        rates,
        "" if mode["p_corrected"] is None else f"{mode['p_corrected']:.1g}",
        "" if mode["impact"] is None else f"{mode['impact']:.1%}",
    ]
