"""Units of classifiers: read through hooks that go away, ranked, searched, attacked in pixel space, and judged."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit import suspects
from audit.classifiers import Classifier, Preprocess, clip
from audit.config import parse_job
from audit.decode import decode
from audit.diffusion.noise import latent
from audit.diffusion.optimise import Settings, optimise, start_from_prompt
from audit.errors import ConfigError, ModelError
from audit.methods import Context, check_order, neuron
from audit.models import Models
from audit.neurons import Layer, Objective, activations, count_units, layer_of, with_redirection
from audit.pixel_space import ascend
from audit.predictions import rows_for, to_tensor
from audit.results.schema import to_table
from audit.results.sql import Run
from audit.results.store import Store
from audit.screened import Screened
from audit.sentences import neuron_name
from audit.zoo.export import export
from audit.zoo.measure import load
from audit.zoo.neurons import Report, measure
from audit.zoo.scenes import render
from audit.zoo.world import load_world, scene_at
from tests.gaussian import Gaussian
from tests.in_process import done

NAMES = ("crab", "boat", "car")


class Net(nn.Module):
    """Three maps of 1 x 1 convolutions after a ReLU, their means, and a linear head with known weights."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 3)  # as many outputs as the head, and not the last
        self.mix = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.tokens = nn.Identity()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        g = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.mix(x))
        self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(x.mean((2, 3)))


def classifier(network: nn.Module | None = None) -> Classifier:
    network = (network or Net()).eval().requires_grad_(False)
    return Classifier(NAMES, Preprocess((8, 8)), network, network)


def images(count: int = 5, side: int = 8) -> Tensor:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(1))


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


# --- reading --------------------------------------------------------------------------------------------------


def test_activations_equal_a_hand_written_forward() -> None:
    model, x = classifier(), images()
    net = model.network
    weight, bias = net.mix.weight[:, :, 0, 0], net.mix.bias
    maps = torch.einsum("uc,bchw->buhw", weight, x) + bias[:, None, None]
    pooled = maps.clamp_min(0).sum((2, 3)) / 64
    layer = layer_of(model)
    units, logits = activations(model, layer, x)
    assert torch.allclose(units, pooled, atol=1e-6)
    assert torch.allclose(logits, pooled @ net.head[1].weight.T + net.head[1].bias, atol=1e-5)
    assert torch.equal(logits, model.logits(x))
    assert layer.name == "input of head.1"
    assert layer.weight is not None
    assert torch.equal(layer.weight, net.head[1].weight)
    assert torch.allclose(
        activations(model, layer_of(model, "mix"), x)[0], maps.mean((2, 3)), atol=1e-6
    )  # (b, c, h, w)
    assert torch.allclose(activations(model, layer_of(model, "tokens"), x)[0], pooled, atol=1e-6)  # (b, n, c)
    assert count_units(model, layer) == 4


def test_the_gradient_of_a_unit_reaches_the_image() -> None:
    """d a_u / d x at a place is w_u / 64 where the unit's map is positive there, else 0."""
    model, x = classifier(), images(2).requires_grad_(True)
    units, _ = activations(model, layer_of(model), x)
    units[:, 1].sum().backward()
    weight, bias = model.network.mix.weight[1, :, 0, 0], model.network.mix.bias[1]
    on = (torch.einsum("c,bchw->bhw", weight, x.detach()) + bias > 0).float()
    assert 0 < on.mean() < 1
    assert torch.allclose(x.grad, weight[None, :, None, None] * on[:, None] / 64, atol=1e-7)


