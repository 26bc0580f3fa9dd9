"""Pages of a list: the number is part of the address, and N and P turn them."""

from __future__ import annotations

import streamlit as st


def first_page() -> None:
    """What a filter does when it changes."""
    st.session_state["page"] = 1


def pages(rows: int, size: int) -> int:
    """How many pages so many rows fill."""
    return max(1, -(-rows // size))


def number(count: int) -> int:
    """Widgets for turning `count` pages; returns the one that is shown, from 1."""
    if count == 1:
        return 1
    shown = _within(count)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Previous page", key="earlier", shortcut="P", disabled=shown == 1, on_click=_turn, args=(shown - 1,))
        st.button("Next page", key="later", shortcut="N", disabled=shown == count, on_click=_turn, args=(shown + 1,))
        return st.pagination(count, key="page", bind="query-params")


def _within(count: int) -> int:
    """The page that the widget below is about to show: the session's, else the address's."""
    asked = st.session_state.get("page", st.query_params.get("page", "1"))
    found = int(asked) if str(asked).isdecimal() else 1
    return found if 1 <= found <= count else 1


def _turn(to: int) -> None:
    st.session_state["page"] = to
