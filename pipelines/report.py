"""Start the report's web server, on the loopback address only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from audit.locations import Location, absolute, name_of

SETTINGS = {
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.enableStaticServing": "false",
    "server.maxUploadSize": "1",
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
}


def command(port: int) -> list[str]:
    """The command that serves the report; the run's folder is in AUDIT_RUN."""
    script = Path(__file__).resolve().parent.parent / "dashboard" / "serve.py"
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, "server.port": str(port)}.items()]
    hosts = [part for host in ("127.0.0.1", "localhost") for part in ("--server.allowedHosts", host)]
    return [sys.executable, "-m", "streamlit", "run", str(script), *flags, *hosts]


def serve(run: Location, port: int) -> int:
    """Serve until interrupted; returns the server's exit code."""
    print(f"report of {name_of(run)}: http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
    try:
        return subprocess.run(command(port), env={**os.environ, "AUDIT_RUN": absolute(run)}, check=False).returncode
    except KeyboardInterrupt:
        return 0