def test_a_unit_that_is_off_has_a_gradient_only_with_redirection() -> None:
    """Off everywhere: the gradient of its map as though the ReLU let it through. On somewhere: its own."""
    model, x = classifier(), images(2)
    net = model.network
    net.mix.bias.data[1] = -100.0
    weight = net.mix.weight[:, :, 0, 0]
    layer = layer_of(model)
    redirected = with_redirection(model, layer)

    def gradient(layer: Layer, unit: int) -> Tensor:
        own = x.clone().requires_grad_(True)
        units, _ = activations(model, layer, own)
        assert torch.equal(units, activations(model, layer_of(model), x)[0])
        return torch.autograd.grad(units[:, unit].sum(), own)[0]

    assert not gradient(layer, 1).any()
    assert torch.allclose(gradient(redirected, 1), (weight[1] / 64)[None, :, None, None].expand(2, 3, 8, 8), atol=1e-7)
    some = [unit for unit in (0, 2, 3) if activations(model, layer_of(model), x)[0][:, unit].min() > 0]
    for unit in some:
        assert torch.equal(gradient(redirected, unit), gradient(layer, unit))
    assert some
    assert hooks(net) == 0
    itself = layer_of(model, "relu")  # a layer that is the ReLU
    assert torch.equal(gradient(with_redirection(model, itself), 1), gradient(redirected, 1))
    assert not gradient(itself, 1).any()
    plain = classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    assert with_redirection(plain, layer_of(plain)).relu is None  # nothing to redirect


def test_only_the_last_run_of_a_shared_relu_is_redirected() -> None:
    """Blocks may share one module. Behind it the second layer's units keep their own gradients, though the first layer
    has channels that are off everywhere."""

    class Shared(Net):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.second(self.relu(self.mix(x))))
            self.tokens(x.flatten(2).transpose(1, 2))
            return self.head(x.mean((2, 3)))

    net = Shared()
    net.mix.bias.data[:2] = -100.0  # off everywhere in the first run
    net.second.bias.data = torch.tensor([5.0, 5.0, -100.0, 5.0])  # the second run: on, but for one
    model, x = classifier(net), images(2)
    redirected = with_redirection(model, layer_of(model))

    def gradient(layer: Layer, unit: int) -> Tensor:
        own = x.clone().requires_grad_(True)
        return torch.autograd.grad(activations(model, layer, own)[0][:, unit].sum(), own)[0]

    for unit in (0, 1, 3):
        assert torch.equal(gradient(redirected, unit), gradient(layer_of(model), unit))
    assert gradient(redirected, 0).any()
    assert not gradient(layer_of(model), 2).any()
    on = (net.mix(x) > 0).float()  # of the first run, whose gradient stays its own
    through = (net.second.weight[2, :, 0, 0][None, :, None, None] * on / 64).double()
    expected = torch.einsum("bohw,oc->bchw", through, net.mix.weight[:, :, 0, 0].double())
    assert torch.allclose(gradient(redirected, 2).double(), expected, atol=1e-6)


def test_no_hook_stays_after_success_or_exception() -> None:
    class Breaks(Net):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ValueError("broken")

    model = classifier()
    for name in (None, "mix", "tokens"):
        activations(model, layer_of(model, name), images())
        assert hooks(model.network) == 0
    broken = classifier(Breaks())
    for layer in (layer_of(broken), layer_of(broken, "mix"), replace(layer_of(broken), relu=broken.network.relu)):
        with pytest.raises(ValueError, match="broken"):
            activations(broken, layer, images())
        assert hooks(broken.network) == 0
    with pytest.raises(ValueError, match="broken"):
        with_redirection(broken, layer_of(broken))
    assert hooks(broken.network) == 0
    with pytest.raises(ModelError, match="expected"):
        activations(model, replace(layer_of(model, "mix"), module=nn.Linear(2, 2)), images())


def test_layers_that_cannot_be_read_are_named_with_what_would_work() -> None:
    model = classifier()
    with pytest.raises(ModelError, match=r"unknown layer 'head\.2'.*head\.1"):
        layer_of(model, "head.2")
    with pytest.raises(ModelError, match=r"unknown layer 'mixx'. Near names: mix"):
        layer_of(model, "mixx")
    with pytest.raises(ModelError, match="runs 0 times"):
        activations(model, replace(layer_of(model), module=nn.Linear(4, 3)), images())
    zero_shot = clip.load(clip.Options(ref="zoo:clip"), NAMES)
    with pytest.raises(ModelError, match=r"no linear layer with 3 outputs.*'layer'.*visual_projection"):
        layer_of(zero_shot)
    units, _ = activations(zero_shot, layer_of(zero_shot, "visual_projection"), images(2, 64))
    assert torch.allclose(nn.functional.normalize(units), zero_shot.embed_images(images(2, 64)), atol=1e-5)


