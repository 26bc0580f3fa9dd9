"""Retrieval by words: a real run against the planted truth, made-up rows against literal counts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest
from torch import Tensor, nn

from audit.classifiers import Embedder, Preprocess
from audit.config import load_job
from audit.errors import ConfigError, ModelError
from audit.originals import contents, thumbnails
from audit.results import queries
from audit.results.sql import Run
from audit.results.store import Store
from audit.retrieval import LONGEST_QUERY, checked_query, embedder_of, retrieve
from audit.zoo.export import export
from audit.zoo.scenes import Scene
from audit.zoo.world import load_world, scene_at
from dashboard import retrieval as page
from pipelines.retrieve import file_name, sentence
from tests.in_process import done

ROOT = Path(__file__).resolve().parent.parent
POOL = 400
JOB = """
version: 1
name: words
data: {source: folder, path: labelled}
pool: {source: parquet, path: pool}
models:
  - {id: reference, loader: hf, ref: "zoo:reference"}
  - {id: shortcut-a, loader: hf, ref: "zoo:shortcut-a"}
embedder: {loader: clip, ref: "zoo:clip"}
stages: [{kind: screen}]
"""
HOSTILE = "<script>alert(1)</script>"
MODE = {
    "failure_mode_id": "m1",
    "source": "search",
    "listed": True,
    "verdict": "confirmed",
    "class_name": "crab",
    "name": "on sand",
}
MODE |= {"model_id": "shortcut-a", "other_model_id": "reference", "concept": "{} on sand"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two models over 30 labelled scenes and 400 of the pool, in this process; and a failure mode written by hand."""
    folder = tmp_path_factory.mktemp("words")
    export("labelled", folder / "labelled", "folder", 30)
    export("pool", folder / "pool", "parquet", POOL)
    (folder / "job.yaml").write_text(JOB)
    root = folder / "run"
    done(load_job(folder / "job.yaml"), root, 16)
    mode = {**MODE, "exemplars": ["x1", "x2", "x3", "x4"]}
    sources = ["car", "fish", "car", "crab"]
    searches = [{"explanation_id": f"x{i}", "source_class": name} for i, name in enumerate(sources, 1)]
    Store(root).commit("byhand", "2-byhand", {"failure_modes": [mode], "explanations": searches})
    return Run(root)


@pytest.fixture(scope="module")
def embedder(run: Run) -> Embedder:
    return embedder_of(run)


def scene_of(row: dict[str, Any]) -> Scene:
    """The planted truth of a pool image, by its name."""
    (number,) = re.findall(r"pool-(\d+)", row["display_name"])
    return scene_at(load_world(), "pool", int(number)).scene


def test_words_retrieve_the_scenes_that_they_describe(run: Run, embedder: Embedder) -> None:
    """Of the pool's scenes, few are on sand and few show a crab; of the retrieved ones, most and all."""
    every = [scene_at(load_world(), "pool", i).scene for i in range(POOL)]
    on_sand, crabs = (sum(getattr(s, k) == v for s in every) for k, v in (("background", "sand"), ("object", "crab")))
    assert max(on_sand, crabs) < POOL / 3
    found = retrieve(run, embedder, "a photograph of a crab on sand", top=10)
    scenes = [scene_of(row) for row in found.rows]
    both = sum(s.background == "sand" and s.object == "crab" for s in every)
    assert both >= 5
    assert all(s.background == "sand" and s.object == "crab" for s in scenes[:5])
    assert sum(s.background == "sand" for s in scenes) >= 9
    assert found.images == POOL
    assert [row["rank"] for row in found.rows] == list(range(1, 11))


