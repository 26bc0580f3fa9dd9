"""A file of predictions as a model: which rows are whose, what they say, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.classifiers import predictions
from audit.config import parse_job
from audit.errors import ConfigError, ModelError
from audit.methods import check_order
from audit.models.prediction_rows import Place, match, without_row
from audit.results.sql import Run
from audit.review.warnings import warnings_of
from pipelines.serial import run_serially
from tests.in_process import done

NAMES = ("cat", "dog", "fox")


def images(root: Path, names: list[str]) -> dict[str, str]:
    """Small images of their own colours at these places, and the sha256 of each."""
    colours = itertools.count(1)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), next(colours), np.uint8)).save(root / name)
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}


def loaded(path: Path, classes: tuple[str, ...] = NAMES, **options: Any) -> Any:
    return predictions.load(predictions.Options(path=path, **options), classes)


def job(tmp_path: Path, file: Path, **options: Any) -> Any:
    raw: dict[str, Any] = {"version": 1, "name": "j", "data": {"source": "folder", "path": "data"}}
    raw["models"] = [{"id": "m", "loader": "predictions", "path": str(file), **options}]
    return parse_job(raw | {"stages": [{"kind": "screen"}]}, tmp_path)


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    return images(tmp_path / "data", ["cat/1.png", "cat/2.png", "dog/1.png"])


def test_a_file_of_predictions_is_screened_as_a_model_is(tmp_path: Path, three: dict[str, str]) -> None:
    """Accuracy, confusion and confidence as the file has them; the rest of its rows are counted."""
    file = written(
        tmp_path / "p.csv",
        "image, label, cat, dog, fox\n"
        "cat/1.png,cat,0.7,0.2,0.1\n"
        "cat/2.png,cat,0.1,0.6,0.3\n"
        "dog/1.png,dog,0.25,0.5,0.25\n"
        "dog/9.png,dog,0,1,0\n",
    )
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    rows = run.rows("select * from predictions order by confidence desc")
    assert [(r["label"], r["predicted"], r["confidence"], r["correct"]) for r in rows] == [
        ("cat", "cat", 0.7, True),
        ("cat", "dog", 0.6, False),
        ("dog", "dog", 0.5, True),
    ]
    assert rows[1]["top_classes"] == ["dog", "fox", "cat"]
    assert rows[1]["top_confidences"] == [0.6, 0.3, 0.1]
    assert {r["item_id"] for r in rows} == set(three.values())
    assert run.rows("select label, predicted, images from confusions") == [
        {"label": "cat", "predicted": "dog", "images": 1}
    ]
    (warning,) = run.rows("select * from warnings")
    assert (warning["code"], warning["items"], warning["blocks_gate"]) == ("unused_predictions", 1, False)
    assert "'dog/9.png'" in warning["message"]


def test_an_image_without_a_prediction_is_a_failed_row_and_a_warning(tmp_path: Path, three: dict[str, str]) -> None:
    file = written(tmp_path / "p.csv", "image,predicted,confidence\ncat/1.png,cat,.9\ndog/1.png,cat,.8\n")
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    (lacking,) = run.rows("select item_id, label, status, reason, predicted from predictions where status <> 'ok'")
    assert lacking == {
        "item_id": three["cat/2.png"],
        "label": "cat",
        "status": "failed",
        "reason": "no_prediction",
        "predicted": None,
    }
    (warning,) = run.rows("select * from warnings where code <> 'classes_never_predicted'")
    assert (warning["code"], warning["role"], warning["items"]) == ("no_prediction", "data", 1)
    assert warning["blocks_gate"]
    assert "'cat/2.png'" in warning["message"]


def test_warnings_are_written_once_however_many_units(tmp_path: Path) -> None:
    ids = images(tmp_path / "data", [f"cat/{i}.png" for i in range(7)])
    file = written(tmp_path / "p.csv", "image,predicted\ncat/3.png,cat\ncat/4.png,dog\nx.png,cat\n")
    raw = job(tmp_path, file).model_copy()
    (screen,) = raw.stages
    small = screen.model_copy(update={"options": screen.options.model_copy(update={"unit_items": 2})})
    run = done(raw.model_copy(update={"stages": (small,)}), tmp_path / "run", 1)
    assert run.rows("select count(*) as n from units where stage = '1-screen'")[0]["n"] > 2
    counts = {row["code"]: row["items"] for row in run.rows("select code, items from warnings")}
    assert counts == {"no_prediction": 5, "unused_predictions": 1}
    assert run.rows("select count(*) as n from warnings")[0]["n"] == 2
    assert run.rows("select count(*) as n from predictions")[0]["n"] == len(ids)


def test_labels_of_the_file_stand_in_and_are_compared(tmp_path: Path) -> None:
    """Images in the root have no label; where both have one, the data set's counts, and what differs is said."""
    images(tmp_path / "data", ["1.png", "dog/2.png", "cat/3.png"])
    file = written(tmp_path / "p.csv", "image,label,predicted\n1.png,cat,cat\n2.png,cat,dog\n3.png,Cat,dog\n")
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    rows = run.rows("select p.label, p.correct, uri from predictions p join items using (item_id) order by uri")
    assert [(r["uri"], r["label"], r["correct"]) for r in rows] == [
        ("1.png", "cat", True),
        ("cat/3.png", "cat", False),
        ("dog/2.png", "dog", True),
    ]
    (warning,) = run.rows("select * from warnings where model_id = 'm'")
    assert (warning["code"], warning["items"], warning["blocks_gate"]) == ("labels_differ", 1, True)
    assert "'cat' in the file and 'dog' in the data set for '2.png'" in warning["message"]


