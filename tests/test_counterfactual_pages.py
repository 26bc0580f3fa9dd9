"""The report's page of counterfactuals, on a made-up run with a hostile class name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from audit.pictures import image_row
from audit.results import gallery
from audit.results.sql import Run
from audit.results.store import Store
from dashboard import counterfactuals

HOSTILE = "<script>alert(1)</script>"
PAGE = Path(counterfactuals.__file__).with_name("pages.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three counterfactuals of one stage, the third not flipped, and one that failed."""
    store = Store(tmp_path_factory.mktemp("run"))
    store.create("job.json", b'{"job": {"stages": []}}')
    rng = np.random.default_rng(0)
    pictures = [image_row(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), "generated") for _ in range(5)]
    ids = [picture["image_id"] for picture in pictures]
    explanations, traces, measurements = [], [], []
    for i, (target, flipped) in enumerate((("boat", True), (HOSTILE, True), ("boat", False))):
        explanations.append(
            {"explanation_id": f"{i:032x}", "stage": "2-uvce", "method": "uvce", "model_id": "new", "status": "ok"}
            | {"source_class": "crab", "target_class": target, "flipped": flipped, "prompt": f"a crab, {HOSTILE}"}
            | {"score_before": 0.01, "score_after": 0.9 - 0.3 * i, "source_before": 0.99, "source_after": 0.05}
            | {"start_image_id": ids[0], "image_id": ids[1], "edit_image_id": ids[2], "difference_image_id": ids[3]}
            | {"mask_image_id": ids[4], "best_step": 1}
        )
        traces += [
            {"explanation_id": f"{i:032x}", "step": k, "loss": -k, "score": 0.4 * k, "source_score": 1 - 0.4 * k}
            | {"image_id": ids[k]}
            for k in range(3)
        ]
        measurements += [
            {"subject_id": f"{i:032x}", "name": name, "key": key, "value": value}
            for name, key, value in (
                ("background_rmse", "result", 0.1 * (i + 1)),
                ("background_rmse", "autoencoder", 0.05),
                ("flipped", "edit", float(i == 0)),
                ("mask_area", None, 0.25),
            )
        ]
    explanations.append({"explanation_id": "f", "stage": "2-uvce", "method": "uvce", "status": "failed"})
    rows = {"explanations": explanations, "traces": traces, "measurements": measurements, "images": pictures}
    store.commit("u", "2-uvce", rows)
    return Run(store.root)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Eleven of one stage, the surest of which did not flip, one of another stage, and one of another method."""
    store = Store(tmp_path_factory.mktemp("large"))
    store.create("job.json", b'{"job": {"stages": []}}')
    picture = image_row(np.zeros((4, 4, 3), np.uint8), "generated")
    columns = ("start_image_id", "image_id", "edit_image_id", "difference_image_id", "mask_image_id")
    same = {"status": "ok", "model_id": "new", "prompt": "a crab"} | dict.fromkeys(columns, picture["image_id"])
    same |= {"score_before": 0.01, "source_before": 0.98, "source_after": 0.04, "best_step": 0}
    named = [(f"{i:032x}", "2-uvce", "uvce", f"target {i}", i > 0, 0.95 - 0.05 * i) for i in range(11)]
    named += [("a" * 32, "3-uvce", "uvce", "target 0", True, 0.5), ("b" * 32, "4-other", "other", "none", True, 0.5)]
    keys = ("explanation_id", "stage", "method", "target_class", "flipped", "score_after")
    explanations = [same | {"source_class": HOSTILE} | dict(zip(keys, row, strict=True)) for row in named]
    explanations[3]["source_class"] = "boat"
    traces = [
        {"explanation_id": "a" * 32, "step": k, "loss": -k, "score": 0.2 * k, "source_score": 0.9 - 0.1 * k}
        for k in (2, 0, 1)
    ]
    measurements = [{"subject_id": row[0], "name": "background_rmse", "key": "result", "value": 0.1} for row in named]
    rows = {"explanations": explanations, "traces": traces, "measurements": measurements, "images": [picture]}
    store.commit("u", "2-uvce", rows)
    return Run(store.root)


def titles(app: AppTest) -> list[str]:
    """What each counterfactual of a gallery leads to."""
    return re.findall(r"<h4.*? to (.*?) <span", html(app))


def page(run: Run, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    """The page as a session sees it."""

    def script() -> None:
        import os
        from pathlib import Path

        import streamlit as st

        from audit.results.sql import Run
        from dashboard import counterfactuals

        there = st.Page(
            lambda: counterfactuals.show(Run(Path(os.environ["AUDIT_RUN"])), there), title="x", default=True
        )
        st.navigation([there]).run()

    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_function(script, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


def test_figures_of_a_stage_are_means_over_what_they_say(run: Run) -> None:
    (row,) = counterfactuals.stages(run)
    assert (row["items"], row["model_id"]) == (3, "new")
    assert row["flipped"] == pytest.approx(2 / 3)
    assert row["edit_flipped"] == pytest.approx(1 / 3)
    assert row["background"] == pytest.approx(0.15)  # of the flipped ones
    assert row["floor"] == pytest.approx(0.05)


def explained(run: Run, stage: str, **chosen: Any) -> list[str]:
    """Ids of the first page of a stage's counterfactuals."""
    which = gallery.Explanations(stage=stage, method="uvce", status="ok", **chosen)
    rows = gallery.explanations(run, which, "surest first", 1, 20)
    assert gallery.count_explanations(run, which) == len(rows)
    return [row["explanation_id"] for row in rows]