def test_similarity_is_the_cosine_to_the_stored_embeddings(run: Run, embedder: Embedder) -> None:
    query = "a photograph of a green tree"
    stored = run.rows("select subject_id, values from arrays where role = 'pool'")
    text = embedder.embed_texts([query])[0].double().numpy()
    cosines = {}
    for row in stored:
        image = np.array(row["values"], float)
        cosines[row["subject_id"]] = float(image @ text / math.sqrt((image @ image) * (text @ text)))
    best = sorted(cosines, key=lambda item_id: -cosines[item_id])[:25]
    rows = retrieve(run, embedder, query, top=25).rows
    assert [row["item_id"] for row in rows] == best
    assert [row["similarity"] for row in rows] == pytest.approx([cosines[i] for i in best], abs=1e-5)


def test_a_planted_mode_is_confirmed_by_words_that_do_not_name_its_class(run: Run, embedder: Embedder) -> None:
    """On crabs on sand there is nothing to disagree on; on other things on sand shortcut-a says crab."""
    other = retrieve(run, embedder, "a photograph of a car on sand", top=12, mode_id="m1")
    own = retrieve(run, embedder, "a photograph of a crab on sand", top=5, mode_id="m1")
    assert other.mode
    assert own.mode
    assert other.mode["retrieved_rate"] >= 0.75
    assert other.mode["rest_rate"] < 0.35
    assert other.mode["p_value"] < 1e-4
    assert own.mode["retrieved_rate"] == 0
    assert other.mode["retrieved_rate"] == np.mean([bool(row["disagrees"]) for row in other.rows])
    for row in other.rows:
        said = {s["model_id"]: s["predicted"] for s in row["said"]}
        assert row["disagrees"] == (said["shortcut-a"] == "crab" != said["reference"])


# ---- made-up rows: ten images on a circle, what two models say of them, and a text at angle 0


def flat(angles: Sequence[float]) -> Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def read_angle(texts: Sequence[str]) -> Tensor:
    """The text '0.3 rad' lies at the angle 0.3; a text that ends in 'unread' lies where it does without the word."""
    return flat([float(text.split()[0]) + (0.01 if "rad" in text else 0) for text in texts])


ANGLES = Embedder((), Preprocess((8, 8)), nn.Identity(), nn.Identity(), nn.Identity(), read_angle, 1.0)


@pytest.fixture
def circle(tmp_path: Path) -> Run:
    """Images p0 ... p9 of the pool at 0.1 k; d0 (0.05) and p5 of the data set. p8 is not embedded, g failed on p1."""
    store = Store(tmp_path / "circle")
    store.create("job.json", b"{}")
    items, arrays, predictions = [], [], []
    for role, names in (("pool", [f"p{k}" for k in range(10)]), ("data", ["d0", "p5"])):
        for k, name in enumerate(names):
            angle = 0.05 if name == "d0" else 0.1 * int(name[1:])
            values = None if name == "p8" else flat([angle])[0].tolist()
            items.append({"item_id": name, "role": role, "position": k, "uri": name, "display_name": name})
            arrays.append({"subject_id": name, "role": role, "name": "embedding", "values": values})
            f = {"model_id": "f", "predicted": "crab" if int(name[1:]) < 6 else "car"}
            g = {"model_id": "g", "predicted": "crab" if name in ("p0", "p9") else "boat"}
            if name == "p1":
                g |= {"predicted": None, "status": "failed", "reason": "not_finite"}
            predictions += [
                {"item_id": name, "role": role, "confidence": 0.5, "status": "ok", **said} for said in (f, g)
            ]
    arrays.append({"subject_id": "x", "role": "generated", "name": "embedding", "values": [1.0, 0.0]})
    mode = {**MODE, "model_id": "f", "other_model_id": "g"}
    store.commit("u", "1-x", {"items": items, "arrays": arrays, "predictions": predictions, "failure_modes": [mode]})
    return Run(store.root)


