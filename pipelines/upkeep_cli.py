"""The commands that look after a run: how far it is, whether its files are whole, mending them, clearing up."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

from audit.locations import located
from audit.results.store import Store
from pipelines.terminal import AsJson, RunFolder, ended, err, exit_codes, for_json, out, print_json, print_warnings


def status(run: RunFolder, as_json: AsJson = False) -> None:
    """How far a run is, from its files alone."""
    from audit.results.progress import live, stages_of
    from audit.results.sql import Run
    from audit.review.warnings import warnings_of

    with exit_codes():
        _is_run(Store(located(run)), run)
        opened = Run(located(run))
        stages, driver, warnings = stages_of(opened), live(opened.store), warnings_of(opened)
        if as_json:
            print_json({"stages": stages, "driver": driver, "warnings": [one.as_dict() for one in warnings]})
            return
        table = Table()
        for column in ("stage", "units done", "units", "quarantined", "items done", "failed", "seconds of work"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage in stages:
            planned = "not planned yet" if stage["units"] is None else str(stage["units"])
            counts = [stage["done"], planned, stage["quarantined"], stage["items_done"], stage["items_failed"]]
            table.add_row(stage["stage"], *map(str, counts), f"{stage['seconds']:.0f}")
        out.print(table)
        if driver is not None:
            out.print(escape(sentence(driver)), highlight=False)
        print_warnings(warnings)


def sentence(driver: dict[str, Any]) -> str:
    """The state of a run's driver in words."""
    who = f"process {driver['pid']} on {driver['host']}"
    if driver.get("ended"):
        return f"the last driver, {who}, ended at {driver['at']}: {driver['ended']}"
    workers = driver.get("workers", {})
    return (
        f"{who} said at {driver['at']}: {workers.get('busy', 0)} of {workers.get('started', 0)} workers busy, "
        f"{driver.get('retries_waiting', 0)} units to be tried again; if that is long ago, it died"
    )


def verify(run: RunFolder, as_json: AsJson = False) -> None:
    """Read every byte of a run and compare it with its records. Exit code 4 where something is damaged."""
    from audit.results.integrity import verify

    with exit_codes():
        store = Store(located(run))
        _is_run(store)
        found = verify(store)
        if as_json:
            print_json([asdict(damage) for damage in found])
        elif not found:
            out.print("every file is what its record says")
        for damage in [] if as_json else found:
            units = f"{len(damage.units)} units: {', '.join(damage.units[:5])}" if damage.units else ""
            out.print(escape(f"{damage.where}: {damage.what}  {damage.stage}  {units}"), highlight=False)
        if found:
            err.print(f"{len(found)} damaged; 'audit repair' mends them")
            raise typer.Exit(4)


def repair(
    run: RunFolder,
    address: Annotated[Optional[str], typer.Option(help="A Ray cluster, for units that are done again")] = None,
    as_json: AsJson = False,
) -> None:
    """Mend what 'audit verify' finds: from older files where they are whole, else by doing units again.

    What is left of the run is done as well; exits as 'audit run' does.
    """
    from pipelines.execute import mend

    with exit_codes():
        _is_run(Store(located(run)))
        with for_json(as_json):
            repaired, outcome = mend(located(run), address=address, as_json=as_json or None)
        if as_json:
            print_json({**asdict(repaired), "seconds": outcome.seconds, "failed": outcome.failed})
        else:
            out.print(f"{len(repaired.restored)} units restored from older files, {len(repaired.withdrawn)} done again")
        ended(outcome.failed)


def collect(
    run: RunFolder,
    older_than: Annotated[float, typer.Option(help="Hours; longer than the longest query on the run")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it they are only listed")] = False,
    as_json: AsJson = False,
) -> None:
    """List, or delete, files that no reader needs: of attempts that lost or died, and what was merged."""
    from audit.errors import ConfigError
    from audit.results.integrity import collect
    from audit.results.progress import live

    with exit_codes():
        store = Store(located(run))
        _is_run(store)
        if delete and older_than < 1 and not (live(store) or {"ended": True}).get("ended"):
            raise ConfigError(
                f"--older-than {older_than:g}: a driver is at work on {run}, and what its workers have written in the "
                "last hour may not be committed yet; say 1 or more, or wait until it has ended"
            )
        found = collect(store, 3600 * older_than, delete)
        if as_json:
            print_json([asdict(stored) for stored in found])
            return
        size = sum(stored.bytes for stored in found) / 2**20
        out.print(f"{len(found)} files, {size:.1f} MiB {'deleted' if delete else 'could go: say --delete'}")


def _is_run(store: Store, asked: str = "") -> None:
    """`asked`: as it was typed; what may be a submission's id is told from a folder."""
    from audit.errors import ConfigError

    if store.read("job.json") is None:
        message = f"{store.location} is not a run: it has no job.json. Give the folder or URI that 'audit run' names"
        if re.fullmatch(r"[\w.-]+-\d+", asked):
            message += (
                f". If {asked} is a submission's id: 'audit list' shows how far it is, and 'audit logs {asked}' what "
                "it writes, both with --address; the run is below the job's output.uri, under the run's name"
            )
        raise ConfigError(message)


def register(app: typer.Typer) -> None:
    for command in (status, verify, repair, collect):
        app.command()(command)
