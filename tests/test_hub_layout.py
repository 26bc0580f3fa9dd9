"""Stable Diffusion as the hub serves it: loaded and used as by diffusers' own pipeline, or refused by key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as library
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers
from safetensors.torch import load_file, save_file

from audit.config import parse_job
from audit.diffusion.noise import latent
from audit.diffusion.sampling import sample
from audit.errors import ModelError
from audit.generators import _layout, _schedule, diffusers, warnings_of
from audit.generators.diffusers import DiffusersGenerator, Options
from tests.hub_folder import (
    INDEX,
    REPOSITORY,
    REVISION,
    SCHEDULER,
    change,
    names,
    networks,
    own_pipeline,
    publish,
    stable_diffusion,
    write_json,
)

UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"
SETTINGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    *(f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")),
    "unet/config.json",
    "vae/config.json",
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the hub holds it; not to be changed."""
    return stable_diffusion(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """A copy that may be changed, with small latents."""
    copied = Path(shutil.copytree(repository, tmp_path / "copy"))
    change(copied / "unet/config.json", sample_size=8, _diffusers_version="0.42.1")
    return copied


def load(folder: Path, **options: Any) -> DiffusersGenerator:
    return diffusers.load(Options(ref=str(folder), **options))


def check_same(generator: DiffusersGenerator, folder: Path, change: Callable[[Any], Any] = lambda w: w) -> None:
    """Every weight is the one that was written."""
    for part, network in networks(folder).items():
        loaded, written = getattr(generator, part).state_dict(), network.state_dict()
        assert loaded.keys() == written.keys()
        for name, weight in written.items():
            assert loaded[name].dtype == torch.float32
            assert torch.equal(loaded[name], change(weight)), (part, name)


def of_hub(**options: Any) -> Options:
    return Options(ref=REPOSITORY, revision=REVISION, **options)


def test_of_the_hub_what_is_loaded_is_fetched_and_nothing_else(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = publish(monkeypatch, repository, tmp_path)
    check_same(diffusers.load(of_hub(steps=4)), repository)
    assert names(fetched) == sorted(SETTINGS + [f"{stem}.safetensors" for stem in (UNET, VAE, TEXT)])
    assert diffusers.digest(of_hub()) == diffusers.digest(Options(ref=str(repository)))


@pytest.mark.parametrize(
    "away", [(), ("feature_extractor",), ("safety_checker",), ("feature_extractor", "safety_checker")]
)
def test_parts_that_draw_nothing_may_be_anything_or_away(folder: Path, away: tuple[str, ...]) -> None:
    for name in away:
        shutil.rmtree(folder / name)
    image_encoder = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    change(folder / "model_index.json", requires_safety_checker=True, **image_encoder)
    check_same(load(folder), folder)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"clip_sample": True, "steps_offset": 0},
        {"prediction_type": "v_prediction", "set_alpha_to_one": True},
        {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=["as published", "of an old folder", "v", "trailing", "zero terminal SNR"],
)
def test_images_are_those_of_diffusers_own_pipeline(folder: Path, values: dict[str, Any]) -> None:
    """The same prompts, latents, steps and guidance, through `StableDiffusionPipeline` with DDIM."""
    schedule(folder, "DDIMScheduler", **values)
    own = own_pipeline(folder)
    generator = load(folder, steps=4, guidance_scale=3.0)
    assert generator.image_size == (64, 64)
    prompts = ["a photograph of a crab on sand", "a red boat"]
    z = torch.stack([latent(generator.latent_shape, prompt) for prompt in prompts])
    with torch.no_grad():
        ours = sample(generator, prompts, z)
    theirs = own(prompts, num_inference_steps=4, guidance_scale=3.0, latents=z, output_type="pt").images
    assert theirs.std() > 0.001
    assert torch.allclose(ours.clamp(0, 1), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "version", "side"), [(64, "0.6.0", 64), (32, "0.6.0", 64), (32, "0.9.0", 32), (96, "0.10.0", 96)]
)
def test_latents_have_the_size_that_diffusers_own_pipeline_draws(
    folder: Path, size: int, version: str, side: int
) -> None:
    """Which takes a size under 64 of a folder from before diffusers 0.9 for a mistake."""
    change(folder / "unet/config.json", sample_size=size, _diffusers_version=version)
    generator = diffusers.load(Options(ref=str(folder)), "meta")
    assert generator.latent_shape == (4, side, side)
    assert generator.image_size == (8 * side, 8 * side)


