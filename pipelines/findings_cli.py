"""Commands on what was found: people's verdicts, comparison with another run, whether a model may ship, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer
from rich.markup import escape
from rich.table import Table

from audit.errors import ConfigError
from audit.locations import located, name_of
from pipelines.terminal import AsJson, RunFolder, cell, err, exit_codes, for_json, out, print_json, shown

if TYPE_CHECKING:
    from audit.comparison import Change
    from audit.results.sql import Run
    from audit.review.paired_accuracy import Accuracy

Renamed = Annotated[
    Optional[list[str]],
    typer.Option("--model", metavar="OLD=NEW", help="What a model of the first run is called in the second; repeat it"),
]


def review(
    run: RunFolder,
    subject: Annotated[
        str, typer.Argument(help="A failure mode's rank, name or id; or the id of an explanation or a neuron")
    ],
    verdict: Annotated[str, typer.Argument(help="bug, expected, 'needs review' or 'not a failure'")],
    note: Annotated[str, typer.Option(help="Why")] = "",
    reviewer: Annotated[Optional[str], typer.Option(help="Who says so; default: the name of the account")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what you think of a finding. Earlier verdicts stay; the last one counts."""
    from audit.results.sql import Run
    from audit.review.findings import subject_id
    from audit.reviews import review

    with exit_codes():
        opened = Run(located(run))
        row = review(opened, subject_id(opened, subject), verdict, note, reviewer)
        if as_json:
            print_json({**row, "reviewed_at": row["reviewed_at"].isoformat()})
        else:
            out.print(f"{row['reviewer']} calls {subject}: {verdict}", markup=False, highlight=False)


def compare(
    before: Annotated[str, typer.Argument(help="The run of before", metavar="BEFORE")],
    after: Annotated[str, typer.Argument(help="The run of now; may be the same one", metavar="AFTER")],
    model: Renamed = None,
    as_json: AsJson = False,
) -> None:
    """What changed between two runs, or two models of one: failure modes new, fixed and unchanged, and accuracy."""
    from audit.comparison import compare
    from audit.results.sql import Run

    with exit_codes():
        first, second = Run(located(before)), Run(located(after))
        for side in (first, second):
            _is_finished(side)
        found = compare(first, second, _renamed(model))
        if as_json:
            print_json(found.as_dict())
            return
        if found.changes:
            out.print(_table("failure modes", [_cells(change) for change in found.changes]))
        else:
            out.print("neither run has confirmed a failure mode of these models")
        out.print(_table("on the labelled images that both runs have", [_accuracy(one) for one in found.accuracy]))
        for one in found.accuracy:
            if one.note:
                out.print(one.note, markup=False, highlight=False)
        for worse in found.worse:
            out.print(f"worse: {worse}", markup=False, highlight=False)


