"""The `audit` command. Exit codes: 0 ok, 2 bad configuration, 3 finished with failed items, 4 infrastructure."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audit.errors import ConfigError, DataError, ModelError, StoreError
from pipelines import submission_cli

app = typer.Typer(
    help="Find out where and why image classifiers fail.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(
    help="The embedded world: scenes, models with planted failure modes, and the audit's own score.",
    no_args_is_help=True,
)
app.add_typer(zoo_app, name="zoo")

out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)

RunFolder = Annotated[Path, typer.Argument(help="A run's folder, such as runs/demo", metavar="RUN")]
JobFile = Annotated[Path, typer.Argument(help="A job file in YAML", metavar="JOB")]


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors as one message and the exit code of their kind."""
    from pipelines.runner import InfrastructureError

    try:
        yield
    except (ConfigError, DataError, ModelError) as error:
        err.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error
    except (InfrastructureError, StoreError) as error:
        err.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False)
        raise typer.Exit(4) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        err.print(f"[bold red]error:[/bold red] {escape(f'{where}{error.strerror or error}')}", highlight=False)
        raise typer.Exit(4) from error
    except KeyboardInterrupt as error:
        err.print("stopped; the same command, without --new-run, resumes")
        raise typer.Exit(130) from error


@app.command()
def init(
    model: Annotated[str, typer.Option(help="Model to audit: folder, hub id, zoo:<name> or file.py:function")],
    data: Annotated[Path, typer.Option(help="Labelled images: a folder with a sub-folder a class, or Parquet")],
    against: Annotated[Optional[str], typer.Option(help="Second model to compare with")] = None,
    job: Annotated[Path, typer.Option(help="Where to write the job file")] = Path("job.yaml"),
) -> None:
    """Write a commented job file for your own model and data."""
    from pipelines.init import job_text

    with _exit_codes():
        if job.exists():
            raise ConfigError(f"{job} exists; name another file with --job")
        text = job_text(model, data, against)
        try:
            job.write_text(text, "utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {job}: {error.strerror}; name another file with --job") from error
        out.print(f"wrote {job}; next: audit validate {job}, then: audit run {job}")


@app.command()
def validate(job: JobFile) -> None:
    """Check a job file: keys, options, models, and that the data can be listed."""
    from pipelines.execute import validate as check

    with _exit_codes():
        checked = check(job)
        out.print(f"{job} is fine: {len(checked.models)} models, {len(checked.stages)} stages")


@app.command()
def run(
    job: JobFile,
    address: Annotated[
        Optional[str], typer.Option(help="A Ray cluster; default: one of its own on this machine")
    ] = None,
    new_run: Annotated[bool, typer.Option(help="Start over beside an existing run of this name")] = False,
    json_lines: Annotated[
        Optional[bool], typer.Option("--json/--no-json", help="Progress as JSON lines; default: unless on a terminal")
    ] = None,
) -> None:
    """Run a job, or resume it where it stopped."""
    from audit.results.sql import Run
    from pipelines.execute import execute

    with _exit_codes():
        outcome = execute(job, address=address, new_run=new_run, as_json=json_lines)
        _print_findings(Run(outcome.root))
        root = os.path.relpath(outcome.root)
        out.print(f"\nfinished in {outcome.seconds:.0f} s: {root}", highlight=False)
        audit = "audit" if shutil.which("audit") else os.path.relpath(sys.argv[0])
        out.print(f"open the report:  {audit} dashboard {root}", highlight=False)
        out.print(f'ask questions:    {audit} sql {root} "select * from failure_modes"', highlight=False)
        if outcome.failed:
            err.print(
                f"{outcome.failed} rows of items, units, explanations or predictions failed: see status and reason"
            )
            raise typer.Exit(3)


