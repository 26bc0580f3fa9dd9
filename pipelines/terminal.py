"""What all commands share: where they print, how they end, and how a table's cells look."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audit.errors import ConfigError, DataError, DataUnavailable, ModelError, RowError, StoreError
from audit.locations import Location, is_uri
from audit.results.warnings import RunWarning

out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)

RunFolder = Annotated[str, typer.Argument(help="A run's folder, such as runs/demo, or its s3:// URI", metavar="RUN")]
JobFile = Annotated[Path, typer.Argument(help="A job file in YAML", metavar="JOB")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, and nothing else there")]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Errors as one message and the exit code of their kind."""
    from pipelines.errors import HeadLost, InfrastructureError, LimitReached, Terminated

    try:
        yield
    except (ConfigError, DataError, ModelError, InfrastructureError, StoreError, RowError) as error:
        _say(f"[bold red]error:[/bold red] {escape(str(error))}")
        passes = isinstance(error, (DataUnavailable, InfrastructureError, StoreError, RowError))
        if isinstance(error, HeadLost):
            sys.stdout.flush()
            os._exit(4)  # at a usual end, Ray's client waits for its head, and then ends the process with 1
        raise typer.Exit(4 if passes else 2) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"[bold red]error:[/bold red] {escape(f'{where}{error.strerror or error}')}")
        raise typer.Exit(4) from error
    except LimitReached as error:
        _say(f"[bold yellow]stopped:[/bold yellow] {escape(str(error))}")
        raise typer.Exit(5) from error
    except (KeyboardInterrupt, Terminated) as error:
        _say("stopped; the same command, without --new-run, resumes")
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from error


def _say(text: str) -> None:
    """The last word of a command, where it can be written: the exit code says what kind it is all the same."""
    with suppress(OSError):
        err.print(text, highlight=False, soft_wrap=True)


@contextmanager
def for_json(asked: bool) -> Iterator[None]:
    """Where JSON is asked for, what work prints to stdout goes to stderr: models are anybody's code and may print.

    Children of the process are included.
    """
    if not asked:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_json(value: object) -> None:
    """The one value that a command prints."""
    json.dump(value, sys.stdout, indent=1, default=plain)
    sys.stdout.write("\n")


def ended(failed: int) -> None:
    """Exit code 3 where a run has failed rows, and a word on where they are."""
    if failed:
        err.print(f"{failed} rows of items, units, explanations or predictions failed: see status and reason")
        raise typer.Exit(3)


def plain(value: object) -> object:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(plain(value)) if isinstance(value, bytes) else str(value)


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of plain rows, a column a key."""
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else cell(value) for value in row.values()))
    out.print(table)


NOISY = ("transformers", "diffusers", "huggingface_hub", "datasets", "ray", "streamlit", "torch", "accelerate", "peft")


def quieten() -> None:
    """Have other libraries say what went wrong and nothing else: no progress bars, hints or deprecations.

    Variables of the environment that are set already stay as they are; child processes see them too.
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # a hint at each start of a cluster
    for name in NOISY:
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def print_warnings(found: Sequence[RunWarning]) -> None:
    """Warnings of a job or a run, a line each, on stderr."""
    for warning in found:
        style, kind = ("bold red", "blocking warning") if warning.blocks_gate else ("bold yellow", "warning")
        text = f"[{style}]{kind}:[/{style}] {escape(warning.text)} [dim]({escape(warning.code)})[/dim]"
        _say(text)


def shown(location: Location) -> str:
    """A run as its reader would type it."""
    relative = os.path.relpath(location) if not is_uri(location) else str(location)
    return str(location) if relative.startswith("..") else relative
