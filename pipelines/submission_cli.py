"""`audit submit`, `logs`, `stop` and `list`: jobs on a remote Ray cluster."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.terminal import err, exit_codes, out, print_json

if TYPE_CHECKING:
    from pipelines.submit import Submission

Address = Annotated[
    str,
    typer.Option(help="The dashboard of the cluster's head, such as http://head:8265", envvar="RAY_API_SERVER_ADDRESS"),
]
Id = Annotated[str, typer.Argument(help="A submission's id; 'audit list' shows them", metavar="ID")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value; logs that are followed go to stderr")]


def submit(
    job: Annotated[Path, typer.Argument(help="A job file in YAML, with absolute paths or URIs", metavar="JOB")],
    address: Address,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the logs to the end of the job")] = True,
    new_run: Annotated[bool, typer.Option(help="Start over beside an existing run of this name")] = False,
    env: Annotated[
        Optional[list[str]], typer.Option(help="Pass this variable of the environment to the job; may be repeated")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job on a remote Ray cluster, or resume it there; exits as the job does."""
    from pipelines.submit import Jobs

    jobs = Jobs(address)
    started = jobs.submit(job, env or (), new_run)
    name = started.submission_id
    if wait:
        _say(f"submitted {name}; Ctrl-C leaves it running")
        _follow(jobs, name, as_json)
    elif as_json:
        print_json(started.as_dict())
    else:
        out.print(name, highlight=False)


def logs(
    submission_id: Id,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", help="To the end of the job; exits as the job does")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a submitted job has written."""
    from pipelines.submit import Jobs

    jobs = Jobs(address)
    if follow:
        _follow(jobs, submission_id, as_json)
        return
    text = jobs.logs(submission_id)
    if as_json:
        print_json({**jobs.find(submission_id).as_dict(), "logs": text})
    else:
        sys.stdout.write(text)


def stop(submission_id: Id, address: Address, as_json: AsJson = False) -> None:
    """Stop a submitted job; what it has finished stays, and submitting it again resumes it."""
    from pipelines.submit import Jobs

    _told(Jobs(address).stop(submission_id), as_json)


def list_jobs(address: Address, as_json: AsJson = False) -> None:
    """The jobs that were submitted to a cluster, the newest first."""
    from pipelines.submit import Jobs

    found = Jobs(address).all()
    if as_json:
        print_json([job.as_dict() for job in found])
        return
    table = Table()
    for column in ("id", "run", "status", "exit code", "started", "job file"):
        table.add_column(column, overflow="fold")
    for job in found:
        code = "" if job.exit_code is None else str(job.exit_code)
        cells = (job.submission_id, job.run, job.status, code, job.started or "", job.job_file)
        table.add_row(*map(escape, cells))
    out.print(table)


def register(app: typer.Typer) -> None:
    for name, command in (("submit", submit), ("logs", logs), ("stop", stop), ("list", list_jobs)):
        app.command(name)(_guarded(command))


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def guarded(*arguments: Any, **options: Any) -> None:
        with exit_codes():
            command(*arguments, **options)

    return guarded


def _follow(jobs: Any, submission_id: str, as_json: bool) -> None:
    """Logs as they come, then exit as the job does. Ctrl-C ends this command and not the job."""
    stream = sys.stderr if as_json else sys.stdout

    def write(part: str) -> None:
        stream.write(part)
        stream.flush()

    try:
        ended = jobs.follow(submission_id, write)
    except KeyboardInterrupt as error:
        _say(f"{submission_id} goes on. {jobs.ways_to(submission_id)}")
        raise typer.Exit(130) from error
    _told(ended, as_json)
    if ended.exit_code:
        raise typer.Exit(ended.exit_code)


def _told(job: Submission, as_json: bool) -> None:
    if as_json:
        print_json(job.as_dict())
        return
    message = f"{job.submission_id}: {job.status}, exit code {job.exit_code}"
    _say(f"{message}; {job.message}" if job.message else message)


def _say(message: str) -> None:
    """To stderr, in one line, so that commands in it can be copied."""
    err.print(message, markup=False, highlight=False, soft_wrap=True)