def test_weights_of_half_precision_alone_need_the_option(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = diffusers.digest(Options(ref=str(folder)))
    for stem in (UNET, VAE, TEXT):
        (folder / f"{stem}.safetensors").unlink()
    (folder / f"{UNET}.non_ema.safetensors").unlink()
    publish(monkeypatch, folder, tmp_path / "fetched")
    for options in (Options(ref=str(folder)), of_hub()):
        with pytest.raises(ModelError, match=r"unet/.*holds diffusion_pytorch_model.fp16.safetensors.*variant: fp16"):
            diffusers.load(options)
    for options in (Options(ref=str(folder), variant="fp16"), of_hub(variant="fp16")):
        check_same(diffusers.load(options), folder, lambda w: w.half().float())
        assert diffusers.digest(options) != plain
    assert not [name for name in names(tmp_path / "fetched") if "non_ema" in name or name.endswith(".bin")]


def test_where_both_are_the_plain_weights_are_loaded_unless_the_job_says_otherwise(folder: Path) -> None:
    check_same(load(folder), folder)
    (folder / f"{VAE}.fp16.safetensors").unlink()
    mixed = load(folder, variant="fp16")
    for part, network in networks(folder).items():
        loaded = getattr(mixed, part).state_dict()
        for name, weight in network.state_dict().items():
            assert torch.equal(loaded[name], weight if part == "vae" else weight.half().float())
    with pytest.raises(ModelError, match="no weights of the variant 'bf16'"):
        load(folder, variant="bf16")


def test_pickled_weights_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stable_diffusion(tmp_path / "hub", variants=())
    publish(monkeypatch, folder, tmp_path / "fetched")
    for options in (Options(ref=str(folder)), of_hub(), of_hub(variant="fp16")):
        with pytest.raises(ModelError, match=r"no unet/diffusion_pytorch_model.safetensors.*model.bin.*never loaded"):
            diffusers.load(options)


def test_weights_in_shards_are_loaded(folder: Path) -> None:
    network = networks(folder)["unet"]
    (folder / f"{UNET}.safetensors").unlink()
    network.save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    before = diffusers.digest(Options(ref=str(folder)))
    check_same(load(folder), folder)
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[-1]
    save_file({name: weight + 1 for name, weight in load_file(shard).items()}, shard, metadata={"format": "pt"})
    assert diffusers.digest(Options(ref=str(folder))) != before


def test_the_digest_is_of_what_is_loaded(folder: Path) -> None:
    def digest() -> str:
        return diffusers.digest(Options(ref=str(folder)))

    first = digest()
    for name in ("README.md", "v1-5-pruned.safetensors", f"{UNET}.fp16.safetensors", "safety_checker/config.json"):
        (folder / name).write_text("{}")
    assert digest() == first
    found = {first}
    change(folder / "scheduler/scheduler_config.json", beta_end=0.013)
    found.add(digest())
    change(folder / "tokenizer/tokenizer_config.json", pad_token="!")
    found.add(digest())
    weights = load_file(folder / f"{VAE}.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, folder / f"{VAE}.safetensors")
    found.add(digest())
    assert len(found) == 4


LACK = "lack {}, which {}/config.json asks for"


@pytest.mark.parametrize("stem", [UNET, VAE, TEXT])
def test_weights_that_lack_a_tensor_are_refused(folder: Path, stem: str) -> None:
    """The library would fill it with random numbers."""
    weights = load_file(folder / f"{stem}.safetensors")
    lost = (
        sorted(name for name in weights if name.endswith("norm2.weight") or name.endswith("norm_out.weight"))[0]
        if stem != TEXT
        else "text_model.final_layer_norm.weight"
    )
    del weights[lost]
    save_file(weights, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    part = stem.split("/")[0]
    with pytest.raises(ModelError, match=LACK.format(lost.removeprefix("text_model."), part)):
        load(folder)


@pytest.mark.parametrize("stem", [UNET, VAE])
def test_weights_without_a_place_are_refused(folder: Path, stem: str) -> None:
    """An LCM's guidance embedding, for one, whose key was taken out of the configuration."""
    weights = load_file(folder / f"{stem}.safetensors")
    weights["time_embedding.cond_proj.weight"] = torch.zeros(8, 256)
    save_file(weights, folder / f"{stem}.safetensors")
    with pytest.raises(ModelError, match=r"hold time_embedding.cond_proj.weight, which .*config.json does not have"):
        load(folder)


def write_weight(folder: Path, stem: str, value: float) -> None:
    weights = load_file(folder / f"{stem}.safetensors")
    name = min(name for name in weights if name.endswith(".weight"))
    weights[name].view(-1)[0] = value
    save_file(weights, folder / f"{stem}.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("stem", [UNET, VAE, TEXT])
def test_weights_that_are_no_numbers_are_refused(folder: Path, stem: str) -> None:
    write_weight(folder, stem, float("nan"))
    with pytest.raises(ModelError, match="hold NaN or infinity in float32, first in "):
        load(folder)


def test_weights_beyond_the_range_of_half_precision_are_refused_in_it(folder: Path) -> None:
    write_weight(folder, UNET, 1e5)
    assert load(folder, dtype="bf16").unet.dtype == torch.bfloat16
    with pytest.raises(ModelError, match=r"unet of .* hold NaN or infinity in float16"):
        load(folder, dtype="fp16")


KEYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "latents of unknown size": ("unet", {"sample_size": None}, "sample_size: None; the height and width"),
    "latents that are not square": ("unet", {"sample_size": [8, 16]}, r"sample_size: \[8, 16\]"),
    "a size of text": ("unet", {"sample_size": "8"}, "sample_size: 8; "),
    "an LCM": ("unet", {"time_cond_proj_dim": 256}, r"takes more than a prompt .time_cond_proj_dim: 256"),
    "inpainting": ("unet", {"in_channels": 9}, "maps 9 channels to 4, but its autoencoder's latents have 4"),
    "learned variance": ("unet", {"out_channels": 8}, "maps 4 channels to 8"),
    "classes": ("unet", {"num_class_embeds": 10}, "more than a prompt .num_class_embeds: 10"),
    "class embedding": (
        "unet",
        {"class_embed_type": "timestep"},
        "more than a prompt .class_embed_type: timestep",
    ),
    "SDXL's conditions": (
        "unet",
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80},
        "more than a prompt .addition_embed_type: text_time",
    ),
    "an image condition": (
        "unet",
        {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 32},
        "more than a prompt .encoder_hid_dim: 32",
    ),
    "GLIGEN": ("unet", {"attention_type": "gated"}, "attention_type: gated"),
    "another width of prompts": ("unet", {"cross_attention_dim": 40}, "gives 32 numbers a token, its U-Net takes 40"),
    "an unknown key's value": ("unet", {"down_block_types": ["NoBlock"] * 4}, "cannot be loaded"),
    "a shift": ("vae", {"shift_factor": 0.0609}, "has shift_factor: 0.0609. StableDiffusionPipeline ignores it"),
    "a mean": ("vae", {"latents_mean": [0.1, 0.0, 0.0, 0.0]}, r"has latents_mean: \[0.1"),
    "a deviation": ("vae", {"latents_std": [2.0, 1.0, 1.0, 1.0]}, r"has latents_std: \[2.0"),
    "no scale": ("vae", {"scaling_factor": None}, "scaling_factor: None; 0.18215"),
    "a scale of zero": ("vae", {"scaling_factor": 0}, "scaling_factor: 0; 0.18215"),
    "images with a mask": ("vae", {"in_channels": 4}, "images of 4 channels to 3"),
    "more channels than the U-Net": ("vae", {"latent_channels": 16}, "autoencoder's latents have 16"),
    "a masked prompt": ("text_encoder", {"use_attention_mask": True}, "use_attention_mask: true"),
    "fewer embeddings than tokens": ("text_encoder", {"vocab_size": 600}, "knows 658 tokens.*embeddings of 600"),
}


@pytest.mark.parametrize("name", list(KEYS))
def test_a_configuration_is_refused_by_its_key_before_weights_are_read(folder: Path, name: str) -> None:
    part, values, message = KEYS[name]
    change(folder / part / "config.json", **values)
    for stem in (UNET, VAE, TEXT):
        (folder / f"{stem}.safetensors").write_text("not to be read")
    with pytest.raises(ModelError, match=message):
        diffusers.digest(Options(ref=str(folder)))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"sample_size": [8, 8]}),
        ("unet", {"cross_attention_dim": [32, 32, 32, 32]}),
        ("vae", {"shift_factor": 0.0, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}),
    ],
)
def test_keys_whose_values_change_nothing_are_accepted(folder: Path, part: str, values: dict[str, Any]) -> None:
    z = torch.stack([latent((4, 8, 8), "z")])
    with torch.no_grad():
        before = sample(load(folder, steps=2), ["a crab"], z)
        change(folder / part / "config.json", **values)
        assert torch.equal(sample(load(folder, steps=2), ["a crab"], z), before)