def test_a_label_of_the_file_that_is_never_predicted_counts_as_missed(tmp_path: Path) -> None:
    """The data set has no labels. By hand: 2 of 3 are right; two scores for three labels are refused."""
    images(tmp_path / "data", ["1.png", "2.png", "3.png"])
    labels = ["1.png,cat", "2.png,dog", "3.png,bird"]
    text = "image,label,predicted\n" + "\n".join(map(",".join, zip(labels, ("cat", "dog", "dog"), strict=True)))
    run = done(job(tmp_path, written(tmp_path / "p.csv", text)), tmp_path / "run", 1)
    assert run.rows("select avg(correct::int) as share from predictions")[0]["share"] == pytest.approx(2 / 3)
    assert "classes_never_predicted" in {row["code"] for row in run.rows("select code from warnings")}
    misspelt = text.replace("bird", "dogs")
    scored = "image,label,cat,dog\n" + "\n".join(f"{label},.7,.3" for label in labels)
    for name, refused, lacking in (
        ("q.csv", misspelt.replace("dog,dog", "dog,cow"), "'dog'"),
        ("r.csv", scored, "'bird'"),
    ):
        with pytest.raises(AssertionError, match=f"labels match no output of the model. Labels: .*{lacking}"):
            done(job(tmp_path, written(tmp_path / name, refused)), tmp_path / name[0], 1)


def test_a_label_of_the_file_without_a_class_is_said_where_the_data_set_has_labels_too(tmp_path: Path) -> None:
    images(tmp_path / "data", ["1.png", "2.png", "cat/3.png", "dog/4.png"])
    text = "image,label,predicted\n1.png,unicorn,cat\n2.png,dog,cat\n3.png,gryphon,cat\n4.png,dog,dog\n"
    run = done(job(tmp_path, written(tmp_path / "p.csv", text)), tmp_path / "run", 1)
    (warning,) = run.rows("select * from warnings where code = 'labels_unknown'")
    assert (warning["items"], warning["blocks_gate"]) == (1, True)
    assert "'1.png' with 'unicorn'" in warning["message"]


def test_labels_of_the_file_that_the_job_excuses_or_that_are_of_the_pool_are_not_unknown(tmp_path: Path) -> None:
    images(tmp_path / "data", ["1.png", "2.png"])
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / "pool.png")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool.png").rename(tmp_path / "pool" / "9.png")
    text = "image,label,cat,dog\n1.png,cat,.8,.2\n2.png,bird,.3,.7\n9.png,unicorn,.6,.4\n"
    excused = {"bird": None, "unicorn": None}
    raw = {"version": 1, "name": "j", "data": {"source": "folder", "path": "data"}}
    raw |= {"pool": {"source": "folder", "path": "pool"}, "stages": [{"kind": "screen"}]}
    stored = {"id": "m", "loader": "predictions", "path": str(written(tmp_path / "p.csv", text)), "labels": excused}
    run = done(parse_job(raw | {"models": [stored]}, tmp_path), tmp_path / "run", 1)
    assert {row["code"] for row in run.rows("select code from warnings where model_id = 'm'")} == {
        "labels_without_output"
    }
    (tmp_path / "data" / "dog").mkdir()
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(tmp_path / "data" / "dog" / "3.png")
    labelled = written(tmp_path / "q.csv", text.replace("bird", "cat") + "3.png,dog,.1,.9\n")
    stored = {"id": "m", "loader": "predictions", "path": str(labelled)}
    run = done(parse_job(raw | {"models": [stored]}, tmp_path), tmp_path / "again", 1)
    assert "labels_unknown" not in {row["code"] for row in run.rows("select code from warnings")}


def test_classes_are_spelled_as_the_labels_of_the_file_that_mean_them(tmp_path: Path) -> None:
    """Else a model that is right on every image seems to have its outputs in another order."""
    names = [f"{i}.png" for i in range(40)]
    images(tmp_path / "data", names)
    rows = [f"{name},{('Cat', 'Hot_dog')[i % 2]},{('cat', 'hot dog')[i % 2]}" for i, name in enumerate(names)]
    file = written(tmp_path / "p.csv", "\n".join(["image,label,predicted", *rows, ""]))
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    found = run.rows("select label, predicted, count(*) as n from predictions where correct group by all order by all")
    assert [(r["label"], r["predicted"], r["n"]) for r in found] == [("Cat", "Cat", 20), ("Hot_dog", "Hot_dog", 20)]
    assert [warning.code for warning in warnings_of(run)] == ["no_label_column"]


def test_a_model_beside_it_is_screened_as_ever(tmp_path: Path, three: dict[str, str]) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nclass M(torch.nn.Module):\n    def forward(self, x): return torch.tensor([[0., 3., 0.]])"
        ".expand(len(x), 3)\ndef make(): return M()\n"
    )
    file = written(tmp_path / "p.csv", "image,predicted\ncat/1.png,cat\ncat/2.png,cat\ndog/1.png,dog\n")
    raw: dict[str, Any] = {"version": 1, "name": "j", "data": {"source": "folder", "path": "data"}}
    own = {"id": "own", "loader": "python", "ref": "mine.py:make", "input_size": 8, "class_names": list(NAMES)}
    raw["models"] = [own, {"id": "m", "loader": "predictions", "path": str(file)}]
    run = done(parse_job(raw | {"stages": [{"kind": "screen"}]}, tmp_path), tmp_path / "run", 1)
    accuracy = run.rows("select model_id, avg(correct::int) as share from predictions group by 1 order by 1")
    assert [(r["model_id"], round(r["share"], 4)) for r in accuracy] == [("m", 1.0), ("own", 0.3333)]


