"""Faults of an object store: a local S3 server, and before it a proxy that fails, loses answers and lies."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from audit.config import load_job
from audit.results.integrity import collect, verify
from audit.results.sql import Run
from audit.results.store import Store
from benchmarks.faults.protocol import begun, expected_rows, refused
from benchmarks.faults.workload import Found, Workload, compare, rows_of, wait_for_commits, whole
from benchmarks.s3_server import environment, s3_server
from pipelines.serial import run_serially
from pipelines.units import plan_of

BUCKET, ENDPOINT = "bucket", "AWS_ENDPOINT_URL"


@dataclass
class Proxy:
    """Passes requests on to the S3 server, except for what its rules do to them.

    `failing`: share of requests answered 503 without asking the server. `losing`: of so many PUTs one is carried
    out and its answer then lost. `unconditional`: If-None-Match is dropped, as by stores that do not know it.
    `stale`: a listing of keys that was made before is answered again. `pause`: seconds before a Parquet file is sent.

    Counted are requests that `failed`, answers that were `lost`, how often what was `hurt` by either was `asked_again`,
    and how many of these found there (412) what the lost answer had been of.
    """

    server: str
    failing: float = 0.0
    losing: int = 0
    unconditional: bool = False
    stale: bool = False
    pause: float = 0.0
    seed: int = 0
    failed: int = 0
    lost: int = 0
    asked_again: int = 0
    found_there: int = 0
    hurt: set[tuple[str, str]] = field(default_factory=set)
    kept: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random, self.puts = random.Random(self.seed), itertools.count(self.seed)
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
            fails = self.random.random() < self.failing
            loses = request.command == "PUT" and self.losing > 0 and next(self.puts) % self.losing == 0
            hurt = (request.command, request.path) in self.hurt
            self.asked_again += hurt
            self.hurt.discard((request.command, request.path))
            if fails or loses:
                self.hurt.add((request.command, request.path))
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
        if request.command == "GET" and request.path.endswith(".parquet"):
            time.sleep(self.pause)
        connection = http.client.HTTPConnection(self.server.removeprefix("http://"), timeout=60)
        connection.request(request.command, request.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        own = ("content-length", "connection", "transfer-encoding")
        given = [(k, v) for k, v in response.getheaders() if k.lower() not in own]
        if request.command == "HEAD":
            given.append(("Content-Length", response.getheader("Content-Length") or "0"))
        self.found_there += hurt and request.command == "PUT" and response.status == 412
        if listing and not self.stale:
            self.kept[request.path] = (response.status, given, data)
        if loses:
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


def _faulty(found: Found, folder: Path, proxy: Callable[[str], Proxy]) -> tuple[Proxy, bool]:
    """A job on Ray whose drivers and workers reach their results through the proxy, compared with one on disk; whether
    it ended well."""
    work = Workload(folder, images=24)
    _, rows = expected_rows(work)
    uri = f"s3://{BUCKET}/runs"
    with s3_server() as direct:
        made = proxy(direct)
        there, before = Workload(folder, images=24, output=uri), work.executions()
        with made.serving() as endpoint:
            done = there.audit("run", str(there.job("clean")), **{ENDPOINT: endpoint})
        compare(found, Run(f"{uri}/clean"), rows)
        store = Store(f"{uri}/clean")
        found.bad_snapshots, plan = len(verify(store)), plan_of(store, "1-screen")
        found.executions, found.tasks = there.executions() - before, plan.units if plan else None
    found.seen = f"exit {done.returncode} {done.stderr[-100:] if done.returncode else ''}; "
    return made, done.returncode == 0 and '"unit_failed"' not in done.stderr


def f18(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F18", "503 to every fifth request of a run on Ray", "retries; 0 duplicates", seed=seed)
    proxy, ended = _faulty(found, folder, lambda direct: Proxy(direct, failing=0.2, seed=seed))
    found.seen += f"{proxy.failed} requests failed, {proxy.asked_again} of them asked again"
    found.ok = ended and proxy.failed > 10 and proxy.asked_again == proxy.failed and whole(found)
    return found


def f19(folder: Path, seed: int, long: bool) -> Found:
    found = Found("F19", "the answer to every fourth PUT of a run on Ray is lost", "retries; 0 duplicates", seed=seed)
    proxy, ended = _faulty(found, folder, lambda direct: Proxy(direct, losing=4, seed=seed))
    found.seen += f"{proxy.lost} answers lost, {proxy.asked_again} asked again, {proxy.found_there} found there"
    found.ok = ended and proxy.lost > 5 and proxy.asked_again == proxy.lost and proxy.found_there > 2 and whole(found)
    return found


def f20(folder: Path, seed: int, long: bool) -> Found:
    """A store that overwrites is refused before anything is written; one that honours the condition is not."""
    found = Found("F20", "a store without conditional PUT", "refused at start")
    _, rows = expected_rows(Workload(folder, images=8))
    said = []
    with s3_server() as direct:
        for unconditional in (True, False):
            name = f"s3://{BUCKET}/runs-{unconditional}"
            there = Workload(folder, images=8, output=name)
            with Proxy(direct, unconditional=unconditional).serving() as endpoint, environment({ENDPOINT: endpoint}):
                job = load_job(there.job("clean"))
                said.append(refused(partial(run_serially, job, f"{name}/clean", 8)))
                said.append(str(len(Store(f"{name}/clean").names("commits"))))
        compare(found, Run(f"{name}/clean"), rows)
    found.seen = f"{said[0][:110]}; {said[1]} commits; with it: {said[3]} commits"
    found.ok = (
        "does not refuse to create an object twice" in said[0]
        and said[1] == "0"
        and not said[2]
        and said[3] != "0"
        and whole(found)
    )
    return found


def f21(folder: Path, seed: int, long: bool) -> Found:
    """Listings stay as they were when half of the units were committed: readers see these, each of them whole, and then
    a second driver does the others again, whose commits are refused."""
    found = Found("F21", "LIST as it was half-way, to readers and to a second driver", "older but whole; 0 duplicates")
    work = Workload(folder, images=40)
    _, rows = expected_rows(work)
    uri = f"s3://{BUCKET}/runs"
    there, place = Workload(folder, images=40, output=uri), f"{uri}/clean"
    before = work.executions()
    work.misbehave(pause=0.3)
    with s3_server() as direct:
        proxy = Proxy(direct)
        with proxy.serving() as endpoint, environment({ENDPOINT: endpoint}):
            with environment({ENDPOINT: direct}):
                first = begun(there, there.job("clean"), place)
                wait_for_commits(Store(place), 8, first)
            half = Run(place)
            proxy.stale = True  # from here on, listings are these
            code = first.wait()
            work.misbehave()
            stale = Run(place)
            older = set(stale.commits or {}) == set(half.commits or {})
            seen, wrong = len(stale.commits or {}), sum((rows_of(stale) - rows).values())
            again = run_serially(load_job(there.job("clean")), place, 8)
            unseen = len(Run(place).commits or {}) == seen
            with environment({ENDPOINT: direct}):
                Store(place).snapshot()
            after = len(Run(place).commits or {})  # found without a listing: snapshots have dense numbers
            compare(found, Run(place), rows)
        found.bad_snapshots = len(verify(Store(place))) + wrong
        found.orphans = len(collect(Store(place), -10.0))
    total = len({row for row in rows if row.startswith("units ")}) + 1
    found.executions, found.tasks = there.executions() - before, total - 2
    found.seen = f"exit {code}; {seen} of {total} units seen through stale listings, {wrong} wrong rows of them; "
    found.seen += f"{len(again)} done again, {found.orphans} files of them left; after a snapshot {after} units seen"
    found.ok = code == 0 and older and unseen and 2 < seen < total and len(again) == total - seen and after == total
    found.ok = found.ok and found.orphans == 0 and whole(found)
    return found


FAULTS = {"F18": f18, "F19": f19, "F20": f20, "F21": f21}
