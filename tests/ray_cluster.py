"""A Ray cluster of several raylets on this machine, started by the commands that a file for `ray up` holds."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).resolve().parent.parent
MARK = "AUDIT_TEST_CLUSTER"


def free_port() -> int:
    """A free port of the system's range for clients, which lies above Ray's ports for workers (10002-19999)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for it; AssertionError with these words where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def start_commands(config: dict[str, Any], role: str) -> list[str]:
    """Those of the head or of a worker, but `ray stop`, which would end every Ray of this machine."""
    return [line for line in config[f"{role}_start_ray_commands"] if not line.endswith("ray stop")]


class RayCluster:
    """A head and workers with a token, in a home of their own. What is changed in the commands: ports, CPUs.

    Ray's default ports are one set a machine. Of the agent's (52365) no error tells: a head that finds it taken, by
    another node or another cluster of this machine, comes up and never takes a job ("No available agent").
    """

    def __init__(self, file: Path, workers: int = 2) -> None:
        self.config = yaml.safe_load(file.read_text("utf-8"))
        self.workers = workers
        self.home = Path(tempfile.mkdtemp(prefix="au-", dir="/tmp"))  # short: paths of sockets end at 107 bytes
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.driver_address = f"127.0.0.1:{self.port}"
        self.token = uuid.uuid4().hex
        self.mark = uuid.uuid4().hex
        self.guard: subprocess.Popen[bytes] | None = None

    def environment(self, **more: str) -> dict[str, str]:
        """What a user on this cluster's home has: no variable of Ray or of a cloud but those given."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RAY_", "AWS_")) and key != "PYTHONPATH"
        }
        return {**kept, "HOME": str(self.home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}

    def start(self) -> None:
        self.watch()
        (self.home / ".ray").mkdir()
        token = self.home / ".ray" / "auth_token"
        token.touch(0o600)
        token.write_text(self.token)
        (self.home / "audit-env").symlink_to(sys.prefix)
        bootstrap = {**prepare_config(self.config), "provider": {"type": "readonly"}, "file_mounts": {}}
        (self.home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(bootstrap))
        for line in start_commands(self.config, "head"):
            self._run(line)
        for _ in range(self.workers):  # one by one: nodes that start at once on one machine hinder each other
            for line in start_commands(self.config, "worker"):
                self._run(f"{line} --num-cpus=1")

    def _run(self, line: str) -> None:
        """A line as the launcher's shell runs it. `ray start` returns when its node is up."""
        line = line.replace("--port=6379", f"--port={self.port}")
        line = line.replace("$RAY_HEAD_IP:6379", self.driver_address)
        line = line.replace("--dashboard-port=8265", f"--dashboard-port={self.dashboard}")
        line = re.sub(r"--object-manager-port=\d+", "--object-manager-port=0", line)  # 0: one that is free
        line = line.replace("--num-cpus=0", "--num-cpus=1") + " --dashboard-agent-listen-port=0"
        if "--head" in line:
            line += f" --ray-client-server-port={free_port()}"
        environment = self.environment(RAY_TMPDIR=str(self.home), **{MARK: self.mark})
        done = subprocess.run(
            ["bash", "-c", line],
            env=environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"{line}\n{done.stdout}{done.stderr}")

    def processes(self) -> list[psutil.Process]:
        """Those of this cluster that run."""
        return processes_of(self.mark, self.home)

    def commands(self, ending: str) -> list[psutil.Process]:
        """Processes one of whose arguments ends so."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):  # it has ended since
                if any(part.endswith(ending) for part in process.cmdline()):
                    found.append(process)
        return found

    def watch(self) -> None:
        """A process that ends the cluster where this one ends without `stop`, such as by SIGKILL."""
        command = [sys.executable, "-m", "tests.ray_cluster", self.mark, str(self.home)]
        self.guard = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)

    def stop(self) -> None:
        """End every process of the cluster; RuntimeError names those that stay."""
        try:
            end(self.mark, self.home)
        finally:
            if self.guard is not None:
                self.guard.communicate(timeout=60)


def processes_of(mark: str, home: Path) -> list[psutil.Process]:
    """What runs with this mark in its environment or below this folder, and what descends from such a process.

    Ray writes the titles of its agents and workers over their environment, and orphans have no parent to tell.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended since, or is not ours
            if process.environ().get(MARK) == mark or Path(process.cwd()).is_relative_to(home):
                found.update((process, *process.children(recursive=True)))
    return [process for process in found - {psutil.Process()} if runs(process)]


def runs(process: psutil.Process) -> bool:
    """Whether it is there, and not only as a zombie that its parent has not asked for yet."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end(mark: str, home: Path) -> None:
    """SIGKILL until nothing is left, then remove the folder. Raises RuntimeError where something is after 10 s."""
    for _ in range(100):
        processes = processes_of(mark, home)
        if not processes:
            break
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    else:
        raise RuntimeError(f"still there: {processes_of(mark, home)}")
    shutil.rmtree(home, ignore_errors=True)


def code_blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language in Markdown."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    sys.stdin.read()  # until the process that holds the other end closes it, or is gone
    end(sys.argv[1], Path(sys.argv[2]))
