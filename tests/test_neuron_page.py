"""The report's page of neurons, on a made-up run with hostile names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from audit.pictures import image_row
from audit.results.sql import Run
from audit.results.store import Store
from dashboard import neurons

HOSTILE = "<script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A harmful neuron with all that there is to show, and a core one that was only listed."""
    store = Store(tmp_path_factory.mktemp("run"))
    store.create("job.json", b"{}")
    rng = np.random.default_rng(0)
    pictures = [image_row(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "start") for _ in range(6)]
    ids = [picture["image_id"] for picture in pictures]
    of = {"stage": "3-neuron", "model_id": "new", "layer": "input of fc", "neuron": 7, "status": "ok", "seed": 0}
    of |= {"activation_before": 0.25, "score_before": 0.1, "seen_before": False, "target_class": HOSTILE}
    ends = [("neuron", "maximise", 1), ("neuron", "minimise", 2), ("neuron", "others", 3)]
    ends += [("feature_attack", "maximise", 4)]
    explanations = [
        {**of, "explanation_id": f"x{i}", "method": method, "arm": arm, "source_class": HOSTILE}
        | {"start_image_id": ids[0], "image_id": ids[i], "activation_after": 1.5 + i, "score_after": 0.75}
        | {"seen_after": False, "flipped": True, "reason": HOSTILE if arm == "minimise" else None}
        for method, arm, i in ends
    ]
    explanations.append({**explanations[0], "explanation_id": "another neuron's", "neuron": 8})
    known = {"stage": "3-neuron", "model_id": "new", "layer": "input of fc", "check_id": "embedder"}
    rows = [
        {**known, "neuron_id": "n2", "class_name": "crab", "neuron": 3, "searches": 0, "verdict": "core"}
        | {"reason": "it sees the class on 100% of the top real images"},
        {**known, "neuron_id": "n3", "class_name": "boat", "neuron": 5, "searches": 0}
        | {"reason": "no search ended and no real images are ranked"},
        {**known, "neuron_id": "n1", "class_name": HOSTILE, "neuron": 7, "weight": 0.5, "mean_activation": 2.0}
        | {"importance": 1.0, "trigger_auc": 0.97, "rank": 1, "suspicion": 0.5, "top_items": [ids[5], ids[0]]}
        | {"top_activations": [9.0, 8.0], "top_seen": [True, False], "searches": 8, "trigger_before": 0.0}
        | {"trigger_after": 0.875, "p_value": 0.001, "seen_after": 0.0, "verdict": "harmful", "reason": HOSTILE},
    ]
    predictions = [
        {"item_id": ids[5], "role": "pool", "model_id": m, "predicted": HOSTILE, "confidence": 0.9, "status": "ok"}
        for m in ("new", "old")
    ]
    store.commit(
        "u", "3-neuron", {"explanations": explanations, "neurons": rows, "images": pictures, "predictions": predictions}
    )
    return Run(store.root)


def page(run: Run, **parameters: str) -> AppTest:
    def script() -> None:
        import os
        from pathlib import Path

        import streamlit as st

        from audit.results.sql import Run
        from dashboard import neurons

        only = st.Page(lambda: neurons.show(Run(Path(os.environ["AUDIT_RUN"])), only), title="N", url_path="neurons")
        st.navigation([only]).run()

    os.environ["AUDIT_RUN"] = str(run.root)
    app = AppTest.from_function(script, default_timeout=60)
    for name, value in parameters.items():
        app.query_params[name] = value
    return app.run()


def html_of(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


def images_in(html: str) -> list[str]:
    return re.findall(r"/evidence/([0-9a-f]{64})", html)


def test_the_list_has_harmful_neurons_first_and_links_to_each(run: Run) -> None:
    app = page(run)
    assert not app.exception
    html = html_of(app)
    assert html.index("neuron 7") < html.index("neuron 3")
    assert [link.proto.query_string for link in app.get("page_link")] == ["id=n1", "id=n2", "id=n3"]
    assert "<script" not in html


def test_a_neuron_shows_every_arm_with_what_was_said_of_it(run: Run) -> None:
    app = page(run, id="n1")
    assert not app.exception
    html, ids = html_of(app), {row["explanation_id"]: row for row in run.rows("select * from explanations")}
    shown = images_in(html)
    start = ids["x1"]["start_image_id"]
    ends = [ids[f"x{i}"]["image_id"] for i in (2, 1, 4, 3)]
    # minimised, start, maximised, attacked; then start and maximised of another class; then the real images
    assert shown[:6] == [ends[0], start, ends[1], ends[2], start, ends[3]]
    assert shown[6:] == run.rows("select top_items from neurons where neuron_id = 'n1'")[0]["top_items"]
    tiles = re.findall(r"0.875rem'>(.*?)</div><div style='font-size:2.25rem;line-height:1.3'>(.*?)</div>", html)
    assert tiles == [
        ("weight to the class", "0.500"),
        ("place among suspects", "1"),
        ("real images without it", "50%"),
        ("called so without it", "88%"),
    ]
    for text in ("<b>0.25</b>", "<b>2.50</b>", "<b>75%</b>", "<b>9.00</b>", "sees none", "sees it"):
        assert text in html, text
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 8


def test_a_neuron_without_searches_and_one_that_is_not_there_have_a_page(run: Run) -> None:
    app = page(run, id="n2")
    assert not app.exception
    assert "font-size:2.25rem" not in html_of(app)
    assert images_in(html_of(app)) == []
    app = page(run, id="n3")
    assert not app.exception
    assert "no evidence" in html_of(app)
    app = page(run, id="nothing")
    assert not app.exception
    assert app.title[0].value == "No such neuron"


def test_a_run_without_neurons_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("job.json", b"{}")
    app = page(Run(tmp_path))
    assert not app.exception
    assert "stage `neuron`" in app.info[0].value


def test_queries_find_only_what_belongs_to_the_neuron(run: Run) -> None:
    found: Any = neurons.one(run, "n1")
    assert [row["explanation_id"] for row in neurons.searches(run, found)] == ["x4", "x1", "x2", "x3"]
    other: Any = neurons.one(run, "n2")
    assert neurons.searches(run, other) == []
    assert neurons.one(run, "none") is None
