"""Nothing is tied to the small model: Stable Diffusion's architectures, with random weights, run every stage's step.

The configurations are the published ones of Stable Diffusion 1.5 and 2.1 (benchmarks/models.py). Latents of 8 x 8,
which `sample_size` decides, make one core enough.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from audit import counterfactual
from audit.classifiers import Classifier, hf
from audit.decisions import Decision
from audit.diffusion.inversion import NullText, ddim_inversion, null_text_inversion
from audit.diffusion.noise import latent
from audit.diffusion.optimise import Result, Settings, Variables, optimise, start_from_prompt
from audit.diffusion.prompt_to_prompt import record
from audit.diffusion.sampling import denoise
from audit.generators import Level, Site, diffusers
from audit.generators.diffusers import DiffusersGenerator, Options
from audit.memory import footprint
from audit.methods.disagreement import Objective as Disagreement
from audit.neurons import Objective as Neuron
from audit.neurons import layer_of
from benchmarks.models import full_size, stable_diffusion, vision_transformer
from benchmarks.search import Operations
from tests.hub_folder import STEMS, write_configs

SIDE = 8
PROMPT = "a photograph of a crab on sand"
SETTINGS = Settings(steps=1, cutouts=2, cutout_size=64, checkpoint="selective")


def count(network: nn.Module) -> float:
    """Parameters, in millions."""
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.fixture(scope="module")
def tokenizer(real_data: Path) -> CLIPTokenizer:
    if not (real_data / "clip_tokenizer").is_dir():
        pytest.skip("AUDIT_TEST_DATA has no clip_tokenizer")
    return CLIPTokenizer.from_pretrained(real_data / "clip_tokenizer")


@pytest.fixture(scope="module")
def generator(tokenizer: CLIPTokenizer) -> DiffusersGenerator:
    whole = full_size(tokenizer, SIDE, steps=2)
    assert round(count(whole.unet), 2) == 859.52
    assert round(count(whole.vae), 2) == 83.65
    assert round(count(whole.text_encoder), 2) == 123.06
    return whole


@pytest.fixture(autouse=True)
def nothing_stays_behind(request: pytest.FixtureRequest):
    """No attention processor and no hook of any network remains after a test."""
    found: list[DiffusersGenerator] = []
    if "generator" in request.fixturenames:
        found.append(request.getfixturevalue("generator"))
    before = [dict(g.unet.attn_processors) for g in found]
    yield
    assert [dict(g.unet.attn_processors) for g in found] == before
    networks = [part for g in found for part in (g.unet, g.vae, g.text_encoder)]
    for network in [*networks, *(c.network for c in CLASSIFIERS.values())]:
        for module in network.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._backward_hooks


CLASSIFIERS: dict[str, Classifier] = {}


def classifier(name: str) -> Classifier:
    if name not in CLASSIFIERS:
        CLASSIFIERS[name] = hf.load(hf.Options(ref=f"zoo:{name}"), ())
    return CLASSIFIERS[name]


def start(generator: DiffusersGenerator) -> Variables:
    return start_from_prompt(generator, [PROMPT], latent(generator.latent_shape, "start")[None])


def check(result: Result) -> None:
    assert result.image.shape == (1, 3, 8 * SIDE, 8 * SIDE)
    assert result.finite.all()
    assert result.losses.shape == (2, 1)
    for value in (result.image, result.losses, *result.variables.tensors()):
        assert value.isfinite().all()
    assert result.image.std() > 0.01


def test_prompts_latents_and_images_have_their_shapes(generator: DiffusersGenerator) -> None:
    assert generator.latent_shape == (4, SIDE, SIDE)
    assert generator.image_size == (8 * SIDE, 8 * SIDE)
    assert generator.embed([PROMPT, ""]).shape == (2, 77, 768)
    assert generator.positions("a photo of a great white shark", "great white shark") == ((5,), (6,), (7,))
    x = torch.rand((1, 3, *generator.image_size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = generator.encode(x)
        decoded = generator.decode(z)
    assert z.shape == (1, *generator.latent_shape)
    assert decoded.shape == x.shape
    assert z.isfinite().all()
    assert decoded.isfinite().all()


def test_every_variable_has_a_gradient_and_policies_agree(generator: DiffusersGenerator) -> None:
    """Of z_T and of each step's texts, through guidance, two steps, decoder and classifier, in bfloat16."""
    found = []
    for policy in ("selective", "step"):
        variables = Variables(*(v.requires_grad_(True) for v in start(generator).tensors()))
        z_0 = denoise(generator.eps, generator.levels(), 3.0, *variables.tensors(), checkpoint=policy)
        logits = classifier("reference").logits(generator.decode(z_0).clamp(0, 1))
        found.append(torch.autograd.grad(logits[:, 0].sum(), variables.tensors()))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
        assert first.isfinite().all()
    latent_gradient, *texts = found[0]
    assert latent_gradient.abs().max() > 0
    for text in texts:
        assert text.shape == (1, 2, 77, 768)
        assert (text.abs().amax((0, 2, 3)) > 0).all()


