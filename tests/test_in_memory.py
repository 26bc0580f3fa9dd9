"""`audit.screen`: models, predictions and images that are in memory, against the same computed by hand."""

from __future__ import annotations

import doctest
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import audit
import audit.in_memory
from audit.config import load_job
from audit.decode import decode
from audit.errors import ConfigError, DataError, ModelError
from audit.images.encoding import as_bytes
from audit.runs import unfinished
from pipelines.plan import open_or_create
from pipelines.serial import run_serially

NAMES = ["red", "green", "blue"]


class Colours(torch.nn.Module):
    """Logits: ten times the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(10.0))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x.mean((2, 3)) * self.scale)


def noise(count: int, sizes: tuple[int, ...] = (8,)) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (sizes[i % len(sizes)], 8, 3), np.uint8) for i in range(count)]


def test_a_module_is_screened_as_it_would_be_by_hand() -> None:
    """Images of several sizes, labels by number; the module is in training mode before and after."""
    images = noise(30, (8, 12))
    labels = [i % 3 for i in range(30)]
    model = Colours()
    screening = audit.screen(model, list(zip(images, labels, strict=True)), class_names=NAMES, batch_size=4)
    means = np.array([image.astype(np.float64).mean((0, 1)) / 255 for image in images])
    exponentials = np.exp(10 * means)
    sure = exponentials / exponentials.sum(1, keepdims=True)
    said = means.argmax(1)
    assert screening.accuracy == pytest.approx((said == labels).mean())
    table = screening.confusion()
    for i, label in enumerate(NAMES):
        for j, predicted in enumerate(NAMES):
            expected = sum(1 for a, b in zip(labels, said, strict=True) if (a, b) == (i, j))
            assert table.loc[label, predicted] == expected
    errors = screening.errors(5)
    wrong = sorted((i for i in range(30) if said[i] != labels[i]), key=lambda i: -sure[i].max())[:5]
    assert [error.index for error in errors] == wrong
    assert [error.confidence for error in errors] == pytest.approx([sure[i].max() for i in wrong], abs=1e-6)
    assert errors[0].label == NAMES[labels[wrong[0]]]
    assert model.training
    assert model.dropout.training
    assert model.scale.requires_grad
    assert "30 images, accuracy" in repr(screening)


def test_the_result_is_a_run_that_every_command_can_open(tmp_path: Path) -> None:
    """Resuming its job file does nothing more, and the job asks for the same numbers."""
    output = tmp_path / "mine"
    dataset = list(zip(noise(6), ["red", "green"] * 3, strict=True))
    screening = audit.screen(Colours(), dataset, class_names=NAMES, output=output, name="colours")
    assert screening.location == output / "screening"
    run = audit.open(screening.location)
    assert unfinished(run) == ""
    assert {row["model_id"] for row in run.rows("select model_id from predictions")} == {"colours"}
    job = load_job(output / "job.yaml")
    open_or_create(job, screening.location)  # raises where the job is another one
    assert run_serially(job, screening.location) == []
    screening.to_parquet(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table["position"].to_pylist() == list(range(6))
    assert np.mean(table["correct"].to_pylist()) == pytest.approx(screening.accuracy)
    with pytest.raises(ConfigError, match="give output= a new one"):
        audit.screen(Colours(), dataset, class_names=NAMES, output=output)


def test_without_an_output_nothing_stays() -> None:
    screening = audit.screen(Colours(), noise(2), class_names=NAMES)
    location = screening.location
    assert location.is_dir()
    assert screening.accuracy is None
    del screening
    assert not location.exists()


def test_predictions_that_are_known_already() -> None:
    images = noise(3)
    scores = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    labels = ["red", "red", "green"]
    for known in (scores, torch.tensor(scores), scores.tolist()):
        screening = audit.screen(known, images, labels=labels, class_names=NAMES)
        assert screening.accuracy == pytest.approx(2 / 3)
        (error,) = screening.errors()
        assert (error.index, error.predicted, error.confidence) == (1, "blue", 0.7)
    with pytest.raises(ModelError, match="scores='logits'"):
        audit.screen(10 * scores, images, labels=labels, class_names=NAMES)
    screening = audit.screen(10 * scores, images, labels=labels, class_names=NAMES, scores="logits")
    (error,) = screening.errors()
    assert error.confidence == pytest.approx(np.exp(7) / np.exp([1, 2, 7]).sum())
    for classes in ([0, 2, 1], ["red", "blue", "green"], np.array([0, 2, 1])):
        screening = audit.screen(classes, images, labels=labels, class_names=NAMES)
        assert [(e.index, e.predicted, e.confidence) for e in screening.errors()] == [(1, "blue", None)]
    with pytest.raises(DataError, match="there are 3 predictions, but 2 images"):
        audit.screen(scores, images[:2], class_names=NAMES)
    for refused in (scores[0], np.array([[0], [2], [1]]), np.zeros((3, 2, 2)), {"a": 1}):
        with pytest.raises(ModelError, match="expected a function of images"):
            audit.screen(refused, images, class_names=NAMES)


@pytest.mark.parametrize(
    ("model", "options", "messages"),
    [
        ([[0.5, 0.5, 0], [0.5, 0.5, 0.5], [1, 0, 0]], {}, ["row 1 of the scores: ", "1.5. ", "set scores='logits'"]),
        ([[0.5, 0.5, 0], [0.5, 0.5, 0.5], [1, 0, 0]], {}, ["from .95 to 1.05, set scores='probabilities'"]),
        ([[40, 60, 0]] * 3, {}, ["row 0 of the scores: the scores look like percentages"]),
        ([[1, 2, -np.inf]] * 3, {}, ["the scores: every row is empty, NaN or infinite", "set scores='logits'"]),
        (["red", "blue", "purple"], {}, ["prediction 2: unknown class 'purple'"]),
        ([0, 7, 1], {}, ["prediction 1 is 7, but there are 3 class names"]),
        (lambda x: -x.mean((2, 3)), {"scores": "probabilities"}, ["row 0 of the scores: ", "set scores='logits'"]),
        (lambda x: x.mean((2, 3)) * np.nan, {}, ["the scores: every row is empty, NaN or infinite"]),
    ],
)
def test_what_is_refused_is_named_as_the_caller_knows_it(
    model: Any, options: dict[str, Any], messages: list[str]
) -> None:
    """By its place in the array, from 0, and not by a file and a line of a job that the caller never wrote."""
    with pytest.raises(ModelError) as error:
        audit.screen(model, noise(3), class_names=NAMES, **options)
    for message in messages:
        assert message in str(error.value)
    for word in ("predictions.parquet", "'scores: "):
        assert word not in str(error.value)


def test_a_row_beyond_the_first_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit.in_memory, "BATCH", 2)
    scores = np.array([[0.5, 0.5, 0]] * 3 + [[0.5, 0.5, 0.5]])
    with pytest.raises(ModelError, match="row 3 of the scores: "):
        audit.screen(scores, noise(4), class_names=NAMES)


@pytest.mark.parametrize("scores", ["auto", "probabilities", "logits"])
def test_percentages_are_refused_of_an_array_and_of_a_model(scores: Any) -> None:
    images = noise(3)
    percentages = np.array([[47.6, 52.4, 0], [100, 0, 0], [25, 25, 50]])
    with pytest.raises(ModelError, match=r"look like percentages: .* Divide them by 100"):
        audit.screen(percentages, images, class_names=NAMES, scores=scores)
    with pytest.raises(ModelError, match=r"look like percentages: .* Divide them by 100"):
        audit.screen(lambda x: 100 * Colours()(x).softmax(-1), images, class_names=NAMES, scores=scores)


def test_outputs_that_are_probabilities_are_taken_as_such() -> None:
    model = torch.nn.Sequential(Colours(), torch.nn.Softmax(-1))
    images = noise(4)
    screening = audit.screen(model, images, class_names=NAMES)
    means = np.array([image.astype(np.float64).mean((0, 1)) / 255 for image in images])
    sure = np.exp(10 * means).max(1) / np.exp(10 * means).sum(1)
    rows = screening.run.rows("select confidence from predictions join items using (item_id) order by position")
    assert [row["confidence"] for row in rows] == pytest.approx(sure.tolist(), abs=1e-6)


def test_probabilities_are_taken_as_such_beside_outputs_that_are_not_finite() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        return torch.where(means > 0.9, torch.nan, (10 * means).softmax(-1))

    images = [*noise(3), np.full((8, 8, 3), 255, np.uint8)]
    screening = audit.screen(model, images, class_names=NAMES)
    means = np.array([image.astype(np.float64).mean((0, 1)) / 255 for image in images[:3]])
    sure = np.exp(10 * means).max(1) / np.exp(10 * means).sum(1)
    rows = screening.run.rows("select confidence from predictions join items using (item_id) order by position")
    assert rows.pop() == {"confidence": None}
    assert [row["confidence"] for row in rows] == pytest.approx(sure.tolist(), abs=1e-6)


def test_outputs_that_may_be_a_sigmoid_of_each_class_are_refused() -> None:
    model, images = torch.nn.Sequential(Colours(), torch.nn.Sigmoid()), noise(3)
    with pytest.raises(ModelError, match="logits or a sigmoid of each class"):
        audit.screen(model, images, class_names=NAMES)
    assert audit.screen(model, images, class_names=NAMES, scores="logits").accuracy is None


def second_channel(x: torch.Tensor) -> torch.Tensor:
    """One output (b, 1), on both sides of 0: more green than red."""
    return 20 * (x[:, 1].mean((1, 2)) - x[:, 0].mean((1, 2)))[:, None]


def said_of(screening: audit.Screening) -> list[tuple[str, float]]:
    rows = screening.run.rows(
        "select predicted, confidence from predictions join items using (item_id) order by position"
    )
    return [(row["predicted"], row["confidence"]) for row in rows]


def sure_of(probabilities: np.ndarray[Any, Any]) -> list[tuple[str, Any]]:
    """The predicted class and its confidence, of the probabilities of 'yes'."""
    return [
        ("yes" if p > 0.5 else "no", pytest.approx(max(p, 1 - p), abs=1e-6)) for p in np.asarray(probabilities).ravel()
    ]


def test_one_output_is_the_score_of_the_second_of_two_classes() -> None:
    """A model or an array, of log-odds or of probabilities."""
    images = noise(12)
    means = np.array([image.astype(np.float64).mean((0, 1)) / 255 for image in images])
    odds = 20 * (means[:, 1:2] - means[:, :1])
    likely = 1 / (1 + np.exp(-odds))
    expected = sure_of(likely)
    assert {name for name, _ in expected} == {"no", "yes"}
    names = ["no", "yes"]
    assert said_of(audit.screen(second_channel, images, class_names=names)) == expected
    assert said_of(audit.screen(second_channel, images, class_names=names, scores="logits")) == expected
    labels = ["no", "yes"] * 6
    by_data = audit.screen(second_channel, zip(images, labels, strict=True), class_names="data")
    assert said_of(by_data) == expected
    right = [("no", "yes")[i % 2] == name for i, (name, _) in enumerate(expected)]
    assert by_data.accuracy == pytest.approx(np.mean(right))

    def sigmoid(x: torch.Tensor) -> torch.Tensor:
        return second_channel(x).sigmoid()

    assert said_of(audit.screen(sigmoid, images, class_names=names, scores="probabilities")) == expected
    assert said_of(audit.screen(sigmoid, images, class_names=names, scores="logits")) == sure_of(
        1 / (1 + np.exp(-likely))
    )
    with pytest.raises(ModelError, match=r"lies in \[0, 1\].*scores='probabilities' or scores='logits'"):
        audit.screen(sigmoid, images, class_names=names)
    for known in (odds, torch.from_numpy(odds), odds.tolist()):
        assert said_of(audit.screen(known, images, class_names=names, scores="logits")) == expected
        with pytest.raises(ModelError, match=r"scores='probabilities' or scores='logits'"):
            audit.screen(known, images, class_names=names)
    assert said_of(audit.screen(likely, images, class_names=names, scores="probabilities")) == expected
    for model in (odds, second_channel):
        with pytest.raises(ModelError, match=r"values from -.*set scores='logits'"):
            audit.screen(model, images, class_names=names, scores="probabilities")


def test_one_output_of_numbered_labels_is_the_score_of_class_1() -> None:
    images = noise(4)
    screening = audit.screen(second_channel, images, labels=[0, 1, 1, 0])
    named = audit.screen(second_channel, images, class_names=["0", "1"])
    assert said_of(screening) == said_of(named)


def test_one_output_needs_two_names() -> None:
    images = noise(3)
    needed = r"one output: the log-odds or the probability.*class_names=\[negative, positive\]"
    for given in (
        {},
        {"class_names": NAMES},
        {"class_names": ["a"]},
        {"labels": ["a", "b", "a"]},
        {"labels": [0, 1, 2]},
    ):
        with pytest.raises(ModelError, match=needed):
            audit.screen(second_channel, images, **given)
        with pytest.raises(ModelError, match=needed):
            audit.screen(np.array([[0.5], [-1.0], [2.0]]), images, scores="logits", **given)


def test_one_output_that_is_not_finite_is_said() -> None:
    odds = np.array([[np.nan], [np.inf], [-np.inf], [-1.0]])
    screening = audit.screen(odds, noise(4), labels=["no"] * 4, class_names=["no", "yes"], scores="logits")
    assert said_of(screening)[3] == sure_of(1 / (1 + np.exp(np.array([1.0]))))[0]
    assert {warning.code: warning.items for warning in screening.warnings}["not_finite"] == 3


def test_a_label_of_minus_one_is_no_label() -> None:
    images = noise(4)
    model = Colours()
    means = [image.mean((0, 1)).argmax() for image in images]
    for unlabelled in (-1, np.int64(-1), torch.tensor(-1)):
        labels = [0, unlabelled, 2, unlabelled]
        for given in ({"class_names": NAMES}, {}):
            screening = audit.screen(model, images, labels=labels, **given)
            (row,) = screening.run.rows("select count(label) as labelled, count(*) as images from predictions")
            assert row == {"labelled": 2, "images": 4}
            assert screening.accuracy == np.mean([means[0] == 0, means[2] == 2])
            assert {warning.code: warning.items for warning in screening.warnings}["no_label"] == 2
    assert audit.screen(model, images, labels=[-1] * 4, class_names=NAMES).accuracy is None
    with pytest.raises(DataError, match="label 1 is -2, but there are 3 class names"):
        audit.screen(model, images, labels=[0, -2, 1, 1], class_names=NAMES)


def test_minus_one_is_a_label_where_it_is_predicted() -> None:
    screening = audit.screen([-1, 1, 1], noise(3), labels=[-1, -1, 1])
    assert screening.accuracy == pytest.approx(2 / 3)


class Named:
    """As torchvision's data sets: numbers for labels, and the names that they count; it does not end by itself."""

    classes = ("blue", "green", "red")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = np.zeros((8, 8, 3), np.uint8)
        image[..., 2 - index % 3] = 255 - index
        return image, index % 3


