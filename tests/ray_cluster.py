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


def start_commands(config: dict[str, Any], role: str) -> list[str]:
    """Those of the head or of a worker, but `ray stop`, which would end every Ray of this machine."""
    return [line for line in config[f"{role}_start_ray_commands"] if not line.endswith("ray stop")]


class RayCluster:
    """A head and workers with a token, in a home of their own. What is changed in the commands: ports, CPUs."""

    def __init__(self, file: Path, workers: int = 2) -> None:
        self.config = yaml.safe_load(file.read_text("utf-8"))
        self.workers = workers
        self.home = Path(tempfile.mkdtemp(prefix="au-", dir="/tmp"))  # short: paths of sockets end at 107 bytes
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.driver_address = f"127.0.0.1:{self.port}"
        self.token = uuid.uuid4().hex
        self.mark = uuid.uuid4().hex

    def environment(self, **more: str) -> dict[str, str]:
        """What a user on this cluster's home has: no variable of Ray or of a cloud but those given."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RAY_", "AWS_")) and key != "PYTHONPATH"
        }
        return {**kept, "HOME": str(self.home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}

    def start(self) -> None:
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
        line = re.sub(r"--object-manager-port=\d+", f"--object-manager-port={free_port()}", line)
        line = line.replace("--num-cpus=0", "--num-cpus=1")
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
        """Those of this cluster: they carry its mark, or descend from one that does."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended since, or is not ours
                if process.environ().get(MARK) == self.mark:
                    found.update({each.pid: each for each in (process, *process.children(recursive=True))})
        return list(found.values())

    def commands(self, ending: str) -> list[psutil.Process]:
        """Processes one of whose arguments ends so."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):  # it has ended since
                if any(part.endswith(ending) for part in process.cmdline()):
                    found.append(process)
        return found

    def stop(self) -> None:
        """Kill what carries the mark, until nothing does."""
        for _ in range(50):
            processes = self.processes()
            if not processes:
                break
            for process in processes:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.home, ignore_errors=True)


def code_blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language in Markdown."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
