"""The report's server, as `audit dashboard` starts it, for tests in a browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.report import Access, command, environment

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextmanager
def served(run: Path, to: Access | None = None, log: IO[bytes] | None = None) -> Iterator[str]:
    """The address at which the report of a run is served meanwhile. `log`: file for what the server prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    to = to or Access()
    where = Access(to.address).url(port)
    out = log or subprocess.DEVNULL
    server = subprocess.Popen(command(port, to), env=environment(run, to), stdout=out, stderr=out)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{where}/_stcore/health", timeout=2).close()
                break
            except urllib.error.HTTPError:
                break  # it answers: not without a token
            except OSError:
                time.sleep(0.25)
        yield where
    finally:
        server.terminate()
        server.wait(20)
