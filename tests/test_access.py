"""Who gets to see the report: the real server, asked by raw sockets, with and without its token."""

from __future__ import annotations

import base64
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.errors import ConfigError
from audit.pictures import image_row
from audit.results.sql import Run
from audit.results.store import Store
from pipelines import report
from pipelines.cli import app
from pipelines.report import Access, access, command, environment, token_of
from tests.report_server import CHROMIUM, served

TOKEN = "correct-horse-battery"
LAN = "192.0.2.7"  # of a documentation network: nobody's


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = Store(tmp_path_factory.mktemp("run"))
    store.create("job.json", b'{"job": {"stages": []}}')
    store.commit("u", "1-x", {"images": [image_row(np.zeros((4, 4, 3), np.uint8), "start")]})
    return Run(store.root)


@pytest.fixture(scope="module")
def paths(run: Run) -> list[str]:
    """One of every kind of what the server has."""
    image_id = run.rows("select image_id from images")[0]["image_id"]
    streamlit = ["/_stcore/health", "/_stcore/host-config", "/_stcore/metrics", "/_stcore/agent/openapi.json"]
    return ["/", "/modes", "/static/js/none.js", "/media/none.png", "/nothing", f"/evidence/{image_id}", *streamlit]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "server.log"


@pytest.fixture(scope="module")
def guarded(run: Run, log: Path) -> Iterator[str]:
    with log.open("wb") as file, served(run.root, access("0.0.0.0", ["audit.example"], TOKEN), file) as where:
        yield where


@pytest.fixture(scope="module")
def unguarded(run: Run) -> Iterator[str]:
    with served(run.root) as where:
        yield where