def test_latents_are_scaled_by_the_configured_factor(folder: Path) -> None:
    """z = s (mean of the autoencoder's posterior), x = D(z / s), with s = 0.18215 where the key is not there."""
    autoencoder = networks(folder)["vae"].eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for scale in (None, 0.5):
        if scale:
            change(folder / "vae/config.json", scaling_factor=scale)
        generator, factor = load(folder), scale or 0.18215
        with torch.no_grad():
            z = generator.encode(x)
            assert torch.allclose(z, factor * autoencoder.encode(2 * x - 1).latent_dist.mode(), atol=1e-5)
            assert torch.allclose(generator.decode(z), autoencoder.decode(z / factor).sample / 2 + 0.5, atol=1e-5)


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "an autoencoder with another decoder": ({"vae": ["diffusers", "ConsistencyDecoderVAE"]}, "vae of .* is a Consist"),
    "a tiny autoencoder": ({"vae": ["diffusers", "AutoencoderTiny"]}, "is a AutoencoderTiny; known: AutoencoderKL"),
    "a text encoder of SDXL": ({"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "known: CLIPTextMod"),
    "T5": ({"tokenizer": ["transformers", "T5Tokenizer"]}, "tokenizer of .* is a T5Tokenizer; known: CLIPTokenizer"),
    "a transformer": ({"unet": ["diffusers", "SD3Transformer2DModel"]}, "is a SD3Transformer2DModel"),
    "a scheduler of nobody": (
        {"scheduler": ["diffusers", "NoScheduler"]},
        "scheduler NoScheduler, which the installed diffusers",
    ),
    **{
        name: ({"_class_name": name}, f"is a {name}. What works: .*1.x and 2.x")
        for name in (
            "StableDiffusionXLPipeline",
            "StableDiffusion3Pipeline",
            "FluxPipeline",
            "StableDiffusionInpaintPipeline",
            "LatentConsistencyModelPipeline",
            "StableDiffusionControlNetPipeline",
        )
    },
}


@pytest.mark.parametrize("name", list(PARTS))
def test_another_kind_of_part_or_pipeline_is_refused_by_name(folder: Path, name: str) -> None:
    values, message = PARTS[name]
    change(folder / "model_index.json", **values)
    for options in (Options(ref=str(folder)), Options(ref=str(folder), variant="fp16")):
        with pytest.raises(ModelError, match=message):
            diffusers.digest(options)


def schedule(folder: Path, name: str = "PNDMScheduler", **values: Any) -> None:
    """A scheduler in both of the files that name it; keys that are None stay away."""
    write_json(folder / "model_index.json", INDEX | {"scheduler": ["diffusers", name]})
    config = {**SCHEDULER, "_class_name": name, **values}
    kept = {key: value for key, value in config.items() if value is not None}
    write_json(folder / "scheduler/scheduler_config.json", kept)


def alphas(betas: np.ndarray) -> np.ndarray:
    """Cumulative products of 1 - beta."""
    return np.cumprod(1 - betas.astype(np.float64))


def scaled_linear(start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    return alphas(np.linspace(start**0.5, end**0.5, 1000) ** 2)


def squared_cosine() -> np.ndarray:
    """Nichol and Dhariwal: a_bar(t) = cos^2((t + .008) / 1.008 pi / 2), betas at most .999."""
    bar = np.cos((np.linspace(0, 1, 1001) + 0.008) / 1.008 * np.pi / 2) ** 2
    return alphas(np.minimum(1 - bar[1:] / bar[:-1], 0.999))


def zero_terminal(whole: np.ndarray) -> np.ndarray:
    """Lin et al., Algorithm 1: sqrt(a_bar) is shifted to end at 0 and scaled to begin where it began."""
    root = np.sqrt(whole)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


# Those with cumulative alphas, not distilled, that need no further package.
SAMPLERS = {kind.name for kind in KarrasDiffusionSchedulers}
SAMPLERS -= {"EDMEulerScheduler", "LCMScheduler", "TCDScheduler", "DPMSolverSDEScheduler"}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_whatever_sampler_a_folder_names_its_noise_schedule_is_kept(folder: Path, name: str) -> None:
    schedule(folder, name)
    levels = diffusers.load(Options(ref=str(folder), steps=5), "meta").levels()
    assert [level.t for level in levels] == [801, 601, 401, 201, 1]
    whole = scaled_linear()
    assert [level.alpha for level in levels] == pytest.approx([whole[t] for t in (801, 601, 401, 201, 1)], rel=1e-5)
    assert levels[-1].alpha_next == pytest.approx(whole[0], rel=1e-6)


BETAS: dict[str, tuple[str, dict[str, Any], np.ndarray]] = {
    "linear": ("DDIMScheduler", {"beta_schedule": "linear"}, alphas(np.linspace(0.00085, 0.012, 1000))),
    "another range": ("PNDMScheduler", {"beta_end": 0.02}, scaled_linear(end=0.02)),
    "cosine": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, squared_cosine()),
    "given one by one": ("DDIMScheduler", {"trained_betas": [0.01] * 1000}, alphas(np.full(1000, 0.01))),
    "defaults of the named class": (
        "HeunDiscreteScheduler",
        {"beta_start": None, "beta_end": None, "beta_schedule": None},
        alphas(np.linspace(0.00085, 0.012, 1000)),
    ),
    "defaults of another class": (
        "EulerDiscreteScheduler",
        {"beta_start": None, "beta_end": None, "beta_schedule": None},
        alphas(np.linspace(0.0001, 0.02, 1000)),
    ),
    "zero terminal SNR": ("DDIMScheduler", {"rescale_betas_zero_snr": True}, zero_terminal(scaled_linear())),
    "zero terminal SNR of Euler": (
        "EulerDiscreteScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"},
        zero_terminal(scaled_linear()),
    ),
}