def test_a_search_for_disagreement_takes_its_step(generator: DiffusersGenerator) -> None:
    """One step against two ViT-B/16: more operations than 4 forward passes of the U-Net alone have."""
    f, g = (vision_transformer(("crab", "car", "bird")) for _ in range(2))
    assert round(count(f.network), 2) == 85.80
    with Operations() as searched:
        check(optimise(generator, start(generator), Disagreement(f, g, "crab", "log_probability"), SETTINGS, ["a"]))
    with Operations() as forward, torch.no_grad():
        generator.eps(torch.zeros(2, 4, SIDE, SIDE), 501, generator.embed(["", PROMPT]))
    assert forward.flop * 4 < searched.flop < forward.flop * 40


def test_a_search_for_a_neuron_takes_its_step(generator: DiffusersGenerator) -> None:
    model = classifier("shortcut-a")
    objective = Neuron(model, layer_of(model), 3, "crab", torch.ones(1))
    check(optimise(generator, start(generator), objective, SETTINGS, ["a"]))


def test_images_are_inverted_and_recorded(generator: DiffusersGenerator) -> None:
    """Latents, null texts, and maps of 16 sites whose rows sum to 1."""
    z_0 = latent(generator.latent_shape, "image")[None] * 0.9
    cond, null = generator.embed([PROMPT]), generator.embed([""])
    trajectory = ddim_inversion(generator, z_0, cond)
    assert len(trajectory) == 3
    found = null_text_inversion(generator, z_0, cond, null, NullText(iterations=1))
    assert torch.equal(found.latent, trajectory[0])
    assert found.null.shape == (1, 2, 77, 768)
    assert (found.null_losses[:, 1] <= found.null_losses[:, 0]).all()
    variables = Variables(found.latent, cond[:, None].repeat(1, 2, 1, 1), found.null)
    recording = record(generator, variables)
    assert sorted({site.height for site in recording.sites.values()}) == [1, 2, 4, 8]
    assert len(recording.sites) == 16
    for step in recording.maps:
        for name, maps in step.items():
            assert maps.shape == (1, 8, recording.sites[name].height ** 2, 77)
            assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-4)
    assert all(value.isfinite().all() for value in [*recording.latents, found.null, found.null_losses])


def test_a_counterfactual_takes_its_step(generator: DiffusersGenerator) -> None:
    """Inversion, recording, mask, prompt edit with remapped and injected maps, and one optimisation step."""
    numbers = counterfactual.Numbers(
        injection=(0.5,), blending=(0.5,), map_side=4, null_text=NullText(iterations=1), optimisation=SETTINGS
    )
    model = classifier("reference")
    images = torch.rand((1, 3, *generator.image_size), generator=torch.Generator().manual_seed(1))
    inversion = counterfactual.invert(generator, images, [PROMPT], numbers)
    original = counterfactual.prepare(generator, images, [PROMPT], ["crab"], inversion, numbers)
    assert original.mask.shape == (1, 8 * SIDE, 8 * SIDE)
    assert 0 < original.mask.mean() < 1
    objective = Decision(model, ["crab"], ["car"])
    found = counterfactual.search(generator, original, ["sports car"], objective, numbers, ["a"])
    check(found.result)
    assert found.injection.tolist() == [0.5]