def gate(
    run: RunFolder,
    rules: Annotated[Path, typer.Option(help="Rules in YAML, such as examples/ci/gate.yaml")],
    baseline: Annotated[Optional[str], typer.Option(help="The run of before; default: what the rules name")] = None,
    junit: Annotated[Optional[Path], typer.Option(help="File for the outcome as JUnit XML")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold a finished run against rules. Exits with 1 where it breaks one."""
    from audit import gate as gates
    from audit.results.sql import Run

    with exit_codes():
        read = gates.load_rules(rules)
        opened, before = Run(located(run)), located(baseline) if baseline else read.baseline
        against = None if before is None else Run(before)
        for side in (opened, against):
            if side is not None:
                _is_finished(side)
        outcomes = gates.check(read, opened, against)
        passed = all(outcome.passed for outcome in outcomes)
        if as_json:
            print_json({"passed": passed, "rules": [outcome.as_dict() for outcome in outcomes]})
        else:
            for outcome in outcomes:
                mark = "[green]passed[/green]" if outcome.passed else "[red]failed[/red]"
                out.print(f"{mark}  {escape(outcome.name)}: {escape(outcome.message)}", highlight=False)
                for mode in () if outcome.passed else outcome.modes:
                    out.print(f"          {escape(mode)}", highlight=False)
        if junit is not None:
            junit.write_bytes(gates.junit(outcomes, shown(opened.location)))
        raise typer.Exit(0 if passed else 1)


def export(
    run: RunFolder,
    to: Annotated[Literal["html", "parquet", "csv", "notebook"], typer.Option(help="What to write")],
    output: Annotated[Optional[Path], typer.Option(help="Where to; default: by the run's name, in this folder")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a run's results out: a report in one file that opens offline, its tables, or a notebook.

    CSV has names as they are: a spreadsheet has to import them as text, lest it takes one for a formula.
    """
    from audit import exporters, registry
    from audit.results.sql import Run

    with exit_codes():
        opened = Run(located(run))
        suffix = registry.plugin("exporters", to).SUFFIX
        target = output or Path(f"{name_of(opened.location)}{suffix or f'-{to}'}")
        exporters.export(opened, to, target)
        size = sum(file.stat().st_size for file in ([target] if target.is_file() else target.iterdir()))
        if as_json:
            print_json({"written": str(target.resolve()), "bytes": size})
        else:
            out.print(f"wrote {target}, {size / 1e6:.1f} MB", highlight=False)


def reproduce(
    run: RunFolder,
    explanation: Annotated[
        str,
        typer.Argument(help="An explanation's id; or a failure mode's rank or name", metavar="EXPLANATION"),
    ],
    images: Annotated[Optional[Path], typer.Option(help="New folder for the images that are made")] = None,
    as_json: AsJson = False,
) -> None:
    """Make one explanation again on this machine, and compare it with the run's. Exits with 1 where it is another."""
    from audit.results.sql import Run
    from audit.review.findings import explanation_id
    from pipelines.reproduce import reproduce, write_images

    with exit_codes():
        if images is not None and images.exists():
            raise ConfigError(f"{images} exists; name another folder")
        explanation = explanation_id(Run(located(run)), explanation)
        with for_json(as_json):
            made = reproduce(located(run), explanation)
        if images is not None:
            write_images(made, images)
        if as_json:
            print_json(made.as_dict())
        else:
            told = [{"": key, "stored": cell(a), "now": cell(b)} for key, a, b in made.shown if (a, b) != (None, None)]
            out.print(_table(f"{explanation}: {made.outcome}", told))
        raise typer.Exit(1 if made.outcome == "different" else 0)


def slice_(
    run: RunFolder,
    mode: Annotated[str, typer.Argument(help="A failure mode's rank, name or id", metavar="MODE")],
    folder: Annotated[Path, typer.Argument(help="New folder to write the images to", metavar="FOLDER")],
    as_json: AsJson = False,
) -> None:
    """Write the real images of a failure mode as a data set of their own, to label, to train or to test with.

    They are its evidence: of the half of the images that was asked about it, 1,000 at most. In metadata.csv `label` is
    the data set's; where it is empty, `suggested_label` is what the other model says, which nobody has checked.
    """
    from audit.results.sql import Run
    from audit.review.findings import mode_id
    from audit.slices import write_slice

    with exit_codes():
        opened = Run(located(run))
        with for_json(as_json):
            written = write_slice(opened, mode_id(opened, mode), folder)
        if as_json:
            print_json({"folder": str(folder.resolve()), "images": written.images, "gone": written.gone})
            return
        out.print(f"wrote {written.images} images and metadata.csv to {folder}", highlight=False)
        if written.gone:
            err.print(f"{written.gone} more are gone from their data set, or are others now")


def _is_finished(run: Run) -> None:
    """Raises ConfigError for a run with work left: what it did not look for, it could not find."""
    from audit.runs import unfinished

    left = unfinished(run)
    if left:
        raise ConfigError(f"{run.location} is not finished: {left}; 'audit run' with its job file goes on")


def _renamed(given: list[str] | None) -> dict[str, str]:
    """Of 'old=new', each."""
    renamed: dict[str, str] = {}
    for text in given or []:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise ConfigError(f"--model {text!r} is not OLD=NEW, such as --model v1=v2")
        renamed[old] = new
    return renamed


def _cells(change: Change) -> dict[str, str]:
    impacts = ["-" if row is None else f"{row['impact'] or 0:.1%}" for row in (change.before, change.after)]
    names = {"": change.status, "model": change.model_id, "says": change.class_name, "when the image is": change.name}
    return {**names, "impact before, after": ", ".join(impacts), "because": change.reason}


def _accuracy(one: Accuracy) -> dict[str, str]:
    before, after = (f"{share:.2%}" if one.images else "" for share in (one.before, one.after))
    shares = {"model": one.model_id, "images": f"{one.images:,}", "before": before}
    counts = {"after": after, "fixed": str(one.fixed), "broken": str(one.broken)}
    return {**shares, **counts, "p": f"{one.p_value:.1g}"}


def _table(title: str, rows: list[dict[str, str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    return table


def register(app: typer.Typer) -> None:
    for command in (review, compare, gate, export, reproduce):
        app.command()(command)
    app.command("slice")(slice_)
