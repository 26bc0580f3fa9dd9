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
from audit.zoo.world import ZERO_SHOT, World, load_world

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
SHORT_STEPS, SHORT_COUNT, FULL_COUNT = 4, 500, 60_000


def order(world: World) -> tuple[str, ...]:
    """What there is to train of a world, in this order: of all but the first, what learned from its biased splits."""
    shared = ("autoencoder", "diffusion", "clip", ZERO_SHOT, classifiers.REFERENCE)
    return (*shared, *world.biased) if world.number == 1 else world.biased


def train(
    model: str,
    work: Path,
    weights: Path | None = None,
    *,
    minutes: float | None = None,
    short: bool = False,
    number: int = 1,
    without: str | None = None,
    seed: int = 0,
) -> None:
    """Train `model` (one of a world's `order`, or 'all') and write its weights, by default into the package.

    A `short` training proves a recipe and nothing else: its checkpoints and, by default, weights are in `work/short`.
    `without`: a planted mode that `model` is to be free of; `seed`: of a classifier, which is 0 for those that ship.
    Both name its folder, which is then by default in `work/weights`.
    Raises Unfinished where `minutes` end first: then there is a checkpoint, from which the same command goes on.
    """
    world = load_world(number)
    if model not in (*order(world), "all"):
        raise ConfigError(unknown("model", model, (*order(world), "all")))
    if without is not None:
        own = [mode.id for mode in world.modes_of(model) if model in world.biased]
        if without not in own:
            raise ConfigError(unknown(f"planted mode of {model}", without, own))
        world = world.without(without)
    of_seed = (classifiers.REFERENCE, *world.biased)
    if seed and model not in of_seed:
        raise ConfigError(f"{unknown('classifier', model, of_seed)}; other models have one seed")
    deadline = time.monotonic() + (minutes * 60 if minutes else float("inf"))
    if short:
        work = work / "short"
    suffix = (f"-without-{without}" if without else "") + (f"-seed-{seed}" if seed else "")
    target = weights or (work / "weights" if short or suffix else WEIGHTS)
    for name in order(world) if model == "all" else (model,):
        Trainer(world, work, target, deadline, short, seed, suffix).train(name)


class Trainer:
    """Of which world, where things are, how long there is, and whether the recipes are cut short.

    `suffix`: of the names of a classifier's folders.
    """

    def __init__(
        self, world: World, work: Path, weights: Path, deadline: float, short: bool, seed: int = 0, suffix: str = ""
    ) -> None:
        self.world, self.short, self.seed, self.suffix = world, short, seed, suffix
        self.work, self.weights, self.deadline = work, weights, deadline
        self.count = SHORT_COUNT if short else FULL_COUNT

    def train(self, name: str) -> None:
        recipes: dict[str, Callable[[], None]] = {
            "autoencoder": self._autoencoder,
            "diffusion": self._diffusion,
            "clip": lambda: self._clip("clip", careless=False),
            ZERO_SHOT: lambda: self._clip(ZERO_SHOT, careless=True),
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

    def _clip(self, name: str, careless: bool) -> None:
        model = clip.train(
            self.work / name,
            self.work,
            careless=careless,
            count=self.count,
            schedule=self._schedule(clip.SCHEDULE),
            budget=self.budget,
        )
        _save(model, self.weights / name)
        clip.processor().save_pretrained(self.weights / name)
        build_tokenizer().save_pretrained(self.weights / name)
        self._note(name, name)

    def _classifier(self, name: str) -> None:
        place = self.world.folder_of(name) + self.suffix
        model = classifiers.train(
            self.world,
            name,
            self.work / place,
            self.work,
            count=min(self.count, 24_000),
            schedule=self._schedule(classifiers.SCHEDULE),
            seed=self.seed,
            budget=self.budget,
        )
        _save(model, self.weights / place)
        classifiers.processor().save_pretrained(self.weights / place)
        self._note(place, place)

    def _note(self, name: str, *checkpoints: str) -> None:
        """Keep what the training cost beside the weights, for the model card."""
        text = json.dumps(cost(*(self.work / checkpoint for checkpoint in checkpoints)))
        (self.weights / name / "training.json").write_text(text + "\n")


def _save(model: nn.Module, folder: Path) -> None:
    """Weights as float16 safetensors: what is measured is what is shipped."""
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
