"""Many people with the report open while a job runs (fault F37): what it costs the job, and what stays behind.

    python -m benchmarks.sessions --sessions 100

Each session is a WebSocket of the real server that asks for one page after another, as a browser does, without a
browser's work. The job is real as well: its driver, its workers on Ray, its commits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from audit.config import load_job
from audit.models import digests
from benchmarks.faults.workload import Workload
from pipelines.plan import open_or_create
from pipelines.report import command

PAGES = ("overview", "modes", "explanations", "counterfactuals", "mode", "retrieval")
SETTLED = 30.0  # seconds that the server has to let go of what sessions held
KEPT = 130.0  # seconds after which Streamlit keeps no session that was left; it looks when the next one comes


@dataclass
class Seen:
    """What sessions met: seconds of each page that was made, how many had an error, and how many sessions broke off."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    lost: int = 0


@contextlib.contextmanager
def served(run: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The report's server of a run: its address without a scheme, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "AUDIT_RUN": str(run)}
    server = subprocess.Popen(command(port), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(480):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                break
            time.sleep(0.25)
        yield f"127.0.0.1:{port}", psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(30)


def visit(address: str, sessions: int, rounds: int, pause: float = 0.0) -> Seen:
    """So many sessions at once, each of which asks for so many pages with a pause after each, and leaves."""
    seen = Seen()

    async def everybody() -> None:
        await asyncio.gather(*(_session(address, number, rounds, pause, seen) for number in range(sessions)))

    asyncio.run(everybody())
    return seen


async def _session(address: str, number: int, rounds: int, pause: float, seen: Seen) -> None:
    async with connect(f"ws://{address}/_stcore/stream", max_size=None, open_timeout=120) as opened:
        for place in range(rounds):
            asked = BackMsg()
            asked.rerun_script.page_name = PAGES[(number + place) % len(PAGES)]
            began = time.monotonic()
            await opened.send(asked.SerializeToString())
            while True:
                message = ForwardMsg.FromString(bytes(await opened.recv(decode=False)))
                seen.errors += message.HasField("delta") and message.delta.new_element.HasField("exception")
                if message.HasField("script_finished"):
                    break
            seen.seconds.append(time.monotonic() - began)
            await asyncio.sleep(pause)


def settled(server: psutil.Process, handles: int) -> int:
    """Open handles of the server, once they are no more than so many again, or the time is over."""
    deadline = time.monotonic() + SETTLED
    while (found := int(server.num_fds())) > handles and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def job_seconds(work: Workload, name: str) -> float:
    """Seconds between a job's first and last call of its model, on all workers."""
    before = work.executions()
    done = work.audit("run", str(work.job(name)))
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    ends = [call.at for call in work.calls()[before:]]
    return max(ends) - min(ends)


def measure(
    folder: Path, sessions: int, images: int, batch: dict[str, float], reading: float, pairs: int
) -> dict[str, Any]:
    """Jobs with and without sessions that look at them, in turn. Raises RuntimeError where no session saw a page.

    batch: what the job's model does with each batch, `pause` in seconds or `products` of matrices.
    """
    work = Workload(folder, images=images)
    work.misbehave(**batch)
    alone: list[float] = []
    watched: list[float] = []
    told: dict[str, Any] = {}
    job_seconds(work, "warm")
    for pair in range(pairs):
        alone.append(job_seconds(work, f"alone-{pair}"))
        job = load_job(work.job(f"watched-{pair}"))
        root = folder / "runs" / job.name
        open_or_create(job, root, digests(job))
        with served(root) as (address, server):
            visit(address, 1, len(PAGES))
            handles, threads = int(server.num_fds()), int(server.num_threads())
            options = ["--look", address, "--sessions", str(sessions), "--reading", str(reading)]
            looking = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.sessions", *options], stdout=subprocess.PIPE, text=True
            )
            time.sleep(5.0)  # until they are there
            watched.append(job_seconds(work, job.name))
            peak = int(server.num_fds())
            looking.terminate()
            seen = json.loads((looking.communicate()[0] or "{}").strip().splitlines()[-1])
            if not seen["pages"]:
                raise RuntimeError(
                    f"{sessions} sessions saw no page while the job ran: it is too short to tell anything"
                )
            time.sleep(KEPT)
            visit(address, 1, 1)
            left = settled(server, handles)
            told = {
                "sessions": sessions,
                "seconds_of_reading": reading,
                **seen,
                "handles_before": handles,
                "handles_during": peak,
                "handles_after": left,
                "threads_before": threads,
                "threads_after": int(server.num_threads()),
                "server_mib": server.memory_info().rss / 2**20,
            }
    slowdowns = [one / other for one, other in zip(watched, alone, strict=True)]
    return {**told, "job_seconds_alone": alone, "job_seconds_watched": watched, "slowdowns": slowdowns}


def look(address: str, sessions: int, reading: float) -> None:
    """Look until SIGTERM, five pages a session, each read for so many seconds; then say what was seen."""
    import signal

    seen = Seen()
    ended = asyncio.Event()

    async def one(number: int) -> None:
        await asyncio.sleep(reading * number / sessions)  # people do not come at once
        while not ended.is_set():
            try:
                await _session(address, number, 5, reading, seen)
            except (OSError, WebSocketException):
                seen.lost += 1
                await asyncio.sleep(1.0)
            number += 5

    async def everybody() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        looking = [asyncio.create_task(one(number)) for number in range(sessions)]
        await ended.wait()
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    asyncio.run(everybody())
    took = sorted(seen.seconds)
    told = {"median_page_seconds": took[len(took) // 2], "slowest_page_seconds": took[-1]} if took else {}
    print(json.dumps({"pages": len(took), "errors": seen.errors, "lost": seen.lost, **told}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds that the job's model takes over a batch")
    parser.add_argument("--products", type=int, default=0, help="or products of matrices that it computes instead")
    parser.add_argument("--reading", type=float, default=20.0, help="seconds that a session looks at a page")
    parser.add_argument("--pairs", type=int, default=2, help="jobs without and with sessions")
    parser.add_argument("--look", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    if given.look:
        look(given.look, given.sessions, given.reading)
        return
    with tempfile.TemporaryDirectory(prefix="audit-sessions-") as folder:
        batch = {"products": given.products} if given.products else {"pause": given.pause}
        found = measure(Path(folder), given.sessions, given.images, batch, given.reading, given.pairs)
    found["load"] = os.getloadavg()
    print(json.dumps(found, indent=1))
    if given.output:
        given.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
