"""Tables and views say what they hold, and every query of docs/sql.md answers its question on a run made by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import audit
from audit.errors import ConfigError
from audit.results.schema import TABLES
from audit.results.sql import Run
from audit.results.store import Store
from audit.results.views import VIEWS
from pipelines.cli import app

COOKBOOK = Path(__file__).parent.parent / "docs" / "sql.md"
QUERIES = dict(re.findall(r"^## (.+?)$.*?^```sql\n(.*?)^```$", COOKBOOK.read_text("utf-8"), re.MULTILINE | re.DOTALL))


def said(item: str, model: str, predicted: str, confidence: float, label: str | None, role: str = "data") -> Any:
    row = {"item_id": item, "model_id": model, "predicted": predicted, "confidence": confidence, "label": label}
    return {**row, "role": role, "status": "ok", "correct": None if label is None else predicted == label}


def search(name: str, before: bool, after: bool, **columns: Any) -> Any:
    row = {"explanation_id": name, "stage": "2-disagreement", "method": "disagreement", "model_id": "new"}
    row |= {"other_model_id": "old", "target_class": "dog", "flipped_before": before, "flipped": after, "status": "ok"}
    return {**row, **columns}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two models on four images of cats and dogs; b is what the new one broke, d is mislabelled and there twice."""
    items = [("a", "data", "a.png", "cat"), ("b", "data", "b.png", "cat"), ("c", "data", "c.png", "dog")]
    items += [("d", "data", "d.png", "dog"), ("d", "data", "e.png", "cat"), ("a", "pool", "pool/a.png", None)]
    items += [("x", "pool", "pool/x.png", None), ("y", "pool", "pool/y.png", None)]
    listed = [{"item_id": i, "role": r, "uri": u, "label": n, "status": "ok"} for i, r, u, n in items]
    listed.append({"item_id": "uri-q", "role": "data", "uri": "q.png", "status": "quarantined", "reason": "unreadable"})
    predictions = [said("a", "old", "cat", 0.9, "cat"), said("a", "new", "cat", 0.8, "cat")]
    predictions += [said("b", "old", "cat", 0.6, "cat"), said("b", "new", "dog", 0.95, "cat")]
    predictions += [said("c", "old", "dog", 0.7, "dog"), said("c", "new", "dog", 0.55, "dog")]
    predictions += [said("d", "old", "cat", 0.85, "dog"), said("d", "new", "cat", 0.65, "dog")]
    predictions += [said("x", "new", "dog", 0.9, None, "pool"), said("y", "new", "cat", 0.8, None, "pool")]
    lost = {"item_id": "x", "role": "pool", "model_id": "old", "status": "failed", "reason": "changed_since_inventory"}
    searches = [search("e1", False, True), search("e2", False, False), search("e3", True, True)]
    searches += [search("e4", False, True), search("e5", False, True, status="failed", reason="not_finite")]
    smallest = {"stage": "3-counterfactual", "method": "uvce", "other_model_id": None}
    searches += [search(f"u{i}", False, flipped, **smallest) for i, flipped in enumerate((True, True, False))]
    steps = [("e1", 0, 0.1, 0.0, 3.0), ("e1", 1, 0.6, 0.2, 1.0), ("e1", 2, 0.9, 0.6, 0.5), ("e2", 0, 0.1, 0.1, 2.0)]
    found = {"source": "search", "listed": True, "model_id": "new", "other_model_id": "old", "class_name": "dog"}
    modes = [{**found, "failure_mode_id": "1", "name": "on sand", "verdict": "confirmed", "impact": 0.2, "support": 3}]
    modes[0]["evidence"] = ["y", "x"]
    modes += [
        {**found, "failure_mode_id": "2", "name": "red", "verdict": "hypothesis", "reason": "too few", "support": 4}
    ]
    neurons = [("1", "spurious", 0.1, 0.3), ("2", "core", 0.0, 0.9), ("3", "harmful", 0.2, 0.8)]
    places = {"a": [1.0, 0.0], "b": [2.0, 0.0], "c": [0.0, 1.0]}
    embedded = [{"subject_id": i, "role": "data", "name": "embedding", "values": v} for i, v in places.items()]
    embedded.append({"subject_id": "x", "role": "pool", "name": "embedding", "values": [3.0, 3.0]})
    root = tmp_path_factory.mktemp("sql") / "run"
    store = Store(root)
    store.create("job.json", b"{}")
    tables: dict[str, list[dict[str, Any]]] = {
        "items": listed,
        "predictions": [*predictions, lost],
        "explanations": searches,
        "traces": [
            {"explanation_id": e, "step": s, "score": p, "other_score": q, "loss": loss} for e, s, p, q, loss in steps
        ],
        "failure_modes": modes,
        "neurons": [
            {"neuron_id": n, "neuron": int(n), "verdict": v, "trigger_before": b, "trigger_after": a}
            | {"model_id": "new", "class_name": "dog", "searches": 10}
            for n, v, b, a in neurons
        ],
        "measurements": [
            {"subject_id": f"u{i}", "name": "lpips", "key": "original", "unit": "distance", "value": value}
            for i, value in enumerate((0.2, 0.4, 0.9))
        ],
        "arrays": embedded,
        "units": [
            {"unit_id": f"u{i}", "stage": stage, "items": 10, "seconds": s, "peak_memory": 2**31, "status": status}
            for i, (stage, s, status) in enumerate(
                (("0-inventory", 1800.0, "ok"), ("0-inventory", 5400.0, "quarantined"))
            )
        ],
    }
    store.commit("u", "1-x", tables)
    return audit.open(root)