def test_counterfactuals_are_chosen_by_source_target_and_outcome(run: Run) -> None:
    assert [one[-1] for one in explained(run, "2-uvce")] == ["0", "1", "2"]
    assert len(explained(run, "2-uvce", source_class="crab", target_class="boat")) == 2
    assert len(explained(run, "2-uvce", source_class="crab", target_class="boat", flipped=False)) == 1
    assert explained(run, "2-uvce", source_class="boat") == []


def test_stages_and_methods_are_kept_apart_and_flips_come_first(large: Run) -> None:
    assert [(row["stage"], row["items"]) for row in counterfactuals.stages(large)] == [("2-uvce", 11), ("3-uvce", 1)]
    assert [int(one, 16) for one in explained(large, "2-uvce")] == [*range(1, 11), 0]
    assert explained(large, "3-uvce") == ["a" * 32]
    assert explained(large, "4-other") == []


def test_the_gallery_shows_every_counterfactual_with_its_images(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = html(page(run, monkeypatch))
    assert shown.count("counterfactual</div>") == 3
    assert shown.count("held</span>") == 1
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_run_without_counterfactuals_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.create("job.json", b'{"job": {"stages": []}}')
    app = page(Run(tmp_path), monkeypatch)
    assert "no counterfactual stage" in app.info[0].value


def test_a_page_of_the_gallery_holds_ten_and_what_is_chosen(large: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(large, monkeypatch)
    assert titles(app) == [f"target {i}" for i in range(1, 11)]
    assert "<script>" not in html(app)  # all but one leave a class with a hostile name
    stage, source = list(app.selectbox)[:2]
    assert stage.options == ["2-uvce", "3-uvce"]
    assert sorted(source.options) == sorted([HOSTILE, "boat"])
    source.set_value("boat").run()
    assert titles(app) == ["target 3"]
    app.selectbox[1].set_value(None)
    app.selectbox[2].set_value("target 7").run()
    assert titles(app) == ["target 7"]
    app.selectbox[2].set_value(None)
    app.selectbox[3].set_value("held").run()
    assert titles(app) == ["target 0"]
    app.selectbox[3].set_value(None).run()
    next(button for button in app.button if button.label == "Next page").click().run()
    assert titles(app) == ["target 0"]  # the eleventh
    app.selectbox[0].set_value("3-uvce").run()
    assert titles(app) == ["target 0"]
    app.selectbox[0].set_value("2-uvce").run()
    assert titles(app) == [f"target {i}" for i in range(1, 11)]  # a filter begins at the first page
    app = page(large, monkeypatch, stage="2-uvce", page="2")
    assert titles(app) == ["target 0"]