def test_screening_stores_activations_and_changes_nothing_else() -> None:
    model, other = load("shortcut-a"), load("reference")
    held = SimpleNamespace(
        classifiers=lambda: iter({"a": model, "b": other}.items()), embedder=None, device="cpu", data_classes=()
    )
    pixels = [(x.permute(1, 2, 0).numpy() * 255).astype(np.uint8) for x in images(3, 64)]
    plain = rows_for(held, pixels, ["x", "y", "z"], "data")
    read = rows_for(held, pixels, ["x", "y", "z"], "data", read=[("a", None), ("a", "resnet.encoder.stages.2")])
    assert read["predictions"] == plain["predictions"]
    assert plain["arrays"] == []
    names = ("activations", "activations of resnet.encoder.stages.2")
    assert [(r["subject_id"], r["name"], r["model_id"]) for r in read["arrays"]] == [
        (i, name, "a") for i in "xyz" for name in names
    ]
    x = torch.stack([torch.from_numpy(p).permute(2, 0, 1) / 255 for p in pixels])
    for name, layer in zip(names, (None, "resnet.encoder.stages.2"), strict=True):
        expected, _ = activations(model, layer_of(model, layer), x)
        stored = torch.tensor([r["values"] for r in read["arrays"] if r["name"] == name])
        assert torch.allclose(stored, expected, atol=1e-5)


# --- suspects and verdicts ------------------------------------------------------------------------------------


def planted(count: int = 400) -> dict[str, Any]:
    """Units of a made-up model for one class: 0 core, 1 spurious, 2 the same with a tiny weight, 3 noise, 4 against.

    The model says the class where the spurious unit fires, the check where the object is; the labelled images have
    both.
    """
    rng = np.random.default_rng(0)
    thing, sand = rng.random(count) < 0.5, rng.random(count) < 0.5
    noise = rng.random((count, 5)) * 0.1
    units = np.stack([thing, sand, sand, np.zeros(count), sand], 1) + noise
    weights = np.array([1.0, 1.0, 0.05, 1.0, -1.0])
    return {"activations": units, "weights": weights, "labelled": thing & sand, "says": sand, "sees": thing}


def test_importance_and_order_are_those_of_a_planted_network() -> None:
    given = planted()
    ranking = suspects.rank(**given)
    own = given["activations"][given["labelled"]]
    assert ranking.importance == pytest.approx([w * own[:, u].mean() for u, w in enumerate(given["weights"])])
    assert ranking.trigger_auc is not None
    assert ranking.trigger_auc[1] == 1.0  # fires wherever the model says the class, and nowhere else
    assert ranking.trigger_auc[0] == pytest.approx(0.5, abs=0.1)  # of images without the object it says nothing
    absent = ~given["sees"]
    said, other = (given["activations"][absent & mask, 3] for mask in (given["says"], ~given["says"]))
    wins = (said[:, None] > other[None]).mean()
    assert ranking.trigger_auc[3] == pytest.approx(wins)
    assert ranking.order[0] == 1
    assert ranking.order[-1] == 4  # a unit that speaks against the class is the last suspect
    assert list(ranking.order).index(2) < list(ranking.order).index(4)


def test_without_images_that_trigger_the_order_is_that_of_importance() -> None:
    given = planted()
    ranking = suspects.rank(**{**given, "says": given["sees"]})
    assert ranking.trigger_auc is None
    assert ranking.order.tolist() == np.argsort(-ranking.importance).tolist()
    assert suspects.top(given["activations"][:, 0], 3).tolist() == np.argsort(-given["activations"][:, 0])[:3].tolist()


def evidence(triggered: int, before: int, seen: int, top: list[bool], searches: int = 8) -> suspects.Evidence:
    first = [np.arange(searches) < n for n in (before, triggered, seen)]
    return suspects.Evidence(*first, np.array(top, bool))