EXPECTED: dict[str, list[tuple[Any, ...]]] = {
    "How good is each model, over all and on its worst class?": [("new", 0.5, 0.5, "cat"), ("old", 0.75, 0.5, "dog")],
    "What does each model say instead of the label, most often?": [
        ("new", "cat", "dog", 1, 0.5),
        ("new", "dog", "cat", 1, 0.5),
        ("old", "dog", "cat", 1, 0.5),
    ],
    "Which images did one model get right and another one wrong?": [("old", "new", "cat", "dog", "b.png")],
    "Where are the models sure and wrong?": [
        ("new", "cat", "dog", 0.95, "b.png"),
        ("old", "dog", "cat", 0.85, "d.png"),
        ("new", "dog", "cat", 0.65, "d.png"),
    ],
    "Which labels may be wrong?": [("d.png", "dog", "cat", 0.65)],
    "On which classes do two models differ most?": [("new", "old", "dog", 2, 0.5), ("new", "old", "cat", 2, 0.0)],
    "Is the confidence worth its name?": [
        ("new", (0.2 + 0.95 + 0.45 + 0.65) / 4),
        ("old", (0.1 + 0.4 + 0.3 + 0.85) / 4),
    ],
    "What could not be audited, and why?": [
        ("disagreement of new", "2-disagreement", "not_finite", 1),
        ("image", "data", "unreadable", 1),
        ("prediction of old", "pool", "changed_since_inventory", 1),
    ],
    "Are there images twice, and with two labels?": [
        ("d", 2, ["data"], ["cat", "dog"]),
        ("a", 2, ["data", "pool"], ["cat"]),
    ],
    "Which failure modes were found, and which matter most?": [
        ("confirmed", "new", "dog", "on sand", 3, 0.2, None, None, None),
        ("hypothesis", "new", "dog", "red", 4, None, None, None, "too few"),
    ],
    "On which real images does a failure mode show?": [
        ("new", "dog", "on sand", "pool/y.png", "cat", 0.8),
        ("new", "dog", "on sand", "pool/x.png", "dog", 0.9),
    ],
    "What would a random start have shown anyway?": [("new", "old", "dog", 4, 0.25, 0.75)],
    "After how many steps did a search succeed?": [("e1", 1, 2, 2), ("e2", None, 0, 0)],
    "How small are the changes that flip a decision?": [("new", "original", "lpips", "distance", 2, 0.3)],
    "Which neurons mislead a model?": [
        ("new", "dog", 3, "harmful", 0.2, 0.8, 10, None),
        ("new", "dog", 1, "spurious", 0.1, 0.3, 10, None),
    ],
    "Which real images look like this one?": [("a", 1.0), ("x", 0.5**0.5), ("c", 0.0)],
    "Where did the time go?": [("0-inventory", 2, 20, 2.0, 5400.0, 2.0, 1)],
}


