"""docs/screenshots.py: a picture of every page of the report, and a word on those for which a run has no rows."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.audited import audited
from tests.hostile import hostile

ROOT = Path(__file__).parent.parent
PATHS = set(re.findall(r'url_path="(\w+)"', (ROOT / "dashboard" / "pages.py").read_text("utf-8")))


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("playwright")
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "docs" / "screenshots.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["screenshots"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def visited(shots: list[Any]) -> set[str]:
    return {shot.path.partition("?")[0].strip("/") or "overview" for shot in shots if not isinstance(shot, str)}


def test_every_page_has_a_picture_and_two_are_in_the_dark_as_well(script: Any, tmp_path: Path) -> None:
    shots = list(script.shots(hostile(tmp_path / "run")))
    assert visited(shots) == PATHS
    assert not [shot for shot in shots if isinstance(shot, str)]
    assert [shot.name for shot in shots if shot.dark] == ["report-overview", "report-mode"]
    assert len({shot.name for shot in shots}) == len(shots)


def test_pages_without_rows_are_left_out_with_a_word(script: Any, tmp_path: Path) -> None:
    shots = list(script.shots(audited(tmp_path / "run", [], [])))
    missing = [shot for shot in shots if isinstance(shot, str)]
    named = {name for line in missing for name in re.findall(r"report-(\w+)", line)}
    assert named == {"modes", "mode", "retrieval", "neurons", "neuron", "counterfactuals", "counterfactual", "study"}
    assert visited(shots) >= {"overview", "sql"}
    assert not visited(shots) & {"modes", "mode", "neurons", "neuron", "counterfactuals", "explanation", "study"}