def test_rates_and_the_fisher_test_are_counts_over_the_images(circle: Run) -> None:
    """Retrieved p0 ... p4: f says crab, g does not, on p2, p3, p4 of the four where both spoke; of the rest, on p5."""
    found = retrieve(circle, ANGLES, "0", top=5, mode_id="m1")
    assert [row["item_id"] for row in found.rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert [row["disagrees"] for row in found.rows] == [False, None, True, True, True]
    assert found.images == 9
    assert found.mode
    assert (found.mode["retrieved_images"], found.mode["retrieved_rate"]) == (4, 0.75)
    assert (found.mode["rest_images"], found.mode["rest_rate"]) == (4, 0.25)
    # of 8 images, 4 hits: the chance that 4 drawn ones have 3 or 4 of them
    chance = (math.comb(4, 3) * math.comb(4, 1) + 1) / math.comb(8, 4)
    assert found.mode["p_value"] == pytest.approx(chance)


def test_classes_are_counted_among_the_retrieved_and_among_all(circle: Run) -> None:
    said = retrieve(circle, ANGLES, "0", top=5).said
    got = {(s["model_id"], s["says"]): (s["retrieved"], s["images"], s["share_retrieved"], s["share"]) for s in said}
    assert got == {
        ("f", "crab"): (5, 6, 1.0, pytest.approx(6 / 9)),
        ("f", "car"): (0, 3, 0.0, pytest.approx(3 / 9)),
        ("g", "boat"): (3, 6, 0.75, pytest.approx(6 / 8)),
        ("g", "crab"): (1, 2, 0.25, pytest.approx(2 / 8)),
    }


def test_an_image_of_both_roles_counts_once(circle: Run) -> None:
    found = retrieve(circle, ANGLES, "0", "both", top=100)
    assert found.images == len(found.rows) == 10
    assert [(row["item_id"], row["role"]) for row in found.rows][:3] == [("p0", "pool"), ("d0", "data"), ("p1", "pool")]
    assert [row["role"] for row in found.rows if row["item_id"] == "p5"] == ["data"]
    assert [row["item_id"] for row in retrieve(circle, ANGLES, "0", "data").rows] == ["d0", "p5"]


def test_all_retrieved_leaves_nothing_to_compare_with(circle: Run) -> None:
    found = retrieve(circle, ANGLES, "0", top=100, mode_id="m1")
    assert found.mode
    assert (found.mode["rest_images"], found.mode["rest_rate"], found.mode["p_value"]) == (0, None, 1.0)
    assert "no images on one side" in sentence(found.mode)
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_failure_mode_that_labels_show_is_tested_against_the_labels(tmp_path: Path) -> None:
    """d0 ... d4 retrieved: f says crab of d0 ... d3, and d0 is one; d4 has no label. Of d5 ... d9 f says car."""
    store = Store(tmp_path / "labels")
    store.create("job.json", b"{}")
    items, arrays, predictions = [], [], []
    for k in range(10):
        place = {"item_id": f"d{k}", "role": "data", "label": None if k == 4 else "crab" if k == 0 else "boat"}
        items.append({**place, "position": k})
        arrays.append(
            {"subject_id": f"d{k}", "role": "data", "name": "embedding", "values": flat([0.1 * k])[0].tolist()}
        )
        predictions.append({**place, "model_id": "f", "predicted": "crab" if k < 5 else "car", "status": "ok"})
    by_label = {**MODE, "model_id": "f", "other_model_id": None, "source": "labels"}
    by_embedder = {**MODE, "failure_mode_id": "m2", "model_id": "f", "other_model_id": "embedder"}
    rows = {"items": items, "arrays": arrays, "predictions": predictions, "failure_modes": [by_label, by_embedder]}
    store.commit("u", "1-x", rows)
    found = retrieve(Run(store.root), ANGLES, "0", "data", top=5, mode_id="m1")
    assert [row["disagrees"] for row in found.rows] == [False, True, True, True, None]
    assert found.mode
    assert (found.mode["retrieved_images"], found.mode["retrieved_rate"]) == (4, 0.75)
    assert (found.mode["rest_images"], found.mode["rest_rate"]) == (5, 0.0)
    chance = math.comb(4, 3) / math.comb(9, 3)  # that 3 of 9 are all among the first 4
    assert found.mode["p_value"] == pytest.approx(chance)
    assert sentence(found.mode).startswith("f says crab and the label does not: on 75%")
    with pytest.raises(ConfigError, match="words prove nothing there"):
        retrieve(Run(store.root), ANGLES, "0", "data", mode_id="m2")


def test_what_cannot_be_asked_is_refused(circle: Run) -> None:
    with pytest.raises(ConfigError, match="does not read the query to its end"):
        retrieve(circle, ANGLES, "0.3 unread")
    assert retrieve(circle, ANGLES, "0.3 rad", top=1).rows[0]["item_id"] == "p3"
    with pytest.raises(ConfigError, match=r"unknown failure mode 'm2'.* Known: m1"):
        retrieve(circle, ANGLES, "0", mode_id="m2")
    with pytest.raises(ConfigError, match="1 to 1000"):
        retrieve(circle, ANGLES, "0", top=0)
    Store(circle.root.parent / "bare").create("job.json", b"{}")
    with pytest.raises(ConfigError, match="no embeddings of images of the role 'pool'; it has: none"):
        retrieve(Run(circle.root.parent / "bare"), ANGLES, "0")


@pytest.mark.parametrize("query", ["", " \t\n ", "a" * (LONGEST_QUERY + 1), "a\0b", "a\x1bb", "a\u202eb", "\ud800"])
def test_queries_that_are_no_text_are_refused(query: str) -> None:
    with pytest.raises(ConfigError, match="query"):
        checked_query(query)


@pytest.mark.parametrize("query", ["--json", "'; drop", '"', HOSTILE, "{}", "%s", "Krebs am Strand, weiß"])
def test_other_queries_are_words(query: str, run: Run, embedder: Embedder) -> None:
    assert retrieve(run, embedder, f"  {query}\n", top=1).query == query


# ---- the run's own embedder, and its images


def altered(run: Run, folder: Path, **changes: Any) -> Run:
    """A copy of the run whose job.json says something else."""
    copy = folder / "copy"
    shutil.copytree(run.root, copy)
    record = json.loads((copy / "job.json").read_text())
    for part, change in changes.items():
        record[part] |= change
    (copy / "job.json").unlink()
    (copy / "job.json").write_text(json.dumps(record))
    return Run(copy)


def test_an_embedder_with_other_weights_is_refused(run: Run, tmp_path: Path) -> None:
    other = altered(run, tmp_path, digests={"embedder": "0" * 64})
    with pytest.raises(ModelError, match=r"other weights now .* than when the run was made \(000000000000\)"):
        embedder_of(other)


def test_a_run_without_an_embedder_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its job names no embedder"):
        embedder_of(altered(run, tmp_path, job={"embedder": None}))


def test_no_code_that_a_run_names_is_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef load(): return None\n")
    named = {"plugin": "python", "ref": f"{tmp_path / 'evil.py'}:load", "class_names": ["a"], "input_size": 8}
    with pytest.raises(ConfigError, match="'python' gives no embeddings"):
        embedder_of(altered(run, tmp_path, job={"embedder": named}))
    assert not (tmp_path / "ran").exists()


def test_images_are_those_of_the_run_or_none(run: Run, embedder: Embedder, tmp_path: Path) -> None:
    rows = retrieve(run, embedder, "a photograph of a crab on sand", "both", top=30).rows
    assert {row["role"] for row in rows} == {"data", "pool"}
    assert [hashlib.sha256(data or b"").hexdigest() for data in contents(run.store, rows)] == [
        row["item_id"] for row in rows
    ]
    lied = [{**rows[0], "item_id": "0" * 64}, rows[1]]  # as if the file had changed since
    assert [data is None for data in thumbnails(run.store, lied)] == [True, False]
    pool = {"plugin": "parquet", "path": str(tmp_path / "gone")}
    data = {"plugin": "folder", "path": str(tmp_path / "gone")}
    assert thumbnails(altered(run, tmp_path, job={"pool": pool, "data": data}).store, rows) == [None] * 30


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b.png", "..", "x" * 300 + ".png", "a\nb\x1b", "🦀" * 90])
def test_names_of_files_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    made = file_name({"display_name": name, "rank": 3, "similarity": 0.25, "item_id": "f" * 64})
    assert made.startswith("0003-0.2500-")
    (tmp_path / made).touch()
    assert [path.name for path in tmp_path.iterdir()] == [made]
    assert made.isprintable()


# ---- the command, and the page that asks it


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipelines.cli", "retrieve", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_command_prints_json_and_writes_the_images(run: Run, embedder: Embedder, tmp_path: Path) -> None:
    query = "a photograph of a car on sand"
    asked = [str(run.root), query, "--top", "6", "--mode", "m1", "--json", "--thumbnails", "--images"]
    done = audit(*asked, str(tmp_path / "images"))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    expected = retrieve(run, embedder, query, top=6, mode_id="m1")
    assert [row["item_id"] for row in answer["rows"]] == [row["item_id"] for row in expected.rows]
    assert answer["mode"] == pytest.approx(expected.mode)
    paths = sorted((tmp_path / "images").iterdir())
    assert [path.read_bytes() for path in paths] == contents(run.store, expected.rows)
    for path, row in zip(paths, answer["rows"], strict=True):
        assert path.name == f"{row['rank']:04d}-{row['similarity']:.4f}-{row['display_name']}"
        small = Image.open(io.BytesIO(base64.b64decode(row["thumbnail"])))
        difference = np.asarray(small.convert("RGB"), float) - np.asarray(Image.open(path).convert("RGB"), float)
        assert (small.format, small.size) == ("WEBP", (64, 64))
        assert np.abs(difference).mean() < 12
    assert audit(*asked, str(tmp_path / "images")).returncode == 2  # an existing folder is left alone


def test_the_command_prints_a_table_for_people(run: Run) -> None:
    done = audit("--top", "3", "--mode", "m1", "--", str(run.root), "--a car [bold]on sand")
    assert done.returncode == 0, done.stderr
    assert "--a car [bold]on sand" in done.stdout
    assert "shortcut-a says crab and reference does not: on " in done.stdout
    empty = audit(str(run.root), " ")
    assert (empty.returncode, "the query is empty" in empty.stderr) == (2, True)


def test_a_run_without_a_pool_is_asked_for_its_own_images(run: Run, tmp_path: Path) -> None:
    assert queries.roles(run) == ["pool", "data", "both"]
    export("labelled", tmp_path / "labelled", "folder", 8)
    job = "".join(line for line in JOB.splitlines(keepends=True) if not line.startswith("pool:"))
    (tmp_path / "job.yaml").write_text(job)
    alone = done(load_job(tmp_path / "job.yaml"), tmp_path / "run", 8)
    assert queries.roles(alone) == ["data"]
    asked = audit(str(alone.root), "a crab", "--top", "3", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert (answer["role"], answer["images"], len(answer["rows"])) == ("data", 8, 3)
    assert audit(str(alone.root), "a crab", "--role", "pool").returncode == 2


def test_the_page_passes_the_query_as_one_argument(run: Run) -> None:
    for query in ("--help", "--images=/tmp/x", "; touch /tmp/x", HOSTILE):
        made = page.command(run.root, query, "pool", 5, None)
        assert made[-3:] == ["--", str(run.root.resolve()), query]
    with pytest.raises(page.Refused, match="cannot be passed on"):
        page.ask(run.root, "a\0b", "pool", 5, None)
    assert page.ask(run.root, "--help", "pool", 1, None)["query"] == "--help"


def test_the_page_waits_no_longer_than_its_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SECONDS", 0.05)
    with pytest.raises(page.Refused, match=r"no answer within 0\.05 seconds"):
        page.ask(run.root, "a crab", "pool", 1, None)


def test_a_mode_suggests_what_its_searches_started_from(run: Run) -> None:
    mode = run.failure_modes()[0]
    assert page.words_for(run, mode) == "a photograph of a car on sand"
    assert page.words_for(run, {**mode, "exemplars": ["x4", "x4", "x2"]}) == "a photograph of a fish on sand"
    assert page.words_for(run, {**mode, "exemplars": ["x4"]}) == "a photograph of a crab on sand"
    assert page.words_for(run, {**mode, "exemplars": None, "concept": None}) == "a photograph of a crab"


def opened(run: Run, monkeypatch: pytest.MonkeyPatch, **parameters: str) -> AppTest:
    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_string("from dashboard import pages\npages.by_words()", default_timeout=120)
    for name, value in parameters.items():
        app.query_params[name] = value
    return app.run()


@pytest.fixture(scope="module", autouse=True)
def forget_runs() -> Iterator[None]:
    """Streamlit would keep the opened run beyond the end of the interpreter's modules."""
    yield
    st.cache_resource.clear()


def texts(app: AppTest) -> str:
    kinds = ("title", "header", "text", "error", "metric", "caption")
    return "\n".join(
        f"{e.label} {e.value}" if kind == "metric" else str(e.value) for kind in kinds for e in app.get(kind)
    )


def test_a_person_asks_for_images_of_a_failure_mode(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(run, monkeypatch, id="m1")
    assert not app.exception
    assert app.text_input[0].value == "a photograph of a car on sand"
    assert app.selectbox[0].value == "m1"
    assert "The 40 most" not in texts(app)  # a link alone asks nothing
    app.number_input[0].set_value(12)
    app.button[0].click().run()
    assert not app.exception
    assert "The 12 most similar of 400 images" in texts(app)
    claim, html = [element.proto.body for element in app.get("html")]
    assert "shortcut-a says “crab” for what is on sand" in claim
    assert html.count("src='data:image/webp;base64,UklGR") == 12
    assert "<b>crab</b>" in html
    started: list[str] = []
    ask = page.ask
    monkeypatch.setattr(page, "ask", lambda *arguments: started.append(arguments[1]))
    app.button[0].click().run()
    assert "The 12 most similar of 400 images" in texts(app)
    assert started == []  # the second answer is the remembered one
    monkeypatch.setattr(page, "ask", lambda *arguments: ask(*arguments))
    asked = {name: app.query_params[name] for name in app.query_params}
    assert asked == {"q": "a photograph of a car on sand", "role": "pool", "top": "12", "id": "m1"}
    link = opened(run, monkeypatch, **(asked | {"top": "5"}))  # leads to what was found
    assert not link.exception
    assert "The 5 most similar of 400 images" in texts(link)
    assert (link.text_input[0].value, link.number_input[0].value) == ("a photograph of a car on sand", 5)
    odd = opened(run, monkeypatch, q="a crab", role="nobody", top="-3", id="gone")
    assert "The 40 most similar of 400 images" in texts(odd)


def test_the_page_says_why_there_is_no_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(run, monkeypatch, id=HOSTILE)
    assert app.selectbox[0].value is None
    app.button[0].click().run()
    assert not app.exception
    assert "No images were retrieved" in texts(app)
    assert "the query is empty; say what the images show" in texts(app)


def test_names_are_text_in_a_retrieved_image() -> None:
    said = [{"model_id": HOSTILE, "predicted": HOSTILE, "confidence": 0.5, "reason": None}]
    said += [{"model_id": HOSTILE, "predicted": None, "confidence": None, "reason": HOSTILE}]
    row = {"rank": 1, "similarity": 0.5, "display_name": f"'{HOSTILE}", "thumbnail": "'><x", "said": said}
    html = page._cell({**row, "disagrees": True})
    assert "<script" not in html
    assert "<x" not in html
    assert html.count("&lt;script&gt;") == 5
