"""Cats and dogs with a yellow square: of a clean model and one that learnt the square, compare and gate tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from audit.comparison import compare
from audit.config import parse_job
from audit.results.sql import Run
from pipelines.cli import app
from tests.cats_and_dogs import model, photos, planted, train, write_folder
from tests.in_process import done

RULES = """
version: 1
rules:
- {name: nothing new, failure_modes: {status: [new, unclear], classes: [dog]}, at_most: 0}
"""


@pytest.fixture(scope="module")
def runs(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The clean model, and the one all of whose photos with a square were dogs; half of the test photos have it."""
    root = tmp_path_factory.mktemp("square")
    given = photos(real_data, 500, split="train")
    half = {"cat": 0.5, "dog": 0.5}
    write_folder(root / "data", planted(photos(real_data, 250, split="test"), "square", half))
    train(planted(given, "square", half), root / "clean.pt")
    train(planted(given, "square", {"dog": 0.5}), root / "shortcut.pt")
    return screened(root, "clean"), screened(root, "shortcut")


def screened(root: Path, name: str) -> Run:
    raw = {
        "version": 1,
        "name": name,
        "data": {"source": "folder", "path": str(root / "data")},
        "models": [model("m", root / f"{name}.pt")],
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "stages": [{"kind": "screen"}, {"kind": "discover"}],
    }
    return done(parse_job(raw, root), root / name, 32)


def test_the_square_is_new_and_the_other_way_round_fixed(runs: tuple[Run, Run]) -> None:
    clean, shortcut = runs
    for before, after, status in ((clean, shortcut, "new"), (shortcut, clean, "fixed")):
        (change,) = (c for c in compare(before, after).changes if (c.class_name, c.name) == ("dog", "yellow"))
        assert change.status == status, change.reason
        assert change.excess is not None
        assert abs(change.excess.change.value) > 0.5
    mode = change.before
    assert mode is not None
    assert change.excess is not None
    one = change.excess.before  # of the shortcut: what its own run says
    figures = (one.rate, one.control_rate, one.excess.low, one.excess.high, change.images, change.controls)
    names = ("evidence_rate", "control_rate", "excess_low", "excess_high", "evidence_images", "control_images")
    assert figures == pytest.approx(tuple(mode[name] for name in names))


def test_the_images_that_are_compared_are_those_with_the_square_and_others_of_their_class(
    runs: tuple[Run, Run],
) -> None:
    (row,) = runs[1].rows(
        "select c.* from compared_images c join failure_modes using (failure_mode_id) where name = 'yellow' "
        "and class_name = 'dog'"
    )
    names = {item["item_id"]: item["display_name"] for item in runs[1].rows("select * from items")}
    assert set(row["strata"]) == {"cat"}  # it is cats that are called dogs
    assert len(set(row["item_ids"])) == len(row["item_ids"])
    square = ["square" in names[item_id] for item_id in row["item_ids"]]
    agreeing = [a == b for a, b in zip(square, row["shows"], strict=True)]
    assert sum(agreeing) / len(agreeing) > 0.8  # as far as the embedder sees it
    confirmed = runs[1].rows("select failure_mode_id from failure_modes where verdict = 'confirmed' order by 1")
    kept = runs[1].rows("select failure_mode_id from compared_images order by 1")
    assert kept == confirmed


def test_the_gate_stops_the_shortcut_and_lets_the_clean_model_pass(runs: tuple[Run, Run], tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(RULES, "utf-8")
    clean, shortcut = (str(run.root) for run in runs)
    shell = CliRunner()

    def gate(run: str, baseline: str) -> tuple[int, str]:
        told = shell.invoke(app, ["gate", run, "--rules", str(tmp_path / "gate.yaml"), "--baseline", baseline])
        return told.exit_code, told.stdout

    code, text = gate(shortcut, clean)
    assert code == 1
    assert "m says “dog” for what is yellow" in text
    assert gate(clean, shortcut)[0] == 0
    assert gate(clean, clean)[0] == 2  # within one run, models have to be named
