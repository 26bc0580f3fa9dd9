"""Start the report's web server: on the loopback address, or for others who have its token."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from audit.errors import ConfigError
from audit.locations import Location, absolute, name_of

LOOPBACK = "127.0.0.1"
SHORTEST_TOKEN = 16
SETTINGS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.enableStaticServing": "false",
    "server.maxUploadSize": "1",
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",
    "global.disableWidgetStateDuplicationWarning": "true",  # lists turn their pages by their widget's state
    "client.toolbarMode": "minimal",
    "logger.hideWelcomeMessage": "true",
}
_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)


@dataclass(frozen=True)
class Access:
    """Where the report listens, under which names it may be asked for, and what a browser has to show ('': nothing)."""

    address: str = LOOPBACK
    hosts: tuple[str, ...] = (LOOPBACK, "localhost")
    token: str = ""

    def url(self, port: int) -> str:
        """An address to open; of a server on all addresses, by the first name that was allowed."""
        others = [name for name in self.hosts if name not in (LOOPBACK, "localhost", "::1") and "*" not in name]
        everywhere = ip_address(self.address).is_unspecified
        name = (others or [LOOPBACK])[0] if everywhere or others else self.address
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def access(host: str = LOOPBACK, allowed: Sequence[str] = (), token: str = "") -> Access:
    """Checks what was asked. `host`: an address, or a name that is resolved here, once; `allowed`: further names.

    Raises ConfigError for an address that others can reach, or names that others use, without a token, and for a name
    that is none.
    """
    for name in allowed:
        if not (_is_address(name) or _NAME.fullmatch(name)):
            raise ConfigError(
                f"--allowed-host {name!r} is no host name: give one without scheme and port, such as audit.example.com"
            )
    address = _resolved(host)
    if not token and not ip_address(address).is_loopback:
        raise ConfigError(
            f"--host {host}: others reach the report there, and it has no token. Give --token-file FILE, where a token "
            f"is kept or will be made; or leave --host out, and let others in by 'ssh -L 8501:{LOOPBACK}:8501'"
        )
    if not token and allowed:
        raise ConfigError(
            f"--allowed-host {allowed[0]}: a report that others reach needs a token. Give --token-file FILE, where one "
            "is kept or will be made"
        )
    names = [LOOPBACK, "localhost"]
    names += ["::1"] if ":" in address else []
    names += [] if ip_address(address).is_unspecified else [address, host.strip("[]")]
    return Access(address, tuple(dict.fromkeys([*names, *allowed])), token)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _resolved(host: str) -> str:
    """The address to listen on: of several one that others reach, so that no name hides it; IPv4 first."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _is_address(bare):
        return bare
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host!r} is no address of this machine, and no name that it can resolve") from error
    return min(found, key=lambda text: (ip_address(text).is_loopback, ":" in text, text))


def token_of(file: Path | None) -> str:
    """The token in a file that only its owner can read; it is made where nothing is. Without a file, AUDIT_TOKEN's.

    Raises ConfigError for a file that others may read, and for a token that is short or not printable ASCII.
    """
    if file is None:
        text, where = os.environ.get("AUDIT_TOKEN", ""), "AUDIT_TOKEN"
        if not text:
            return ""
    else:
        text, where = _read(file), str(file)
    if len(text) < SHORTEST_TOKEN or not re.fullmatch(r"[!-~]+", text):
        raise ConfigError(
            f"{where}: a token has at least {SHORTEST_TOKEN} letters, digits and signs without spaces, found "
            f"{len(text)} characters. Name a file that is not there, and one is made"
        )
    return text


def _read(file: Path) -> str:
    try:
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(made, "w") as new:
            new.write(secrets.token_urlsafe(32) + "\n")
    with file.open("rb") as there:
        if os.fstat(there.fileno()).st_mode & 0o077:
            raise ConfigError(f"{file}: others may read this token; 'chmod 600 {file}', or name another file")
        return there.read(4096).decode("utf-8", "replace").strip()


def command(port: int, to: Access | None = None) -> list[str]:
    """The command that serves the report; the run's folder is in AUDIT_RUN, a token in AUDIT_TOKEN."""
    to = to or Access()
    script = Path(__file__).resolve().parent.parent / "dashboard" / "serve.py"
    settings = {**SETTINGS, "server.address": to.address, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    hosts = [part for host in to.hosts for part in ("--server.allowedHosts", host)]
    return [sys.executable, "-m", "streamlit", "run", str(script), *flags, *hosts]


def environment(run: Location, to: Access) -> dict[str, str]:
    """What the server's process is told beside its command, which others on this machine can read."""
    return {**os.environ, "AUDIT_RUN": absolute(run), "AUDIT_TOKEN": to.token}


def serve(run: Location, port: int, to: Access | None = None, token_file: Path | None = None) -> int:
    """Serve until interrupted; returns the server's exit code."""
    to = to or Access()
    where = to.url(port)
    if to.token:
        where += f"/?token=...  with the token in {token_file or 'AUDIT_TOKEN'}"
    print(f"report of {name_of(run)}: {where}  (Ctrl-C ends it)", flush=True)
    server = subprocess.Popen(command(port, to), env=environment(run, to))
    signal.signal(signal.SIGTERM, _ended)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:  # whatever ends this process, nothing goes on listening
        server.terminate()
        server.wait()


def _ended(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)
