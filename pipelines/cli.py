"""The `audit` command. Exit codes: 0 ok, 1 a gate's rule is broken, 2 bad configuration, 3 finished with failed items,
4 infrastructure, 5 stopped at a limit that the job sets, 130 and 143 stopped by Ctrl-C and SIGTERM."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Optional, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audit.errors import ConfigError
from audit.locations import absolute, located
from pipelines.findings_cli import register as register_findings
from pipelines.start_cli import register as register_start
from pipelines.submission_cli import register as register_submission
from pipelines.terminal import (
    AsJson,
    JobFile,
    RunFolder,
    cell,
    ended,
    err,
    exit_codes,
    for_json,
    out,
    plain,
    print_json,
    quieten,
    shown,
)
from pipelines.upkeep_cli import register as register_upkeep
from pipelines.zoo_cli import app as zoo_app

app = typer.Typer(
    help="Find out where and why image classifiers fail.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(zoo_app, name="zoo")


register_start(app)


@app.command()
def plan(
    job: JobFile,
    calibrate: Annotated[
        bool, typer.Option(help="Load the models and run a few units of each stage on this machine, to time them")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """What a job will take: items of each stage, hours of GPUs or cores, disk.

    Runs a few units of each stage on this machine, in a folder that goes again: its hours are this machine's. With
    --no-calibrate nothing runs, and items are only counted.
    """
    from audit.config import load_job
    from pipelines.forecast import forecast

    with exit_codes():
        checked = load_job(job)
        with for_json(as_json), err.status("") as status:
            stages = forecast(checked, calibrate, status.update)
        if as_json:
            print_json([stage.as_dict() for stage in stages])
            return
        unit = "GPU" if checked.compute.gpus else "core"
        table = Table(title="at most, before anything ran", title_justify="left")
        lacking = "why not tried"
        columns = ["stage", "items", "seconds an item", f"{unit} hours", "MiB"]
        for column in [*columns, lacking] if any(stage.reason for stage in stages) else columns:
            table.add_column(column, justify="left" if column in ("stage", lacking) else "right")
        for stage in stages:
            figures = (_short(value) for value in (stage.seconds_per_item, stage.hours, stage.mib))
            row = [stage.stage, f"{stage.items:,}", *figures, escape(stage.reason or "")]
            table.add_row(*row[: len(table.columns)])
        out.print(table)
        tried = [stage for stage in stages if stage.hours is not None]
        if not tried:
            out.print("no stage was tried, so hours and disk are not known")
            return
        hours, mib = sum(stage.hours or 0.0 for stage in tried), sum(stage.mib or 0.0 for stage in tried)
        of = "" if len(tried) == len(stages) else f", of the {len(tried)} of {len(stages)} stages that were tried"
        out.print(f"{hours:.3g} {unit} hours of work, {mib:.0f} MiB of results{of}")


@app.command()
def run(
    job: JobFile,
    address: Annotated[
        Optional[str], typer.Option(help="A Ray cluster; default: one of its own on this machine")
    ] = None,
    new_run: Annotated[bool, typer.Option(help="Start over beside an existing run of this name")] = False,
    json_lines: Annotated[
        Optional[bool],
        typer.Option("--json/--no-json", help="JSON: progress on stderr (default where that is no terminal), outcome"),
    ] = None,
) -> None:
    """Run a job, or resume it where it stopped."""
    from audit.results.sql import Run
    from audit.review.warnings import warnings_of
    from pipelines.execute import execute
    from pipelines.run_end import print_end

    with exit_codes():
        with for_json(bool(json_lines)):
            outcome = execute(job, address=address, new_run=new_run, as_json=json_lines)
        root, opened = shown(outcome.root), Run(outcome.root)
        if json_lines:
            told = {"run": absolute(outcome.root), "seconds": outcome.seconds, "failed": outcome.failed}
            told |= {"warnings": [warning.as_dict() for warning in warnings_of(opened)]}
            json.dump({**told, "failure_modes": opened.failure_modes()}, sys.stdout, default=plain)
            sys.stdout.write("\n")
            raise typer.Exit(3 if outcome.failed else 0)
        print_end(opened, root, outcome.seconds)
        ended(outcome.failed)


def _short(value: float | None) -> str:
    """Three digits are more than a forecast knows."""
    if value is None:
        return ""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


@app.command()
def sql(
    run: RunFolder,
    query: Annotated[
        Optional[str], typer.Argument(help="A query over the run's tables; with --schema, a table's name")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="What tables, views and columns there are")] = False,
    format: Annotated[Literal["table", "csv", "json", "parquet"], typer.Option(help="How to print")] = "table",
    output: Annotated[Optional[Path], typer.Option(help="File to write; needed for parquet")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json")] = False,
) -> None:
    """Ask a run's tables in SQL (DuckDB). docs/sql.md has queries for common questions."""
    import pyarrow as pa

    from audit.results.sql import open_run
    from audit.runs import unfinished

    with exit_codes():
        if as_json and format not in ("table", "json"):
            raise ConfigError(f"--json and --format {format} are two formats; give one of them")
        format = "json" if as_json else format
        if output is not None and not output.absolute().parent.is_dir():
            raise ConfigError(f"no folder {output.parent} to write {output.name} to")
        if schema:
            result = pa.Table.from_pylist(open_run(run).schema(query))
        elif query is None:
            raise ConfigError('give a query, such as "select * from accuracy", or --schema for what can be asked')
        else:
            opened = open_run(run)
            result = opened.sql(query)
            left = unfinished(opened)
            if left:
                err.print(f"[bold yellow]note:[/bold yellow] this run is not finished: {left}", highlight=False)
        if format == "parquet":
            import pyarrow.parquet as pq

            if output is None:
                raise ConfigError("parquet is not for a terminal: name a file with --output")
            pq.write_table(result, output)
            return
        rows = list(zip(*(column.to_pylist() for column in result.columns), strict=True))
        with open(output, "w", encoding="utf-8", newline="") if output else _stdout() as file:
            if format == "json":
                named = [dict(zip(result.column_names, row, strict=True)) for row in rows]
                json.dump(named, file, default=plain, indent=1)
                file.write("\n")
            elif format == "csv":
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(result.column_names)
                writer.writerows([v if isinstance(v, float) else cell(v) for v in row] for row in rows)
            else:
                table = Table()
                for name in result.column_names:
                    table.add_column(name, overflow="fold")
                for row in rows:
                    table.add_row(*(escape(cell(value)) for value in row))
                Console(file=file, width=None if file.isatty() else 240).print(table)


