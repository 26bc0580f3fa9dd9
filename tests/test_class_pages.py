"""The report's pages of classes and confusions, on images that are there, with planted answers and hostile names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from audit.originals import thumbnails
from audit.results.sql import Run
from audit.reviews import review
from dashboard import child, classes, confusions
from tests.labelled import labelled
from tests.report_server import CHROMIUM, served

HOSTILE = "<script>document.title='hacked'</script> *x*"
# label, what it says, how sure it is: of each image in turn
NEW = [
    *(("crab", "crab", 0.9), ("crab", "car", 0.6), ("crab", "car", 0.8), ("crab", "boat", 0.7)),
    *(("car", "car", 0.9), ("car", "car", 0.9), (HOSTILE, "crab", 0.99), (HOSTILE, HOSTILE, 0.5)),
]
OLD = [
    *(("crab", "car", 0.9), ("crab", "crab", 0.5), ("crab", "car", 0.5), ("crab", "crab", 0.5)),
    *(("car", "boat", 0.9), ("car", "car", 0.9), (HOSTILE, HOSTILE, 0.9), (HOSTILE, "car", 0.5)),
]
MODE = {
    "kind": "disagreement",
    "source": "search",
    "listed": True,
    "model_id": "new",
    "other_model_id": "old",
    "support": 2,
    "seeds": 4,
}
MODES = [
    {**MODE, "failure_mode_id": "m1", "class_name": "crab", "name": "on sand", "verdict": "confirmed"},
    {**MODE, "failure_mode_id": "m2", "class_name": "crab", "name": "red", "verdict": "hypothesis"},
    {**MODE, "failure_mode_id": "m3", "class_name": "crab", "name": "red", "verdict": "confirmed", "listed": False},
]
PART = {**MODE, "class_name": "crab", "name": "red", "verdict": "confirmed", "listed": False}
MODES += [
    {**PART, "failure_mode_id": "m4", "part_of": "m5"},  # the other end of a mode of another class
    {**MODE, "failure_mode_id": "m5", "class_name": "car", "name": "on sand", "verdict": "confirmed"},
    {**PART, "failure_mode_id": "m6", "part_of": "m1"},
]
MODES[1] |= {"kind": "confusion", "other_model_id": None}
MEASURED = [("crab", "agreement", 0.75, None), ("crab", "kid", 0.01, None), ("crab", "auditable", 1.0, None)]
MEASURED += [("ghost", "agreement", 0.25, None), ("ghost", "auditable", 0.0, "drawn badly")]
NEURON = {"neuron_id": "n1", "model_id": "new", "class_name": "crab", "neuron": 7, "verdict": "core", "reason": "why"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    measurements = [
        {"subject_id": name, "name": key, "value": value, "reason": reason} for name, key, value, reason in MEASURED
    ]
    rows = {"failure_modes": MODES, "measurements": measurements, "neurons": [NEURON]}
    failed = [{"item_id": "f", "role": "data", "model_id": "new", "label": "crab", "status": "failed"}]
    return labelled(tmp_path_factory.mktemp("labelled"), {"new": NEW, "old": OLD}, rows | {"predictions": failed})


@pytest.fixture(scope="module", autouse=True)
def forget_runs() -> Iterator[None]:
    """Streamlit would keep the opened run beyond the end of the interpreter's modules."""
    yield
    st.cache_resource.clear()
    st.cache_data.clear()


