"""The report's server: Streamlit pages, and the evidence images as their stored bytes.

Started by `audit dashboard RUN`, which puts the run's folder into AUDIT_RUN and, where browsers have to show one, the
token into AUDIT_TOKEN.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from audit.locations import located
from audit.results.queries import picture
from audit.results.sql import Run
from dashboard.assets import Assets
from dashboard.guard import Guard
from dashboard.sockets import send_at_once

_ID = re.compile(r"[0-9a-f]{64}")
_RUN = Run(located(os.environ["AUDIT_RUN"]))
_TOKEN = os.environ.get("AUDIT_TOKEN", "")


async def image(request: Request) -> Response:
    """Stored PNG bytes; they never change, so browsers keep them."""
    image_id = request.path_params["image_id"]
    data = await run_in_threadpool(_find, image_id) if _ID.fullmatch(image_id) else None
    if data is None:
        return Response("no such image", 404, media_type="text/plain")
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(data, media_type="image/png", headers=headers)


def _find(image_id: str) -> bytes | None:
    found = picture(_RUN, image_id)
    if found is None:
        _RUN.refresh()
        found = picture(_RUN, image_id)
    return found


async def overview(request: Request) -> Response:
    """The first page by its own name: Streamlit knows it by the root alone, and '/overview' would be no page."""
    return RedirectResponse(f"/?{request.url.query}".rstrip("?"))


def _hosts() -> list[str]:
    """The names by which the report may be asked for: those that Streamlit's WebSocket takes."""
    named = st.get_option("server.allowedHosts") or ["127.0.0.1", "localhost"]
    return [f"[{name}]" if ":" in name else name for name in named]


def _is_loopback(address: str | None) -> bool:
    try:
        return ip_address(address or "").is_loopback
    except ValueError:
        return False


@asynccontextmanager
async def _started(_: st.App) -> AsyncIterator[None]:
    """Streamlit listens by now, and takes no connection yet."""
    send_at_once()
    yield


if not _TOKEN and not _is_loopback(st.get_option("server.address")):  # not started by `audit dashboard`, which asks
    raise SystemExit("others can reach this address, and there is no token: start the report with 'audit dashboard'")
app = st.App(
    Path(__file__).with_name("pages.py"),
    lifespan=_started,
    routes=[Route("/evidence/{image_id}", image), Route("/overview", overview)],
    middleware=[
        Middleware(TrustedHostMiddleware, allowed_hosts=_hosts(), www_redirect=False),
        Middleware(Guard, token=_TOKEN),
        Middleware(Assets),
    ],
)
