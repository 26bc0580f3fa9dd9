"""Jobs on a remote Ray cluster, through Ray's Job API: the job file travels, data and results stay with the cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from audit.config import Job, parse_job, parse_yaml
from audit.errors import ConfigError, unknown
from audit.locations import is_uri
from pipelines.errors import InfrastructureError

STOPPED = 143  # as of a process that ended by SIGTERM
INFRASTRUCTURE = 4
STOP_SECONDS = 60
START_SECONDS = 180
POLL_SECONDS = 1.0

# Set, they would win over the address that was asked for.
_OTHER_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_NOT_FOUND = (126, 127)
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True)
class Submission:
    """A submitted job. `status`: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; `exit_code`: None until its end.

    Times are ISO 8601, UTC.
    """

    submission_id: str
    run: str
    status: str
    job_file: str
    started: str | None
    ended: str | None
    exit_code: int | None
    message: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Jobs:
    """The jobs of `audit` on the cluster whose dashboard is at `address`.

    Raises ConfigError for an address that is none, InfrastructureError where the cluster cannot be reached or refuses.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._reaching(hint=_WHERE), _without(_OTHER_ADDRESSES):
            self.client = JobSubmissionClient(self.address)

    def submit(self, job_file: Path, env: Sequence[str] = (), new_run: bool = False) -> Submission:
        """Start `audit run` of this job on the cluster. Raises ConfigError where a job of its name runs already."""
        job, text = read_job(job_file)
        passed = _passed(env)
        earlier = [each for each in self.all() if each.run == job.name]
        for each in earlier:
            if each.status in ("PENDING", "RUNNING"):
                name, ways = each.submission_id, self.ways_to(each.submission_id)
                raise ConfigError(f"run {job.name!r} is already on this cluster as {name} ({each.status}). {ways}")
        submission_id = f"{job.name}-{1 + max((_number(each.submission_id) for each in earlier), default=0)}"
        with tempfile.TemporaryDirectory() as folder, self._reaching(submission_id):
            (Path(folder) / job_file.name).write_text(text, "utf-8")
            self._start(
                entrypoint=entrypoint(job_file.name, new_run),
                submission_id=submission_id,
                metadata={"audit_run": job.name, "audit_job": job_file.name, "job_name": job.name},
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **passed},
                },
            )
        return self._now(submission_id)

    def _start(self, **job: Any) -> None:
        """A head that has just come up takes no job for some seconds."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.submit_job(**job)
                return
            except RuntimeError as error:
                if "No available agent" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise InfrastructureError(_NO_AGENT.format(address=self.address)) from error
            time.sleep(POLL_SECONDS)

    def all(self) -> list[Submission]:
        """All jobs that `submit` started here, the newest first."""
        with self._reaching():
            jobs = self.client.list_jobs()
        found = [_submission(each) for each in jobs if (each.metadata or {}).get("audit_run")]
        return sorted(found, key=lambda each: each.started or "9", reverse=True)

    def find(self, submission_id: str) -> Submission:
        """Raises ConfigError, naming those that are there."""
        jobs = {each.submission_id: each for each in self.all()}
        if submission_id not in jobs:
            message = unknown("submission", submission_id, jobs)
            raise ConfigError(f"{message} 'audit list --address {self.address}' shows them.")
        return jobs[submission_id]

    def logs(self, submission_id: str) -> str:
        """What the job has written so far."""
        self.find(submission_id)
        with self._reaching():
            return self.client.get_job_logs(submission_id)

    def follow(self, submission_id: str, write: Callable[[str], object]) -> Submission:
        """Write the job's logs as they come, and wait for its end."""
        self.find(submission_id)
        with self._reaching(hint=f"The job may go on. {self.ways_to(submission_id)}"):
            asyncio.run(self._tail(submission_id, write))
        return self._wait(submission_id)

    async def _tail(self, submission_id: str, write: Callable[[str], object]) -> None:
        async for part in self.client.tail_job_logs(submission_id):
            write(part)

    def stop(self, submission_id: str) -> Submission:
        """SIGTERM to the job's driver, SIGKILL a minute later; wait for its end. An ended job stays as it is."""
        if self.find(submission_id).exit_code is None:
            with self._reaching():
                self.client.stop_job(submission_id)
        return self._wait(submission_id, 2 * STOP_SECONDS)

    def _wait(self, submission_id: str, seconds: float = float("inf")) -> Submission:
        deadline = time.monotonic() + seconds
        while (job := self._now(submission_id)).exit_code is None:
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"{submission_id} has not ended after {seconds:.0f} s; 'audit list --address {self.address}' "
                    "shows when it has"
                )
            time.sleep(POLL_SECONDS)
        return job

    def _now(self, submission_id: str) -> Submission:
        with self._reaching():
            return _submission(self.client.get_job_info(submission_id))

    def ways_to(self, submission_id: str) -> str:
        """The commands that show a job and that end it."""
        return (
            f"To see it: audit logs {submission_id} --follow --address {self.address}; "
            f"to stop it: audit stop {submission_id} --address {self.address}"
        )

    @contextmanager
    def _reaching(self, submission_id: str | None = None, hint: str = "") -> Iterator[None]:
        """What Ray's client raises as errors that say what would work. `submission_id`: of a job that begins here."""
        try:
            yield
        except AuthenticationError as error:
            raise InfrastructureError(_refused(self.address, error)) from error
        except (requests.RequestException, aiohttp.ClientError, OSError, RuntimeError, KeyError, ValueError) as error:
            if submission_id and "already exists" in str(error):
                raise ConfigError(
                    f"{submission_id} was submitted at the same moment by somebody else: audit list "
                    f"--address {self.address}"
                ) from error
            raise InfrastructureError(
                f"cannot use Ray's jobs at {self.address}: {_gist(error)}. {hint}".rstrip()
            ) from error


