"""What a list is held to and sorted by: widgets whose values are part of the address. A change begins at page 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import streamlit as st

from dashboard import components, paging


def left_out(cell: Any, name: str, values: Iterable[str]) -> None:
    """Say which values of the address are none: the widget is about to take them away without a word."""
    for asked in st.query_params.get_all(name):
        if asked not in values:
            cell.html(components.paragraph(f"There is no {name} “{asked}” here: it is left out."))


def select(cell: Any, name: str, values: list[str]) -> str | None:
    """A filter that is part of the address; None: any."""
    left_out(cell, name, values)
    chosen: str | None = cell.selectbox(
        name, values, None, key=name, bind="query-params", placeholder="any", on_change=paging.first_page
    )
    return chosen


def order(cell: Any, sorts: Iterable[str]) -> str:
    """The order that is asked for, the first one where none is."""
    left_out(cell, "sort", sorts)
    chosen: str = cell.selectbox("sort by", list(sorts), key="sort", bind="query-params", on_change=paging.first_page)
    return chosen


def several(cell: Any, name: str, values: list[str], told: str) -> list[str]:
    """A filter of several values, of which each will do; none: any."""
    left_out(cell, name, values)
    found: list[str] = cell.multiselect(
        name, values, key=name, bind="query-params", placeholder="any", help=told, on_change=paging.first_page
    )
    return found


def least(cell: Any, name: str, told: str, step: float, form: str) -> float | None:
    """A number that is the least; None: any."""
    found: float | None = cell.number_input(
        f"least {name}",
        min_value=0.0,
        value=None,
        step=step,
        format=form,
        key=name,
        bind="query-params",
        placeholder="any",
        help=told,
        on_change=paging.first_page,
    )
    return found