STAGES = {
    "disagreement": {"kind": "disagreement", "maximise": "m", "minimise": "z", "seeds": 1},
    "neuron": {"kind": "neuron", "model": "m", "neurons": [0]},
    "check": {"kind": "neuron", "model": "z", "check": "m", "neurons": [0]},
    "uvce": {"kind": "counterfactual", "method": "uvce", "model": "m"},
    "activations": {"kind": "screen", "activations": ["m"]},
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_that_need_a_forward_pass_refuse_it_before_any_work(stage: str, tmp_path: Path) -> None:
    file = written(tmp_path / "p.csv", "image,predicted\n1.png,cat\n")
    raw: dict[str, Any] = {"version": 1, "name": "j", "data": {"source": "folder", "path": str(tmp_path)}}
    stored = {"id": "m", "loader": "predictions", "path": str(file)}
    raw["models"] = [stored, {"id": "z", "loader": "hf", "ref": "zoo:shortcut-a"}]
    raw |= {
        "generator": {"loader": "diffusers", "ref": "zoo:diffusion"},
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
    }
    before = [] if stage == "activations" else [{"kind": "screen"}, {"kind": "adequacy"}]
    with pytest.raises(ConfigError, match="the model 'm' has stored predictions only"):
        check_order(parse_job(raw | {"stages": [*before, STAGES[stage]]}, tmp_path))
    if before:
        check_order(parse_job(raw | {"stages": before}, tmp_path))  # the other model can be asked
        alone = {**raw, "models": [stored], "stages": before}
        with pytest.raises(ConfigError, match="adequacy: every model of the job has stored predictions only"):
            check_order(parse_job(alone, tmp_path))


def test_an_embedder_cannot_be_a_file_of_predictions(tmp_path: Path, three: dict[str, str]) -> None:
    file = written(tmp_path / "p.csv", "image,predicted\ncat/1.png,cat\n")
    found = job(tmp_path, file)
    found = found.model_copy(update={"embedder": found.models["m"]})
    assert "embedder: loader 'predictions'" in str([s.error for s in run_serially(found, tmp_path / "run", 1)])


def test_logits_become_probabilities_only_where_they_are_said_to_be_logits(tmp_path: Path) -> None:
    file = written(tmp_path / "p.csv", "item,cat,dog,fox\na.png,2,1,-inf\nb.png,-3,-1,-2\n")
    with pytest.raises(ModelError, match=r"row 2: the scores are not probabilities.*'scores: logits'"):
        loaded(file)
    model = loaded(file, scores="logits")
    total = math.exp(2) + math.exp(1)
    assert model.prediction(0, None)["top_confidences"] == pytest.approx([math.exp(2) / total, math.exp(1) / total, 0])
    assert model.prediction(1, "dog")["top_classes"] == ["dog", "fox", "cat"]
    assert model.prediction(1, "dog")["correct"]


@pytest.mark.parametrize(
    ("rows", "scores", "message"),
    [
        ("a,.9,.8,.1\n", "auto", "a sum of 1.8"),
        ("a,.9,.05,.05\nb,60,30,10\n", "auto", "row 2: the scores are not.*values from 10 to 60"),
        ("a,-.1,.6,.5\n", "auto", "values from -0.1"),
        ("a,.3,.3,.36\n", "auto", "a sum of 0.96"),
        ("a,.3,.3,.2\n", "probabilities", "a sum of 0.8"),
        ("a,0,0,0\n", "probabilities", "a sum of 0"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(tmp_path: Path, rows: str, scores: str, message: str) -> None:
    file = written(tmp_path / "p.csv", "item,cat,dog,fox\n" + rows)
    with pytest.raises(ModelError, match=message):
        loaded(file, scores=scores)


@pytest.mark.parametrize("scores", ["auto", "probabilities", "logits"])
@pytest.mark.parametrize("rows", ["a,47.60,52.40,0\nb,100,0,0\n", "a,,,\nb,47.6,52.4,0\nc,33,33,33\nd,34,34,33\n"])
def test_percentages_are_refused_whatever_they_are_said_to_be(tmp_path: Path, rows: str, scores: str) -> None:
    """As logits, 47.6 and 52.4 would be a confidence of 1 / (1 + exp(-4.8)) = .992."""
    file = written(tmp_path / "p.csv", "item,cat,dog,fox\n" + rows)
    with pytest.raises(ModelError, match=r"row \d: .* percentages: values from 0 to 52.4 with a sum of 100,.* by 100"):
        loaded(file, scores=scores)


def test_rounded_percentages_are_told_from_logits(tmp_path: Path) -> None:
    """Sums of 98 and 102: percentages of many classes, rounded to whole numbers. Logits may be chosen for these."""
    file = written(tmp_path / "p.csv", "item,cat,dog,fox\na,48,25,25\nb,50,26,26\n")
    with pytest.raises(ModelError, match="look like percentages"):
        loaded(file)
    assert loaded(file, scores="logits").prediction(0, None)["predicted"] == "cat"


@pytest.mark.parametrize("rows", ["60,40,0\n", "60,40,0\n1,2,3\n", "60,40,0\n101,-1,0\n", "60,41.1,0\n60,41.1,0\n"])
def test_logits_of_which_some_rows_sum_to_100_are_logits(tmp_path: Path, rows: str) -> None:
    """One row alone, another sum, another range, and 101.1 in each row."""
    text = "".join(f"{i},{row}\n" for i, row in enumerate(rows.split()))
    file = written(tmp_path / "p.csv", "item,cat,dog,fox\n" + text)
    assert loaded(file, scores="logits").prediction(0, None)["predicted"] == "cat"


def test_rounded_probabilities_are_taken_where_they_are_said_to_be(tmp_path: Path) -> None:
    file = written(tmp_path / "p.csv", "item,cat,dog,fox\na,.3,.3,.36\n")
    assert loaded(file, scores="probabilities").prediction(0, None)["predicted"] == "fox"


def test_rows_that_are_not_finite_fail_by_themselves(tmp_path: Path, three: dict[str, str]) -> None:
    file = written(tmp_path / "p.csv", "item,cat,dog,fox\ncat/1.png,nan,.5,.5\ncat/2.png,,.5,.5\ndog/1.png,.1,.8,.1\n")
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    rows = run.rows("select uri, p.status, p.reason from predictions p join items using (item_id) order by uri")
    assert [(r["status"], r["reason"]) for r in rows] == [("failed", "not_finite")] * 2 + [("ok", None)]
    (warning,) = run.rows("select * from warnings")
    assert (warning["code"], warning["items"]) == ("not_finite", 2)
    assert "row 1 ('cat/1.png')" in warning["message"]
    for value in ("inf", "nan"):
        text = f"item,cat,dog,fox\na,{value},0,0\nb,-inf,-inf,-inf\nc,1,2,3\n"
        logits = written(tmp_path / "l.csv", text)
        assert [loaded(logits, scores="logits").prediction(i, None)["status"] for i in (0, 1)] == ["failed"] * 2


def lists(kind: pa.DataType) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        values = pa.array([[0.1, 0.7, 0.2], None, [0.5, 0.25, 0.25]], kind)
        columns = {"path": ["a.png", "b.png", "c.png"], "scores": values, "label": ["dog", "cat", "dog"]}
        pq.write_table(pa.table(columns), path)
        return path

    return write


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32()), pa.list_(pa.float64(), 3)])
def test_lists_of_scores_in_parquet(kind: pa.DataType, tmp_path: Path) -> None:
    file = lists(kind)(tmp_path / "p.parquet")
    with pytest.raises(ModelError, match="it is unknown which number is which class"):
        loaded(file)
    model = loaded(file, class_names=NAMES)
    said = [model.prediction(i, None) for i in range(3)]
    assert [one.get("predicted") for one in said] == ["dog", None, "cat"]
    assert said[1]["reason"] == "not_finite"
    assert said[0]["confidence"] == pytest.approx(0.7)
    assert [one["label"] for one in said] == ["dog", "cat", "dog"]
    assert loaded(file, class_names="data").class_names == NAMES
    with pytest.raises(ModelError, match="row 1: 'scores' holds 3 numbers; expected 2, one per class name"):
        loaded(file, class_names=("cat", "dog"))


def test_lists_of_scores_in_csv(tmp_path: Path) -> None:
    file = written(tmp_path / "p.csv", 'item,scores\na.png,"[0.1, 0.7, 0.2]"\nb.png,"[1, NaN, 0]"\n')
    model = loaded(file, class_names=NAMES)
    assert [model.prediction(i, None).get("predicted") for i in (0, 1)] == ["dog", None]
    with pytest.raises(ModelError, match="row 1: 'scores' holds 'cat'"):
        loaded(written(tmp_path / "q.csv", "item,scores\na.png,cat\n"), class_names=NAMES)


def test_columns_of_classes_are_found(tmp_path: Path) -> None:
    """By a prefix, by class_names in their order, by the data set's labels; columns of text are none."""
    head = "item,label,p_dog,p_cat,p_fox,note\na,dog,.2,.3,.5,x\n"
    assert loaded(written(tmp_path / "a.csv", head)).class_names == ("dog", "cat", "fox")
    assert loaded(tmp_path / "a.csv").prediction(0, None)["predicted"] == "fox"
    assert loaded(tmp_path / "a.csv", class_names=NAMES).prediction(0, None)["predicted"] == "fox"
    with pytest.raises(ModelError, match=r"lacks the score of a class: unknown class 'ox'. Did you mean 'fox'"):
        loaded(tmp_path / "a.csv", class_names=("cat", "dog", "ox"))
    plain = written(tmp_path / "b.csv", "item,dog,cat,fox,wolf,note\na,.2,.3,.4,.1,x\n")
    assert loaded(plain).class_names == ("dog", "cat", "fox", "wolf")  # they sum to 1
    width = written(tmp_path / "c.csv", "item,dog,cat,width\na,.2,.8,640\n")
    with pytest.raises(ModelError, match=r"values from 0.2 to 640"):
        loaded(width)
    for scores in ("auto", "probabilities", "logits"):
        with pytest.raises(ModelError, match=r"[tT]hese columns are not classes of the data set: 'width'.* out"):
            loaded(width, scores=scores)
    assert loaded(width, scores="logits", class_names=("dog", "cat")).prediction(0, None)["predicted"] == "cat"


INDEX = "pandas' index: write with index=False"


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("target", "'target'."),
        ("loss", "'loss'."),
        ("", f"a column without a name ({INDEX})."),
        ("Unnamed: 0", f"'Unnamed: 0' ({INDEX})."),
        ("__index_level_0__", f"'__index_level_0__' ({INDEX})."),
    ],
)
def test_a_column_that_is_no_class_is_named_at_the_first_try(name: str, called: str, tmp_path: Path) -> None:
    """Row 2 sums to 1 + 1 = 2; logits are not proposed, since the scores themselves are probabilities."""
    file = written(tmp_path / "p.csv", f"{name},item,cat,dog\n0,a,.25,.75\n1,b,.5,.5\n")
    with pytest.raises(ModelError) as error:
        loaded(file)
    for words in ("row 2", "a sum of 2", f"not classes of the data set: {called}", "leave them out of the file"):
        assert words in str(error.value)
    assert "logits" not in str(error.value)
    assert loaded(file, class_names=("cat", "dog")).prediction(0, None)["confidence"] == 0.75


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
def test_the_separator_of_a_csv_is_the_one_of_its_header(separator: str, tmp_path: Path) -> None:
    """Separators in quoted names of classes do not count."""
    text = 'file_name,cat,"dog, puppy; or; hound"\na.png,0.25,0.75\n'
    head, row = text.splitlines()
    head = head.replace("name,cat,", f"name{separator}cat{separator}")
    file = written(tmp_path / "p.csv", f"{head}\n{row.replace(',', separator)}\n")
    model = loaded(file, ("cat", "dog, puppy; or; hound"))
    assert model.class_names == ("cat", "dog, puppy; or; hound")
    said = model.prediction(0, None)
    assert (said["predicted"], said["confidence"]) == ("dog, puppy; or; hound", 0.75)