@pytest.mark.parametrize(
    ("version", "side", "width", "millions"), [("1.5", 64, 768, 859.52), ("2.1", 96, 1024, 865.91)]
)
def test_shapes_and_gradients_without_memory(tokenizer, version: str, side: int, width: int, millions: float) -> None:
    """On the meta device, at the latents' true size."""
    whole = stable_diffusion(version, tokenizer)
    assert round(count(whole.unet), 2) == millions
    generator = DiffusersGenerator(whole, Options(ref="SD", dtype="bf16", steps=2, guidance_scale=3.0))
    sites: list[Site] = []
    z = torch.empty((1, *generator.latent_shape), device="meta", requires_grad=True)
    cond = generator.embed([PROMPT])
    assert cond.shape == (1, 77, width)
    eps = generator.eps(z, 501, cond, lambda site, own: sites.append(site))
    assert eps.shape == z.shape == (1, 4, side, side)
    assert sorted({site.height for site in sites}) == [side // 8, side // 4, side // 2, side]
    (gradient,) = torch.autograd.grad(eps.sum(), z)
    assert gradient.shape == z.shape
    assert generator.image_size == (8 * side, 8 * side)
    assert generator.decode(z).shape == (1, 3, 8 * side, 8 * side)
    assert generator.encode(torch.empty(1, 3, 8 * side, 8 * side, device="meta")).shape == z.shape


def test_a_repository_of_the_hub_loads_in_full_size_without_memory(real_data: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5's own configuration files and tokenizer, through the loader and all of its checks."""
    write_configs(tmp_path, full_size=True)
    shutil.copytree(real_data / "clip_tokenizer", tmp_path / "tokenizer")
    for part, stem in STEMS.items():
        (tmp_path / part / f"{stem}.safetensors").write_text("not to be read")
    generator = diffusers.load(Options(ref=str(tmp_path), dtype="fp16", steps=2), "meta")
    parts = (generator.unet, generator.vae, generator.text_encoder)
    assert [round(count(part), 2) for part in parts] == [859.52, 83.65, 123.06]
    assert {p.device.type for part in parts for p in part.parameters()} == {"meta"}
    assert [part.dtype for part in parts] == [torch.float16, torch.float32, torch.float32]
    cond = generator.embed([PROMPT, ""])
    assert cond.shape == (2, 77, 768)
    z = torch.empty((2, *generator.latent_shape), device="meta")
    assert generator.eps(z, generator.levels()[0].t, cond).shape == (2, 4, 64, 64)
    assert generator.decode(z).shape == (2, 3, *generator.image_size) == (2, 3, 512, 512)


def test_v_prediction_is_translated(generator: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """eps = sqrt(a) v + sqrt(1 - a) z of the same network's output."""
    z, cond = latent(generator.latent_shape, "z")[None], generator.embed([PROMPT])
    level: Level = generator.levels()[0]
    with torch.no_grad():
        out = generator.eps(z, level.t, cond)
        monkeypatch.setattr(generator, "_prediction", "v_prediction")
        translated = generator.eps(z, level.t, cond)
    assert torch.allclose(translated, level.alpha**0.5 * out + (1 - level.alpha) ** 0.5 * z, atol=1e-5)


def test_memory_is_measured_at_this_size(generator: DiffusersGenerator) -> None:
    """A step that keeps convolutions and attention needs well under half of one that keeps all."""
    need = footprint(generator, [classifier("reference")], SETTINGS, injects=True)
    assert 0 < need.kept["step"] < need.kept["selective"] < 0.5 * need.kept["none"]
