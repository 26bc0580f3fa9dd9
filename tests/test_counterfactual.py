"""UVCE: objective, distance, decisions and captions from their equations; batches; and a real run on real models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audit.artefacts import Artefacts
from audit.captions import captioned
from audit.classifiers import Classifier, Preprocess, clip
from audit.counterfactual import Numbers, Original, _schedule, invert, prepare, search
from audit.decisions import AttributeDecision, Decision
from audit.diffusion.inversion import NullText
from audit.diffusion.optimise import Settings, Variables, start_from_prompt
from audit.diffusion.prompt_to_prompt import Recording, foreground, record
from audit.diffusion.sampling import denoise
from audit.errors import StoreError
from audit.generators import Attention, diffusers
from audit.methods.uvce import PRESETS, Options
from audit.objectives import log_probability, masked_distance
from audit.predictions import to_tensor
from audit.subjects import fitted
from audit.zoo.measure import load
from audit.zoo.scenes import Scene, caption, render
from tests.gaussian import Gaussian


def test_the_masked_distance_written_out() -> None:
    """Eq. 5 with a mean for the norm: every element's (1 - S)(x - y), squared, over all of them."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand((2, 3, 4, 5), generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand((2, 4, 5), generator=g, dtype=torch.float64)
    got = masked_distance(x, y, mask, 250.0)
    for item in range(2):
        total = 0.0
        for c in range(3):
            for i in range(4):
                for j in range(5):
                    total += ((1 - mask[item, i, j]) * (x[item, c, i, j] - y[item, c, i, j])).item() ** 2
        assert got[item].item() == pytest.approx(250.0 * total / 60, rel=1e-12)


def test_the_presets_are_table_c15() -> None:
    numbers = PRESETS["digin"]
    assert (numbers.weight_latent, numbers.weight_pixel) == (25.0, 250.0)
    settings = numbers.optimisation
    assert (settings.steps, settings.step_size_text, settings.step_size_latent) == (20, 0.01, 0.001)
    assert (settings.schedule, settings.clip, settings.cutouts, settings.cutout_noise) == ("constant", None, 16, 0.005)
    assert (numbers.map_side, numbers.map_share, numbers.sharpen, numbers.both_masks) == (None, 0.5, 0.0, False)
    assert numbers.null_text == NullText(10, 0.01)
    assert Options(model="m").numbers(224) == replace(numbers, optimisation=replace(settings, cutout_size=224))


def linear_classifier() -> Classifier:
    """Logits are the mean of each channel times ten: easy to write out."""
    return Classifier(
        ("red", "green", "blue"), Preprocess((4, 4)), lambda x: 10 * x.mean((-1, -2)), torch.nn.Identity()
    )