def page(run: Run, monkeypatch: pytest.MonkeyPatch, function: str, /, **query: str) -> AppTest:
    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_string(f"from dashboard import pages\npages.{function}()", default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


def names_in(app: AppTest) -> list[str]:
    """Of the files that are shown, in their order."""
    return re.findall(r"(?:alt|aria-label)='labelled image: (\d+)\.png'", html(app))


def test_classes_are_counted_as_planted(run: Run) -> None:
    rows = {row["class"]: row for row in classes.table(run).to_pylist()}
    assert sorted(rows) == sorted([HOSTILE, "car", "crab", "ghost"])
    crab = rows["crab"]
    assert (crab["images"], crab["accuracy of new"], crab["accuracy of old"]) == (4, 0.25, 0.5)
    assert (crab["agreement"], crab["kid"], crab["auditable"]) == (0.75, 0.01, "yes")
    assert (crab["confirmed"], crab["hypotheses"]) == (2, 1)  # of three that are not listed one is an end
    ghost = rows["ghost"]
    assert (ghost["images"], ghost["accuracy of new"], ghost["kid"], ghost["auditable"]) == (
        0,
        None,
        None,
        "drawn badly",
    )
    assert (rows["car"]["auditable"], rows["car"]["confirmed"]) == ("not tried", 1)


def test_classes_are_sorted_and_paged(run: Run, tmp_path: Path) -> None:
    found = classes.found_in(classes.table(run), "C")
    assert found["class"].to_pylist() == [HOSTILE, "car", "crab"]  # 'script' has one too
    down = classes.page_of(found, "accuracy of new", True, 1)
    assert down["class"].tolist() == ["car", HOSTILE, "crab"]
    assert classes.page_of(found, "kid", False, 1)["class"].tolist() == ["crab", HOSTILE, "car"]  # unknown ones last
    many = labelled(tmp_path, {'m"1': [(f"class {i:03d}", "x", 0.5) for i in range(classes.PAGE_SIZE + 3)]})
    second = classes.page_of(classes.table(many), 'accuracy of m"1', False, 2)
    assert second["class"].tolist() == [f"class {classes.PAGE_SIZE + i:03d}" for i in range(3)]


def test_the_list_and_one_class_show_what_is_known(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(run, monkeypatch, "class_pages")
    assert app.dataframe[0].value["class"].tolist() == [HOSTILE, "car", "crab", "ghost"]
    app = page(run, monkeypatch, "class_pages", name="crab")
    assert [metric.value for metric in app.metric] == ["4", "75%", "0.0100", "2"]
    accuracy, said, neurons = (frame.value for frame in app.dataframe)
    assert accuracy.to_dict("list") == {"model": ["new", "old"], "images": [4, 4], "accuracy": [0.25, 0.5]}
    assert list(said.itertuples(index=False, name=None)) == [
        ("new", "car", 2, 0.5),
        ("old", "car", 2, 0.5),
        ("new", "boat", 1, 0.25),
    ]
    assert neurons["neuron"].tolist() == [7]
    links = [link.proto.query_string for link in app.get("page_link")]
    assert links == ["id=m1", "id=m4", "id=m2", "class=crab"]
    assert names_in(app) == ["0", "1", "2", "3"]
    assert any("wrongly takes for crab" in text.value for text in app.text)
    hostile = page(run, monkeypatch, "class_pages", name=HOSTILE)
    assert "<script" not in html(hostile)
    assert "&lt;script&gt;" in html(hostile)
    ghost = page(run, monkeypatch, "class_pages", name="ghost")
    assert ghost.text[0].value == "Drawn badly."
    assert page(run, monkeypatch, "class_pages", name="none").title[0].value == "No such class"


def test_what_people_said_of_a_finding_is_shown_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"explanation_id": f"{1:032x}", "stage": "2-disagreement", "status": "failed", "target_class": "crab"}
    rows = {"failure_modes": MODES, "neurons": [NEURON], "explanations": [search]}
    made = labelled(tmp_path / "run", {"new": NEW, "old": OLD}, rows)
    pages = {
        "class_pages": {"name": "crab"},
        "one": {"id": "m2"},
        "one_explanation": {"id": f"{1:032x}"},
    }

    def told(name: str) -> str:
        app = page(made, monkeypatch, name, **pages[name])
        return html(app) + " ".join(element.value for element in app.text)

    before = {name: told(name) for name in pages}
    for subject, verdict in (("m1", "expected"), ("n1", "needs review"), (f"{1:032x}", "not a failure")):
        review(made, subject, verdict, reviewer="Ada")
    st.cache_resource.clear()  # what a session saw last is new enough for two seconds
    shown = {"class_pages": ">expected<", "one": "reviewed: expected", "one_explanation": ">not a failure<"}
    for name, words in shown.items():
        assert words not in before[name], name
        assert words in told(name), name
    neurons = page(made, monkeypatch, "class_pages", name="crab").dataframe[-1].value
    assert neurons["reviewed"].tolist() == ["needs review"]


def test_a_run_without_images_has_no_classes_and_no_confusions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = labelled(tmp_path, {"new": []})
    assert "no labelled image" in page(empty, monkeypatch, "class_pages").info[0].value
    assert "No labelled images" in page(empty, monkeypatch, "confusion_page").info[0].value


def test_answers_are_counted_by_label(run: Run) -> None:
    frame = confusions.counted(run, "new", None)
    found = {(row.label, row.says): (row.images, row.correct) for row in frame.itertuples()}
    assert found == {
        ("crab", "crab"): (1, True),
        ("crab", "car"): (2, False),
        ("crab", "boat"): (1, False),
        ("car", "car"): (2, True),
        (HOSTILE, "crab"): (1, False),
        (HOSTILE, HOSTILE): (1, True),
    }
    shares = {(row.label, row.says): row.share for row in confusions.cells(frame).itertuples()}
    assert shares["crab", "car"] == 0.5
    assert shares[HOSTILE, "crab"] == 0.5


def test_what_one_gets_wrong_and_the_other_right(run: Run) -> None:
    wrong = {i for i, (label, says, _) in enumerate(NEW) if label.lower() != says.lower()}
    right = {i for i, (label, says, _) in enumerate(OLD) if label.lower() == says.lower()}
    rows = confusions.images(run, "new", "old", None, None, 1)
    surest = sorted(wrong & right, key=lambda i: -NEW[i][2])
    assert [row["uri"] for row in rows] == [f"{i}.png" for i in surest] == ["6.png", "3.png", "1.png"]
    assert confusions.counted(run, "new", "old")["images"].sum() == 3


def test_images_of_a_cell_come_surest_first_and_paged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["uri"] for row in confusions.images(run, "new", None, "crab", ["car"], 1)] == ["2.png", "1.png"]
    monkeypatch.setattr(confusions, "PAGE_SIZE", 1)
    assert [row["uri"] for row in confusions.images(run, "new", None, "crab", ["car"], 2)] == ["1.png"]
    assert confusions.images(run, "new", None, "crab", ["car"], 3) == []


