"""What the benchmarks compare is the same computation; nothing here is timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from audit.diffusion.optimise import Settings, optimise
from audit.methods import uvce
from benchmarks import baselines, search

SETTINGS = Settings(steps=1, step_size_latent=0.002, step_size_text=0.1, cutouts=2, cutout_noise=0.3, cutout_size=64)


@pytest.fixture(scope="module")
def setup() -> search.Setup:
    return search.small(steps=3)


@pytest.fixture(scope="module")
def exact() -> search.Setup:
    return search.exact(steps=3)


@pytest.mark.parametrize("policy", search.POLICIES)
def test_the_baselines_have_the_gradients_of_the_batch(exact: search.Setup, policy) -> None:
    found = search.disagreements(exact, ["a", "b"], replace(SETTINGS, checkpoint=policy))
    assert len(found) == 3
    assert max(found.values()) <= 1e-5
    assert not exact.generator.unet.is_gradient_checkpointing


def test_a_difference_is_seen(exact: search.Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    other = search.exact(steps=3)
    other.generator._scale = 3.01
    wrong = lambda _, variables: baselines.literal(other.generator, variables)  # noqa: E731
    monkeypatch.setitem(search.BASELINES, "A literal Algorithm 1", wrong)
    assert search.disagreements(exact, ["a"], SETTINGS)["A literal Algorithm 1"] > 1e-4


def test_the_baselines_find_the_same_images(setup: search.Setup) -> None:
    """After two steps; the optimiser returns its best iterate, which here is the last."""
    settings, keys = replace(SETTINGS, steps=2), ["a", "b"]
    objective = setup.objective()
    result = optimise(setup.generator, setup.starts(keys), objective, settings, keys)
    assert result.best_step.tolist() == [2, 2]
    for i, key in enumerate(keys):
        image = baselines.search(setup.generator, baselines.literal, setup.starts([key]), objective, settings, [key])
        assert torch.allclose(image[0], result.image[i], atol=1e-4)
        assert not torch.allclose(image[0], result.start[i], atol=1e-2)


def test_whole_methods_are_counted_by_what_they_run(setup: search.Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the steps are about twice the operations; recomputing adds a forward pass: 3.24 instead of 2.24."""
    monkeypatch.setattr(search, "BATCH", 1)
    need = []
    for steps, policy in ((1, "none"), (3, "none"), (3, "step")):
        monkeypatch.setattr(search, "POLICIES", (policy,))
        need.append(search.whole_disagreement(setup, replace(SETTINGS, steps=steps)))
    evaluation = 0.25  # the last forward pass, in units of a step's forward and backward pass, roughly
    once, thrice, recomputed = (x.tflop_per_item for x in need)
    assert thrice / once == pytest.approx((3 + evaluation) / (1 + evaluation), rel=0.2)
    assert 1.1 < recomputed / thrice < 3.24 / 2.24
    assert [x.policy for x in need] == ["none", "none", "step"]
    assert all(x.seconds_per_item > 0 and x.share > 0 and x.peak_gib > 0 for x in need)


def test_operations_are_counted_as_two_for_each_multiplication() -> None:
    """Of a product (3, 4) (4, 5), a 3 x 3 convolution on 6 x 6 pixels, and the gradient of its input."""
    x = torch.ones(1, 2, 6, 6, requires_grad=True)
    with search.Operations() as counted:
        torch.ones(3, 4) @ torch.ones(4, 5)
        y = torch.nn.functional.conv2d(x, torch.ones(7, 2, 3, 3), padding=1)
        torch.autograd.grad(y.sum(), x)
    assert counted.flop == 2 * 3 * 4 * 5 + 2 * 2 * (2 * 7 * 9 * 36)


def test_a_whole_counterfactual_runs(setup: search.Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BATCH", 1)
    numbers = replace(uvce.PRESETS["embedded"], optimisation=SETTINGS, injection=(0.5,), blending=(0.0,))
    found = search.whole_uvce(setup, numbers)
    assert (found.batch, found.policy) == (1, "none")
    assert found.tflop_per_item > search.whole_disagreement(setup, SETTINGS).tflop_per_item


def test_ratios_are_within_a_repeat() -> None:
    found = search.summary({"A": [4.0, 9.0, 8.0], "ours, batch 8": [2.0, 3.0, 2.0]})
    assert found["A"] == {"seconds": 8.0, "ratio": 3.0, "least": 2.0, "most": 4.0}
    assert found["ours, batch 8"]["ratio"] == 1.0
