"""The commands before a run: write a job file for a user's model and data, and check it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.markup import escape

from audit.errors import ConfigError
from pipelines.terminal import AsJson, JobFile, err, exit_codes, for_json, out, print_json, print_warnings

if TYPE_CHECKING:
    from pipelines.init import Written
    from pipelines.validation import Validation


def validate(job: JobFile, as_json: AsJson = False) -> None:
    """Check a job file: load its models, read some images, and show one image to every model."""
    with exit_codes():
        with for_json(as_json), err.status("loading libraries") as status:
            from pipelines.validation import validate as check

            checked = check(job, status.update)
        if as_json:
            print_json(checked.as_dict())
            return
        _print(job, checked)


def _print(job: Path, checked: Validation) -> None:
    from pipelines.validation_text import lines

    for line in lines(checked):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    print_warnings(checked.warnings)
    for note in checked.notes:
        err.print(f"[bold yellow]note:[/bold yellow] {escape(note)}", highlight=False, soft_wrap=True)
    blocking = sum(warning.blocks_gate for warning in checked.warnings)
    end = f"{job} can run" if checked.warnings or checked.notes else f"{job} is fine"
    if blocking:
        end += f", but has {blocking} blocking warning{'s' * (blocking != 1)}: 'audit gate' will not pass"
    out.print(escape(f"{end}. Next: audit run {job}"), highlight=False, soft_wrap=True)


def init(
    model: Annotated[
        str,
        typer.Option(
            help="Model to audit: folder, hub id, zoo:<name>, file.py:function, torchvision:<weights>, or a table of "
            "predictions"
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Labelled images: a folder with a sub-folder a class, Parquet, a manifest (*.csv, *.tsv, *.jsonl), "
            "*.tar shards, a folder of Hugging Face datasets, s3://..., or a data set's hub id"
        ),
    ],
    against: Annotated[Optional[str], typer.Option(help="Second model to compare with")] = None,
    pool: Annotated[
        Optional[str], typer.Option(help="More images, labelled or not, on which models may disagree")
    ] = None,
    embedder: Annotated[
        Optional[str], typer.Option(help="CLIP model that names failure modes: folder, hub id or zoo:clip")
    ] = None,
    generator: Annotated[
        Optional[str],
        typer.Option(help="Stable Diffusion folder or hub id, to search for failures that no image of the data shows"),
    ] = None,
    input_size: Annotated[
        Optional[int], typer.Option(min=1, help="Side in pixels of the images that the model of file.py:function takes")
    ] = None,
    job: Annotated[Path, typer.Option(help="Where to write the job file")] = Path("job.yaml"),
    as_json: AsJson = False,
) -> None:
    """Look at your own model and data, and write a commented job file for them."""
    from pipelines.init import Request, job_file

    with exit_codes():
        if job.exists():
            raise ConfigError(f"{job} exists; name another file with --job")
        request = Request(model, data, against, pool, embedder, generator, input_size)
        ask = _ask if sys.stdin.isatty() and not as_json else None
        with for_json(as_json):
            written = job_file(request, ask)
        try:
            job.write_text(written.text, "utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {job}: {error.strerror}; name another file with --job") from error
        if as_json:
            outputs = {name: list(names) for name, names in written.outputs.items()}
            print_json({"job": str(job), "outputs": outputs, "notes": list(written.notes)})
            return
        _print_written(job, written)


def _ask(question: str, default: int) -> int:
    return int(typer.prompt(question, default=default, type=int, err=True))


def _print_written(job: Path, written: Written) -> None:
    from pipelines.validation_text import mapping

    if written.seen.images:
        classes = len(written.seen.classes)
        out.print(f"data: {written.seen.images:,} images of {classes} class{'es' * (classes != 1)}", highlight=False)
    for name, names in written.outputs.items():
        out.print(escape(f"{name}: outputs {mapping(names)}"), highlight=False, soft_wrap=True)
    for note in written.notes:
        err.print(f"[bold yellow]note:[/bold yellow] {escape(note)}", highlight=False, soft_wrap=True)
    out.print(
        escape(f"wrote {job}; next: audit validate {job}, then: audit run {job}"), highlight=False, soft_wrap=True
    )


def register(app: typer.Typer) -> None:
    for command in (init, validate):
        app.command()(command)