def test_the_predicted_class_and_the_scores_must_agree(tmp_path: Path) -> None:
    """A list in another order than class_names shows in a column of predicted classes."""
    file = written(tmp_path / "p.csv", 'item,predicted,scores\na,dog,"[0.1,0.8,0.1]"\nb,fox,"[0.5,0.3,0.2]"\n')
    with pytest.raises(ModelError, match="row 2: 'predicted' says 'fox', but the highest score is that of 'cat'"):
        loaded(file, class_names=NAMES)


def test_of_several_highest_scores_the_predicted_class_counts(tmp_path: Path) -> None:
    text = "item,predicted,cat,dog,fox\na.png,dog,.4,.4,.2\nb.png,cat,.4,.4,.2\nc.png,fox,.1,.1,.8\n"
    model = loaded(written(tmp_path / "p.csv", text))
    assert [model.prediction(row, None)["predicted"] for row in range(3)] == ["dog", "cat", "fox"]
    assert model.prediction(0, None)["top_classes"] == ["dog", "cat", "fox"]
    assert model.warnings == ()
    with pytest.raises(ModelError, match=r"row 1: 'predicted' says 'fox', but the highest score is that of 'cat'"):
        loaded(written(tmp_path / "q.csv", "item,predicted,cat,dog,fox\na.png,fox,.4,.4,.2\n"))


