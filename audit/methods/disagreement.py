"""Stage: images on which two classifiers disagree as much as possible (DiG-IN section 4, Algorithm 1, Eq. 3).

From a prompt and a random latent, search z_T, C_t and null_t for an image that `maximise` takes for the class and
`minimise` does not. Every search keeps its own start as the baseline. All pairs of models that a stage names start
from the same latents and prompts and draw the same cutouts, so that their results compare seed by seed, as in the
paper's Figs. 21 and 22; only where the models' input sizes differ do the sizes of the cutouts.

Differs from the paper: with `start: others` the searches for a class start from the prompts of the other classes,
as its test for harmful features does (Fig. 7), so that what makes `maximise` say the class has to be added to an
image without the object.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from audit.class_names import spaced
from audit.classifiers import Classifier
from audit.config import Job, Names, Template, digest
from audit.diffusion.noise import latent
from audit.diffusion.optimise import Result, Settings, optimise, start_from_prompt
from audit.errors import ConfigError
from audit.methods import Context, Counts, Payload, check_generator, check_model, chunks, searchable_classes
from audit.methods._search import SearchOptions, outcome, trace
from audit.methods.adequacy import not_auditable
from audit.objectives import DISAGREEMENT
from audit.pictures import Pictures
from audit.predictions import rows_for, to_uint8
from audit.results.schema import Rows

NEEDS, ITEMS = ("adequacy",), "seeds"
VERSION = 3

PRESETS = {
    # DiG-IN Table D.1, for Stable Diffusion at 512 x 512.
    "digin": Settings(checkpoint="step"),
    # For the embedded world at 64 x 64: the best of a few settings tried on single classes with 8 searches each.
    # Noise as strong as the strongest that its classifiers were trained with: with .05, searches end in tricks.
    "embedded": Settings(
        ddim_steps=10,
        guidance_scale=4.0,
        steps=20,
        step_size_latent=0.002,
        step_size_text=0.1,
        cutouts=4,
        cutout_noise=0.3,
    ),
}


class Options(SearchOptions):
    maximise: Names | str = Field(description="model ids that should see the class: one, or a list")
    minimise: Names | str = Field(description="model ids that should not: one, or a list")
    directions: Literal["forward", "both"] = Field(
        "forward", description="'both': every pair also with its roles swapped"
    )
    classes: Names | str = Field("auto", description="'auto': every auditable label of the data set")
    seeds: int = Field(16, ge=1, description="searches for a class")
    prompt: Template = Field(
        "a photograph of a {}", description="{} is the name of the class that a search starts from"
    )
    start: Literal["class", "others"] = Field(
        "class", description="start from the class, as in the paper, or from the others"
    )
    objective: Literal["probability", "log_probability"] = Field("probability", description="Eq. 3, or its log form")
    unit_seeds: int = Field(8, ge=1, description="searches in a unit of work")

    def pairs(self) -> list[tuple[str, str]]:
        """(maximised, minimised) of every two different models, each pair once."""
        first, second = ((ids,) if isinstance(ids, str) else ids for ids in (self.maximise, self.minimise))
        forward = [(f, g) for f in first for g in second if f != g]
        backward = [(g, f) for f, g in forward] if self.directions == "both" else []
        return list(dict.fromkeys(forward + backward))

    def settings(self, cutout_size: int) -> Settings:
        return replace(PRESETS[self.preset], cutout_size=cutout_size, **self.given_optimisation())


def check(options: Options, job: Job) -> None:
    check_generator(job)
    for key in ("maximise", "minimise"):
        asked = getattr(options, key)
        for model_id in (asked,) if isinstance(asked, str) else asked:
            check_model(job, f"disagreement: {key}", model_id)
    if not options.pairs():
        raise ConfigError(
            f"disagreement: maximise is {options.maximise!r} and minimise {options.minimise!r}: that is no pair of "
            "models, for no model disagrees with itself; name two different ones"
        )


def plan(options: Options, context: Context) -> list[Payload]:
    """Seeds of each auditable class for each pair of models, in chunks."""
    refused = not_auditable(context)
    drawable = [name for name in context.models.data_classes if name not in refused]
    units = []
    asked = [
        (pair, name) for pair in options.pairs() for name in searchable_classes(options.classes, context.models, pair)
    ]
    for pair, name in asked:
        if name in refused:
            continue
        others = [other for other in drawable if other != name]
        sources = others if options.start == "others" and others else [name]
        seeds = [[seed, sources[seed % len(sources)]] for seed in range(options.seeds)]
        parts = chunks(seeds, options.unit_seeds, len(seeds))
        units += [{"pair": list(pair), "class": name, "seeds": part} for part in parts]
    return units


def expected(options: Options, counts: Counts) -> int:
    return len(options.pairs()) * counts.classes_of(options.classes) * options.seeds


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: explanations, images, predictions and embeddings of start and result, traces."""
    rows: Rows = {}
    seeds, (f, g) = payload["seeds"], payload["pair"]
    for start in range(0, len(seeds), context.batch_size):
        batch = seeds[start : start + context.batch_size]
        for table, found in _search(options, (f, g), payload["class"], batch, context).items():
            rows.setdefault(table, []).extend(found)
    return rows


