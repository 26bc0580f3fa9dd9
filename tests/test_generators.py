"""Pipelines that work, what is said of those that do not, and LoRA weights that become part of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from audit.config import Plugin
from audit.diffusion.noise import latent
from audit.errors import ModelError
from audit.generators import diffusers
from audit.methods import unit_of
from audit.models import Models
from audit.reference import local_folder
from tests.hub_folder import change
from tests.test_memory import job

ZOO = local_folder("zoo:diffusion")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped pipeline that may be broken."""
    shutil.copytree(ZOO, tmp_path / "pipeline")
    return tmp_path / "pipeline"


def without_cross_attention(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": "UNetMidBlock2D"}
    sizes = {"block_out_channels": (16,), "norm_num_groups": 4, "cross_attention_dim": 64, "sample_size": 16}
    UNet2DConditionModel(**blocks, **sizes).save_pretrained(folder / "unet")


def inpainting(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    sizes = {"block_out_channels": (16,), "norm_num_groups": 4, "cross_attention_dim": 64, "attention_head_dim": 4}
    UNet2DConditionModel(in_channels=9, **blocks, **sizes).save_pretrained(folder / "unet")


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def half(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(
        folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )


def zero_snr(folder: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True, timestep_spacing="trailing")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json.*StableDiffusionPipeline"),
    "index is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "is no JSON"),
    "SDXL": (
        lambda f: change(f / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "is a StableDiffusionXLPipeline. What works.*1.x and 2.x",
    ),
    "Flux": (lambda f: change(f / "model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline"),
    "component is null": (
        lambda f: change(f / "model_index.json", text_encoder=[None, None]),
        "has no text_encoder: its model_index.json names none",
    ),
    "component is away": (lambda f: shutil.rmtree(f / "vae"), "has no vae: .*the folder vae is not there"),
    "pickled": (pickled, "no unet/diffusion_pytorch_model.safetensors.*diffusion_pytorch_model.bin.*never loaded"),
    "another variant": (half, "no vae/diffusion_pytorch_model.safetensors.*fp16.safetensors. .*variant: fp16"),
    "no weights": (lambda f: (f / "text_encoder/model.safetensors").unlink(), "no text_encoder/model.*no weights at"),
    "damaged": (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
    "no cross-attention": (without_cross_attention, "no cross-attention, so no prompt"),
    "inpainting": (inpainting, "maps 9 channels to 4, but its autoencoder's latents have 6; inpainting"),
    "sample prediction": (
        lambda f: change(f / "scheduler/scheduler_config.json", prediction_type="sample"),
        "predicts 'sample'; known: epsilon, v_prediction",
    ),
    "zero terminal SNR": (zero_snr, "pure noise .alpha 0 at timestep 999.*'timestep_spacing': 'leading'"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_an_unusable_pipeline_is_refused_with_what_it_lacks(name: str, folder: Path) -> None:
    breaks, message = BROKEN[name]
    breaks(folder)
    with pytest.raises(ModelError, match=message):
        diffusers.load(diffusers.Options(ref=str(folder), steps=4))


def test_a_job_with_a_folder_that_is_no_pipeline_is_refused_before_it_runs(folder: Path) -> None:
    BROKEN["no index"][0](folder)
    with pytest.raises(ModelError, match=BROKEN["no index"][1]):
        diffusers.digest(diffusers.Options(ref=str(folder)))


def test_zero_terminal_snr_works_where_the_first_step_lies_before_it(folder: Path) -> None:
    zero_snr(folder)
    change(folder / "scheduler/scheduler_config.json", timestep_spacing="leading")
    levels = diffusers.load(diffusers.Options(ref=str(folder), steps=4)).levels()
    assert levels[0].t < 999
    assert 0 < levels[0].alpha < 0.1


def test_a_branch_is_no_pinned_revision() -> None:
    for revision in ("main", "v1.0", "a" * 39):
        with pytest.raises(ModelError, match=f"40 digits, found '{revision}'"):
            diffusers.load(diffusers.Options(ref="somebody/some-model", revision=revision))


RANK = 3
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
FEED = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
TEXT = ("text_model.encoder.layers.1.self_attn.q_proj", "text_model.encoder.layers.1.self_attn.out_proj")


def lora(path: Path, unet: dict[str, tuple[int, int]], text: dict[str, tuple[int, int]], alpha: float | None = None):
    """Write a LoRA in diffusers' layout, or with `alpha` in kohya's: layer to (outputs, inputs). Returns all B A."""
    random, tensors, products = torch.Generator().manual_seed(7), {}, {}
    for prefix, kohya, layers in (("unet", "lora_unet", unet), ("text_encoder", "lora_te", text)):
        for name, (outputs, inputs) in layers.items():
            a, b = (torch.randn(shape, generator=random) for shape in ((RANK, inputs), (outputs, RANK)))
            products[name.removeprefix("text_model.")] = b @ a
            if alpha is None:
                tensors |= {f"{prefix}.{name}.lora_A.weight": a, f"{prefix}.{name}.lora_B.weight": b}
                continue
            flat = f"{kohya}_{name.replace('.', '_')}"
            tensors |= {
                f"{flat}.lora_down.weight": a,
                f"{flat}.lora_up.weight": b,
                f"{flat}.alpha": torch.tensor(alpha),
            }
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return products


LAYERS = ({QUERY: (96, 96), FEED: (160, 640)}, dict.fromkeys(TEXT, (64, 64)))


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_lora_is_added_to_the_weights_and_leaves_nothing_else(alpha: float | None, tmp_path: Path) -> None:
    """W + scale * B A, with kohya's alpha W + scale * alpha / rank * B A; all other weights are as they were."""
    pytest.importorskip("peft")
    file = tmp_path / "lora" / "style.safetensors"
    products = lora(file, *LAYERS, alpha)
    plain = diffusers.load(diffusers.Options(ref="zoo:diffusion"))
    fused = diffusers.load(diffusers.Options(ref="zoo:diffusion", lora=file, lora_scale=0.3))
    for before, after in ((plain.unet, fused.unet), (plain.text_encoder, fused.text_encoder)):
        weights = after.state_dict()
        assert weights.keys() == before.state_dict().keys()
        assert [type(m) for m in after.modules()] == [type(m) for m in before.modules()]
        for name, weight in before.state_dict().items():
            product = products.get(name.removesuffix(".weight"))
            if product is None:
                assert torch.equal(weights[name], weight), name
            else:
                expected = weight + 0.3 * (1 if alpha is None else alpha / RANK) * product
                assert torch.allclose(weights[name], expected, atol=1e-5), name
                assert not torch.allclose(weights[name], weight, atol=0.1), name
    assert not any(parameter.requires_grad for parameter in fused.unet.parameters())
    again = diffusers.load(diffusers.Options(ref="zoo:diffusion", lora=file.parent, lora_scale=0.3))
    assert torch.equal(again.unet.state_dict()[f"{QUERY}.weight"], fused.unet.state_dict()[f"{QUERY}.weight"])


def test_a_lora_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    wrong = {
        "shape": ({QUERY: (96, 90)}, {}),
        "place": ({QUERY: (96, 96), "down_blocks.7.attentions.0.transformer_blocks.0.attn2.to_q": (96, 96)}, {}),
        "all": ({"down_blocks.7.attentions.0.transformer_blocks.0.attn2.to_q": (96, 96)}, {}),
    }
    for name, layers in wrong.items():
        lora(tmp_path / f"{name}.safetensors", *layers)
        with pytest.raises(ModelError, match="LoRA"):
            diffusers.load(diffusers.Options(ref="zoo:diffusion", lora=tmp_path / f"{name}.safetensors"))
    save_file(load_file(ZOO / "vae/diffusion_pytorch_model.safetensors"), tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match="LoRA"):
        diffusers.load(diffusers.Options(ref="zoo:diffusion", lora=tmp_path / "vae.safetensors"))


def test_where_a_lora_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"")
    for path, message in ((tmp_path / "no", "nothing is at"), (tmp_path, "none here")):
        with pytest.raises(ModelError, match=message):
            diffusers.digest(diffusers.Options(ref="zoo:diffusion", lora=path))
    with pytest.raises(ModelError, match="is to be a safetensors file"):
        diffusers.digest(diffusers.Options(ref="zoo:diffusion", lora=tmp_path / "pytorch_lora_weights.bin"))
    for name in ("a", "b"):
        lora(tmp_path / f"{name}.safetensors", *LAYERS)
    with pytest.raises(ModelError, match=r"a.safetensors, b.safetensors"):
        diffusers.digest(diffusers.Options(ref="zoo:diffusion", lora=tmp_path))


def test_what_a_lora_holds_decides_and_where_it_is_does_not(tmp_path: Path) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there" / "same.safetensors"
    for path in (here, there):
        lora(path, *LAYERS)
    lora(tmp_path / "other.safetensors", {QUERY: (96, 96)}, {})
    where = (here, there, tmp_path / "other.safetensors", None)
    options = [diffusers.Options(ref="zoo:diffusion", lora=path) for path in where]
    options.append(diffusers.Options(ref="zoo:diffusion", lora=here, lora_scale=0.5))
    digests = [diffusers.digest(o) for o in options]
    assert digests[0] == digests[1] == digests[4]
    assert len(set(digests[1:4])) == 3
    base = job(tmp_path)
    jobs = [base.model_copy(update={"generator": Plugin(name="diffusers", options=o)}) for o in options]
    whole = [Models(j, ()).generator_digest for j in jobs]
    units = [
        unit_of("1-disagreement", base.stages[0], 1, {}, j, {"generator": d}).unit_id
        for j, d in zip(jobs, digests, strict=True)
    ]
    for ids in (whole, units):
        assert ids[0] == ids[1]
        assert len(set(ids)) == 4


def test_small_gradients_pass_a_unet_in_float16(tiny_pipeline) -> None:
    """A loss of 1e-7 a latent: in float16 its gradients would be 0. Items do not see each other's scale."""
    folder = str(tiny_pipeline("v_prediction"))
    z = torch.stack([latent(diffusers.load(diffusers.Options(ref=folder)).latent_shape, name) for name in "ab"])
    found = {}
    for dtype in ("fp32", "fp16"):
        generator = diffusers.load(diffusers.Options(ref=folder, dtype=dtype))
        cond = generator.embed(["a crab", "a boat"])
        inputs = [z.clone().requires_grad_(True), cond.clone().requires_grad_(True)]
        loss = (generator.eps(inputs[0], 500, inputs[1]) * torch.tensor([1e-7, 1e3])[:, None, None, None]).sum()
        found[dtype] = torch.autograd.grad(loss, inputs)
    for exact, half in zip(found["fp32"], found["fp16"], strict=True):
        for item in (0, 1):
            a, b = exact[item].flatten().double(), half[item].flatten().double()
            assert float(a @ b / a.norm() / b.norm()) > 0.995
            assert float(b.norm() / a.norm()) == pytest.approx(1, abs=0.03)
    generator = diffusers.load(diffusers.Options(ref=folder, dtype="fp16"))
    alone = z[:1].clone().requires_grad_(True)
    loss = 1e-7 * generator.eps(alone, 500, generator.embed(["a crab"])).sum()
    assert torch.allclose(torch.autograd.grad(loss, alone)[0][0], found["fp16"][0][0], rtol=0.02, atol=1e-10)