def test_several_highest_scores_without_a_predicted_class_are_a_warning(tmp_path: Path) -> None:
    """A gate does not pass where they could change the accuracy by more than one image in a thousand."""
    clear = "".join(f"{i}.png,,.6,.3,.1\n" for i in range(998))
    header, nan = "item,predicted,cat,dog,fox\n", "nan.png,,nan,nan,nan\n"
    one = loaded(written(tmp_path / "p.csv", f"{header}{clear}{nan}x.png,,.2,.4,.4\n"))
    (warning,) = one.warnings
    assert (warning.code, warning.items, warning.blocks_gate) == ("tied_scores", 1, False)
    assert "the first is row 1000 ('x.png')" in warning.message
    assert one.prediction(999, None)["predicted"] == "dog"
    (warning,) = loaded(written(tmp_path / "q.csv", f"{header}{clear}x.png,,.2,.4,.4\ny.png,,.4,.4,.2\n")).warnings
    assert (warning.items, warning.blocks_gate) == (2, True)


def test_the_warning_about_ties_reaches_the_run(tmp_path: Path, three: dict[str, str]) -> None:
    rows = "cat/1.png,.5,.5,0\ncat/2.png,.1,.6,.3\ndog/1.png,0,.5,.5\n"
    run = done(job(tmp_path, written(tmp_path / "p.csv", f"item,cat,dog,fox\n{rows}")), tmp_path / "run", 1)
    (warning,) = warnings_of(run)
    assert (warning.code, warning.model_id, warning.items, warning.blocks_gate) == ("tied_scores", "m", 2, True)