@pytest.mark.parametrize("name", list(BETAS))
def test_cumulative_alphas_follow_the_equation(folder: Path, name: str) -> None:
    kind, values, expected = BETAS[name]
    schedule(folder, kind, **values)
    for level in diffusers.load(Options(ref=str(folder), steps=20), "meta").levels():
        assert level.alpha == pytest.approx(expected[level.t], rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("last", [True, False])
def test_timesteps_are_those_of_diffusers(folder: Path, spacing: str, last: bool) -> None:
    schedule(folder, "DDIMScheduler", timestep_spacing=spacing, set_alpha_to_one=last)
    own, generator = (
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        diffusers.load(Options(ref=str(folder)), "meta"),
    )
    for steps in (1, 4, 25, 50):
        own.set_timesteps(steps)
        levels = generator.scheduled(steps, 3.0).levels()
        assert [level.t for level in levels] == own.timesteps.tolist()
        assert [level.alpha for level in levels] == own.alphas_cumprod[own.timesteps].tolist()
        assert levels[-1].alpha_next == (1 if last else own.alphas_cumprod[0])


def test_no_count_of_steps_leaves_the_trained_timesteps(folder: Path) -> None:
    """diffusers' own makes of 61 trailing steps 62, the last at timestep -1."""
    schedule(folder, "DDIMScheduler", timestep_spacing="trailing")
    generator = diffusers.load(Options(ref=str(folder)), "meta")
    for steps in range(1, 1001, 4):
        times = [level.t for level in generator.scheduled(steps, 3.0).levels()]
        assert len(times) == len(set(times)) == steps
        assert times == sorted(times, reverse=True)
        assert times[0] == 999
        assert times[-1] >= 0


@pytest.mark.parametrize(("steps", "spacing"), [(1001, "leading"), (1000, "leading"), (5000, "trailing")])
def test_more_steps_than_timesteps_are_refused(folder: Path, steps: int, spacing: str) -> None:
    schedule(folder, "DDIMScheduler", timestep_spacing=spacing)
    with pytest.raises(ModelError, match=f"steps: {steps} are too many .* 1000 timesteps"):
        diffusers.digest(Options(ref=str(folder), steps=steps))
    generator = diffusers.load(Options(ref=str(folder)), "meta")
    with pytest.raises(ModelError, match="too many"):
        generator.scheduled(steps, 3.0).levels()


@pytest.mark.parametrize(
    ("steps", "spacing", "first"),
    [(4, "leading", 751), (600, "leading", 600), (4, "trailing", None), (10, "leading", None), (50, "linspace", None)],
)
def test_steps_that_begin_with_little_noise_are_told(folder: Path, steps: int, spacing: str, first: int | None) -> None:
    schedule(folder, "DDIMScheduler", timestep_spacing=spacing)
    warnings = diffusers.load(Options(ref=str(folder), steps=steps), "meta").warnings
    assert [warning.code for warning in warnings] == (["generator_starts_late"] if first else [])
    assert all(f"{steps} steps of {folder} start at timestep {first} of 1000" in w.message for w in warnings)


@pytest.mark.parametrize(
    ("gpus", "here", "ref", "told"),
    [(0, 2, "somewhere", True), (0, 0, "somewhere", False), (1, 2, "somewhere", False), (0, 2, "zoo:diffusion", False)],
)
def test_a_gpu_that_the_generator_will_not_use_is_told(
    tmp_path: Path, gpus: int, here: int, ref: str, told: bool
) -> None:
    raw = {
        "version": 1,
        "name": "x",
        "data": {"source": "folder", "path": "images"},
        "models": [{"id": "a", "loader": "hf", "ref": "zoo:reference"}],
        "generator": {"loader": "diffusers", "ref": ref},
        "stages": [{"kind": "screen"}],
        "compute": {"gpus": gpus},
    }
    found = warnings_of(parse_job(raw, tmp_path), here)
    assert [warning.code for warning in found] == ["gpu_not_used"] * told
    assert all("compute.gpus is 0, and this machine has 2 GPUs" in warning.message for warning in found)
    raw.pop("generator")
    assert warnings_of(parse_job(raw, tmp_path), here) == []


SCHEDULES: dict[str, tuple[str, dict[str, Any], str]] = {
    "flow matching": ("FlowMatchEulerDiscreteScheduler", {}, "no cumulative alphas: flow matching"),
    "EDM": ("EDMEulerScheduler", {}, "no cumulative alphas"),
    "flow matching by a key": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "has use_flow_sigmas: True"),
    "flow prediction": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction"},
        "predicts 'flow_prediction'",
    ),
    "images predicted": ("DDIMScheduler", {"prediction_type": "sample"}, "predicts 'sample'"),
    "LCM": ("LCMScheduler", {}, "scheduler LCMScheduler: its U-Net is distilled"),
    "TCD": ("TCDScheduler", {}, "scheduler TCDScheduler: its U-Net is distilled"),
    "dynamic thresholding": ("DDIMScheduler", {"thresholding": True}, "has thresholding: True"),
    "continuous noise levels": ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type: continuous"),
    "an alpha shift": ("CogVideoXDDIMScheduler", {"snr_shift_scale": 3.0}, "not the one that DDIM computes"),
    "a schedule DDIM lacks": ("DDPMScheduler", {"beta_schedule": "sigmoid"}, "cannot be used with DDIM"),
    "an unknown schedule": ("DDIMScheduler", {"beta_schedule": "mine"}, "cannot be made from scheduler_config.json"),
    "betas of another count": ("DDIMScheduler", {"trained_betas": [0.01] * 500}, "1000 and 500 cumulative alphas"),
    "betas below 0": (
        "DDIMScheduler",
        {"beta_start": -0.01, "beta_schedule": "linear"},
        "falling from near 1 to near 0",
    ),
    "an unknown spacing": ("DDIMScheduler", {"timestep_spacing": "dense"}, "no timesteps: dense is not supported"),
}


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_scheduler_that_ddim_cannot_stand_for_is_refused(folder: Path, name: str) -> None:
    kind, values, message = SCHEDULES[name]
    assert hasattr(library, kind)
    schedule(folder, kind, **values)
    with pytest.raises(ModelError, match=message):
        diffusers.digest(Options(ref=str(folder)))