def test_the_cookbook_has_enough_queries_and_each_is_tested() -> None:
    assert len(QUERIES) >= 15
    assert list(QUERIES) == list(EXPECTED)


@pytest.mark.parametrize("question", EXPECTED)
def test_a_query_of_the_cookbook_answers_its_question(run: Run, question: str) -> None:
    seen = [tuple(row.values()) for row in run.rows(QUERIES[question])]
    assert len(seen) == len(EXPECTED[question])
    for row, expected in zip(seen, EXPECTED[question], strict=True):
        near = [pytest.approx(value) if isinstance(value, float) else value for value in expected]
        assert list(row) == near


def test_a_frame_and_a_table_hold_the_same(run: Run) -> None:
    query = "select model_id, accuracy from accuracy where label = 'cat' order by model_id"
    assert run.sql(query).to_pydict() == {"model_id": ["new", "old"], "accuracy": [0.5, 1.0]}
    assert run.frame(query).to_dict("list") == {"model_id": ["new", "old"], "accuracy": [0.5, 1.0]}


def test_every_table_view_and_column_says_what_it_holds(run: Run) -> None:
    """Also to whoever asks DuckDB itself."""
    rows = run.schema()
    assert list(dict.fromkeys(row["table"] for row in rows)) == [*TABLES, *VIEWS]
    for name in (*TABLES, *VIEWS):
        columns = run.sql(f"select * from {name} limit 0").column_names
        assert [row["column"] for row in rows if row["table"] == name] == columns
    assert all(row["comment"] and row["type"] for row in rows)
    asked = "select comment from duckdb_views() where view_name = ?"
    assert run.rows(asked, ["accuracy"]) == [{"comment": VIEWS["accuracy"].comment}]
    assert run.rows(asked, ["items"]) == [{"comment": "an input image, at a place of a data set"}]
    assert run.schema("neurons")[0]["comment"] == "hash of stage, model, layer, class and neuron"
    with pytest.raises(ConfigError, match=r"unknown table 'neuron'\. Did you mean 'neurons'"):
        run.schema("neuron")


def test_comments_stay_when_more_is_committed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("job.json", b"{}")
    opened = audit.open(tmp_path)
    store.commit("u", "1-x", {"items": [{"item_id": "a"}]})
    opened.refresh()
    assert opened.rows("select count(*) as n from items") == [{"n": 1}]
    assert opened.schema("items")[0]["comment"] == "sha256 of the image's bytes"


def test_the_command_shows_the_schema(run: Run) -> None:
    shell = CliRunner()
    asked = shell.invoke(app, ["sql", str(run.root), "--schema", "accuracy", "--json"])
    assert asked.exit_code == 0
    assert [row["column"] for row in json.loads(asked.stdout)] == list(VIEWS["accuracy"].columns)
    everything = shell.invoke(app, ["sql", str(run.root), "--schema"]).stdout
    assert "failure_mode_id" in everything
    assert "share of them on which the answer is the label" in everything


@pytest.mark.parametrize("where", ["python", "terminal", "notebook"])
def test_failure_modes_show_themselves_as_their_place_can(
    run: Run, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """IPython in a terminal would print every column of every row."""
    found = run.failure_modes()
    assert found
    displayed: list[Any] = []
    if where != "python":
        shell = SimpleNamespace(kernel=object()) if where == "notebook" else SimpleNamespace()
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=displayed.append))
    found.show()
    printed = capsys.readouterr().out.splitlines()
    if where == "notebook":
        assert (displayed, printed) == ([found], [])
    else:
        assert (displayed, len(printed)) == ([], len(found))
        assert all(mode["class_name"] in line for mode, line in zip(found, printed, strict=True))