@pytest.mark.parametrize(
    ("given", "verdict", "says"),
    [
        (evidence(7, 0, 0, [False] * 4), "harmful", "7 of 8"),
        (evidence(7, 0, 0, [True] * 4), "harmful", "contradict"),  # real images show the class, searches do without
        (evidence(8, 8, 0, [False] * 4), "spurious", "8 of the starts"),  # not above the starts
        (evidence(0, 0, 0, [True, True, False]), "core", "67%"),
        (evidence(0, 0, 6, [False] * 4), "core", "contradict"),
        (evidence(0, 0, 6, [True] * 4), "core", "75%"),
        (evidence(1, 0, 1, [False] * 4), "spurious", "0%"),
        (evidence(3, 0, 0, [], searches=3), "spurious", "too few"),
        (evidence(4, 0, 0, [], searches=4), "harmful", "4 of 4"),
        (evidence(0, 0, 0, [], searches=0), None, "no search"),
    ],
)
def test_the_verdict_follows_its_rule(given: suspects.Evidence, verdict: str, says: str) -> None:
    found = suspects.judge(given)
    assert (found.name, says in found.reason) == (verdict, True), found.reason
    n, k = len(given.triggered), int(given.triggered.sum())
    if n and not given.triggered_before.any():  # all k hits fall on one side: C(n, k) / C(2n, k)
        assert found.p_value == pytest.approx(math.comb(n, k) / math.comb(2 * n, k))


# --- pixel space ----------------------------------------------------------------------------------------------


def test_ascent_of_a_linear_objective_is_a_straight_line() -> None:
    """From the middle of the box it goes steps x step_size along the gradient, then to the ball's surface."""
    start = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    slope = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope[1] *= 1000  # the length of a step does not depend on the gradient's
    unit = slope / slope.flatten(1).norm(dim=1)[:, None, None, None]

    def linear(x: Tensor) -> Tensor:
        return (x * slope).sum((1, 2, 3))

    assert torch.allclose(ascend(start, linear, 5, 0.1), start + 0.5 * unit, atol=1e-12)
    assert torch.allclose(ascend(start, linear, 50, 0.1, radius=0.7), start + 0.7 * unit, atol=1e-12)
    assert torch.equal(start, torch.full_like(start, 0.5))
    far, reached = ascend(start, linear, 400, 0.1), unit.abs() * 400 * 0.1 > 0.5
    assert reached.float().mean() > 0.9
    assert torch.equal(far[reached], (slope > 0).double()[reached])  # the corner of [0, 1] that the slope points to
    near = ascend(start, linear, 400, 0.1, radius=2.0)
    assert (near - start).flatten(1).norm(dim=1).max() <= 2 + 1e-9


def test_ascent_can_keep_the_best_iterate_by_another_judge() -> None:
    """Up a slope in steps of .1; the judge likes item 0 best at .2, item 1 as far as it goes, item 2 at its start."""
    start, wish = torch.full((3, 3, 1, 1), 0.1, dtype=torch.float64), torch.tensor([0.3, 9.0, 0.0])
    length = 0.1 * 3**0.5

    def judge(x: Tensor) -> Tensor:
        return -(x.mean((1, 2, 3)) - wish).abs()

    got = ascend(start, lambda x: x.sum((1, 2, 3)), 4, length, judge=judge)
    assert got.mean((1, 2, 3)).tolist() == pytest.approx([0.3, 0.5, 0.1])
    assert not got.requires_grad