_WHERE = (
    "The address is that of the head's dashboard, which is served on the head alone: open a way to it first, such as "
    "'ray dashboard cluster.yaml' or 'kubectl port-forward', then give http://127.0.0.1:8265"
)


_NO_AGENT = (
    "the head of {address} has no agent that starts jobs. Ray says nothing where the agent's port, 52365, was taken "
    "when the head came up, by a second Ray on that machine or by any other program: end that, or give 'ray start "
    "--head' a --dashboard-agent-listen-port that is free, and start the head again; its log is dashboard_agent.log"
)


def read_job(path: Path) -> tuple[Job, str]:
    """A job that can run on another machine, and its text. Raises ConfigError, naming the paths that are relative."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the job file {path}: {error}") from error
    raw = parse_yaml(text)
    job = parse_job(raw, path.parent.resolve())
    elsewhere = parse_job(raw, Path("/nowhere"))
    relative = [_told(raw, keys) for keys in _differences(job.numbers(), elsewhere.numbers())]
    if not is_uri(job.output.uri) and not Path(job.output.uri).is_absolute():
        relative.append(f"output.uri: {job.output.uri}")
    if relative:
        raise ConfigError(
            f"{path}: a submitted job runs on the cluster, where relative paths lead nowhere:\n  "
            + "\n  ".join(relative)
            + "\nWrite absolute paths that every node of the cluster has (shared storage), or s3://bucket/prefix where "
            "the key takes it. 'audit run' takes relative paths."
        )
    return job, text


def entrypoint(name: str, new_run: bool = False) -> str:
    """The shell command of the job: the `audit` that the head finds, else that of its Python.

    It leaves the folder of the job file, which Ray may remove while the command still runs.
    """
    arguments = f'run "$folder"/{shlex.quote(name)} --address auto --json{" --new-run" if new_run else ""}'
    return (
        'folder=$PWD; cd "${HOME:-/}"; '
        f"if command -v audit >/dev/null; then exec audit {arguments}; "
        f"else exec python3 -m pipelines.cli {arguments}; fi"
    )


def _differences(one: Any, other: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where two equally shaped plain values differ."""
    if isinstance(one, Mapping):
        for key in one:
            yield from _differences(one[key], other[key], (*keys, key))
    elif isinstance(one, list):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, (*keys, i))
    elif one != other:
        yield keys