def test_predicted_classes_alone(tmp_path: Path) -> None:
    file = written(tmp_path / "p.tsv", "file_name\tpredicted\tscore\na\tdog\t.75\nb\tcat\t\nc\t\t.5\n")
    model = loaded(file)
    assert [model.prediction(i, None).get("predicted") for i in range(3)] == ["dog", "cat", None]
    assert [model.prediction(i, None).get("confidence") for i in range(3)] == [0.75, None, None]
    with pytest.raises(ModelError, match=r"row 2: unknown class 'cat'. Did you mean 'cats'"):
        loaded(file, class_names=("dog", "cats"))
    numbers = written(tmp_path / "n.csv", "item,predicted,label\na,2,0\nb,0,0\n")
    model = loaded(numbers, class_names=NAMES)
    assert [model.prediction(i, None)["correct"] for i in (0, 1)] == [False, True]
    assert loaded(numbers).class_names == ("2", "0")
    with pytest.raises(ModelError, match=r"row 1: 'confidence' is 97, expected .*; divide percentages by 100"):
        loaded(written(tmp_path / "c.csv", "item,predicted,confidence\na,cat,97\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,predicted\na.png,cat\n./a.png,dog\n", "the rows 1 and 2 both name './a.png'"),
        ("item,predicted\na.png,cat\n,dog\n", "row 2: 'item' is empty"),
        ("item,predicted\n", "has a header and no rows"),
        ("", "is empty"),
        ("a,b\n1,2\n", "no column that names images; it has a, b"),
        ("image,path,predicted\n1,2,cat\n", "the columns 'image' and 'path'; choose one with 'item_column'"),
        ("item,note\na,b\n", "no predictions that can be read: its columns are item, note"),
        ("item,predicted,predicted\na,cat,cat\n", "has the column 'predicted' twice"),
        (",,item,predicted\n1,2,a,cat\n", "has a column without a name twice"),
        ("item,cat,dog,fox\na,.5,.5,zero\n", "row 1: 'fox' holds 'zero', which is not a number..*such as 0.524"),
        ("item,predicted,score\na,cat,.5\n\nb,cat,90%\n", "row 2: 'score' holds '90%'.*shares instead of percentages"),
        ("item,cat,dog,fox\na,.5,.5,\nb,,,\n", "every row is empty, NaN or infinite"),
        ("item,cat,dog,fox\na,.5,.5\n", "cannot be read.*Expected 4 columns"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        loaded(written(tmp_path / "p.csv", text))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("cell", "helps"),
    [("52.40%", "0.524 for 52.4 %"), ("52,40 %", "0.524 for 52.4 %"), ("0,524002", "a decimal point"), ("x", "empty")],
)
def test_a_cell_that_is_no_number_is_named_with_what_would_work(
    cell: str, helps: str, kind: str, tmp_path: Path
) -> None:
    """By its row and column; empty cells and NaN before it are numbers that are unknown."""
    file = tmp_path / f"p.{kind}"
    if kind == "csv":
        written(file, f"item;cat;dog\na.png;0.25;0.75\nb.png;;NaN\nc.png;0.476;{cell}\nd.png;0;y\n")
    else:
        columns = {"cat": ["0.25", None, "0.476", "0"], "dog": ["0.75", "NaN", cell, "y"]}
        pq.write_table(pa.table({"item": ["a.png", "b.png", "c.png", "d.png"], **columns}), file)
    with pytest.raises(ModelError) as error:
        loaded(file, ("cat", "dog"))
    for words in (f"p.{kind}, row 3: 'dog' holds {cell!r}, which is not a number", helps):
        assert words in str(error.value)


def test_bytes_that_are_no_table_are_refused(tmp_path: Path) -> None:
    for name in ("p.csv", "p.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00PAR1")
        with pytest.raises(ModelError, match="cannot be read"):
            loaded(tmp_path / name)
    with pytest.raises(ModelError, match="no file of predictions"):
        predictions.digest(predictions.Options(path=tmp_path / "none.csv"))
    with pytest.raises(ValueError, match=r"its name must end in .csv, .tsv, .parquet"):
        predictions.Options(path=tmp_path / "p.xlsx")


def test_a_file_with_a_byte_order_mark_and_windows_paths(tmp_path: Path, three: dict[str, str]) -> None:
    file = written(
        tmp_path / "p.csv", "\ufeffimage,predicted\r\ncat\\1.png,cat\r\ncat\\2.png,dog\r\ndog\\1.png,dog\r\n"
    )
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    assert run.rows("select avg(correct::int) as a from predictions")[0]["a"] == pytest.approx(2 / 3)


def test_none_of_the_rows_fitting_is_refused_with_both_beginnings(tmp_path: Path, three: dict[str, str]) -> None:
    file = written(tmp_path / "p.csv", "image,predicted\nval_17.jpeg,cat\n")
    (summary,) = [s for s in run_serially(job(tmp_path, file), tmp_path / "run", 1) if s.error]
    assert summary.fatal == "config"
    assert "name 'val_17.jpeg'; the first images of the data are 'cat/1.png', 'cat/2.png'" in str(summary.error)


def places(*names: str, role: str = "data", root: str = "") -> list[Place]:
    return [Place(role, f"{role}:{name}", name, name, root) for name in names]


def test_rows_find_their_images_by_the_end_of_a_path() -> None:
    listed = places("cat/1.png", "dog/1.png", "dog/2.png")
    keys = ["/home/x/val/cat/1.png", "val\\dog\\1.png", "2.png"]
    assert match(keys, listed).rows == {"data:cat/1.png": 0, "data:dog/1.png": 1, "data:dog/2.png": 2}
    found = match(["1.png", "dog/2.png", "t/1.png"], listed)
    assert found.rows == {"data:dog/2.png": 1}
    assert [row for row, _, _ in found.ambiguous] == [0]
    assert found.unused == [2]  # in no folder that the data set has
    assert match(["g/2.png"], listed).unused == [0]  # an end of text that is no end of a path
    assert match(["cat/1.png"], places("t/1.png")).unused == [0]
    assert match(["t/1.png"], places("cat/1.png")).unused == [0]


def test_an_exact_path_comes_before_a_longer_one() -> None:
    listed = places("1.png", "a/1.png")
    assert match(["1.png", "a/1.png"], listed).rows == {"data:1.png": 0, "data:a/1.png": 1}


def test_two_rows_for_one_image_are_refused() -> None:
    with pytest.raises(ModelError, match=r"rows 1 \('train/1.png'\) and 2 \('test/1.png'\) both belong to .*'1.png'"):
        match(["train/1.png", "test/1.png"], places("1.png", "2.png"))


def test_an_image_at_two_places_is_one_image() -> None:
    """A row that fits both places is the image's; of two rows, that of the first place counts, in whatever order."""
    two = [Place("data", "same", name, name) for name in ("a/1.png", "b/1.png")]
    found = match(["1.png"], two)
    assert (found.rows, found.ambiguous) == ({"same": 0}, [])
    for keys in (["b/1.png", "a/1.png"], ["a/1.png", "b/1.png"]):
        assert match(keys, two).rows == {"same": keys.index("a/1.png")}
        assert match(keys, two[::-1]).rows == {"same": keys.index("b/1.png")}


def test_images_without_a_row_are_those_that_can_be_screened_each_once() -> None:
    listed = [*places("a.png", "b.png", "c.png"), *places("b.png", role="data")]
    broken = listed[2]._replace(usable=False)
    found = match(["a.png"], [*listed[:2], broken, listed[3]])
    assert [place.display_name for place in without_row(found, [*listed[:2], broken, listed[3]])] == ["b.png"]


def test_whole_paths_tell_data_and_pool_apart() -> None:
    listed = places("cat/1.png", root="/x/val") + places("cat/1.png", role="pool", root="/x/pool")
    assert match(["cat/1.png"], listed).ambiguous[0][0] == 0
    assert match(["/x/pool/cat/1.png", "val/cat/1.png"], listed).rows == {"pool:cat/1.png": 0, "data:cat/1.png": 1}


def test_names_without_a_suffix_and_file_names_alone() -> None:
    listed = places("cat/0001.png", "dog/0002.v1.png")
    assert match(["0001", "0002.v1"], listed).rows == {"data:cat/0001.png": 0, "data:dog/0002.v1.png": 1}
    other = ["elsewhere/0001.png", "0002.v1.png"]
    assert match(other, listed).rows == {"data:dog/0002.v1.png": 1}
    assert match(other, listed, "name").rows == {"data:cat/0001.png": 0, "data:dog/0002.v1.png": 1}
    twice = match(["x/1.png"], places("a/1.png", "b/1.png"), "name")
    assert (twice.rows, len(twice.ambiguous)) == ({}, 1)


def test_the_sha256_of_the_bytes_names_an_image_wherever_it_is(tmp_path: Path) -> None:
    ids = images(tmp_path / "data", ["cat/1.png", "dog/2.png"])
    file = tmp_path / "p.parquet"
    pq.write_table(
        pa.table({"item_id": [ids["dog/2.png"].upper(), ids["cat/1.png"]], "predicted": ["dog", "dog"]}), file
    )
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    assert [r["correct"] for r in run.rows("select correct from predictions order by label")] == [False, True]


def test_names_beyond_ascii_and_images_at_two_places(tmp_path: Path) -> None:
    """A file made on a Mac decomposes its names; equal bytes are one image, whose first place counts."""
    images(tmp_path / "data", ["caf\u00e9/na me.png"])
    (tmp_path / "data" / "zoo").mkdir()
    (tmp_path / "data" / "zoo" / "same.png").write_bytes((tmp_path / "data" / "caf\u00e9" / "na me.png").read_bytes())
    file = written(tmp_path / "p.csv", "image,predicted\nzoo/same.png,zoo\ncafe\u0301/na me.png,cafe\u0301\n")
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    assert [r["predicted"] for r in run.rows("select predicted from predictions")] == ["caf\u00e9"]
    codes = {row["code"]: row["blocks_gate"] for row in run.rows("select code, blocks_gate from warnings")}
    assert codes == {"contradictory_labels": True, "copies_differ": True}
    alike = written(tmp_path / "q.csv", "image,predicted\nzoo/same.png,zoo\ncafe\u0301/na me.png,zoo\n")
    run = done(job(tmp_path, alike), tmp_path / "again", 1)
    assert "copies_differ" not in {row["code"] for row in run.rows("select code from warnings")}


def test_a_run_s_own_predictions_are_a_model(tmp_path: Path, three: dict[str, str]) -> None:
    file = written(tmp_path / "p.csv", "image,cat,dog,fox\ncat/1.png,.6,.3,.1\ncat/2.png,.1,.2,.7\ndog/1.png,.4,.6,0\n")
    first = done(job(tmp_path, file), tmp_path / "run", 1)
    first.write("select * from predictions", tmp_path / "again.parquet")
    second = done(job(tmp_path, tmp_path / "again.parquet"), tmp_path / "run2", 1)
    query = "select item_id, predicted, confidence, correct from predictions order by item_id"
    assert second.rows(query) == first.rows(query)


def test_the_file_decides_the_run_and_its_place_does_not(tmp_path: Path, three: dict[str, str]) -> None:
    text = "image,predicted\ncat/1.png,cat\ncat/2.png,cat\ndog/1.png,dog\n"
    runs: list[Run] = []
    for i, name in enumerate(("a.csv", "b.csv")):
        runs.append(done(job(tmp_path, written(tmp_path / name, text)), tmp_path / f"run{i}", 1))
    units = [{r["unit_id"] for r in run.rows("select unit_id from units where stage = '1-screen'")} for run in runs]
    assert units[0] == units[1]
    assert json.loads(runs[0].rows("select config from runs")[0]["config"])["models"]["m"]["path"].endswith("a.csv")
    other = done(job(tmp_path, written(tmp_path / "c.csv", text.replace("2.png,cat", "2.png,dog"))), tmp_path / "r3", 1)
    assert {r["unit_id"] for r in other.rows("select unit_id from units where stage = '1-screen'")} != units[0]


@pytest.mark.parametrize("as_text", [False, True])
def test_embeddings_are_stored_where_the_job_has_no_embedder(
    as_text: bool, tmp_path: Path, three: dict[str, str]
) -> None:
    vectors: list[Any] = [[0.5, 1.0], [2.0, float("nan")], [-1.0, 0.25]]
    columns = {"image": list(three), "predicted": ["cat", "cat", "dog"]}
    file = tmp_path / ("p.csv" if as_text else "p.parquet")
    if as_text:
        rows = [f'{name},{said},"{one}"' for name, said, one in zip(*columns.values(), vectors, strict=True)]
        written(file, "\n".join(["image,predicted,embedding", *rows]))
    else:
        pq.write_table(pa.table({**columns, "embedding": vectors}), file)
    run = done(job(tmp_path, file), tmp_path / "run", 1)
    query = "select subject_id, role, name, model_id, values, reason from arrays"
    found = {row["subject_id"]: row for row in run.rows(query)}
    assert {(row["role"], row["name"], row["model_id"]) for row in found.values()} == {("data", "embedding", "m")}
    assert [found[three[name]]["values"] for name in columns["image"]] == [[0.5, 1.0], None, [-1.0, 0.25]]
    assert found[three["cat/2.png"]]["reason"] == "not_finite"
    discover = parse_job(
        {
            **{"version": 1, "name": "j", "data": {"source": "folder", "path": "data"}},
            "models": [{"id": "m", "loader": "predictions", "path": str(file)}],
            "stages": [{"kind": "screen"}, {"kind": "discover"}],
        },
        tmp_path,
    )
    with pytest.raises(ConfigError, match="discover needs an embedder"):
        check_order(discover)
    short = written(tmp_path / "short.csv", 'image,predicted,embedding\na,cat,"[1, 2]"\nb,cat,"[1]"\n')
    with pytest.raises(ModelError, match="row 2: 'embedding' holds 1 numbers; expected 2, as in its first row"):
        loaded(short)


def decimals(path: Path) -> Path:
    values = pa.array([1, 2, 3]).cast(pa.decimal128(24, 2))
    table = {"image": ["1.png", "2.png", "3.png"], "cat": values, "dog": values, "bird": values}
    pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def texts(path: Path) -> Path:
    table = {"image": ["1.png", "2.png"], "cat": [0.5, 0.1], "dog": [0.5, 3.0], "bird": [None, "2.5"]}
    pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize(
    "file",
    [
        decimals,
        texts,
        lambda path: written(path.with_suffix(".csv"), "image,cat,dog,bird\n1.png,1,2,\n2.png,3,1,9\n"),
        lambda path: written(path.with_suffix(".csv"), "image;cat;dog;bird\n1.png;1;2;0,5\n2.png;3;1;9\n"),
    ],
    ids=["decimals", "numbers as text", "first cell empty", "decimal comma"],
)
@pytest.mark.parametrize("options", [{}, {"class_names": "data"}], ids=["", "class_names: data"])
def test_a_column_of_a_class_is_never_left_out_for_its_type(
    file: Callable[[Path], Path], options: dict[str, Any], tmp_path: Path
) -> None:
    """The data set has no image of a bird. Without its column, a model that says bird everywhere may seem right."""
    with pytest.raises(ModelError, match="columns are not classes of the data set: 'bird'"):
        loaded(file(tmp_path / "p"), ("cat", "dog"), scores="logits", **options)


def test_columns_beside_probabilities_of_all_classes_are_no_classes(tmp_path: Path) -> None:
    file = written(tmp_path / "p.csv", "image,cat,dog,width\n1.png,.1,.9,640\n2.png,.8,.2,480\n")
    assert loaded(file, ("cat", "dog"), class_names="data").classes[:, 0].tolist() == [1, 0]
    file = written(tmp_path / "q.csv", "image,cat,dog,bird\n1.png,.1,.2,.7\n2.png,.8,.1,.1\n")
    with pytest.raises(ModelError, match=r"row 1.*not classes of the data set: 'bird'"):
        loaded(file, ("cat", "dog"), class_names="data")


def test_a_row_of_another_file_that_is_there_does_not_fit_by_the_end_of_its_path(tmp_path: Path) -> None:
    """Numbered files of two splits have equal names; a copy of the data set at another place is the data set."""
    images(tmp_path / "test", ["cat/1.png", "dog/1.png"])
    images(tmp_path / "train", ["dog/1.png", "cat/1.png"])  # other colours
    images(tmp_path / "copy", ["cat/1.png", "dog/1.png"])
    places = [Place("data", name, name, name, str(tmp_path / "test")) for name in ("cat/1.png", "dog/1.png")]

    def rows(folder: Path) -> dict[str, int]:
        return match([str(folder / "cat/1.png"), str(folder / "dog/1.png")], places).rows

    assert rows(tmp_path / "train") == {}
    assert rows(tmp_path / "copy") == {"cat/1.png": 0, "dog/1.png": 1}
    assert rows(tmp_path / "on another machine") == {"cat/1.png": 0, "dog/1.png": 1}
