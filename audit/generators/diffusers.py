"""Latent diffusion models in the diffusers layout: Stable Diffusion 1.x and 2.x, and the embedded world's."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from audit.config import Frozen, LocalPath
from audit.config import digest as digest_of_values
from audit.errors import BadItem, ModelError
from audit.generators import Attention, Level
from audit.generators._attention import attended
from audit.generators._half import in_range
from audit.generators._layout import check_weights, files_of, wanted
from audit.generators._lora import fuse, lora_file
from audit.generators._pipeline import (
    check_finite,
    check_index,
    check_parts,
    latent_side,
    with_weights,
    without_weights,
)
from audit.reference import ModelRef, digest_of_file, digest_of_files, files_at, local_folder
from audit.results.warnings import RunWarning

# Share of the timesteps above which latents are noise to the model: 10 steps with 'leading' start at 0.9.
_FULL_NOISE = 0.85
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Options(Frozen):
    ref: ModelRef = Field(description="folder, zoo:<name>, or hub id with a revision")
    revision: str | None = None
    variant: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="variant of the weight files, such as fp16; a part without it is loaded from its plain files",
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the U-Net; the rest runs in fp32")
    steps: int | None = Field(None, ge=1, description="DDIM steps; default: those of each stage's preset, else 25")
    guidance_scale: float | None = Field(
        None, description="as in diffusers, 1 is none; the paper's w is this minus 1; default: the preset's, else 3"
    )
    lora: LocalPath | None = Field(None, description="safetensors file of a LoRA, or a folder with one; needs peft")
    lora_scale: float = Field(1.0, description="how much of the LoRA is added to the weights")


class DiffusersGenerator:
    """A frozen pipeline with an eps- or v-predicting U-Net, a KL autoencoder and a CLIP text tower."""

    def __init__(self, pipeline: Any, options: Options) -> None:
        check_parts(options.ref, pipeline)
        unet = (
            pipeline.unet if pipeline.unet.dtype == _DTYPES[options.dtype] else pipeline.unet.to(_DTYPES[options.dtype])
        )
        self.unet = unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.float().eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.float().eval().requires_grad_(False)
        self.tokenizer, self.scheduler = pipeline.tokenizer, pipeline.scheduler
        self._prediction = self.scheduler.config.prediction_type
        self._alphas = self.scheduler.alphas_cumprod.double()
        # A tokenizer that was not told its limit has one of 10^30.
        self._length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        self._ref, self._asked = options.ref, options
        self._steps, self._scale = (
            options.steps or 25,
            3.0 if options.guidance_scale is None else options.guidance_scale,
        )
        self.levels()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = latent_side(self._ref, self.unet.config.sample_size)
        return (int(self.unet.config.in_channels), side, side)

    @property
    def image_size(self) -> tuple[int, int]:
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        _, height, width = self.latent_shape
        return (height * factor, width * factor)

    @property
    def device(self) -> torch.device:
        return torch.device(self.unet.device)

    @property
    def guidance_scale(self) -> float:
        return self._scale

    def scheduled(self, steps: int, guidance_scale: float) -> DiffusersGenerator:
        other, asked = copy.copy(self), self._asked
        other._steps = asked.steps or steps
        other._scale = guidance_scale if asked.guidance_scale is None else asked.guidance_scale
        return other

    def levels(self) -> tuple[Level, ...]:
        times = self._times()
        alphas = [*(float(self._alphas[t]) for t in times), float(self.scheduler.final_alpha_cumprod)]
        if min(alphas) <= 0:
            raise ModelError(
                f"the noise schedule of {self._ref} begins in pure noise (alpha 0 at timestep {times[0]}), where a "
                "step has no eps form. What works: in scheduler_config.json, 'timestep_spacing': 'leading', or "
                "'rescale_betas_zero_snr': false where the model was not trained with it"
            )
        return tuple(Level(t, *pair) for t, pair in zip(times, pairwise(alphas), strict=True))

    @property
    def warnings(self) -> tuple[RunWarning, ...]:
        """What is doubtful about these steps."""
        first, trained = self._times()[0], len(self._alphas)
        if first >= _FULL_NOISE * trained:
            return ()
        message = (
            f"{self._steps} steps of {self._ref} start at timestep {first} of {trained}, where the model expects less "
            "noise than it gets, so images lose contrast. Set steps to 10 to 50, or 'timestep_spacing': 'trailing' "
            "in scheduler_config.json"
        )
        return (RunWarning("generator_starts_late", message, blocks_gate=False),)

    def _times(self) -> list[int]:
        """Timesteps from noise to image."""
        trained, spacing = len(self._alphas), self.scheduler.config.timestep_spacing
        if self._steps <= trained:
            try:
                self.scheduler.set_timesteps(self._steps)
            except ValueError as error:
                raise ModelError(f"the scheduler of {self._ref} has no timesteps: {error}") from error
            # 'trailing' rounds some counts of steps, such as 61, to one more, at timestep -1.
            times = [int(t) for t in self.scheduler.timesteps if t >= 0]
            if times[0] < trained:
                return times
        raise ModelError(
            f"steps: {self._steps} are too many for {self._ref}, which was trained with {trained} timesteps "
            f"(timestep_spacing: {spacing}). Give fewer, such as 50"
        )

    def eps(self, z: Tensor, t: int, cond: Tensor, attention: Attention | None = None) -> Tensor:
        dtype = self.unet.dtype

        def network(z: Tensor, cond: Tensor) -> Tensor:
            predicted: Tensor = self.unet(z.to(dtype), t, encoder_hidden_states=cond.to(dtype)).sample.to(z.dtype)
            return predicted

        with attended(self.unet, attention, (z.shape[-2], z.shape[-1])):
            out = in_range(network, z, cond) if dtype == torch.float16 else network(z, cond)
        if self._prediction == "epsilon":
            return out
        alpha = float(self._alphas[t])
        return alpha**0.5 * out + (1 - alpha) ** 0.5 * z

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z / self.vae.config.scaling_factor).sample / 2 + 0.5

    def encode(self, x: Tensor) -> Tensor:
        return self.vae.encode(x * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor

    def embed(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokens(list(prompts), return_tensors="pt")
        with torch.no_grad():
            return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state

    def positions(self, prompt: str, phrase: str, start: int = 0) -> tuple[tuple[int, ...], ...]:
        places = self._tokens(prompt, return_offsets_mapping=True)["offset_mapping"]
        found = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE).search(prompt, start)
        words = []
        for word in re.finditer(r"\S+", phrase):
            begin, end = ((found.start() if found else 0) + at for at in word.span())
            words.append(tuple(i for i, (a, b) in enumerate(places) if found and a < end and b > begin))
        if not words or not all(words):
            raise BadItem("phrase_not_in_prompt", f"{phrase!r} is not in the first {self._length} tokens of {prompt!r}")
        return tuple(words)

    def _tokens(self, text: str | list[str], **options: Any) -> Any:
        """Token ids, cut and padded to the length that the text tower takes."""
        return self.tokenizer(text, padding="max_length", max_length=self._length, truncation=True, **options)


def load(options: Options, device: str = "cpu") -> DiffusersGenerator:
    """Load a pipeline folder from safetensors, with its scheduler replaced by DDIM over the same noise schedule.

    On the device `meta` it has its shapes and no weights.
    """
    folder = _folder(options)
    if device == "meta":
        return DiffusersGenerator(without_weights(options.ref, folder), options)
    pipeline = with_weights(options.ref, folder, options.variant)
    if options.lora is not None:
        fuse(pipeline, lora_file(options.lora), options.lora_scale)
    generator = DiffusersGenerator(pipeline.to(device), options)
    check_finite(options.ref, generator)
    return generator


def digest(options: Options) -> str:
    """Of the files that the pipeline is loaded from, and of the LoRA where there is one; its scale is an option.

    Raises ModelError where the folder's configuration can be used by no `load`, before any weights are read.
    """
    folder = _folder(options)
    DiffusersGenerator(without_weights(options.ref, folder), options)
    whole = digest_of_files(folder, files_of(folder, options.variant))
    if options.lora is None:
        return whole
    return digest_of_values({"pipeline": whole, "lora": digest_of_file(lora_file(options.lora))})


def _folder(options: Options) -> Path:
    folder = local_folder(options.ref, options.revision, wanted(options.variant))
    check_index(options.ref, folder)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        check_weights(options.ref, names, options.variant)
    except ModelError:
        # Of what the hub has only the wanted files were fetched; the message is to name the others.
        check_weights(options.ref, names + files_at(options.ref, options.revision), options.variant)
        raise
    return folder