def ask(where: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (of cookies the last) and body, by a plain socket: nothing is added, followed or kept."""
    place = urlsplit(where)
    assert place.hostname
    sent = {"Host": place.netloc, "Connection": "close"} | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in sent.items()), "", ""]
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = b""
        while more := connection.recv(65536):
            answer += more
            if b"HTTP/1.1 101" in answer:
                break
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    told = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return int(first.split()[1]), told, body


def handshake(where: str, path: str = "/_stcore/stream", **headers: str) -> int:
    """The status of a WebSocket's handshake: 101 where it was let in."""
    key = base64.b64encode(b"0123456789abcdef").decode()
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
    return ask(where, path, **{"Origin": where, **asked, **headers})[0]


def cookie(where: str) -> str:
    return ask(where, f"/?token={TOKEN}")[1]["set-cookie"].partition(";")[0]


def test_nothing_is_served_without_the_token(guarded: str, paths: list[str]) -> None:
    for path in paths:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            status, _, body = ask(guarded, path, method)
            assert status == 401, (method, path)
            assert b"<html" not in body
    assert handshake(guarded) == 403
    assert handshake(guarded, f"/_stcore/stream?token={TOKEN}") == 403  # not even so


def test_a_wrong_token_or_cookie_is_refused(guarded: str) -> None:
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%00", "%FF", "%C3%A9" * 20):
        status, told, _ = ask(guarded, f"/?token={wrong}")
        assert status == 401, wrong
        assert "set-cookie" not in told
    name, _, value = cookie(guarded).partition("=")
    assert TOKEN not in value
    for wrong in (f"{name}=", f"{name}={TOKEN}", f"{name}={value[:-1]}", f"{name}={value}0", f"other={value}"):
        assert ask(guarded, "/", Cookie=wrong)[0] == 401, wrong
        assert handshake(guarded, Cookie=wrong) == 403, wrong


def test_the_token_gives_a_cookie_and_the_cookie_opens_everything(guarded: str, run: Run, paths: list[str]) -> None:
    status, told, _ = ask(guarded, f"/modes?a=1&token={TOKEN}&b=x%20y")
    assert (status, told["location"]) == (303, "/modes?a=1&b=x+y")
    attributes = {part.strip().lower() for part in told["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert told["cache-control"] == "no-store"
    shown = told["set-cookie"].partition(";")[0]
    assert ask(guarded, "/", Cookie=shown)[0] == 200
    (image,) = [path for path in paths if path.startswith("/evidence/")]
    assert ask(guarded, image, Cookie=shown)[2].endswith(run.rows("select png from images")[0]["png"])
    assert {ask(guarded, path, Cookie=shown)[0] for path in paths} <= {200, 404}
    assert handshake(guarded, Cookie=shown) == 101


def test_the_redirect_leads_nowhere_else(guarded: str) -> None:
    for path in ("//evil.example/x", "///evil.example", "/\\evil.example", "/%5Cevil.example", "/%0d%0aX:%20y"):
        status, told, _ = ask(guarded, f"{path}?token={TOKEN}")
        where = told.get("location", "/")
        assert status in (303, 400)
        assert where.startswith("/")
        assert not where.startswith(("//", "/\\"))
        assert "x" not in told


def test_a_forged_host_or_origin_is_refused_whoever_asks(guarded: str, unguarded: str, paths: list[str]) -> None:
    (image,) = [path for path in paths if path.startswith("/evidence/")]
    for where, shown in ((guarded, {"Cookie": cookie(guarded)}), (unguarded, {})):
        port = urlsplit(where).port
        for path in ("/", image):
            assert ask(where, path, **shown)[0] == 200
            assert ask(where, path, Host="evil.example", **shown)[0] == 400
            for forged in ("http://evil.example", f"http://localhost:{port}", "http://127.0.0.1:1", "null"):
                assert ask(where, path, Origin=forged, **shown)[0] == 403, forged
        assert handshake(where, **shown) == 101
        assert handshake(where, Host="evil.example", **shown) in (400, 403)
        assert handshake(where, Host="evil.example", Origin="http://evil.example", **shown) in (400, 403)
        for forged in ("http://evil.example", f"http://localhost:{port}", "http://127.0.0.1:1", "null"):
            assert handshake(where, Origin=forged, **shown) == 403, forged


def test_the_names_that_were_allowed_work_and_no_others(guarded: str, unguarded: str) -> None:
    shown, port = {"Cookie": cookie(guarded)}, urlsplit(guarded).port
    for name in ("audit.example", f"audit.example:{port}", f"localhost:{port}"):
        assert ask(guarded, "/", Host=name, **shown)[0] == 200
        assert handshake(guarded, Host=name, Origin=f"http://{name}", **shown) == 101
    for name in ("www.audit.example", "audit.example.evil", "xaudit.example", LAN, "0.0.0.0"):
        assert ask(guarded, "/", Host=name, **shown)[0] == 400
    assert ask(unguarded, "/", Host="audit.example")[0] == 400
    assert handshake(unguarded, Host="audit.example", Origin="http://audit.example") in (400, 403)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")
def test_the_ipv6_loopback_serves_this_machine_alone(run: Run) -> None:
    with served(run.root, access("::1")) as where:
        assert where.startswith("http://[::1]:")
        assert ask(where, "/")[0] == 200
        assert handshake(where) == 101
        assert ask(where, "/", Host="[2001:db8::1]")[0] == 400
        with pytest.raises(OSError, match="refused"):
            ask(where.replace("[::1]", "127.0.0.1"), "/")


def test_a_page_fetches_nothing_from_elsewhere(unguarded: str) -> None:
    policy = ask(unguarded, "/")[1]["content-security-policy"]
    assert policy.startswith("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:;")
    assert f"connect-src 'self' ws://{urlsplit(unguarded).netloc} wss://{urlsplit(unguarded).netloc} data:" in policy
    assert "frame-ancestors 'self'" in policy


def test_the_token_is_neither_in_the_log_nor_in_the_command(guarded: str, log: Path) -> None:
    handshake(guarded, f"/_stcore/stream?token={TOKEN}", Cookie=cookie(guarded))
    ask(guarded, f"/?token={TOKEN}")
    said = log.read_text()
    assert TOKEN not in said
    assert cookie(guarded).partition("=")[2] not in said
    assert TOKEN not in " ".join(command(1, access("0.0.0.0", [], TOKEN)))
    assert environment(Path("run"), access("0.0.0.0", [], TOKEN))["AUDIT_TOKEN"] == TOKEN


def test_the_server_itself_opens_to_nobody_without_a_token(run: Run) -> None:
    for flags in (["--server.address=0.0.0.0"], []):
        started = [part for part in command(1, Access()) if not part.startswith("--server.address")] + flags
        done = subprocess.run(started, env=environment(run.root, Access()), capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "there is no token" in done.stdout + done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert access(host).token == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", LAN, "2001:db8::1", "::ffff:192.0.2.7", "elsewhere.example"])
def test_what_others_reach_needs_one(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", LAN)]
    if host == "elsewhere.example":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: elsewhere)
    with pytest.raises(ConfigError, match="others reach the report there, and it has no token"):
        access(host)
    given = access(host, [], TOKEN)
    assert given.token == TOKEN
    assert given.address == (LAN if host == "elsewhere.example" else host)  # bound to what was looked at


def test_names_are_those_of_the_address_and_those_given() -> None:
    assert access().hosts == ("127.0.0.1", "localhost")
    assert access("0.0.0.0", ["a.example"], TOKEN).hosts == ("127.0.0.1", "localhost", "a.example")
    assert access(LAN, [], TOKEN).hosts == ("127.0.0.1", "localhost", LAN)
    assert access("::1").hosts == ("127.0.0.1", "localhost", "::1")
    assert access("::1").url(80) == "http://[::1]:80"
    assert access("0.0.0.0", ["a.example"], TOKEN).url(80) == "http://a.example:80"
    assert access("0.0.0.0", [], TOKEN).url(80) == "http://127.0.0.1:80"
    assert access().url(80) == "http://127.0.0.1:80"
    for wrong in ("*", "http://a.example", "a.example:80", "a/b", "", "a.*.example"):
        with pytest.raises(ConfigError, match="is no host name"):
            access("0.0.0.0", [wrong], TOKEN)
    with pytest.raises(ConfigError, match="needs a token"):
        access("127.0.0.1", ["a.example"])


def test_a_name_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(ConfigError, match="no name that it can resolve"):
        access("nowhere.invalid", [], TOKEN)


def test_a_token_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    made = token_of(file)
    assert len(made) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token_of(file) == made
    assert token_of(tmp_path / "other") != made
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read this token; 'chmod 600"):
        token_of(file)
    file.chmod(0o600)
    for wrong in ("", "x" * 15, "a word and another one", "é" * 20):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="at least 16"):
            token_of(file)
    file.write_text("x" * 16 + "\n")
    assert token_of(file) == "x" * 16
    monkeypatch.delenv("AUDIT_TOKEN", raising=False)
    assert token_of(None) == ""
    monkeypatch.setenv("AUDIT_TOKEN", TOKEN)
    assert token_of(None) == TOKEN
    monkeypatch.setenv("AUDIT_TOKEN", "short")
    with pytest.raises(ConfigError, match="AUDIT_TOKEN: a token has at least 16"):
        token_of(None)


def test_the_command_refuses_with_2_and_says_what_would_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUDIT_TOKEN", raising=False)
    asked: list[Access] = []
    monkeypatch.setattr(report, "serve", lambda run, port, to, file: asked.append(to) or 0)
    shell = CliRunner()
    for host in ("0.0.0.0", "::", LAN):
        told = shell.invoke(app, ["dashboard", str(run.root), "--host", host])
        assert told.exit_code == 2, told.output
        assert "--token-file" in told.output
        assert "ssh -L" in told.output
    assert not asked
    file = tmp_path / "token"
    named = ["--token-file", str(file), "--allowed-host", "audit.example"]
    told = shell.invoke(app, ["dashboard", str(run.root), "--host", "0.0.0.0", *named])
    assert told.exit_code == 0, told.output
    assert asked == [access("0.0.0.0", ["audit.example"], file.read_text().strip())]
    assert file.read_text().strip() not in told.output
    assert shell.invoke(app, ["dashboard", str(run.root)]).exit_code == 0
    assert asked[1] == Access()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
def test_a_browser_shows_the_token_once(guarded: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(guarded)
        page.get_by_text("This report is open to whoever has its token.").wait_for()
        page.goto(f"{guarded}/modes?token={TOKEN}")
        page.get_by_role("heading", name="Failure modes").wait_for(timeout=60_000)
        assert page.url == f"{guarded}/modes"
        page.goto(guarded)
        page.get_by_text("Nothing is committed yet").wait_for(timeout=60_000)
        assert page.evaluate("document.cookie").find("audit-") == -1  # no script can read it
        browser.close()