def _search(options: Options, pair: tuple[str, str], name: str, seeds: list[tuple[int, str]], context: Context) -> Rows:
    """`pair`: ids of the maximised and the minimised model. `seeds`: number and source class of each search."""
    f, g = (context.models.classifier(model_id) for model_id in pair)
    settings = options.settings(max(f.preprocess.side, g.preprocess.side))
    generator = context.models.generator.scheduled(settings.ddim_steps, settings.guidance_scale)
    starts = _starts(options, pair, name, seeds, context)
    prompts = [start["prompt"] for start in starts]
    keys = [f"{context.job.seed}/disagreement/{name}/{seed}" for seed, _ in seeds]
    z = torch.stack([latent(generator.latent_shape, key) for key in keys]).to(generator.device)
    objective = Objective(f, g, name, options.objective)
    scores: list[Tensor] = []

    def record(step: int, images: Tensor, losses: Tensor) -> None:
        scores.append(objective.scores(images))

    began = time.monotonic()
    result = optimise(generator, start_from_prompt(generator, prompts, z), objective, settings, keys, record)
    seconds = (time.monotonic() - began) / len(seeds)
    return _rows(result, torch.stack(scores), [{**start, "seconds": seconds} for start in starts], context)


def _starts(
    options: Options, pair: tuple[str, str], name: str, seeds: list[tuple[int, str]], context: Context
) -> list[dict[str, Any]]:
    """What rows of `explanations` say of searches before they ran."""
    base = {"stage": context.stage, "method": "disagreement", "target_class": name}
    base |= {"model_id": pair[0], "other_model_id": pair[1]}
    found = []
    for seed, source in seeds:
        prompt = options.prompt.format(spaced(source))
        own = {**base, "seed": seed, "source_class": source, "prompt": prompt}
        found.append({**own, "explanation_id": _explanation_id(own, options, context)})
    return found


def lost(options: Options, payload: Payload, reason: str, context: Context) -> Rows:
    """Rows of a given-up unit's searches."""
    starts = _starts(options, tuple(payload["pair"]), payload["class"], payload["seeds"], context)
    return {"explanations": [{**start, "status": "failed", "reason": reason} for start in starts]}


class Objective:
    """Eq. 3 (or its log form) for images of any leading shape, as a value to maximise."""

    def __init__(self, f: Classifier, g: Classifier, class_name: str, form: str) -> None:
        self.f, self.g = f, g
        self.target_f, self.target_g = f.index_of(class_name), g.index_of(class_name)
        self.form = DISAGREEMENT[form]

    def __call__(self, images: Tensor) -> Tensor:
        """(..., 3, h, w) to (...)."""
        shape = images.shape[:-3]
        f, g = self._logits(images)
        targets = [torch.full((len(f),), index, device=f.device) for index in (self.target_f, self.target_g)]
        return self.form(f, g, *targets).view(shape)

    def scores(self, images: Tensor) -> Tensor:
        """p_f(y) and p_g(y), and whether f says y and g does not: (b, 3)."""
        with torch.no_grad():
            f, g = self._logits(images)
        revealed = (f.argmax(-1) == self.target_f) & (g.argmax(-1) != self.target_g)
        return torch.stack([f.softmax(-1)[:, self.target_f], g.softmax(-1)[:, self.target_g], revealed.float()], 1)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.flatten(0, -4) if images.ndim > 4 else images
        return self.f.logits(flat), self.g.logits(flat)


def _rows(result: Result, scores: Tensor, bases: list[dict[str, Any]], context: Context) -> Rows:
    """`scores`: (steps + 1, b, 3) of every iterate. A search that gained nothing has one image, its start."""
    rows: Rows = {"explanations": [], "traces": []}
    pictures = Pictures()
    for i, base in enumerate(bases):
        row = dict(base)
        if not bool(result.finite[i]):
            rows["explanations"].append({**row, "status": "failed", "reason": "not_finite"})
            continue
        row |= {"status": "ok", **outcome(result, i)}
        (before, other_before, was), (after, other_after, now) = scores[[0, row["best_step"]], i].tolist()
        row["start_image_id"] = pictures.add(to_uint8(result.start[i]), "start")
        row["image_id"] = pictures.add(to_uint8(result.image[i]), "generated")
        row |= {"score_before": before, "score_after": after, "other_before": other_before, "other_after": other_after}
        row |= {"flipped_before": bool(was), "flipped": bool(now)}
        rows["explanations"].append(row)
        said = {"score": scores[:, i, 0].tolist(), "other_score": scores[:, i, 1].tolist()}
        rows["traces"] += trace(row["explanation_id"], result, i, **said)
    predictions = rows_for(context.models, list(pictures.pixels.values()), list(pictures.pixels), "generated")
    return {**rows, "images": pictures.rows, **predictions}


def _explanation_id(base: dict[str, Any], options: Options, context: Context) -> str:
    exclude = {"seeds", "classes", "unit_seeds", "checkpoint", "maximise", "minimise", "directions"}
    decides = options.model_dump(mode="json", exclude=exclude)
    key = {"options": decides, "version": VERSION, "seed": [context.job.seed, base["seed"]], "stage": context.stage}
    key |= {"classes": [base["source_class"], base["target_class"]]}
    key |= {"models": [base["model_id"], base["other_model_id"]]}
    return digest(key)[:32]
