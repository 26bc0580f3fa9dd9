"""What a person or a program that watches a run reads."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from audit.methods import Unit
from audit.results.progress import live
from audit.results.store import Store
from audit.worker import Summary, findings_in
from pipelines.progress import Progress


def search(name: str, flipped: bool | None) -> dict[str, Any]:
    return {"model_id": "new", "other_model_id": "old", "target_class": name, "flipped": flipped}


def test_findings_count_the_searches_of_each_class_and_name_each_mode_once() -> None:
    rows = {
        "explanations": [search("crab", True), search("crab", False), search("crab", None), search("boat", True)],
        "failure_modes": [
            {"model_id": "new", "class_name": "crab", "name": "on sand", "verdict": "confirmed", "listed": listed}
            for listed in (True, False)
        ],
    }
    assert findings_in(rows) == (
        "new says boat and old does not: 1 of 1 searches",
        "new says crab and old does not: 1 of 3 searches",
        "new says “crab” for what is on sand: confirmed",
    )
    assert findings_in({"predictions": [{"item_id": "x"}]}) == ()


def test_a_terminal_shows_units_items_and_findings() -> None:
    progress = Progress("job", None, as_json=False)
    screen = io.StringIO()
    progress.bars = type(progress.bars)(
        *progress.bars.columns, console=Console(file=screen, force_terminal=True, width=80), auto_refresh=False
    )
    with progress:
        progress.begin("1-screen", units=5, items=50, done_units=2, done_items=20)
        progress.advance(Summary("u", "1-screen", 10, 0.1, ("new says crab and old does not: 3 of 8 searches",)))
        progress.advance(Summary("v", "1-screen", 10, 0.1, error="Traceback\nValueError: [no] such image"))
    text = Text.from_ansi(screen.getvalue()).plain
    assert "4/5 units" in text
    assert re.search(r"40/50 items +[0-9.]+/s left [0-9]+:[0-9]{2}:[0-9]{2}", text)
    assert "new says crab and old does not: 3 of 8 searches" in text
    assert "ValueError: [no] such image" in text


def test_elsewhere_every_event_is_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("job", None, as_json=True) as progress:
        progress.begin("1-screen", units=2, items=20, done_units=1, done_items=10)
        progress.advance(Summary("u", "1-screen", 10, 0.1, ("a finding",), error="Traceback\nValueError: bad"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["stage", "unit", "finding"]
    assert lines[0]["already_done"] == 10
    assert (lines[1]["units"], lines[1]["items"], lines[1]["error"]) == ("2/2", "20/20", "ValueError: bad")
    assert lines[2]["text"] == "a finding"


def test_what_fails_is_named_with_its_unit_and_items(capsys: pytest.CaptureFixture[str]) -> None:
    unit = Unit(
        "u", "1-screen", json.dumps({"role": "data", "items": [["a.png", "ida", "x"], ["b.png", "idb", "y"]]}), 2
    )
    with Progress("job", None, as_json=True) as progress:
        progress.begin("1-screen", units=1, items=2, done_units=0, done_items=0)
        progress.event("unit_failed", unit, attempt=2, error="ValueError: bad")
        progress.split(unit, unit.halves("items"))
    _, failed, split = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (failed["event"], failed["run"], failed["stage"], failed["unit_id"]) == (
        "unit_failed",
        "job",
        "1-screen",
        "u",
    )
    assert (failed["items"], failed["attempt"], failed["error"]) == (["ida", "idb"], 2, "ValueError: bad")
    assert (split["event"], split["into"]) == ("unit_split", ["u.0", "u.1"])


def fails(progress: Progress) -> None:
    with progress:
        progress.begin("1-screen", units=2, items=20, done_units=1, done_items=10)
        progress.advance(Summary("u", "1-screen", 10, 0.1, failed=3))
        raise RuntimeError("no luck")


def test_the_live_state_says_how_a_driver_ended(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="no luck"):
        fails(Progress("job", store, as_json=True))
    told = live(store)
    assert told is not None
    assert (told["run"], told["ended"]) == ("job", "RuntimeError: no luck")
    expected = {"units": 2, "done": 2, "items": 20, "items_done": 20, "items_failed": 3}
    assert {key: told["stages"]["1-screen"][key] for key in expected} == expected
    store.objects.replace("live.json", b"{half")
    assert live(store) is None