def test_numbers_count_the_names_of_the_data_set_whatever_the_order_of_the_model() -> None:
    """The image of class i of the data set is of channel 2 - i: names decide, and not positions."""
    assert audit.screen(Colours(), Named(), class_names=NAMES).accuracy == 1
    assert audit.screen(Colours(), Named()).accuracy == pytest.approx(1 / 3)  # outputs in the data set's order


def test_names_of_outputs() -> None:
    images = noise(3)
    model = Colours()
    with pytest.raises(ModelError, match="it is unknown which of the model's 3 outputs is which class"):
        audit.screen(model, zip(images, ["a", "b", "c"], strict=True))
    screening = audit.screen(model, zip(images, ["c", "b", "a"], strict=True), class_names="data")
    assert set(screening.run.rows("select top_classes from predictions")[0]["top_classes"]) == {"a", "b", "c"}
    assert audit.screen(model, zip(images, [2, 0, 1], strict=True)).run.rows(
        "select distinct label from predictions order by 1"
    ) == [{"label": "0"}, {"label": "1"}, {"label": "2"}]
    with pytest.raises(ModelError, match="it is unknown which"):
        audit.screen(model, zip(images, [0, 1, 3], strict=True))
    with pytest.raises(DataError, match="label 2 is 3, but there are 3 class names"):
        audit.screen(model, zip(images, [0, 1, 3], strict=True), class_names=NAMES)
    with pytest.raises(ModelError, match="the model has 3 outputs, but there are 2 class names: red, green"):
        audit.screen(model, images, class_names=NAMES[:2])
    with pytest.raises(ModelError, match="2 of 2 labels match no output of the model"):
        audit.screen(model, zip(images, ["cat", "dog", "dog"], strict=True), class_names=NAMES)
    with pytest.raises(ConfigError, match="class_names is 'Data'"):
        audit.screen(model, images, class_names="Data")
    with pytest.raises(ConfigError, match="repeats a name"):
        audit.screen(model, images, class_names=["a", "b", "a"])


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ([(np.zeros((8, 8, 3)) - 2.1, 0)], {}, r"image 0 has values from -2.1 to -2.1.*transform="),
        ([np.full((8, 8), np.nan)], {}, "image 0 has values from nan"),
        ([torch.zeros(2, 3, 8, 8)], {}, "not a DataLoader"),
        ([np.zeros((8, 8, 5), np.uint8)], {}, r"image 0 has shape \(8, 8, 5\)"),
        ([np.zeros((8, 8, 3), complex)], {}, "image 0 holds complex128"),
        ([np.full((8, 8), 300)], {}, "values from 300 to 300"),
        ([Path("/nowhere/x.png")], {}, "image 0: cannot read /nowhere/x.png"),
        ([(np.zeros((8, 8)), 0.5)], {}, "label 0 is 0.5"),
        ([(np.zeros((8, 8)), 0, 1)], {}, "item 0 of the data set is a tuple of 3"),
        ([{"img": 1}], {}, r"the keys \['img'\], but no 'image'"),
        ([np.zeros((8, 8))] * 2, {"labels": [0]}, "labels= has 1 labels"),
        ([np.zeros((8, 8))], {"labels": [0, 1]}, "labels= has more labels"),
        ([(np.zeros((8, 8)), 0)], {"labels": [0]}, "has labels of its own"),
        ([], {}, "holds no images"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_name(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        audit.screen(Colours(), dataset, class_names=NAMES, **options)


def test_a_model_that_wants_something_else_says_what_helps() -> None:
    fixed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 3))
    with pytest.raises(ModelError, match=r"fails on images of shape \(1, 3, 8, 8\).*set transform="):
        audit.screen(fixed, noise(1), class_names=NAMES)
    with pytest.raises(ModelError, match=r"returns \(1, 8\) for 1 images|returns \(1, 3, 8\)"):
        audit.screen(lambda x: x.mean(3), noise(1), class_names=NAMES)


