"""Answers that take a scan of a large table, kept for all sessions until more of the run is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import streamlit as st

from audit.locations import absolute
from audit.results.sql import Run
from audit.reviews import STAGE

_T = TypeVar("_T")


def kept(question: Callable[..., _T], run: Run, *arguments: Any) -> _T:
    """`question(run, *arguments)`, asked once for what is committed by now. It must not depend on people's reviews."""
    committed = sum(commit.stage != STAGE for commit in (run.commits or {}).values())
    name = f"{question.__module__}.{question.__qualname__}"
    answer: _T = _asked(absolute(run.location), committed, name, repr(arguments), question, run, arguments)
    return answer


@st.cache_data(max_entries=256, show_spinner=False)
def _asked(
    location: str,  # noqa: ARG001 - this and the next three are the key
    committed: int,  # noqa: ARG001
    name: str,  # noqa: ARG001
    told: str,  # noqa: ARG001
    _question: Callable[..., Any],
    _run: Run,
    _arguments: tuple[Any, ...],
) -> Any:
    return _question(_run, *_arguments)