def _print_findings(opened: object) -> None:
    from audit.results.sql import Run

    assert isinstance(opened, Run)
    modes = opened.failure_modes()
    if not modes:
        return
    table = Table(title="failure modes", title_justify="left")
    for column in (
        "verdict",
        "model",
        "says",
        "when the image is",
        "support",
        "disagreement near it (starts)",
        "p",
        "impact",
    ):
        table.add_column(column, justify="right" if column in ("support", "p", "impact") else "left")
    for mode in modes:
        rates = "no real images"
        if mode["evidence_rate"] is not None:
            rates = f"{mode['evidence_rate']:.0%} ({mode['control_rate']:.0%})"
        cells = [
            mode["verdict"],
            mode["model_id"],
            mode["class_name"],
            mode["name"],
            f"{mode['support']}/{mode['seeds']}",
        ]
        p = "" if mode["p_corrected"] is None else f"{mode['p_corrected']:.1g}"
        impact = "" if mode["impact"] is None else f"{mode['impact']:.1%}"
        style = "bold" if mode["verdict"] == "confirmed" else "dim"
        table.add_row(*map(escape, [*cells, rates, p, impact]), style=style)
    out.print(table)


@app.command()
def status(run: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False) -> None:
    """How far a run is, from its files alone."""
    from audit.results.sql import Run
    from pipelines.status import stages_of

    with _exit_codes():
        stages = stages_of(Run(run))
        if as_json:
            out.print_json(json.dumps(stages))
            return
        table = Table()
        for column in ("stage", "units done", "units", "quarantined", "seconds of work"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage in stages:
            planned = "not planned yet" if stage["units"] is None else str(stage["units"])
            table.add_row(
                stage["stage"], str(stage["done"]), planned, str(stage["quarantined"]), f"{stage['seconds']:.0f}"
            )
        out.print(table)


@app.command()
def sql(
    run: RunFolder,
    query: Annotated[str, typer.Argument(help="A query over the run's tables", metavar="QUERY")],
    format: Annotated[Literal["table", "csv", "json", "parquet"], typer.Option(help="How to print")] = "table",
    output: Annotated[Optional[Path], typer.Option(help="File to write; needed for parquet")] = None,
) -> None:
    """Ask a run's tables in SQL (DuckDB)."""
    from audit.results.sql import Run

    with _exit_codes():
        if output is not None and not output.absolute().parent.is_dir():
            raise ConfigError(f"no folder {output.parent} to write {output.name} to")
        result = Run(run).sql(query)
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
                json.dump(named, file, default=_plain, indent=1)
                file.write("\n")
            elif format == "csv":
                writer = csv.writer(file)
                writer.writerow(result.column_names)
                writer.writerows([v if isinstance(v, float) else _cell(v) for v in row] for row in rows)
            else:
                table = Table()
                for name in result.column_names:
                    table.add_column(name, overflow="fold")
                for row in rows:
                    table.add_row(*(escape(_cell(value)) for value in row))
                Console(file=file, width=None if file.isatty() else 240).print(table)


@contextmanager
def _stdout() -> Iterator[TextIO]:
    yield sys.stdout


def _plain(value: object) -> object:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(_plain(value)) if isinstance(value, bytes) else str(value)


@app.command()
def retrieve(
    run: RunFolder,
    query: Annotated[str, typer.Argument(help="What the images show; after -- where it begins with a dash")],
    top: Annotated[int, typer.Option(help="How many images, the most similar ones")] = 20,
    role: Annotated[Literal["pool", "data", "both"], typer.Option(help="Among which images")] = "pool",
    mode: Annotated[
        Optional[str], typer.Option(help="A failure_mode_id: test whether its models disagree more on these images")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="With --json: small pictures, base64 of WebP")
    ] = False,
    images: Annotated[Optional[Path], typer.Option(help="New folder to write the images to")] = None,
) -> None:
    """Find real images by words, and what the models say of them."""
    from audit.results.sql import Run
    from audit.retrieval import checked_query, embedder_of, retrieve
    from pipelines.retrieve import tables, with_thumbnails, write_images

    with _exit_codes():
        opened = Run(run)
        text = checked_query(query)  # before the seconds that the text model takes to load
        found = retrieve(opened, embedder_of(opened), text, role, top, mode)
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
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1")] = 8501,
) -> None:
    """Open the report of a run in a browser, on this machine only."""
    from audit.results.sql import Run
    from pipelines.report import serve
    from pipelines.runner import InfrastructureError

    with _exit_codes():
        Run(run)
        if serve(run.resolve(), port):
            raise InfrastructureError(f"the report's server ended; is port {port} free? Name another with --port")