def test_ascent_stays_where_it_has_no_gradient_and_keeps_items_apart() -> None:
    start = torch.rand((3, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    flat = torch.tensor([0.0, 1.0, 1.0])[:, None, None, None]

    def objective(x: Tensor) -> Tensor:
        return (flat[: len(x)] * (x - 0.3).square()).sum((1, 2, 3))

    together = ascend(start, objective, 3, 0.2)
    assert torch.equal(together[0], start[0])
    assert (together[1] - start[1]).norm() > 0.3
    flat = flat[1:]
    assert torch.allclose(ascend(start[1:2], objective, 3, 0.2)[0], together[1], atol=1e-6)


# --- the search -----------------------------------------------------------------------------------------------


def search(names: list[str], signs: list[float], unit: int = 2) -> Any:
    generator, model = Gaussian(), classifier(Net().double())
    settings = Settings(steps=4, step_size_latent=0.02, step_size_text=0.05, cutouts=3, cutout_size=8, clip=None)
    objective = Objective(
        replace(model, forward=model.network), layer_of(model), unit, "boat", torch.tensor(signs, dtype=torch.float64)
    )
    z = torch.stack([latent(generator.latent_shape, name).double() for name in names])
    return optimise(generator, start_from_prompt(generator, names, z), objective, settings, names), objective


def test_a_batch_of_searches_in_both_directions_equals_single_ones() -> None:
    names, signs = ["a", "b", "c", "a"], [1.0, 1.0, -1.0, -1.0]
    together, _ = search(names, signs)
    for i, name in enumerate(names):
        alone, objective = search([name], signs[i : i + 1])
        assert torch.allclose(together.image[i], alone.image[0], atol=1e-6)
        assert torch.allclose(together.losses[:, i], alone.losses[:, 0], atol=1e-6)
        before, after = (objective.scores(x)[0, 0] for x in (alone.start, alone.image))
        assert (after - before) * signs[i] > 0
        assert -signs[i] * after.item() == pytest.approx(alone.losses[:, 0].min().item(), abs=1e-6)
    assert torch.equal(together.start[0], together.start[3])  # one start, both directions


JOB = {
    "version": 1,
    "name": "neurons",
    "data": {"source": "folder", "path": "labelled"},
    "pool": {"source": "parquet", "path": "pool"},
    "models": [{"id": m, "loader": "hf", "ref": f"zoo:{m}"} for m in ("reference", "shortcut-a")],
    "embedder": {"loader": "clip", "ref": "zoo:clip"},
    "generator": {"loader": "diffusers", "ref": "zoo:diffusion", "steps": 3, "guidance_scale": 4.0},
    "stages": [
        {"kind": "screen", "activations": ["shortcut-a", {"model": "shortcut-a", "layer": "resnet.encoder.stages.2"}]},
        {"kind": "adequacy", "samples": 2, "threshold": 0.0, "classes": ["crab", "car"]},
        {"kind": "neuron", "model": "shortcut-a", "classes": ["crab"], "neurons": [42], "seeds": 2, "class_seeds": 2}
        | {"preset": "embedded", "steps": 2, "cutouts": 2, "top_images": 6, "attack_steps": 3},
    ],
}


def job_with(**neuron_options: Any) -> Any:
    stages = [dict(stage) for stage in JOB["stages"]]
    stages[2] = {"kind": "neuron", "model": "shortcut-a", **neuron_options}
    return {**JOB, "stages": stages}


@pytest.mark.parametrize(
    ("options", "edit", "message"),
    [
        ({"model": "shortcut-b"}, {}, "unknown model 'shortcut-b'"),
        ({"check": "shortcut-a"}, {}, "no model checks itself"),
        ({"check": "referense"}, {}, "Did you mean 'reference'"),
        ({}, {"embedder": None}, "needs an independent check"),
        ({"model": "reference"}, {}, r"activations: \[reference\]"),
        ({"layer": "resnet"}, {}, "list the 'neurons' of the layer"),
        ({}, {"generator": None}, "need a generator"),
    ],
)
def test_jobs_whose_neurons_cannot_be_had_are_refused(options: Any, edit: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_order(parse_job({**job_with(**options), **edit}, tmp_path))
    early = job_with()
    early["stages"][1], early["stages"][2] = early["stages"][2], early["stages"][1]
    with pytest.raises(ConfigError, match="reads what 'adequacy' writes"):
        check_order(parse_job(early, tmp_path))
    check_order(parse_job(job_with(), tmp_path))
    check_order(parse_job(job_with(model="reference", neurons=[3], check="shortcut-a"), tmp_path))


def test_the_digin_preset_is_table_e1() -> None:
    settings = neuron.Options(model="m").settings(224)
    assert (settings.steps, settings.step_size_text, settings.step_size_latent) == (20, 0.005, 0.0005)
    assert (settings.cutouts, settings.cutout_noise, settings.clip) == (16, 0.005, None)
    assert [settings.rate(k) for k in (0, 7, 19)] == [1.0, 1.0, 1.0]
    assert neuron.Options(model="m", steps=3, cutout_noise=0.1).settings(224).steps == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("neurons")
    export("labelled", root / "labelled", "folder", 120)
    export("pool", root / "pool", "parquet", 200)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return done(parse_job(JOB, folder), folder / "run", batch=4)


def test_a_run_says_what_the_planted_sand_neuron_does(run: Run) -> None:
    (row,) = run.rows("select * from neurons")
    own = run.rows(
        "select avg(a.values[43]) as mean, count(*) as n from arrays a join items i on i.item_id = a.subject_id "
        "where a.name = 'activations' and a.role = 'data' and i.label = 'crab'"
    )[0]
    weight = load("shortcut-a").network.classifier[1].weight[0, 42].item()  # crab is the model's first class
    assert own["n"] > 5
    assert (row["neuron"], row["layer"], row["class_name"]) == (42, "input of classifier.1", "crab")
    assert row["weight"] == pytest.approx(weight)
    assert row["mean_activation"] == pytest.approx(own["mean"], rel=1e-5)
    assert row["importance"] == pytest.approx(weight * own["mean"], rel=1e-5)
    assert row["trigger_auc"] > 0.99  # images without a crab that it calls crab are those on sand
    assert row["suspicion"] >= 0.5
    highest = run.rows(
        "select subject_id, values[43] as a from arrays where name = 'activations' order by a desc limit 6"
    )
    assert row["top_items"] == [h["subject_id"] for h in highest]
    assert row["top_activations"] == pytest.approx([h["a"] for h in highest])
    kept = run.rows("select count(*) as n from images where kind = 'original'")[0]["n"]
    assert kept == len(set(row["top_items"]))
    assert row["check_id"] == "embedder"
    starts = run.rows(
        "select avg(seen_before::int) as hits from explanations where method = 'neuron' and arm = 'maximise'"
    )
    assert row["check_hits"] == pytest.approx(starts[0]["hits"])
    assert f"of 2 starts drawn for the class, the check sees it on {round(2 * row['check_hits'])}" in row["reason"]
    assert row["verdict"] in ("core", "spurious", "harmful")
    assert row["reason"]


def test_a_run_keeps_the_three_arms_their_starts_and_the_feature_attack(run: Run) -> None:
    rows = run.rows("select * from explanations order by method, arm, seed")
    arms = [(r["method"], r["arm"], r["seed"], r["source_class"]) for r in rows]
    assert arms == [
        ("feature_attack", "maximise", 0, "crab"),
        ("feature_attack", "maximise", 1, "crab"),
        ("neuron", "maximise", 0, "crab"),
        ("neuron", "maximise", 1, "crab"),
        ("neuron", "minimise", 0, "crab"),
        ("neuron", "minimise", 1, "crab"),
        ("neuron", "others", 0, "bird"),
        ("neuron", "others", 1, "boat"),
    ]
    assert {r["status"] for r in rows} == {"ok"}
    assert [r["start_image_id"] for r in rows[:2]] == [r["start_image_id"] for r in rows[2:4]]
    assert [r["start_image_id"] for r in rows[2:4]] == [r["start_image_id"] for r in rows[4:6]]
    for r in rows:
        gained = r["activation_after"] - r["activation_before"]
        assert gained >= 0 if r["arm"] != "minimise" else gained <= 0
        assert gained == 0 or r["start_image_id"] != r["image_id"]
        assert gained != 0 or "the search kept its start" in r["reason"]
    assert all(r["activation_after"] > r["activation_before"] for r in rows[:2])
    assert any(r["activation_after"] != r["activation_before"] for r in rows[2:])
    # what is recorded is what the models say of the stored images
    model = load("shortcut-a")
    for r in rows:
        png = run.rows("select png from images where image_id = ? limit 1", [r["image_id"]])[0]["png"]
        x = to_tensor(decode(png).image)[None]
        units, logits = activations(model, layer_of(model), x)
        assert units[0, 42].item() == pytest.approx(r["activation_after"], abs=0.02)
        assert logits.softmax(-1)[0, 0].item() == pytest.approx(r["score_after"], abs=0.02)
    traced = run.rows("select count(*) as n, count(distinct explanation_id) as searches from traces")
    assert traced == [{"n": 6 * 3, "searches": 6}]
    said = run.rows("select count(distinct model_id) as n from predictions where role = 'generated' group by item_id")
    assert {r["n"] for r in said} == {2}


def with_other_neurons(folder: Path, name: str, batch: int, **changed: Any) -> Run:
    """The run with another `neuron` stage after the same screening."""
    root, options = folder / name, {**JOB["stages"][2], **changed}
    shutil.copytree(folder / "run", root)
    for file in ("job.json", "plan/3-neuron.json"):
        (root / file).unlink()
    for commit in Store(root).commits().values():
        if commit.stage == "3-neuron":
            (root / "commits" / f"{commit.units[0]}.json").unlink()
    return done(parse_job({**JOB, "stages": [*JOB["stages"][:2], options]}, folder), root, batch)


def test_suspects_come_by_rank_and_no_batch_changes_a_search(folder: Path, run: Run) -> None:
    small = {
        "seeds": 1,
        "class_seeds": 1,
        "step_size_text": 0.01,
    }  # Adam's first step, a sign, makes rounding grow with its size
    auto = with_other_neurons(folder, "auto", 1, neurons="auto", top=2, **small)
    rows = auto.rows("select * from neurons order by rank")
    assert [(row["class_name"], row["rank"]) for row in rows] == [("crab", 1), ("crab", 2)]
    assert rows[0]["neuron"] != rows[1]["neuron"]
    assert min(row["trigger_auc"] for row in rows) > 0.8
    score = [row["importance"] * (2 * row["trigger_auc"] - 1) for row in rows]
    assert score[0] > score[1]
    listed = with_other_neurons(folder, "listed", 4, neurons=[rows[0]["neuron"]], **small)
    assert listed.rows("select rank from neurons") == [{"rank": 1}]
    searched = "select explanation_id, method, arm, activation_before, activation_after, score_after from explanations "
    one, other = (
        r.rows(searched + "where neuron = ? order by explanation_id", [rows[0]["neuron"]]) for r in (auto, listed)
    )
    assert len(one) == len(other) == 4
    for left, right in zip(one, other, strict=True):
        assert {k: v for k, v in left.items() if isinstance(v, str)} == {
            k: v for k, v in right.items() if isinstance(v, str)
        }
        for key in ("activation_before", "activation_after", "score_after"):
            assert left[key] == pytest.approx(right[key], abs=1e-2)


def test_neurons_whose_units_are_given_up_say_so_each(tmp_path: Path) -> None:
    """Listed ones and places among the suspects, which have no number yet."""
    made = parse_job(job_with(neurons=[3, 4]), tmp_path)
    options = made.stages[2].options
    context = Context(made, "3-neuron", tmp_path, Models(made, ("boat", "tree")), 1)
    payloads: list[dict[str, Any]] = [
        {"class": name, key: n, "seeds": []}
        for name in ("boat", "tree")
        for key, n in (("neuron", 3), ("neuron", 4), ("rank", 1))
    ]
    rows = [
        row for payload in payloads for row in neuron.lost(options, payload, "gave_up: it hangs", context)["neurons"]
    ]
    assert len({row["neuron_id"] for row in rows}) == 6
    table = to_table("neurons", rows).to_pylist()
    assert {(row["class_name"], row["neuron"], row["rank"], row["verdict"], row["reason"]) for row in table} == {
        (payload["class"], payload.get("neuron"), payload.get("rank"), None, "gave_up: it hangs")
        for payload in payloads
    }
    assert [neuron_name(row) for row in table][:3] == ["neuron 3", "neuron 4", "suspect number 1"]


def test_a_neuron_that_a_layer_lacks_is_refused(folder: Path, run: Run) -> None:
    with pytest.raises(AssertionError, match=r"unknown neuron 144.*0 to 143"):
        with_other_neurons(folder, "beyond", 1, neurons=[144])


def test_a_listed_unit_of_a_named_layer_has_searches_and_no_rank(folder: Path, run: Run) -> None:
    named = with_other_neurons(folder, "named", 4, neurons=[7], layer="resnet.encoder.stages.2", check="reference")
    (row,) = named.rows("select * from neurons")
    assert (row["layer"], row["check_id"], row["searches"]) == ("resnet.encoder.stages.2", "reference", 2)
    assert [row[key] for key in ("weight", "rank", "importance")] == [None] * 3
    highest = named.rows(
        "select subject_id, values[8] as a, predicted from arrays a join predictions p on p.item_id = a.subject_id "
        "and p.role = a.role and p.model_id = 'reference' where name = 'activations of resnet.encoder.stages.2' "
        "order by a desc, subject_id limit 6"
    )
    assert row["top_items"] == [h["subject_id"] for h in highest]
    assert row["top_activations"] == pytest.approx([h["a"] for h in highest])
    assert row["suspicion"] == pytest.approx(np.mean([h["predicted"] != "crab" for h in highest]))


def test_the_measure_of_planted_features_is_the_definition(run: Run, tmp_path: Path) -> None:
    """AUC as the share of pairs that the unit puts in the right order; ranks and searches as the run has them."""
    report = measure(run, tmp_path, 300)
    assert [one.mode for one in report.found] == ["crab-on-sand", "boat-on-water", "purple-fish"]
    crab = report.found[0]
    world, model = load_world(), load("shortcut-a")
    scenes = [scene_at(world, "heldout", i).scene for i in range(300)]
    x = torch.stack([torch.from_numpy(render(s).image.copy()).permute(2, 0, 1) / 255 for s in scenes])
    units = activations(model, layer_of(model), x)[0].double().numpy()
    sand = np.array([scene.background == "sand" for scene in scenes])

    def auc(unit: int) -> float:
        a, b = units[sand, unit][:, None], units[~sand, unit][None]
        return float(((a > b) + 0.5 * (a == b)).mean())

    assert crab.auc == pytest.approx(max(auc(unit) for unit in range(144)), abs=1e-3)
    assert crab.auc > 0.99
    assert list(crab.suspects.values()) == pytest.approx([auc(unit) for unit in crab.suspects], abs=1e-3)
    assert crab.listed == (crab.rank <= 5)
    if crab.neuron == 42:
        assert crab.searches == 2
    assert report.listed == np.mean([one.rank <= 5 for one in report.found])
    pair = [replace(crab, searches=4, triggered=0.5), replace(crab, searches=2, triggered=1.0)]
    assert Report((*pair, replace(crab, kind="colour", triggered=0.0, searches=9))).triggering == pytest.approx(4 / 6)
    assert Report((replace(crab, searches=None, triggered=None),)).triggering is None


def test_images_that_are_asked_rank_no_unit() -> None:
    """Unit 0 tells triggers among images of even hashes, unit 1 among those of odd ones, which counts for nothing."""
    rng = np.random.default_rng(0)
    ids = np.array([f"{i:08x}" for i in range(200)], object)
    even = np.arange(200) % 2 == 0
    triggered = rng.random(200) < 0.3
    units = 0.1 * rng.random((200, 2)) + np.stack([triggered & even, triggered & ~even], 1) + 1.0
    says = np.where(triggered, "crab", "boat").astype(object)
    images = Screened(ids, units.astype(np.float32), np.full(200, "", object), says, np.full(200, "boat", object))
    ranking = images.ranking(np.ones(2), "crab")
    assert ranking.trigger_auc is not None
    assert ranking.trigger_auc[0] == 1.0
    assert 0.3 < ranking.trigger_auc[1] < 0.7