def as_grey(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("L")) / 255).float()[None]


@pytest.mark.parametrize(
    "first",
    [torch.nn.Conv2d(1, 3, 8), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), torch.nn.Identity())],
)
def test_a_model_of_grey_images_is_told_the_transform_that_helps(first: torch.nn.Module) -> None:
    """A convolution says its channels; other modules are found by what they take."""
    model = torch.nn.Sequential(first, torch.nn.Flatten())
    with pytest.raises(ModelError, match="3 channels") as caught:
        audit.screen(model, noise(2), class_names=NAMES)
    message = str(caught.value)
    assert "one channel" in message
    assert "size" not in message
    advice = message.partition("transform=, such as ")[2]
    transform = eval(advice, {"torch": torch, "np": np})
    (image,) = noise(1)
    assert torch.equal(transform(Image.fromarray(image)), as_grey(Image.fromarray(image)))
    screening = audit.screen(model, noise(2), class_names=NAMES, transform=transform, scores="logits")
    assert len(said_of(screening)) == 2


def test_a_convolution_of_one_channel_is_known_whatever_the_size() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5), torch.nn.Flatten(), torch.nn.Linear(7, 3))
    with pytest.raises(ModelError, match=r"one channel.*transform="):
        audit.screen(model, noise(2), class_names=NAMES)


