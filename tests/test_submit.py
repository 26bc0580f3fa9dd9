"""`audit submit`, `logs`, `stop`, `list` on a cluster of several raylets, started by the commands of cluster.yaml."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.job_submission import JobDetails
from typer.testing import CliRunner

import pipelines.submit
from audit.errors import ConfigError
from audit.results.sql import Run
from audit.zoo.export import export
from pipelines.cli import app
from pipelines.errors import InfrastructureError
from pipelines.submit import Jobs, Submission, _submission, read_job
from tests.ray_cluster import MARK, ROOT, RayCluster, code_blocks, free_port, runs, until

JOB = """
version: 1
name: {name}
data: {{source: folder, path: {home}/labelled}}
models: [{{id: m, {model}}}]
stages: [{{kind: screen, unit_items: 10}}]
compute: {{workers: 1}}
output: {{uri: {home}/runs}}
"""
REFERENCE = 'loader: hf, ref: "zoo:reference"'


AGENT_PORT = 52365  # of Ray's agent by default


@contextmanager
def taken(port: int) -> Iterator[None]:
    """As by another Ray cluster on this machine; if there is one, it is taken already."""
    with socket.socket() as other:
        with suppress(OSError):
            other.bind(("0.0.0.0", port))
            other.listen()
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Beside something that holds the agent's default port: each test with a job shows that nothing rests on it."""
    started = RayCluster(ROOT / "cluster.yaml", workers=2)
    try:
        with taken(AGENT_PORT):
            started.start()
            export("labelled", started.home / "labelled", "folder", 20)
            (started.home / "labelled" / "zzz.png").write_bytes(b"not an image")
            yield started
    finally:
        began = started.processes()
        started.stop()
        assert not [each for each in began if runs(each)]


Credentials = Callable[[str | None], None]


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, cluster: RayCluster) -> Iterator[Credentials]:
    """Ray's client in this process: with a token, or with none."""

    def use(token: str | None) -> None:
        monkeypatch.setenv("HOME", str(cluster.home / "elsewhere"))
        monkeypatch.setenv("RAY_AUTH_MODE", "token" if token else "disabled")
        monkeypatch.setenv("RAY_AUTH_TOKEN", token or "")
        reset_auth_token_state()

    yield use
    monkeypatch.undo()
    reset_auth_token_state()


@pytest.fixture
def jobs(cluster: RayCluster, credentials: Credentials) -> Jobs:
    credentials(cluster.token)
    return Jobs(cluster.address)


def job_file(cluster: RayCluster, name: str, model: str = REFERENCE) -> Path:
    path = cluster.home / f"{name}.yaml"
    path.write_text(JOB.format(name=name, home=cluster.home, model=model))
    return path


def audit(cluster: RayCluster, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=cluster.home,
        env=cluster.environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )


def scraped(cluster: RayCluster) -> str:
    """What a Prometheus would read from the nodes, whose addresses Ray writes down for it."""
    found = []
    for file in cluster.home.rglob("prom_metrics_service_discovery.json"):
        for target in json.loads(file.read_text())[0]["targets"]:
            with suppress(OSError):
                found.append(urllib.request.urlopen(f"http://{target}/metrics", timeout=5).read().decode())
    return "\n".join(found)


def counted(cluster: RayCluster, line: str) -> None:
    """Wait for a line of Ray's metrics, which come to be read one by one."""
    until(lambda: bool(re.search(line, scraped(cluster))), f"Ray's metrics have {line}", 120)


