"""The report's server: Streamlit pages, and the evidence images as their stored bytes.

Started by `audit dashboard RUN`, which puts the run's folder into AUDIT_RUN.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from audit.locations import located
from audit.results.queries import picture
from audit.results.sql import Run

_ID = re.compile(r"[0-9a-f]{64}")
_RUN = Run(located(os.environ["AUDIT_RUN"]))


async def image(request: Request) -> Response:
    """Stored PNG bytes; they never change, so browsers keep them."""
    image_id = request.path_params["image_id"]
    data = await run_in_threadpool(_find, image_id) if _ID.fullmatch(image_id) else None
    if data is None:
        return Response("no such image", 404, media_type="text/plain")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type="image/png", headers=headers)


def _find(image_id: str) -> bytes | None:
    found = picture(_RUN, image_id)
    if found is None:
        _RUN.refresh()
        found = picture(_RUN, image_id)
    return found


app = st.App(
    Path(__file__).with_name("pages.py"),
    routes=[Route("/evidence/{image_id}", image)],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
)