def test_one_number_per_image_is_told_the_shape_that_is_taken() -> None:
    with pytest.raises(ModelError, match=r"returns \(3,\) for 3 images.*output\[:, None\] gives \(b, 1\)"):
        audit.screen(lambda x: second_channel(x)[:, 0], noise(3), class_names=["no", "yes"])


def test_a_transform_is_what_the_model_sees() -> None:
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.mean((2, 3))

    def halved(image: Image.Image) -> torch.Tensor:
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image.resize((4, 4), Image.Resampling.BOX))).permute(2, 0, 1) / 127.5 - 1

    (image,) = noise(1)
    audit.screen(model, [image], class_names=NAMES, transform=halved)
    means = np.rint(image.reshape(4, 2, 4, 2, 3).mean((1, 3)))
    expected = torch.tensor(means).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert (seen[0] - expected).abs().max() <= 1 / 127.5
    with pytest.raises(ConfigError, match="transform= needs a model"):
        audit.screen(np.eye(3)[:1], [image], class_names=NAMES, transform=halved)


def test_an_image_that_cannot_be_used_is_a_row_of_its_own() -> None:
    screening = audit.screen(Colours(), [*noise(2), b"no image"], labels=[0, 1, 2], class_names=NAMES)
    rows = screening.run.rows("select position, status, reason from items order by position")
    assert [(row["status"], row["reason"]) for row in rows] == [("ok", None)] * 2 + [("quarantined", "unidentified")]
    assert screening.run.rows("select count(*) as n from predictions")[0]["n"] == 2
    assert screening.warnings == []