def test_each_item_has_its_own_target() -> None:
    """log softmax of the item's target, for images and for cutouts of them; scores beside it."""
    x = torch.rand((2, 5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    decision = Decision(linear_classifier(), ["red", "green"], ["Blue", "red"])
    for item, (source, target) in enumerate(((0, 2), (1, 0))):
        for crop in range(5):
            logits = [10 * x[item, crop, c].mean().item() for c in range(3)]
            total = sum(map(math.exp, logits))
            assert decision(x)[item, crop].item() == pytest.approx(logits[target] - math.log(total), abs=1e-5)
        shares = [math.exp(logit) / total for logit in logits]
        p_source, p_target, flipped = decision.scores(x[:, 4])[item].tolist()
        assert p_source == pytest.approx(shares[source], abs=1e-5)
        assert p_target == pytest.approx(shares[target], abs=1e-5)
        assert flipped == (max(shares) == shares[target])
    assert log_probability(torch.tensor([[1.0, 3.0]]), torch.tensor([1])).item() == pytest.approx(
        -math.log(1 + math.exp(-2))
    )


def test_attributes_are_two_prompts_of_each_item() -> None:
    """Eqs. 19 and 20: exp<t, x> / (exp<t, x> + exp<s, x>), with the model's scale on the products."""
    model = clip.load(clip.Options(ref="zoo:clip"), ("crab", "boat"))
    before = ["a photograph of a red crab on sand", "a photograph of a green boat on water"]
    after = ["a photograph of a purple crab on sand", "a photograph of a white boat on water"]
    images = torch.stack(
        [
            to_tensor(render(Scene("crab", "sand", "purple")).image),
            to_tensor(render(Scene("boat", "water", "green")).image),
        ]
    )
    decision = AttributeDecision(model, before, after)
    embedded = model.embed_images(images)
    for item in range(2):
        a, b = (model.scale * (model.embed_texts([p[item]])[0] @ embedded[item]).item() for p in (after, before))
        expected = a - math.log(math.exp(a) + math.exp(b))
        assert decision(images)[item].item() == pytest.approx(expected, abs=1e-4)
        assert decision(images[:, None].repeat(1, 3, 1, 1, 1))[item, 2].item() == pytest.approx(expected, abs=1e-4)
    assert decision.scores(images)[:, 2].tolist() == [1.0, 0.0]  # the first is purple already, the second is green
    assert model.scale == pytest.approx(float(model.network.logit_scale.exp()))


@pytest.mark.parametrize(
    ("source", "caption", "label", "expected"),
    [
        ("crab", None, "crab", "an image of a crab"),
        ("crab", "a red crab on sand", "crab", "a red crab on sand"),
        ("crab", "a red Crab on sand", "crab", "a red crab on sand"),
        ("ice cream", "a bird on sand", "bird", "an ice cream on sand"),
        ("crab", "a beach in spring", "bird", "an image of a crab, a beach in spring"),
        ("crab", "a beach in spring", None, "an image of a crab, a beach in spring"),
    ],
)
def test_a_caption_always_names_the_class(source: str, caption: str | None, label: str | None, expected: str) -> None:
    assert captioned(source, "an image of a {}", caption, label) == expected


def test_images_are_fitted_to_the_generator() -> None:
    """The middle of a wide image at half the size; an image of the right size is not touched."""
    x = torch.rand((3, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(fitted(x, (8, 8)), x)
    wide = torch.zeros(3, 8, 24)
    wide[:, :, 8:16] = 1.0
    assert torch.equal(fitted(wide, (8, 8)), torch.ones(3, 8, 8))
    assert fitted(torch.rand(3, 30, 40), (16, 16)).shape == (3, 16, 16)


def test_the_first_artefact_wins_and_a_broken_one_is_named(tmp_path: Path) -> None:
    kept = Artefacts(tmp_path / "run")
    assert kept.get("inversion", "ab12") is None
    kept.put("inversion", "ab12", {"latent": torch.ones(2)})
    assert torch.equal(kept.put("inversion", "ab12", {"latent": torch.zeros(2)})["latent"], torch.ones(2))
    assert torch.equal(Artefacts(tmp_path / "other").get("inversion", "ab12")["latent"], torch.ones(2))
    file = tmp_path / kept.uri("inversion", "ab12")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(StoreError, match="delete it"):
        kept.get("inversion", "ab12")


NUMBERS = Numbers(
    map_side=8,
    map_share=1.0,
    sharpen=0.3,
    both_masks=True,
    refinements=2,
    null_text=NullText(2, 0.03),
    injection=(0.3, 0.6),
    blending=(0.0, 0.4),
    optimisation=Settings(
        steps=2,
        step_size_latent=0.002,
        step_size_text=0.05,
        schedule="constant",
        clip=None,
        cutouts=2,
        cutout_noise=0.1,
        cutout_size=56,
    ),
)
SCENES = (Scene("crab", "sand"), Scene("ice cream", "grass", "blue"), Scene("boat", "snow", "green"))
TARGETS = ("ice cream", "car", "water bottle")


@pytest.fixture(scope="module")
def generator() -> diffusers.DiffusersGenerator:
    return diffusers.load(diffusers.Options(ref="zoo:diffusion", steps=5, guidance_scale=3.0))


def prepared(generator: diffusers.DiffusersGenerator, which: list[int]) -> Original:
    images = torch.stack([to_tensor(render(SCENES[i]).image) for i in which])
    prompts, names = [caption(SCENES[i]) for i in which], [SCENES[i].object for i in which]
    return prepare(generator, images, prompts, names, invert(generator, images, prompts, NUMBERS), NUMBERS)


def searched(generator: diffusers.DiffusersGenerator, original: Original, which: list[int], numbers: Numbers = NUMBERS):
    model, targets = load("reference"), [TARGETS[i] for i in which]
    frames: list[Tensor] = []
    decision = Decision(model, original.names, targets)
    keys = [f"item {i}" for i in which]
    found = search(generator, original, targets, decision, numbers, keys, lambda k, x, loss: frames.append(x.clone()))
    return found, frames, decision


def test_items_with_prompts_and_targets_of_their_own_do_not_depend_on_their_batch(generator) -> None:
    """Inversion, recording, mask, choice of the start and optimisation, for captions and names of unequal lengths.

    Adam's first step is its step size times a sign, so rounding can grow in it: after an inversion of their own items
    are as equal as two runs are, from one inversion they are equal up to rounding.
    """
    together = prepared(generator, [0, 1, 2])
    found, _, _ = searched(generator, together, [0, 1, 2])
    for i in (0, 2):
        alone = prepared(generator, [i])
        assert torch.allclose(alone.mask[0], together.mask[i], atol=1e-3)
        assert (alone.reconstruction[0] - together.reconstruction[i]).abs().mean() < 1e-4
        for same, near in ((together.rows([i]), 1e-5), (alone, 2e-3)):
            single, _, _ = searched(generator, same, [i])
            assert (single.injection[0], single.blending[0]) == (found.injection[i], found.blending[i])
            assert (single.result.start[0] - found.result.start[i]).abs().mean() < near
            assert torch.allclose(single.result.losses[0], found.result.losses[0, i], rtol=1e-2)
    again, _, _ = searched(generator, together.rows([2, 0]), [2, 0])
    assert (again.result.start - found.result.start[[2, 0]]).abs().mean() < 1e-5


def test_the_loss_is_the_papers_and_the_best_start_and_iterate_are_taken(generator) -> None:
    """Eq. 6 on every frame, from the decision and Eq. 5 written out; the start is the best of the tried pairs."""
    original = prepared(generator, [0, 1])
    found, frames, decision = searched(generator, original, [0, 1])
    assert len(frames) == 3
    for k, frame in enumerate(frames):
        in_pixels = 250 * ((1 - found.mask[:, None]) * (frame - original.image)).square().flatten(1).mean(1)
        rest = found.result.losses[k] - (in_pixels - decision(frame))
        assert (rest > 0).all()  # the distance in latent space, which frames do not show
    starts = []
    for injection in (0.3, 0.6):
        for blending in (0.0, 0.4):
            one = replace(
                NUMBERS,
                injection=(injection,),
                blending=(blending,),
                optimisation=replace(NUMBERS.optimisation, steps=0),
            )
            starts.append(searched(generator, original, [0, 1], one)[0])
    losses = torch.stack([start.result.losses[0] for start in starts])
    if all(torch.allclose(start.mask, found.mask, atol=1e-4) for start in starts):
        assert torch.allclose(losses.min(0).values, found.result.losses[0], rtol=1e-3)
    best = found.result.losses.argmin(0)
    for i in range(2):
        assert torch.equal(found.result.image[i], frames[int(best[i])][i])


class Carried:
    """Steering written out, for names of one token each: recorded maps for `maps` steps, background for `blend`."""

    def __init__(self, recording: Recording, maps: int, blend: int, mask: Tensor) -> None:
        self.recording, self.maps, self.blend, self.mask = recording, maps, blend, mask

    def attention(self, step: int) -> Attention | None:
        return (lambda site, own: self.recording.maps[step][site.name]) if step < self.maps else None

    def latent(self, step: int, z: Tensor) -> Tensor:
        kept = self.recording.latents[step + 1]
        return self.mask * z + (1 - self.mask) * kept if step < self.blend else z


@pytest.mark.parametrize("both_masks", [False, True])
@torch.no_grad()
def test_the_start_and_its_loss_are_written_out(generator, both_masks: bool) -> None:
    """Red crab to red boat, 5 steps: maps for round(.35 * 5) = 2 of them, background for round(.55 * 5) = 3, the null
    texts of the inversion. Eqs. 5 and 6: 25 of the latents' distance to E(x), 250 of the pixels', minus log p."""
    chosen = replace(NUMBERS.optimisation, steps=0)
    numbers = replace(NUMBERS, injection=(0.35,), blending=(0.55,), both_masks=both_masks, optimisation=chosen)
    image = to_tensor(render(SCENES[0]).image)[None]
    with torch.enable_grad():
        inversion = invert(generator, image, [caption(SCENES[0])], numbers)
    original = prepare(generator, image, [caption(SCENES[0])], ["crab"], inversion, numbers)
    assert torch.equal(original.variables.null, inversion.null)
    assert torch.equal(original.autoencoded, generator.decode(generator.encode(image)).clamp(0, 1))
    assert torch.equal(original.reconstruction, generator.decode(original.recording.latents[-1]).clamp(0, 1))
    decision = Decision(load("reference"), ["crab"], ["boat"])
    found = search(generator, original, ["boat"], decision, numbers, ["x"])

    asked = caption(Scene("boat", "sand"))
    cond = generator.embed([asked])[:, None].repeat(1, 5, 1, 1)
    start, mask = Variables(inversion.latent, cond, inversion.null), original.mask
    if both_masks:
        kept = record(generator, start, steering=Carried(original.recording, 2, 0, mask))
        there = foreground(kept, [generator.positions(asked, "boat")], 8, 1.0, 0.3)
        there = torch.nn.functional.interpolate(there[:, None], (64, 64), mode="bilinear")[:, 0]
        assert (there > mask + 0.05).any()
        assert (mask > there + 0.05).any()
        mask = torch.where(there > mask, there, mask)
    assert torch.allclose(found.mask, mask, atol=1e-4)
    small = torch.nn.functional.interpolate(mask[:, None], (16, 16), mode="bilinear")
    steering = Carried(original.recording, 2, 3, small)
    z = denoise(generator.eps, generator.levels(), 3.0, *start.tensors(), steering=steering)
    x = generator.decode(z).clamp(0, 1)
    assert (found.result.start - x).abs().max() < 1e-3
    in_latents = ((1 - small) * (z - generator.encode(image))).square().mean().item()
    in_pixels = ((1 - mask[:, None]) * (x - image)).square().mean().item()
    log_p = load("reference").logits(x).log_softmax(-1)[0, load("reference").index_of("boat")].item()
    expected = 25 * in_latents + 250 * in_pixels - log_p
    assert found.result.losses[0, 0].item() == pytest.approx(expected, rel=1e-3)
    for part in (25 * in_latents, 250 * in_pixels, log_p):
        assert abs(part) > 0.01 * expected  # each can be seen in the sum


class Planted:
    """Steering that leads item i to latents of `values[i]`, whatever the process does."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def attention(self, step: int) -> None:
        return None

    def latent(self, step: int, z: Tensor) -> Tensor:
        return torch.ones_like(z) * self.values[:, None, None, None]


def test_each_item_starts_where_its_loss_is_lowest() -> None:
    """Known starts: latents of injection + 10 blending. One item wants the objective, one is held by the penalty, one
    has no number at what would be its best, and one has none at all."""
    generator = Gaussian()
    start = start_from_prompt(generator, list("abcd"), torch.zeros(4, 2, 4, 4, dtype=torch.float64))
    numbers = Numbers(injection=(0.3, 0.1, 0.2), blending=(0.0, 0.5))
    at = {(a, b): a + 10 * b for a in numbers.injection for b in numbers.blending}  # .3 5.3 .1 5.1 .2 5.2
    sign = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    weight = torch.tensor([0.0, 1e3, 0.0, 0.0], dtype=torch.float64)

    def value_of(z: float) -> float:
        return generator.decode(torch.full((1, 2, 4, 4), z, dtype=torch.float64)).mean().item()

    def objective(x: Tensor) -> Tensor:
        """The third item's is undefined at .1, the lowest; the fourth's everywhere."""
        value = sign * x.flatten(1).mean(1)
        value[2] = math.nan if abs(x[2].mean().item() - value_of(0.1)) < 1e-9 else value[2]
        value[3] = math.nan
        return value

    def penalty(z: Tensor, x: Tensor) -> Tensor:
        return weight * (z - 5.1).square().flatten(1).mean(1)

    rises = 1 if value_of(5.3) > value_of(0.1) else -1
    sign = rises * sign  # the first item's objective is highest at 5.3, the third's at .1
    injection, blending = _schedule(generator, start, lambda a, b: Planted(a + 10 * b), objective, penalty, numbers)
    assert sorted(at.values()) == pytest.approx([0.1, 0.2, 0.3, 5.1, 5.2, 5.3])
    assert list(zip(injection.tolist(), blending.tolist(), strict=True))[:3] == [(0.3, 0.5), (0.1, 0.5), (0.2, 0.0)]
    assert (injection[3].item(), blending[3].item()) in at


def test_own_masks_free_what_they_name(generator) -> None:
    """With a mask that frees everything there is no distance, so the loss is the decision's alone."""
    image = to_tensor(render(SCENES[0]).image)[None]
    prompts, numbers = [caption(SCENES[0])], replace(NUMBERS, both_masks=False, null_text=None)
    inversion = invert(generator, image, prompts, numbers)
    original = prepare(generator, image, prompts, ["crab"], inversion, numbers, torch.ones(1, 64, 64))
    found, frames, decision = searched(generator, original, [0], numbers)
    assert found.result.losses[1, 0].item() == pytest.approx(-decision(frames[1])[0].item(), rel=1e-4)


def test_nothing_stays_on_the_models(generator) -> None:
    before = [module.processor for module in generator.unet.modules() if hasattr(module, "processor")]
    model = load("reference")

    def broken(images: Tensor) -> Tensor:
        if images.ndim == 5:
            raise RuntimeError("in the middle")
        return model.logits(images)[:, 0]

    original = prepared(generator, [0])
    with pytest.raises(RuntimeError, match="in the middle"):
        search(generator, original, ["car"], broken, NUMBERS, ["x"])
    assert [module.processor for module in generator.unet.modules() if hasattr(module, "processor")] == before
    assert not any(parameter.requires_grad for parameter in generator.unet.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in generator.unet.modules())