def _told(raw: Any, keys: Iterable[str | int]) -> str:
    """A place in the job file and what it says: 'data.path: images'."""
    where = ""
    for key in keys:
        if where == "models" and isinstance(raw, list):
            raw = next(entry for entry in raw if entry["id"] == key)
        else:
            raw = raw[key]
        where += f"[{key}]" if isinstance(key, int) else f".{key}" if where else str(key)
    return f"{where}: {raw}"


def _checked(address: str) -> str:
    try:
        parts = urlsplit(address)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ConfigError(
            f"{address!r} is not the address of a cluster's dashboard; it is http://HOST:8265, or https://. "
            "(HOST:6379 is for 'audit run --address' on the cluster itself, ray:// for Ray Client, which is not used.)"
        )
    return address.rstrip("/")


def _passed(names: Sequence[str]) -> dict[str, str]:
    """These variables of the environment."""
    for name in names:
        if name not in os.environ:
            shown = name.partition("=")[0]
            raise ConfigError(
                f"--env {shown}: no such variable in this environment; set it, then pass it by its name alone"
            )
    return {name: os.environ[name] for name in names}


@contextmanager
def _without(names: Iterable[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _submission(job: JobDetails) -> Submission:
    ended = JobStatus(job.status).is_terminal()
    return Submission(
        submission_id=job.submission_id,
        run=job.metadata["audit_run"],
        status=str(job.status),
        job_file=job.metadata.get("audit_job", ""),
        started=_time(job.start_time),
        ended=_time(job.end_time),
        exit_code=_exit_code(job) if ended else None,
        message=_message(job),
    )


def _exit_code(job: JobDetails) -> int:
    """That of `audit run`; 143 for a job that was stopped, 4 for one that the cluster did not let end by itself."""
    code = job.driver_exit_code
    if job.status == JobStatus.STOPPED:
        return STOPPED
    if code is None or code < 0 or code in _NOT_FOUND:
        return INFRASTRUCTURE
    return int(code)


def _message(job: JobDetails) -> str | None:
    """What happened, where the job's own log cannot tell."""
    code = job.driver_exit_code
    if job.status == JobStatus.STOPPED:
        return "stopped; submitting it again resumes the run"
    if job.status != JobStatus.FAILED:
        return None
    if code is None:
        return f"the cluster lost the job or could not start it: {_gist(job.message or 'no reason given')}"
    if code < 0:
        return f"the driver was killed (signal {-code}); submitting the job again resumes the run"
    if code in _NOT_FOUND:
        return "the cluster's head has no 'audit' on the PATH that 'ray start' was given: install this package there"
    return None


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat("T", "seconds")


def _number(submission_id: str) -> int:
    last = submission_id.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def _refused(address: str, error: AuthenticationError) -> str:
    """Ray's client says which of the three it was in the first words of its message."""
    sources = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token, the first that is there"
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"{address} asks for a token, and none was sent: set RAY_AUTH_MODE=token, and the token in {sources}"
    if error.message.startswith("Authentication failed"):
        return (
            f"{address} does not take this token, which comes from {sources}; 'ray get-auth-token' on the head prints "
            "the cluster's"
        )
    return f"RAY_AUTH_MODE is 'token', and there is none to be found in {sources}"


def _gist(value: object) -> str:
    """One line of a message: the last of a traceback, else the first."""
    lines = [line for line in str(value).splitlines() if any(map(str.isalnum, line))] or [type(value).__name__]
    return (lines[-1] if "Traceback" in str(value) else lines[0]).strip().rstrip(".")