@contextmanager
def _stdout() -> Iterator[TextIO]:
    yield sys.stdout


@app.command()
def retrieve(
    run: RunFolder,
    query: Annotated[str, typer.Argument(help="What the images show; after -- where it begins with a dash")],
    top: Annotated[int, typer.Option(help="How many images, the most similar ones")] = 20,
    role: Annotated[
        Optional[Literal["pool", "data", "both"]],
        typer.Option(help="Among which images; default: the pool's, or the data's of a run without a pool"),
    ] = None,
    mode: Annotated[
        Optional[str],
        typer.Option(help="A failure mode's rank, name or id: test whether its models disagree more on these images"),
    ] = None,
    as_json: AsJson = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="With --json: small pictures, base64 of WebP")
    ] = False,
    images: Annotated[Optional[Path], typer.Option(help="New folder to write the images to")] = None,
) -> None:
    """Find real images by words, and what the models say of them."""
    from audit.results.queries import roles
    from audit.results.sql import Run
    from audit.retrieval import checked_query, embedder_of, retrieve
    from audit.review.findings import mode_id
    from pipelines.retrieve import tables, with_thumbnails, write_images

    with exit_codes():
        opened = Run(located(run))
        text = checked_query(query)  # before the seconds that the text model takes to load
        mode = None if mode is None else mode_id(opened, mode)
        with for_json(as_json):
            found = retrieve(opened, embedder_of(opened), text, role or roles(opened)[0], top, mode)
        if images is not None:
            count = write_images(opened, found, images)
            err.print(f"wrote {count} of {len(found.rows)} images to {images}", markup=False, highlight=False)
        if as_json:
            plain = with_thumbnails(opened, found) if thumbnails else found.as_dict()
            json.dump(plain, sys.stdout, allow_nan=False, indent=1)
            sys.stdout.write("\n")
            return
        for part in tables(found):
            out.print(part, highlight=False)


@app.command()
def dashboard(
    run: RunFolder,
    port: Annotated[int, typer.Option(help="Port to listen on")] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs a token")] = "127.0.0.1",
    token_file: Annotated[
        Optional[Path],
        typer.Option(help="File of the token that browsers have to show; made where none is. Or put it in AUDIT_TOKEN"),
    ] = None,
    allowed_host: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME", help="A name by which others reach the report; repeat it"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the report of a run to browsers: on this machine only or, with --host and a token, to others.

    Nothing is encrypted: let others in over a private network, or through a proxy that speaks TLS.
    """
    from audit.results.sql import Run
    from pipelines.errors import InfrastructureError
    from pipelines.report import access, serve, token_of

    with exit_codes():
        Run(located(run))
        to = access(host, allowed_host or (), token_of(token_file))
        if as_json:
            print_json({"run": absolute(located(run)), "url": to.url(port)})
        with for_json(as_json):
            code = serve(located(run), port, to, token_file)
        if code:
            raise InfrastructureError(f"the report's server ended; is port {port} free? Name another with --port")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Report versions, devices, Ray, weights and write access, and what to do about what is broken."""
    from pipelines.doctor import checks

    if as_json:
        with for_json(as_json):
            found = [asdict(check) for check in checks()]
        print_json(found)
        raise typer.Exit(0 if all(check["ok"] for check in found) else 4)
    broken = 0
    for check in checks():
        mark = "[green]ok[/green]    " if check.ok else "[red]broken[/red]"
        broken += not check.ok
        out.print(f"{mark} {escape(check.name):<14} {escape(check.found)}", highlight=False)
        if check.advice:
            out.print(f"       {'':<14} {escape(check.advice)}", highlight=False)
    if broken:
        raise typer.Exit(4)


register_findings(app)
register_submission(app)
register_upkeep(app)


def main() -> None:
    quieten()
    app()


if __name__ == "__main__":
    main()