@app.command()
def doctor() -> None:
    """Report versions, devices, Ray, weights and write access, and what to do about what is broken."""
    from pipelines.doctor import checks

    broken = 0
    for check in checks():
        mark = "[green]ok[/green]    " if check.ok else "[red]broken[/red]"
        broken += not check.ok
        out.print(f"{mark} {escape(check.name):<14} {escape(check.found)}", highlight=False)
        if check.advice:
            out.print(f"       {'':<14} {escape(check.advice)}", highlight=False)
    if broken:
        raise typer.Exit(4)


@zoo_app.command("export")
def zoo_export(
    folder: Annotated[Path, typer.Argument(help="Folder to write to")],
    split: Annotated[str, typer.Option(help="labelled, pool, heldout or train")] = "labelled",
    layout: Annotated[
        Literal["folder", "parquet"], typer.Option(help="ImageFolder with metadata, or Parquet")
    ] = "folder",
    limit: Annotated[Optional[int], typer.Option(help="Only the first so many scenes")] = None,
) -> None:
    """Write a split of the embedded world as users' data looks."""
    from audit.zoo.export import export

    with _exit_codes():
        out.print(f"wrote {export(split, folder, layout, limit)} scenes to {folder}")


@zoo_app.command("train")
def zoo_train(
    model: Annotated[
        str,
        typer.Argument(help="Model to train: autoencoder, diffusion, clip, reference, shortcut-a, shortcut-b, or all"),
    ],
    work: Annotated[Path, typer.Option(help="Folder of checkpoints and rendered scenes; the same one resumes")] = Path(
        "zoo-work"
    ),
    weights: Annotated[
        Optional[Path], typer.Option(help="Where to write the weights; default: into the package")
    ] = None,
    minutes: Annotated[
        Optional[float], typer.Option(help="Stop after so many minutes; the same command resumes")
    ] = None,
    short: Annotated[bool, typer.Option(help="A few steps of everything, to see that the recipe runs")] = False,
) -> None:
    """Train a model of the world again, from its seed; resumes from its checkpoint."""
    from audit.zoo.recipes.loop import Unfinished
    from audit.zoo.recipes.train import train

    with _exit_codes():
        try:
            train(model, work, weights, minutes=minutes, short=short)
        except Unfinished as stopped:
            out.print(str(stopped))


@zoo_app.command("measure")
def zoo_measure(
    work: Annotated[Path, typer.Option(help="Folder for rendered scenes")] = Path("zoo-work"),
) -> None:
    """Measure every shipped model on held-out scenes; rewrites the truth table and the model cards."""
    from audit.zoo.measure import measure_all

    with _exit_codes():
        measure_all(work)


@zoo_app.command("score")
def zoo_score(run: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False) -> None:
    """Precision and recall of a run's failure modes against the planted ones, beside a screen-only baseline."""
    from audit.results.sql import Run
    from audit.zoo.score import score

    with _exit_codes():
        result = score(Run(run))
        if as_json:
            out.print_json(json.dumps(result.as_dict()))
        else:
            result.print(out)


@zoo_app.command("neurons")
def zoo_neurons(
    run: RunFolder,
    work: Annotated[Path, typer.Option(help="Folder for rendered scenes")] = Path("zoo-work"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Whether a run's suspect neurons are those that carry the planted features, and whether they trigger the class."""
    from audit.results.sql import Run
    from audit.zoo.neurons import measure

    with _exit_codes():
        report = measure(Run(run), work)
        if as_json:
            out.print_json(json.dumps(report.as_dict()))
        else:
            report.print(out)


@zoo_app.command("counterfactuals")
def zoo_counterfactuals(
    run: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False
) -> None:
    """Judge a run's counterfactuals: flips, distances, what the world's CLIP sees, and what of the change flips."""
    from audit.results.sql import Run
    from audit.zoo.counterfactuals import figures, planted

    with _exit_codes():
        opened = Run(run)
        tables = {"stages": figures(opened), "planted": planted(opened)}
        if as_json:
            out.print_json(json.dumps(tables))
            return
        for title, rows in tables.items():
            _print_rows(title, rows)


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of plain rows, a column a key."""
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else _cell(value) for value in row.values()))
    out.print(table)


submission_cli.register(app, _exit_codes)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
