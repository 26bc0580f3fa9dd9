"""Faults of single items and units, and of clusters, from the fault table; see `test_faults.py`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fault_table import SECONDS, nothing_is_lost_or_doubled, rows_of

pytestmark = pytest.mark.timeout(SECONDS)
SHORT = [f"F{number}" for number in (*range(25, 31), 34, 35, 40)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return rows_of(SHORT, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("fault", SHORT)
def test_nothing_is_lost_or_doubled(table: dict[str, dict[str, Any]], fault: str) -> None:
    nothing_is_lost_or_doubled(table[fault])