def test_two_files_that_name_different_schedulers_are_refused_where_it_matters(folder: Path) -> None:
    config = folder / "scheduler/scheduler_config.json"
    change(config, _class_name="EulerDiscreteScheduler")
    assert diffusers.load(Options(ref=str(folder), steps=5), "meta").levels()[0].t == 801
    change(config, _class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
    with pytest.raises(ModelError, match="FlowMatchEulerDiscreteScheduler, which has no cumulative alphas"):
        diffusers.digest(Options(ref=str(folder)))
    schedule(folder, "EulerDiscreteScheduler", beta_start=None, beta_end=None, beta_schedule=None)
    change(config, _class_name="HeunDiscreteScheduler")
    with pytest.raises(
        ModelError, match=r"scheduler EulerDiscreteScheduler, but its scheduler_config.json names Heun.*different"
    ):
        diffusers.digest(Options(ref=str(folder)))


def test_a_tokenizer_without_a_limit_has_the_text_encoders(folder: Path) -> None:
    expected = load(folder).embed(["a crab on sand", "crab " * 200])
    change(folder / "tokenizer/tokenizer_config.json", model_max_length=None)
    for limit in (None, 10**30, 248):
        change(folder / "tokenizer/tokenizer_config.json", model_max_length=limit)
        generator = load(folder)
        assert torch.equal(generator.embed(["a crab on sand", "crab " * 200]), expected)
    assert expected.shape == (2, 77, 32)
    assert generator.positions("crab " * 75, "crab", 4 * 5) == ((5,),)


def test_a_tokenizer_without_padding_is_refused(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change(folder / "tokenizer" / name, pad_token=None)
    with pytest.raises(ModelError, match="no pad_token"):
        diffusers.digest(Options(ref=str(folder)))


def test_what_pads_prompts_is_what_the_folder_says(folder: Path) -> None:
    """Stable Diffusion 2.x pads with token 0, which is not the end of the text."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change(folder / "tokenizer" / name, pad_token="!")
    generator = load(folder)
    text = networks(folder)["text_encoder"].eval()
    tokenizer = generator.tokenizer
    ids = tokenizer("a crab").input_ids
    ids += [tokenizer.convert_tokens_to_ids("!")] * (77 - len(ids))
    with torch.no_grad():
        assert torch.allclose(generator.embed(["a crab"]), text(torch.tensor([ids])).last_hidden_state, atol=1e-6)


SHARDS = ("-00001-of-00002", "-00002-of-00002")


@pytest.mark.parametrize("form", ["{stem}.fp16{shard}.safetensors", "{stem}{shard}.fp16.safetensors"])
def test_a_variant_in_shards_is_fetched_and_a_part_without_it_has_its_plain_weights(form: str, tmp_path: Path) -> None:
    """Either of the two names that shards of a variant have on the hub, with their index."""
    unet = [f"unet/{form.format(stem='diffusion_pytorch_model', shard=shard)}" for shard in SHARDS]
    unet.append("unet/diffusion_pytorch_model.safetensors.index.fp16.json")
    plain = [f"{part}/{stem}.safetensors" for part, stem in _layout.STEMS.items()]
    for name in (*unet, *plain, "unet/other.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [*unet, *plain, "unet/other.safetensors"]
    assert _layout._matching(names, _layout.wanted("fp16")) == [*unet, *plain]
    assert _layout._matching(names, _layout.wanted(None)) == plain
    others = [name for name in plain if not name.startswith("unet/")]
    assert _layout.files_of(tmp_path, "fp16") == sorted(tmp_path / name for name in (*unet, *others))
    assert _layout.files_of(tmp_path, None) == sorted(tmp_path / name for name in plain)
    _layout.check_weights("a/b", names, "fp16")


def test_what_a_part_holds_instead_of_its_weights_says_what_to_do() -> None:
    plain = [f"{part}/{stem}.safetensors" for part, stem in _layout.STEMS.items() if part != "unet"]
    with pytest.raises(
        ModelError, match=r"holds other\.safetensors\. Rename the one to use to diffusion_pytorch_model"
    ):
        _layout.check_weights("a/b", [*plain, "unet/other.safetensors"], None)
    with pytest.raises(ModelError, match=r"holds diffusion_pytorch_model\.fp16\.safetensors\..*variant: fp16$"):
        _layout.check_weights("a/b", [*plain, "unet/diffusion_pytorch_model.fp16.safetensors"], None)


@pytest.mark.parametrize(
    ("alphas", "falls"),
    [
        ((0.9, 0.5, 0.5, 0.0), True),
        ((0.5, 0.9, 0.1), False),
        ((1.1, 0.5, 0.1), False),
        ((0.9, 0.5, -0.1), False),
        ((0.9, float("nan"), 0.1), False),
        ((float("inf"), 0.5, 0.1), False),
    ],
)
def test_cumulative_alphas_fall_from_one_to_zero(alphas: tuple[float, ...], falls: bool) -> None:
    assert _schedule._falls(torch.tensor(alphas)) == falls


def test_schedules_are_equal_where_their_alphas_and_what_they_predict_are() -> None:
    own = DDIMScheduler(beta_start=0.00085, beta_end=0.012)
    assert _schedule._equal(own, DDIMScheduler(beta_start=0.00085, beta_end=0.012))
    assert not _schedule._equal(own, DDIMScheduler(beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"))
    assert not _schedule._equal(own, DDIMScheduler(beta_start=0.00085, beta_end=0.0121))
