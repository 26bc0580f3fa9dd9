"""Who may see the report: requests of its own pages and, where there is a token, of browsers that have shown it.

As in Jupyter: the first visit brings the token in the address, `/?token=...`, and gets a cookie for it; everything
else, pages, images and the WebSocket alike, is refused without that cookie.
"""

from __future__ import annotations

import hmac
from urllib.parse import quote, urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing of a page, whatever a name in it says, is fetched from or sent to elsewhere, and no other page frames it. Not
# every browser takes a WebSocket for a part of 'self'.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws://{host} wss://{host} data: "
    "blob:; form-action 'self'; base-uri 'self'; frame-ancestors 'self'"
)
REFUSED = (
    "This report is open to whoever has its token. Add ?token=... to the address once; the token is in the file that "
    "'audit dashboard' named when it started. If you came by a link that has it, reload this page.\n"
)


class Guard:
    """ASGI middleware before everything else. `token`: what a browser has to show once; '' lets everybody in."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()
        self.pass_ = hmac.digest(self.token, b"audit report", "sha256").hex()  # the cookie says nothing of the token
        self.cookie = f"audit-{self.pass_[:8]}"  # cookies know no port: two reports of one host keep theirs apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        answer, told = self._refusal(asked), _with_headers(send, asked.headers.get("host", ""))
        if answer is None:
            await self.app(scope, receive, told)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await answer(scope, receive, told)

    def _refusal(self, asked: HTTPConnection) -> Response | None:
        """What to answer in place of the report; None for who may see it."""
        origin = asked.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != asked.headers.get("host"):
            return PlainTextResponse("a page of another origin may not ask for this\n", 403)
        if not self.token:
            return None
        given = asked.query_params.get("token")
        if given is not None and asked.scope["type"] == "http" and asked.scope["method"] in ("GET", "HEAD"):
            return self._welcome(Request(asked.scope), given)
        shown = asked.cookies.get(self.cookie, "")
        return None if hmac.compare_digest(shown.encode(), self.pass_.encode()) else _no_token()

    def _welcome(self, asked: Request, given: str) -> Response:
        """The cookie, and the same address without the token."""
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token):
            return _no_token()
        left = urlencode([(name, value) for name, value in asked.query_params.multi_items() if name != "token"])
        where = "/" + quote(asked.url.path.lstrip("/"))  # one slash: two would lead to another host
        answer = RedirectResponse(where + (f"?{left}" if left else ""), 303, {"Cache-Control": "no-store"})
        encrypted = asked.url.scheme == "https"
        answer.set_cookie(self.cookie, self.pass_, httponly=True, samesite="strict", secure=encrypted, path="/")
        return answer


def _no_token() -> Response:
    return PlainTextResponse(REFUSED, 401, {"Cache-Control": "no-store"})


def _with_headers(send: Send, host: str) -> Send:
    """`send`, with the headers that every answer has. `host`: by which it was asked for, a name that is allowed."""
    every = {"Content-Security-Policy": POLICY.format(host=host), "Referrer-Policy": "same-origin"}
    every["X-Content-Type-Options"] = "nosniff"

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in every.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