def test_a_function_whose_outputs_depend_on_chance_or_on_the_batch_is_said() -> None:
    """A function around a module cannot be set to evaluation mode; a method of a module can."""
    torch.manual_seed(0)
    features = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    for layer in (torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(12)):
        network = torch.nn.Sequential(features, layer, torch.nn.Linear(12, 3))
        screening = audit.screen(network.forward, noise(9), class_names=NAMES)
        assert "unstable_output" not in {warning.code for warning in screening.warnings}
        assert network.training
        if isinstance(layer, torch.nn.Dropout):
            screening = audit.screen(lambda x, network=network: network(x), noise(9), class_names=NAMES)
            (warning,) = [one for one in screening.warnings if one.code == "unstable_output"]
            assert warning.blocks_gate
    centred = audit.screen(lambda x: x.mean((2, 3)) - x.mean((0, 2, 3)) - 1, noise(9), class_names=NAMES)
    assert "unstable_output" in {warning.code for warning in centred.warnings}


def test_numbers_are_places_where_the_names_are_numbers_too() -> None:
    """As torchvision sorts folders: '10' is class 2. Labels and predictions count the same names."""

    class Folders(list[Any]):
        classes = ("0", "1", "10", "2")

    pairs = list(zip(noise(4), [0, 1, 2, 3], strict=True))
    screening = audit.screen([0, 1, 2, 2], Folders(pairs))
    assert screening.accuracy == 0.75
    (error,) = screening.errors()
    assert (error.index, error.label, error.predicted) == (3, "2", "10")
    assert audit.screen(["0", "1", "10", "2"], Folders(pairs)).accuracy == 1  # names


