"""One command to train each model again: recipe by recipe, in the order in which they need one another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from audit.errors import ConfigError, unknown
from audit.zoo.recipes import autoencoder, classifiers, clip, diffusion
from audit.zoo.recipes.loop import Budget, Schedule, cost, trained_weights
from audit.zoo.recipes.text import build_tokenizer
from audit.zoo.world import load_world

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
ORDER = ("autoencoder", "diffusion", "clip", classifiers.REFERENCE, *load_world().classifiers)
SHORT_STEPS, SHORT_COUNT, FULL_COUNT = 4, 500, 60_000


def train(
    model: str, work: Path, weights: Path | None = None, *, minutes: float | None = None, short: bool = False
) -> None:
    """Train `model` (one of `ORDER`, or 'all') and write its weights, by default into the package.

    A `short` training proves a recipe and nothing else: its checkpoints and, by default, weights are in `work/short`.
    Raises Unfinished where `minutes` end first: then there is a checkpoint, from which the same command goes on.
    """
    if model not in (*ORDER, "all"):
        raise ConfigError(unknown("model", model, (*ORDER, "all")))
    deadline = time.monotonic() + (minutes * 60 if minutes else float("inf"))
    if short:
        work = work / "short"
    target = weights or (work / "weights" if short else WEIGHTS)
    for name in ORDER if model == "all" else (model,):
        Trainer(work, target, deadline, short).train(name)


class Trainer:
    """Where things are, how long there is, and whether the recipes are cut short."""

    def __init__(self, work: Path, weights: Path, deadline: float, short: bool) -> None:
        self.work, self.weights, self.deadline, self.short = work, weights, deadline, short
        self.count = SHORT_COUNT if short else FULL_COUNT

    def train(self, name: str) -> None:
        recipes: dict[str, Callable[[], None]] = {
            "autoencoder": self._autoencoder,
            "diffusion": self._diffusion,
            "clip": self._clip,
        }
        recipes.get(name, lambda: self._classifier(name))()

    @property
    def budget(self) -> Budget:
        """What is left until the deadline, which is a time of `time.monotonic`."""
        return Budget(seconds=self.deadline - time.monotonic())

    def _schedule(self, full: Schedule) -> Schedule:
        return replace(full, steps=SHORT_STEPS, warmup=1) if self.short else full

    def _autoencoder(self) -> None:
        """Encoder and decoder together, then the decoder alone. Shipped inside the diffusion model."""
        schedule = self._schedule(autoencoder.DECODER_SCHEDULE)
        autoencoder.refine_decoder(
            self._encoder(), self.work / "decoder", self.work, count=self.count, schedule=schedule, budget=self.budget
        )

    def _encoder(self) -> AutoencoderKL:
        """The autoencoder after its first half, its latents normalised."""
        model = autoencoder.train(
            self.work / "autoencoder",
            self.work,
            count=self.count,
            schedule=self._schedule(autoencoder.SCHEDULE),
            budget=self.budget,
        )
        autoencoder.normalise_latents(model, self.work, min(4000, self.count))
        return model

    def _diffusion(self) -> None:
        """U-Net and text tower, saved with the refined autoencoder, which comes first, as one pipeline."""
        self._autoencoder()
        model = diffusion.train(
            self.work / "diffusion",
            self.work,
            self._encoder(),
            count=self.count,
            schedule=self._schedule(diffusion.SCHEDULE),
            budget=self.budget,
        )
        refined = self._encoder()
        refined.load_state_dict(trained_weights(self.work / "decoder"))
        pipeline = diffusion.pipeline(model, refined)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.to(torch.float16)
        pipeline.save_pretrained(self.weights / "diffusion", safe_serialization=True)
        self._note("diffusion", "autoencoder", "decoder", "diffusion")

    def _clip(self) -> None:
        schedule = self._schedule(clip.SCHEDULE)
        model = clip.train(self.work / "clip", self.work, count=self.count, schedule=schedule, budget=self.budget)
        _save(model, self.weights / "clip")
        clip.processor().save_pretrained(self.weights / "clip")
        build_tokenizer().save_pretrained(self.weights / "clip")
        self._note("clip", "clip")

    def _classifier(self, name: str) -> None:
        model = classifiers.train(
            name,
            self.work / name,
            self.work,
            count=min(self.count, 24_000),
            schedule=self._schedule(classifiers.SCHEDULE),
            budget=self.budget,
        )
        _save(model, self.weights / name)
        classifiers.processor().save_pretrained(self.weights / name)
        self._note(name, name)

    def _note(self, name: str, *checkpoints: str) -> None:
        """Keep what the training cost beside the weights, for the model card."""
        text = json.dumps(cost(*(self.work / checkpoint for checkpoint in checkpoints)))
        (self.weights / name / "training.json").write_text(text + "\n")


def _save(model: nn.Module, folder: Path) -> None:
    """Weights as float16 safetensors: what is measured is what is shipped."""
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