def many(pairs: dict[tuple[str, str], int]) -> pd.DataFrame:
    rows = [(label, says, label == says, images) for (label, says), images in pairs.items()]
    return pd.DataFrame(rows, columns=["label", "says", "correct", "images"])


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    frame = many(
        {(f"c{i:02d}", f"c{i:02d}"): 9 for i in range(60)} | {(f"c{i:02d}", f"c{i + 1:02d}"): i for i in range(59)}
    )
    assert confusions.chosen_classes(frame, "") == [f"c{i:02d}" for i in range(60 - confusions.MOST, 60)]
    assert confusions.chosen_classes(frame, "C07") == ["c06", "c07", "c08"]
    assert confusions.chosen_classes(frame, "nothing") == []
    few = many({("a", "b"): 1, ("b", "b"): 1, ("never confused", "never confused"): 1})
    assert confusions.chosen_classes(few, "") == ["a", "b", "never confused"]
    assert confusions.chosen_classes(few, "never") == ["never confused"]


def test_the_address_opens_a_cell(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page(run, monkeypatch, "confusion_page", model="new", label="crab", says="car")
    assert "new says car for crab: 2 images" in html(app)
    assert names_in(app) == ["2", "1"]
    app.button[0].click().run()
    assert "What new gets wrong: 4 images" in html(app)
    assert names_in(app) == ["6", "2", "3", "1"]
    assert "label" not in app.query_params
    both = page(run, monkeypatch, "confusion_page", model="new", right="old")
    assert "What new gets wrong and old gets right: 3 images" in html(both)
    assert names_in(both) == ["6", "3", "1"]
    written = page(run, monkeypatch, "confusion_page", model="new", label="crab", says="Crab")  # as the model does
    assert names_in(written) == ["0"]
    none = page(run, monkeypatch, "confusion_page", model="new", label="crab", says="fish")
    assert none.info[0].value == "No such images. Choose a cell above."
    assert "<script" not in html(both)


def test_pictures_come_from_another_process_and_missing_ones_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = labelled(tmp_path, {"new": [("crab", "car", 0.9), ("crab", "car", 0.8)]})
    (tmp_path / "data" / "0.png").write_bytes((tmp_path / "data" / "1.png").read_bytes())  # another image now
    app = page(made, monkeypatch, "confusion_page")
    assert "1 of these 2 images cannot be read any more" in app.warning[0].value
    assert html(app).count("src='data:image/webp;base64,") == 1
    assert html(app).count("cannot be read</div>") == 1
    (tmp_path / "data" / "1.png").unlink()
    st.cache_data.clear()
    assert "2 of these 2" in page(made, monkeypatch, "confusion_page").warning[0].value
    rows = made.rows("select item_id, role, uri from items")
    assert thumbnails(made.store, [{**row, "role": "pool"} for row in rows]) == [None, None]
    answer = child.answer(child.python("pipelines.thumbnails", str(made.root)), 60, rows)
    assert answer == [None, None]
    with pytest.raises(child.Refused, match=r"^KeyError: 'uri'$"):
        child.answer(child.python("pipelines.thumbnails", str(made.root)), 60, [{"role": "data"}])


@pytest.fixture(scope="module")
def address(run: Run) -> Iterator[str]:
    with served(run.root) as where:
        yield where


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_goes_from_a_class_to_the_images_of_a_confusion(address: str, scheme: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 1400}, color_scheme=scheme)  # type: ignore[arg-type]
        errors: list[str] = []
        opened.on("console", lambda m: errors.append(m.text) if m.type == "error" and "404" not in m.text else None)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        broken: list[str] = []
        opened.on("response", lambda r: broken.append(r.url) if r.status >= 400 and "/_stcore/" not in r.url else None)
        opened.goto(f"{address}/classes?q=crab")
        table = opened.get_by_test_id("stDataFrame").first
        table.wait_for(timeout=60_000)
        opened.wait_for_load_state("networkidle")
        table.click(position={"x": 15, "y": 50})  # the box before the first row
        opened.get_by_role("heading", name="What they say instead").wait_for(timeout=60_000)
        assert "name=crab" in opened.url
        opened.locator("main img[alt^='labelled image']").nth(3).wait_for(timeout=60_000)
        opened.wait_for_load_state("networkidle")  # a page that is still being built moves under the pointer
        opened.get_by_test_id("stDataFrame").nth(1).click(position={"x": 15, "y": 50})
        opened.get_by_role("heading", name="new says car for crab: 2 images").wait_for(timeout=60_000)
        pictures = opened.locator("main img[alt^='labelled image']")
        expect(pictures).to_have_count(2)
        opened.wait_for_function("[...document.querySelectorAll('main img')].every(i => i.naturalWidth > 0)")
        assert "label=crab" in opened.url
        opened.get_by_role("button", name="All mistakes").click()
        opened.get_by_role("heading", name="What new gets wrong: 4 images").wait_for()
        opened.locator("path[aria-label='crab, called boat: 1 images']").click()
        opened.get_by_role("heading", name="new says boat for crab: 1 images").wait_for()
        assert "says=boat" in opened.url
        expect(opened.get_by_test_id("stDataFrame")).to_have_count(0)  # its scripts are asked for when it is opened
        opened.get_by_role("tab", name="Table").click()
        opened.get_by_test_id("stDataFrame").wait_for(timeout=60_000)
        expect(opened.get_by_test_id("stVegaLiteChart")).to_have_count(0)
        opened.get_by_test_id("stDataFrame").click(position={"x": 15, "y": 50})  # most images first
        opened.get_by_role("heading", name="new says car for crab: 2 images").wait_for(timeout=60_000)
        assert "view=Table" in opened.url
        assert opened.title() == "audit"
        assert errors == []
        assert broken == []
        browser.close()