def test_columns_of_a_frame_name_its_scores() -> None:
    scores = pd.DataFrame({"dog": [0.9, 0.2], "cat": [0.1, 0.8]})
    for names in (None, "data", ["dog", "cat"]):
        assert audit.screen(scores, noise(2), labels=["dog", "cat"], class_names=names).accuracy == 1
    with pytest.raises(ConfigError, match=r"class_names are \['cat', 'dog'\], but the columns .* \['dog', 'cat'\]"):
        audit.screen(scores, noise(2), labels=["dog", "cat"], class_names=["cat", "dog"])


@pytest.mark.parametrize(("several", "blocks"), [(1, False), (2, True)])
def test_an_image_with_two_labels_is_said(several: int, blocks: bool) -> None:
    """More than one image in 1,000 blocks a gate. The first label counts."""
    shades = [np.full((8, 8, 3), (i % 250, i // 250, 0), np.uint8) for i in range(1000)]
    pairs = [(shade, "red") for shade in shades] + [(shade, "blue") for shade in shades[:several]]
    screening = audit.screen(["red"] * len(pairs), pairs, class_names=NAMES)
    (warning,) = [one for one in screening.warnings if one.code == "contradictory_labels"]
    assert (warning.role, warning.items, warning.blocks_gate) == ("data", several, blocks)
    assert "'blue' and 'red'" in warning.message
    same = audit.screen(["red"] * 4, [(shade, "red") for shade in shades[:2] * 2], class_names=NAMES)
    assert "contradictory_labels" not in {one.code for one in same.warnings}


def test_errors_of_the_caller_s_own_code_say_where() -> None:
    def fails(image: Image.Image) -> torch.Tensor:
        raise AttributeError("no such thing")

    with pytest.raises(ConfigError, match="transform= fails on image 0: AttributeError: no such thing"):
        audit.screen(lambda x: x, noise(2), class_names=NAMES, transform=fails)
    with pytest.raises(ModelError, match=r"fails on images of shape \(2, 3, .*AssertionError: odd"):
        audit.screen(asserts, noise(2), class_names=NAMES)


def asserts(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("odd")


def test_outputs_that_are_not_finite_are_said() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        shades = x.mean((2, 3)) * torch.tensor([1.0, 0.9, 0.8])
        return torch.where(shades[:, :1] > 0.9, torch.nan, shades - 1)

    images = [np.full((8, 8, 3), value, np.uint8) for value in (10, 255, 20)]
    screening = audit.screen(model, images, class_names=NAMES)
    found = {warning.code: (warning.items, warning.blocks_gate) for warning in screening.warnings}
    assert found == {"not_finite": (1, True), "no_label": (3, True)}


def encoded(image: Image.Image, form: str) -> bytes:
    target = io.BytesIO()
    image.save(target, form)
    return target.getvalue()


def test_images_of_every_kind_keep_their_pixels(tmp_path: Path) -> None:
    (rgb,) = noise(1)
    grey, alpha = rgb[..., 0], np.concatenate([rgb, np.full((8, 8, 1), 255, np.uint8)], 2)
    same = [
        rgb,
        alpha,
        Image.fromarray(rgb),
        Image.fromarray(alpha),
        rgb.astype(np.float32) / 255,
        rgb.astype(np.int64),
        np.moveaxis(rgb, -1, 0),
        torch.from_numpy(rgb).permute(2, 0, 1),
        torch.from_numpy(rgb).permute(2, 0, 1).float() / 255,
        encoded(Image.fromarray(rgb), "BMP"),
    ]
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(rgb), "PNG"))
    for image in [*same, tmp_path / "x.png", str(tmp_path / "x.png")]:
        assert np.array_equal(decode(as_bytes(image, "x")).image, rgb)
    for image in (grey, grey[..., None], grey[None], torch.from_numpy(grey.copy()), Image.fromarray(grey)):
        assert np.array_equal(decode(as_bytes(image, "x")).image, np.repeat(grey[..., None], 3, 2))
    jpeg = encoded(Image.fromarray(rgb), "JPEG")
    assert as_bytes(jpeg, "x") == jpeg
    cmyk = Image.fromarray(rgb).convert("CMYK")
    assert np.array_equal(decode(as_bytes(cmyk, "x")).image, np.asarray(cmyk.convert("RGB")))


def test_a_loaded_classifier_brings_its_own_names_and_preprocessing() -> None:
    from audit.classifiers import hf
    from audit.zoo.scenes import LABELS

    model = hf.load(hf.Options(ref="zoo:shortcut-a"), ())
    images = noise(3, (8, 80))
    screening = audit.screen(model, images)
    rows = screening.run.rows("select predicted from predictions join items using (item_id) order by position")
    with torch.no_grad():
        tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images]
        assert [row["predicted"] for row in rows] == [LABELS[int(model.logits(x).argmax())] for x in tensors]


def test_the_example_of_the_docstring_runs() -> None:
    result = doctest.testmod(audit.in_memory)
    assert result.attempted >= 5
    assert result.failed == 0
