"""The report's scripts, styles and fonts, kept in memory: a first visit asks for a hundred of them, one by one."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Assets:
    """ASGI middleware before Streamlit, which looks on the disk for each of them anew.

    Their names change with what they hold, so an answer stays right for as long as the server runs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.kept: dict[str, list[Message]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_whole_asset(scope):
            await self.app(scope, receive, send)
            return
        name = scope["path"]
        if name not in self.kept:
            answer: list[Message] = []

            async def hearing(message: Message) -> None:
                answer.append(message)
                await send(message)

            await self.app(scope, receive, hearing)
            if answer and answer[0].get("status") == 200 and _is_last(answer[-1]):
                body = b"".join(message.get("body", b"") for message in answer[1:])
                self.kept[name] = [answer[0], {"type": "http.response.body", "body": body}]
            return
        for message in self.kept[name]:
            await send(message)


def _is_last(message: Message) -> bool:
    """Whether an answer ends with it: one that a browser left is given up, maybe before its first part."""
    return message["type"] == "http.response.body" and not message.get("more_body")


def _is_whole_asset(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith("/static/"):
        return False
    return not any(name in (b"range", b"if-none-match", b"if-modified-since") for name, _ in scope["headers"])