def test_the_text_of_the_docs_runs_a_job_on_a_cluster(cluster: RayCluster) -> None:
    """The token's commands, the job file and all commands of a job, as docs/cluster.md has them."""
    text = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    shared = cluster.home / "shared"
    shared.mkdir()
    (job,) = code_blocks(text, "yaml")
    (cluster.home / "job.yaml").write_text(job.replace("/shared", str(shared)))
    blocks = [block for block in code_blocks(text, "sh") if "not run by the tests" not in block]
    script = "\n".join(["set -ex", *blocks])
    script = script.replace("/shared", str(shared)).replace("http://127.0.0.1:8265", cluster.address)
    path = f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=cluster.home,
        env=cluster.environment(PATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first-1: SUCCEEDED, exit code 0" in done.stderr
    assert re.search(r'"stage": "1-screen", "unit_id": "[0-9a-f]+", "units": "2/2", "items": "40/40"', done.stdout)
    assert "\nfirst-2\n" in done.stdout
    run = Run(shared / "runs" / "first")
    counted = run.rows("select count(*) as n, count(distinct item_id) as items from predictions")
    assert counted == [{"n": 40, "items": 40}]
    workers = run.rows("select distinct worker from units where stage = '1-screen'")
    assert len(workers) > 1  # nodes of one CPU each


def test_what_the_readme_says_submits_a_job_with_the_token_and_none_without(jobs: Jobs, cluster: RayCluster) -> None:
    """The token is in the user's home, as the text says; the mode is all that has to be asked for."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(r"`(audit submit job\.yaml --address \S+)` runs a job on a Ray cluster", text)
    assert found
    assert "`RAY_AUTH_MODE=token`" in text
    folder = cluster.home / "readme"
    folder.mkdir()
    job_file(cluster, "readme").rename(folder / "job.yaml")
    command = found[1].replace("http://127.0.0.1:8265", cluster.address)
    path = f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin"

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        said = cluster.environment(PATH=path, **environment)
        return subprocess.run(
            ["bash", "-c", command], cwd=folder, env=said, capture_output=True, text=True, check=False
        )

    refused = run(RAY_AUTH_MODE="disabled")
    assert refused.returncode == 4
    assert "asks for a token" in " ".join(refused.stderr.split())
    done = run(RAY_AUTH_MODE="token")
    assert done.returncode == 3, done.stdout + done.stderr  # one image is none
    assert Run(cluster.home / "runs" / "readme").rows("select count(*) as n from predictions") == [{"n": 20}]


def test_what_only_the_cluster_can_tell_ends_with_2(jobs: Jobs, cluster: RayCluster) -> None:
    path = job_file(cluster, "nowhere", f"loader: python, ref: '{cluster.home}/missing.py:load', class_names: [a, b]")
    log: list[str] = []
    ended = jobs.follow(jobs.submit(path).submission_id, log.append)
    assert (ended.exit_code, ended.status) == (2, "FAILED"), log
    assert "missing.py" in "".join(log)
    assert jobs.logs(ended.submission_id) == "".join(log)


@pytest.mark.parametrize(
    ("code", "status"), [(0, "SUCCEEDED"), (2, "STOPPED"), (3, "SUCCEEDED"), (4, "FAILED"), (5, "STOPPED")]
)
def test_the_rayjob_of_kubernetes_ends_as_its_operator_reads_it(
    jobs: Jobs, cluster: RayCluster, code: int, status: str
) -> None:
    """Its entrypoint in a job of this cluster, with an `audit` that ends so. The operator tries again what FAILED."""
    folder = cluster.home / f"rayjob-{code}"
    folder.mkdir()
    (folder / "audit").write_text(f"#!/bin/sh\nexit {code}\n")
    (folder / "audit").chmod(0o755)
    config, rayjob = yaml.safe_load_all((ROOT / "deploy" / "rayjob.yaml").read_text("utf-8"))
    (folder / "run.sh").write_text(config["data"]["run.sh"])
    entrypoint = rayjob["spec"]["entrypoint"].replace("/etc/audit", str(folder))
    job = jobs.client.submit_job(entrypoint=f"PATH={folder}:$PATH {entrypoint}")
    until(lambda: jobs.client.get_job_status(job).is_terminal(), "it ends")
    assert jobs.client.get_job_status(job) == status, jobs.client.get_job_logs(job)
    if status == "STOPPED":
        assert f"exit code {code}" in jobs.client.get_job_logs(job)


SLOW = """
import json, os, pathlib, time, torch
HERE = pathlib.Path(__file__).parent
class Slow(torch.nn.Module):
    def forward(self, x):
        if float(x[0].std()) > 0.01:  # a scene, and not what a module is shown when it is loaded
            (HERE / "reached").touch()
            while not (HERE / "go").exists():
                time.sleep(0.05)
        return x.mean((2, 3)).repeat(1, 3)[:, :8]  # of eight classes
def load():
    (HERE / f"seen-by-{os.environ.get('AUDIT_TEST_WORD')}.json").write_text(json.dumps(dict(os.environ)))
    return Slow()
"""


def watching(cluster: RayCluster, submission_id: str) -> None:
    """Ctrl-C ends the command that follows a job, and not the job."""
    follow = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "logs", submission_id, "--follow"],
        env=cluster.environment(RAY_AUTH_MODE="token", RAY_API_SERVER_ADDRESS=cluster.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follow.stdout is not None
    assert any("0-inventory" in line for line in follow.stdout)  # what was written before
    follow.send_signal(signal.SIGINT)
    _, said = follow.communicate(timeout=30)
    assert follow.returncode == 130, said
    assert f"audit stop {submission_id}" in said
    assert "Traceback" not in said


def test_killed_then_stopped_then_resumed(jobs: Jobs, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run in three submissions, each with the job's own exit code; while one runs, no other is let in.

    A variable goes along where it is named, and only then.
    """
    (cluster.home / "slow.py").write_text(SLOW)
    path = job_file(
        cluster, "slow", f"loader: python, ref: '{cluster.home}/slow.py:load', class_names: data, input_size: 64"
    )
    reached, go = cluster.home / "reached", cluster.home / "go"
    monkeypatch.setenv("AUDIT_TEST_WORD", "crab")
    monkeypatch.setenv("AUDIT_TEST_SECRET", "not to be seen")

    first = jobs.submit(path, env=["AUDIT_TEST_WORD"])
    assert first.submission_id == "slow-1"
    until(reached.exists, "the model is asked")
    counted(cluster, r'ray_audit_units_total{.*stage="0-inventory".*status="ok".*} 1\.0')
    counted(cluster, r'ray_audit_items_total{.*status="failed".*} 1\.0')  # one image is none
    counted(cluster, r'ray_audit_units_running{.*run="slow".*} 1\.0')
    counted(cluster, r'ray_audit_units_waiting{.*run="slow".*} 1\.0')  # of two, the model is at the first
    with pytest.raises(ConfigError, match=r"as slow-1 \(RUNNING\).*audit logs slow-1.*audit stop slow-1"):
        jobs.submit(path)
    with monkeypatch.context() as blind:  # to what another submitter has started since
        blind.setattr(jobs, "all", list)
        with pytest.raises(ConfigError, match="slow-1 was submitted at the same moment"):
            jobs.submit(path)
    watching(cluster, "slow-1")
    (driver,) = cluster.commands("/slow.yaml")
    driver.send_signal(signal.SIGKILL)
    ended = jobs.follow("slow-1", lambda part: None)
    assert (ended.status, ended.exit_code) == ("FAILED", 4)  # by its driver's death, and not by Ctrl-C
    assert "signal 9" in str(ended.message)

    reached.unlink()
    assert jobs.submit(path, env=["AUDIT_TEST_WORD"]).submission_id == "slow-2"
    until(reached.exists, "the model is asked again")
    stopped = jobs.stop("slow-2")
    assert (stopped.status, stopped.exit_code) == ("STOPPED", 143)
    assert jobs.stop("slow-2") == stopped

    go.touch()
    given = {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": "auto"}  # the address of the command wins
    done = audit(cluster, "submit", path.name, "--address", cluster.address, "--json", **given)
    assert done.returncode == 3, done.stderr  # as of `audit run`: one image is none
    ended = json.loads(done.stdout)
    assert (ended["submission_id"], ended["status"], ended["exit_code"]) == ("slow-3", "FAILED", 3)
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [each["already_done"] for each in events if each.get("event") == "stage"] == [21, 0]
    assert events[-1]["failed"] == 1  # what `audit run --json` prints at its end
    run = Run(cluster.home / "runs" / "slow")
    assert run.rows("select count(*) as n, count(distinct item_id) as items from predictions") == [
        {"n": 20, "items": 20}
    ]
    assert [(job.submission_id, job.exit_code) for job in jobs.all() if job.run == "slow"] == [
        ("slow-3", 3),
        ("slow-2", 143),
        ("slow-1", 4),
    ]
    for arguments in (["list"], ["logs", "slow-2"], ["stop", "slow-2"]):
        shown = CliRunner().invoke(app, [*arguments, "--address", cluster.address, "--json"])
        assert shown.exit_code == 0
        answer = json.loads(shown.stdout)
        stopped_job = answer[1] if arguments == ["list"] else answer
        assert stopped_job.items() >= stopped.as_dict().items()
        assert arguments[0] != "logs" or '"stage": "1-screen"' in answer["logs"]
    assert "AUDIT_TEST_SECRET" not in json.loads((cluster.home / "seen-by-crab.json").read_text())
    assert "AUDIT_TEST_WORD" not in json.loads((cluster.home / "seen-by-None.json").read_text())


def test_an_unknown_id_is_answered_with_those_that_are_there(jobs: Jobs, cluster: RayCluster) -> None:
    known = ", ".join(sorted(job.submission_id for job in jobs.all())) or "none"
    for ask in (jobs.logs, jobs.stop, jobs.find, lambda name: jobs.follow(name, print)):
        with pytest.raises(ConfigError, match=f"unknown submission 'none'.*Known: {known}"):
            ask("none")


def test_a_variable_that_is_not_set_is_refused_without_its_value(jobs: Jobs, cluster: RayCluster) -> None:
    path = job_file(cluster, "unset")
    with pytest.raises(ConfigError, match="no such variable") as caught:
        jobs.submit(path, env=["AUDIT_TEST_KEY=secret"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("f" * 32, 403)])
def test_no_token_or_a_wrong_one_is_refused(  # F38
    cluster: RayCluster, credentials: Credentials, token: str | None, status: int
) -> None:
    """By HTTP, by Ray's client, and as a driver."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(cluster.address + path, headers=headers))
        assert caught.value.code == status
    credentials(token)
    message = "does not take this token.*ray get-auth-token" if token else "asks for a token.*RAY_AUTH_MODE=token"
    with pytest.raises(InfrastructureError, match=message):
        Jobs(cluster.address)
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    job = job_file(cluster, f"refused-{status}")
    done = audit(cluster, "run", job.name, "--address", cluster.driver_address, RAY_NUM_REDIS_GET_RETRIES="2", **given)
    assert done.returncode == 4, done.stderr
    assert "cannot reach Ray" in done.stderr
    assert "InvalidAuthToken" in done.stderr


@pytest.mark.parametrize(("mode", "message"), [("disabled", "asks for a token"), ("token", "none to be found")])
def test_the_command_exits_with_4_where_it_is_refused(cluster: RayCluster, mode: str, message: str) -> None:
    """A token that is there and not to be used; and one that is to be used and not there."""
    home = cluster.home / "elsewhere"
    done = audit(cluster, "list", "--address", cluster.address, RAY_AUTH_MODE=mode, HOME=str(home))
    assert (done.returncode, done.stdout) == (4, "")
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_where_no_cluster_is() -> None:
    with pytest.raises(InfrastructureError, match=r"cannot use Ray's jobs.*port-forward"):
        Jobs(f"http://127.0.0.1:{free_port()}")


class WithoutAgent(BaseHTTPRequestHandler):
    """What a head answers whose agent has found its port taken."""

    def _answer(self, status: int, text: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        version = json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": ""})
        self._answer(200, version if self.path == "/api/version" else "[]")

    def do_POST(self) -> None:
        self._answer(500, "No available agent to submit job, please try again later.")

    def log_message(self, *_: object) -> None:
        pass


def test_a_head_that_takes_no_job_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipelines.submit, "START_SECONDS", 0)
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(name="any", home="/shared", model=REFERENCE))
    with ThreadingHTTPServer(("127.0.0.1", 0), WithoutAgent) as head:
        threading.Thread(target=head.serve_forever, daemon=True).start()
        try:
            with pytest.raises(InfrastructureError, match=r"52365.*--dashboard-agent-listen-port"):
                Jobs(f"http://127.0.0.1:{head.server_port}").submit(path)
        finally:
            head.shutdown()


@pytest.mark.parametrize(
    "address", ["auto", "head:6379", "ray://head:10001", "http://", "http://head:none", "file:///x"]
)
def test_what_is_no_address_of_a_dashboard_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:8265"):
        Jobs(address)


def test_relative_paths_are_refused_by_name(tmp_path: Path) -> None:
    """Each of them, and none of the others."""
    (tmp_path / "net").mkdir()
    path = tmp_path / "job.yaml"
    path.write_text(
        "version: 1\nname: a\n"
        "data: {source: folder, path: images}\n"
        "pool: {source: parquet, path: /shared/pool}\n"
        "models:\n"
        "  - {id: one, loader: hf, ref: net}\n"
        "  - {id: two, loader: python, ref: 'models/two.py:load', class_names: [a, b]}\n"
        "  - {id: three, loader: hf, ref: 'zoo:reference'}\n"
        "stages: [{kind: screen}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_job(path)
    named = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert named == [
        "data.path: images",
        "models.one.ref: net",
        "models.two.ref: models/two.py:load",
        "output.uri: runs",
    ]


CLUSTER_THAT_IS_KILLED = """
import os, signal, subprocess, sys
from tests.ray_cluster import MARK, ROOT, RayCluster
cluster = RayCluster(ROOT / "cluster.yaml")
cluster.watch()
marked = subprocess.Popen(["sleep", "600"], env={MARK: cluster.mark, "PATH": os.environ["PATH"]})
print(marked.pid, cluster.home, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_of_a_test_cluster_outlives_tests_that_are_killed() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", CLUSTER_THAT_IS_KILLED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pid, home = killed.stdout.split()
    until(lambda: not psutil.pid_exists(int(pid)) or not runs(psutil.Process(int(pid))), "its process ends")
    until(lambda: not Path(home).exists(), "its folder goes")


def test_an_orphan_without_its_mark_ends_with_the_cluster() -> None:
    """As Ray's agents and workers are, whose titles lie where their environment was."""
    cluster = RayCluster(ROOT / "cluster.yaml")
    shell = subprocess.run(
        ["bash", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"],
        cwd=cluster.home,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    orphan = psutil.Process(int(shell.stdout))
    assert MARK not in orphan.environ()
    assert orphan in cluster.processes()
    cluster.stop()
    assert not runs(orphan)
    assert not cluster.home.exists()


def details(status: str, code: int | None, message: str | None = None) -> Submission:
    return _submission(
        JobDetails(
            type="SUBMISSION",
            submission_id="a-1",
            status=status,
            entrypoint="audit",
            message=message,
            driver_exit_code=code,
            metadata={"audit_run": "a"},
            start_time=0,
        )
    )


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "message"),
    [
        ("PENDING", None, None, None),
        ("RUNNING", None, None, None),
        ("SUCCEEDED", 0, 0, None),
        ("FAILED", 5, 5, None),
        ("FAILED", 127, 4, "no 'audit' on the PATH"),
        ("FAILED", None, 4, "could not start it: no space"),
        ("FAILED", -15, 4, "signal 15"),
    ],
)
def test_how_a_job_ended(status: str, code: int | None, exit_code: int | None, message: str | None) -> None:
    job = details(status, code, "no space\nat all")
    assert job.exit_code == exit_code
    assert (message or "") in (job.message or "")
    assert job.started == "1970-01-01T00:00:00+00:00"


def test_of_a_traceback_the_error_is_told() -> None:
    text = "Failed to start:\nTraceback (most recent call last):\n  File 'a.py'\nOSError: no space.\n.\n"
    assert str(details("FAILED", None, text).message).endswith(": OSError: no space")
