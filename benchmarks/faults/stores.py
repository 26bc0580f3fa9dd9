"""Faults of an object store: a local S3 server, and before it a proxy that fails, loses answers and lies."""

from __future__ import annotations

import contextlib
import http.client
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from audit.config import load_job
from audit.results.integrity import verify
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.protocol import clean, refused
from benchmarks.faults.workload import Found, Workload, compare
from benchmarks.s3_server import environment, s3_server
from pipelines.serial import run_serially

BUCKET, ENDPOINT = "bucket", "AWS_ENDPOINT_URL"


@dataclass
class Proxy:
    """Passes requests on to the S3 server, except for what its rules do to them.

    `failing`: share of requests answered 503 without asking the server. `losing`: share of PUTs that are carried out
    and whose answer is then lost. `unconditional`: If-None-Match is dropped, as by stores that do not know it.
    `stale`: a listing of keys that was made before is answered again.
    """

    server: str
    failing: float = 0.0
    losing: float = 0.0
    unconditional: bool = False
    stale: bool = False
    seed: int = 0
    failed: int = 0
    lost: int = 0
    kept: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Yields the endpoint."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.pass_on(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self.lock:
            fails, loses = self.random.random() < self.failing, self.random.random() < self.losing
        if fails:
            self.failed += 1
            self.answer(request, 503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        headers = {
            k: v for k, v in request.headers.items() if not (self.unconditional and k.lower() == "if-none-match")
        }
        listing = request.command == "GET" and "list-type=2" in request.path
        if listing and self.stale and request.path in self.kept:
            self.answer(request, *self.kept[request.path])
            return
        connection = http.client.HTTPConnection(self.server.removeprefix("http://"), timeout=60)
        connection.request(request.command, request.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        own = ("content-length", "connection", "transfer-encoding")
        given = [(k, v) for k, v in response.getheaders() if k.lower() not in own]
        if request.command == "HEAD":
            given.append(("Content-Length", response.getheader("Content-Length") or "0"))
        if listing and not self.stale:
            self.kept[request.path] = (response.status, given, data)
        if request.command == "PUT" and loses:
            self.lost += 1
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        self.answer(request, response.status, given, data)

    @staticmethod
    def answer(request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        if request.command != "HEAD":
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)


def _faulty(folder: Path, found: Found, proxy: Callable[[str], Proxy]) -> Proxy:
    """A job whose results go through the proxy, compared with one on disk."""
    work = Workload(folder, images=24)
    root, rows = clean(work)
    shutil.rmtree(root)
    with s3_server() as direct:
        made = proxy(direct)
        uri = f"s3://{BUCKET}/runs"
        there = Workload(folder, images=24, output=uri)
        with made.serving() as endpoint, environment({ENDPOINT: endpoint}):
            run_serially(load_job(there.job("clean")), f"{uri}/clean", 8)
        with environment({ENDPOINT: direct}):
            compare(found, Run(f"{uri}/clean"), rows)
            found.bad_snapshots = len(verify(Store(f"{uri}/clean")))
            found.executions = there.executions()
    return made


def f18(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F18", "503 to every fifth request", "retries; 0 duplicates", seed=seed)
    proxy = _faulty(folder, found, lambda direct: Proxy(direct, failing=0.2, seed=seed))
    found.seen = f"{proxy.failed} requests failed"
    found.ok = proxy.failed > 10 and found.lost == found.duplicates == found.bad_snapshots == 0
    return found


def f19(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F19", "the answer to every fourth PUT is lost", "retries; 0 duplicates", seed=seed)
    proxy = _faulty(folder, found, lambda direct: Proxy(direct, losing=0.25, seed=seed))
    found.seen = f"{proxy.lost} answers lost"
    found.ok = proxy.lost > 5 and found.lost == found.duplicates == found.bad_snapshots == 0
    return found


def f20(folder: Path, seed: int, long: bool) -> Found:
    """A store that overwrites is refused before anything is written; one that honours the condition is not."""
    found = Found("F20", "a store without conditional PUT", "refused at start")
    work = Workload(folder, images=8)
    said = []
    with s3_server() as direct:
        for unconditional in (True, False):
            name = f"s3://{BUCKET}/runs-{unconditional}"
            there = Workload(folder, images=8, output=name)
            with Proxy(direct, unconditional=unconditional).serving() as endpoint, environment({ENDPOINT: endpoint}):
                job = load_job(there.job("clean"))
                said.append(refused(partial(run_serially, job, f"{name}/clean", 8)))
                said.append(str(len(Store(f"{name}/clean").names("commits"))))
    assert work.folder == folder
    found.seen = f"{said[0][:110]}; {said[1]} commits; with it: {said[3]} commits"
    found.ok = (
        "does not refuse to create an object twice" in said[0] and said[1] == "0" and not said[2] and said[3] != "0"
    )
    return found


def f21(folder: Path, seed: int, long: bool) -> Found:
    """Readers get an old listing while units are committed: they see fewer units, each of them whole."""
    found = Found("F21", "stale LIST", "older but whole")
    work = Workload(folder, images=24)
    root, rows = clean(work)
    shutil.rmtree(root)
    uri = f"s3://{BUCKET}/runs"
    there = Workload(folder, images=24, output=uri)
    seen = []
    with s3_server() as direct:
        proxy = Proxy(direct)
        with proxy.serving() as endpoint, environment({ENDPOINT: endpoint}):
            place = f"{uri}/clean"
            Store(place).create("job.json", b"{}")
            Run(place)
            Store(place).objects.delete("job.json")
            proxy.stale = True  # from here on, listings are of the empty store
            with environment({ENDPOINT: direct}):
                run_serially(load_job(there.job("clean")), place, 8)
            seen.append(len(Run(place).commits or {}))
            with environment({ENDPOINT: direct}):
                Store(place).snapshot()
            seen.append(len(Run(place).commits or {}))  # found without a listing: snapshots have dense numbers
            proxy.stale = False
            compare(found, Run(place), rows)
    total = len({row for row in rows if row.startswith("units ")}) + 1
    found.seen = f"units seen through stale listings: {seen[0]}, after a snapshot {seen[1]}, of {total}"
    found.ok = seen == [0, total] and found.lost == found.duplicates == 0
    return found


FAULTS = {"F18": f18, "F19": f19, "F20": f20, "F21": f21}
