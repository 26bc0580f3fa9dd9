"""A quick first visit of the report: its scripts are kept in memory, and no answer waits for half of itself."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from dashboard.assets import Assets
from dashboard.sockets import send_at_once


class Served:
    """An app that counts what it is asked for, behind the middleware."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "HEAD", "POST"])])
        self.client = TestClient(Assets(app))

    async def answer(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.url.path}")
        if "missing" in request.url.path:
            return PlainTextResponse("none", 404)
        parts = iter([b"one, ", b"two, ", str(len(self.asked)).encode()])
        return StreamingResponse(parts, headers={"cache-control": "immutable", "x-number": str(len(self.asked))})


def test_an_asset_is_asked_for_once_and_stays_what_it_was() -> None:
    served = Served()
    first, second = (served.client.get("/static/js/a.js") for _ in range(2))
    other = served.client.get("/static/js/b.js")
    assert served.asked == ["GET /static/js/a.js", "GET /static/js/b.js"]
    assert (first.content, other.content) == (b"one, two, 1", b"one, two, 2")
    assert (second.content, dict(second.headers)) == (first.content, dict(first.headers))
    assert second.headers["x-number"] == "1"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/evidence/a", {}),
        ("/", {}),
        ("/static/missing.js", {}),
        ("/static/a.js", {"headers": {"Range": "bytes=0-3"}}),
        ("/static/a.js", {"headers": {"If-None-Match": '"x"'}}),
        ("/static/a.js", {"method": "HEAD"}),
        ("/static/a.js", {"method": "POST"}),
    ],
)
def test_everything_else_is_asked_for_each_time(path: str, asked: dict[str, Any]) -> None:
    served = Served()
    for _ in range(2):
        served.client.request(**{"method": "GET", "url": path, **asked})
    assert len(served.asked) == 2
    assert served.client.get("/static/a.js").content == b"one, two, 3"  # and is kept for nobody


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_an_answer_that_a_browser_did_not_wait_for_is_kept_for_nobody(sent: int) -> None:
    """The app gives it up after its head and so many of three parts; the next who asks has all of them."""
    parts, asked = [b"one, ", b"two, ", b"three"], []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, part in enumerate(parts[:sent] if len(asked) == 1 else parts):
            await send({"type": "http.response.body", "body": part, "more_body": number < 2})

    async def ask(answer: list[Message]) -> None:
        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            answer.append(message)

        await assets({"type": "http", "method": "GET", "path": "/static/js/a.js", "headers": []}, receive, send)

    assets = Assets(app)
    for expected in (parts[:sent], parts, parts):
        answer: list[Message] = []
        asyncio.run(ask(answer))
        assert b"".join(message.get("body", b"") for message in answer) == b"".join(expected)
    assert len(asked) == 2


def test_connections_of_a_socket_that_was_made_without_tcps_number_send_at_once() -> None:
    with socket.socket(socket.AF_INET) as listening, socket.socket() as silent:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        send_at_once()
        with socket.create_connection(listening.getsockname()) as _:
            taken, _ = listening.accept()
            with taken:
                assert taken.proto != socket.IPPROTO_TCP  # as Streamlit's, so asyncio leaves it as it is
                assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not silent.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # others are left alone
