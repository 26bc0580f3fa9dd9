"""A short seeded set of the fault table; `make faults` does all of it. Each fault is injected into real runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fault_table import SECONDS, nothing_is_lost_or_doubled, rows_of

pytestmark = pytest.mark.timeout(SECONDS)
# Not those of F02, F04-F06, F09-F12 and F39, and not the long mixture, which take most of a minute or more each.
SHORT = [f"F{number:02}" for number in (1, 3, 7, 8, *range(13, 25))]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return rows_of(SHORT, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("fault", SHORT)
def test_nothing_is_lost_or_doubled(table: dict[str, dict[str, Any]], fault: str) -> None:
    nothing_is_lost_or_doubled(table[fault])


def test_what_was_not_measured_is_no_zero() -> None:
    from benchmarks.faults.__main__ import markdown
    from benchmarks.faults.workload import Found, whole

    found = Found("F00", "a | fault", "nothing", seen="something", ok=True)
    assert not whole(found)
    assert markdown([found]).splitlines()[2] == "| F00 | a / fault | nothing | something |  |  |  |  |  |  |"
    found.add(lost=0, duplicates=0)
    assert whole(found)
    found.kills, found.executions, found.tasks, found.seed, found.recovery_seconds = 3, 9, 7, 1, 0.25
    assert markdown([found]).splitlines()[2].endswith("| 1 | 3 | 9/7 | 0 | 0 | 0.2 |")
    found.add(lost=2)
    assert not whole(found)
