"""Stage: what single units of a classifier respond to, and whether that misleads it (DiG-IN section 5, Eq. 4).

For each class and neuron a unit of work holds three arms of searches. `maximise` and `minimise` start from the same
images of the class; `others` maximises from images of the other classes: where the model then says the class and an
independent check does not see it, the neuron is a harmful spurious feature (Fig. 7). Beside them stand the pixel-space
"feature attack" from the starts of `maximise`, and the real images with the highest activations.

Differs from the paper: it takes neurons that people had labelled; `neurons: auto` finds suspects in the screening
pass, and a rule gives the verdict (both in audit/suspects.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from audit import suspects
from audit.check import Check, check_of
from audit.class_names import spaced
from audit.classifiers import Classifier
from audit.config import Job, Names, Template, digest
from audit.diffusion.noise import latent
from audit.diffusion.optimise import Result, Settings, optimise, start_from_prompt
from audit.errors import ConfigError
from audit.findings.neuron_ranking import Top, rankings, stored_activations, tops
from audit.methods import Context, Counts, Payload, check_generator, check_model, searchable_classes
from audit.methods._search import SearchOptions, outcome, trace
from audit.methods.adequacy import not_auditable
from audit.neurons import Layer, Objective, check_unit, count_units, layer_of, with_redirection
from audit.pictures import Pictures
from audit.pixel_space import ascend
from audit.predictions import rows_for, to_uint8
from audit.results.schema import Rows
from audit.screened import originals

NEEDS, READS = ("adequacy",), ("screen",)
VERSION = 3

PRESETS = {
    # DiG-IN Table E.1, for Stable Diffusion at 512 x 512.
    "digin": Settings(
        ddim_steps=20,
        steps=20,
        step_size_text=0.005,
        step_size_latent=0.0005,
        schedule="constant",
        clip=None,
        cutouts=16,
        cutout_noise=0.005,
        checkpoint="step",
    ),
    # For the embedded world at 64 x 64: of a few settings tried on the neurons of three backgrounds the one that raised
    # them most. Noise as strong as the strongest that its classifiers were trained with.
    "embedded": Settings(
        ddim_steps=6,
        guidance_scale=4.0,
        steps=30,
        step_size_text=0.1,
        step_size_latent=0.02,
        clip=None,
        cutouts=4,
        cutout_noise=0.3,
    ),
}
ARMS = {"maximise": 1.0, "minimise": -1.0, "others": 1.0}
Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]


class Options(SearchOptions):
    model: str = Field(description="model id to explain")
    layer: str | None = Field(
        None,
        description="a module whose output is read; default: the input of the last linear layer. The top real images "
        "need it among the 'activations' of the screen stage",
    )
    classes: Names | str = Field("auto", description="'auto': every auditable label of the data set")
    neurons: Literal["auto"] | Indices = Field(
        "auto", description="units of the layer, from 0; 'auto': the suspects of each class"
    )
    top: int = Field(5, ge=1, description="suspects for a class, with 'auto'")
    seeds: int = Field(8, ge=1, description="searches from other classes; with under 4, no neuron is found harmful")
    class_seeds: int = Field(4, ge=0, description="starts of the class that are minimised and maximised, to be seen")
    prompt: Template = Field(
        "a photograph of a {}", description="of starts, and of the zero-shot check; {} is the name of a class"
    )
    check: str | None = Field(
        None, description="model id that says whether the object is there; default: the embedder, zero-shot"
    )
    top_images: int = Field(24, ge=1, description="real images with the highest activations that are looked at")
    level: float = Field(0.05, gt=0, lt=1, description="p-value under which a neuron is harmful")
    attack_steps: int = Field(20, ge=1, description="steps of the feature attack")
    attack_step: float = Field(0.02, gt=0, description="its step, as root mean square over all pixels")

    def settings(self, cutout_size: int) -> Settings:
        return replace(PRESETS[self.preset], cutout_size=cutout_size, **self.given_optimisation())


def check(options: Options, job: Job) -> None:
    """Refuse a neuron stage whose model, check or suspects cannot be had. Raises ConfigError."""
    check_generator(job)
    check_model(job, "neuron: model", options.model)
    if options.check is not None:
        check_model(job, "neuron: check", options.check)
    if options.check == options.model:
        raise ConfigError(f"neuron: check: {options.check!r} is the explained model; no model checks itself")
    if options.check is None and job.embedder is None:
        raise ConfigError(
            "neuron needs an independent check: name a model with 'check', "
            "or add to the job file: embedder: {loader: clip, ref: ...}"
        )
    if options.neurons != "auto":
        return
    if options.layer is not None:
        raise ConfigError(
            f"neuron: 'neurons: auto' reads the inputs of the last linear layer; "
            f"list the 'neurons' of the layer {options.layer!r}, or leave 'layer' out"
        )
    if not any(stage.name == "screen" and stage.options.stores(options.model) for stage in job.stages):
        raise ConfigError(
            f"neuron: 'neurons: auto' reads the activations of {options.model!r}, which the screen stage does not "
            f"store; write - {{kind: screen, activations: [{options.model}]}}, or list the 'neurons'"
        )


def plan(options: Options, context: Context) -> list[Payload]:
    """One unit for a class and neuron or, with 'auto', for a class and place among its suspects.

    `facts` of a unit: what stored activations of real images say of its neuron. They are read once, for all units.
    """
    refused = not_auditable(context)
    drawable = [name for name in context.models.data_classes if name not in refused]
    classes = searchable_classes(options.classes, context.models, [options.model])
    classes = [name for name in classes if name not in refused]
    units = []
    for name, one in _neurons(options, context, classes):
        others = [other for other in drawable if other != name]
        seeds = [[seed, others[seed % len(others)]] for seed in range(options.seeds)] if others else []
        units.append({"class": name, **one, "seeds": seeds})
    return units


def _neurons(options: Options, context: Context, classes: list[str]) -> list[tuple[str, Payload]]:
    """Class and neuron of each unit, with the facts on it. None for 'auto' where no activations are stored."""
    model = context.models.classifier(options.model)
    layer = layer_of(model, options.layer)
    listed = [] if options.neurons == "auto" else [*options.neurons]
    check = check_of(context.models, options.check, options.prompt)
    with stored_activations(context.run, options.model, check, options.layer) as stored:
        if stored is None:
            return [(name, {"neuron": neuron, "facts": {}}) for name in classes for neuron in listed]
        weights = {}
        if layer.weight is not None:
            weights = {name: layer.weight[model.index_of(name)].double().cpu().numpy() for name in classes}
        ranked = rankings(stored, weights)
        chosen = [(name, neuron) for name in classes for neuron in listed or ranked[name].order[: options.top].tolist()]
        highest = tops(stored, [neuron for _, neuron in chosen], options.top_images)
    units = []
    for name, neuron in chosen:
        facts = _ranked(ranked[name], neuron) if name in ranked and neuron in highest else {}
        facts |= _top(highest[neuron], name) if neuron in highest else {}
        units.append((name, {"neuron": neuron, "facts": facts} | ({} if listed else {"rank": facts["rank"]})))
    return units


def expected(options: Options, counts: Counts) -> int:
    neurons = options.top if options.neurons == "auto" else len(options.neurons)
    return counts.classes_of(options.classes) * neurons


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: one of neurons; explanations with traces, images, predictions and embeddings of starts and results."""
    subject, facts = _subject(options, payload, context)
    searches = [
        _Search(arm, seed, subject.class_name)
        for arm in ("maximise", "minimise")
        for seed in range(options.class_seeds)
    ]
    searches += [_Search("others", seed, source) for seed, source in payload["seeds"]]
    rows: Rows = {"explanations": [], "traces": []}
    for start in range(0, len(searches), context.batch_size):
        for table, found in _explain(subject, searches[start : start + context.batch_size]).items():
            rows[table] += found
    rows["neurons"] = [facts | _verdict(rows["explanations"], facts, options)]
    pixels = subject.pictures.pixels
    rows["images"] = subject.pictures.rows + originals(context.run, context.models, facts.get("top_items", []))
    return {**rows, **rows_for(context.models, list(pixels.values()), list(pixels), "generated")}


def lost(options: Options, payload: Payload, reason: str, context: Context) -> Rows:
    """A neuron, or a place among the suspects, of which nothing could be found out."""
    which: dict[str, Any] = {key: payload[key] for key in ("neuron", "rank") if key in payload}
    of = [context.stage, options.model, options.layer, payload["class"], which]
    row = {"neuron_id": digest(of)[:16], "stage": context.stage, "model_id": options.model, "layer": options.layer}
    return {"neurons": [{**row, "class_name": payload["class"], **which, "reason": reason}]}


@dataclass(frozen=True)
class _Subject:
    """A neuron and a class that a unit of work explains, and what it needs for that."""

    model: Classifier
    layer: Layer
    neuron: int
    class_name: str
    check: Check
    pictures: Pictures
    options: Options
    context: Context

    def objective(self, arms: list[str]) -> Objective:
        signs = torch.tensor([ARMS[arm] for arm in arms], device=self.context.models.device)
        return Objective(self.model, self.layer, self.neuron, self.class_name, signs)


@dataclass(frozen=True)
class _Search:
    arm: str
    seed: int
    source: str

    def start_key(self, job_seed: int, class_name: str) -> str:
        """Every neuron of a class starts from the same images; `maximise` and `minimise` do too."""
        return f"{job_seed}/neuron/{class_name}/{'others' if self.arm == 'others' else 'class'}/{self.seed}"


def _subject(options: Options, payload: Payload, context: Context) -> tuple[_Subject, dict[str, Any]]:
    """A unit's neuron, and its row of `neurons` before any search."""
    name, neuron, model = payload["class"], payload["neuron"], context.models.classifier(options.model)
    check = check_of(context.models, options.check, options.prompt)
    layer = layer_of(model, options.layer)
    check_unit(layer, neuron, count_units(model, layer))
    facts: dict[str, Any] = {"stage": context.stage, "model_id": options.model, "layer": layer.name}
    facts |= {"class_name": name, "check_id": check.check_id, "neuron": neuron, **payload["facts"]}
    facts |= {} if layer.weight is None else {"weight": float(layer.weight[model.index_of(name), neuron])}
    of = [context.stage, options.model, layer.name, name, neuron]
    facts |= {"neuron_id": digest(of)[:16]}
    return _Subject(model, with_redirection(model, layer), neuron, name, check, Pictures(), options, context), facts


def _ranked(ranking: suspects.Ranking, neuron: int) -> dict[str, Any]:
    auc = ranking.trigger_auc
    return {
        "mean_activation": float(ranking.mean_activation[neuron]),
        "importance": float(ranking.importance[neuron]),
        "trigger_auc": None if auc is None else float(auc[neuron]),
        "rank": int(np.flatnonzero(ranking.order == neuron)[0]) + 1,
    }


def _top(highest: Top, class_name: str) -> dict[str, Any]:
    seen = highest.checks == class_name
    return {
        "suspicion": 1 - float(seen.mean()),
        "top_items": highest.ids.tolist(),
        "top_activations": highest.activations.tolist(),
        "top_seen": seen.tolist(),
    }


def _explain(subject: _Subject, searches: list[_Search]) -> Rows:
    """Rows of a batch of searches, and of the feature attack from those of its starts that `maximise` has."""
    context, options = subject.context, subject.options
    settings = options.settings(subject.model.preprocess.side)
    generator = context.models.generator.scheduled(settings.ddim_steps, settings.guidance_scale)
    keys = [search.start_key(context.job.seed, subject.class_name) for search in searches]
    z = torch.stack([latent(generator.latent_shape, key) for key in keys]).to(generator.device)
    prompts = [options.prompt.format(spaced(search.source)) for search in searches]
    objective = subject.objective([search.arm for search in searches])
    scores: list[Tensor] = []

    def record(step: int, images: Tensor, losses: Tensor) -> None:
        scores.append(objective.scores(images))

    began = time.monotonic()
    own = [f"{key}/{subject.neuron}/{search.arm}" for key, search in zip(keys, searches, strict=True)]
    result = optimise(generator, start_from_prompt(generator, prompts, z), objective, settings, own, record)
    seconds = (time.monotonic() - began) / len(searches)
    bases = [
        _base("neuron", subject, search) | {"prompt": prompt, "seconds": seconds}
        for search, prompt in zip(searches, prompts, strict=True)
    ]
    rows = _rows(result, torch.stack(scores), bases, subject)
    chosen = [i for i, search in enumerate(searches) if search.arm == "maximise" and bool(result.finite[i])]
    if chosen:
        bases = [_base("feature_attack", subject, searches[i]) | {"prompt": prompts[i]} for i in chosen]
        rows["explanations"] += _attack(result.start[chosen], bases, subject)
    return rows


def _base(method: str, subject: _Subject, search: _Search) -> dict[str, Any]:
    """What a row of `explanations` says of a search before it ran."""
    options, context = subject.options, subject.context
    decides = options.model_dump(
        mode="json", exclude={"seeds", "class_seeds", "classes", "neurons", "top", "top_images", "checkpoint"}
    )
    key = {"options": decides, "version": VERSION, "seed": [context.job.seed, search.seed], "stage": context.stage}
    key |= {"classes": [search.source, subject.class_name], "search": [method, subject.neuron, search.arm]}
    return {
        "explanation_id": digest(key)[:32],
        "stage": context.stage,
        "method": method,
        "model_id": options.model,
        "layer": subject.layer.name,
        "neuron": subject.neuron,
        "arm": search.arm,
        "seed": search.seed,
        "source_class": search.source,
        "target_class": subject.class_name,
    }


def _rows(result: Result, scores: Tensor, bases: list[dict[str, Any]], subject: _Subject) -> Rows:
    """`scores`: (steps + 1, b, 3) of every iterate, as from `Objective.scores`."""
    rows: Rows = {"explanations": [], "traces": []}
    for i, base in enumerate(bases):
        if not bool(result.finite[i]):
            rows["explanations"].append({**base, "status": "failed", "reason": "not_finite"})
            continue
        row = {**base, "status": "ok", **outcome(result, i)}
        best = row["best_step"]
        if best == 0:
            row["reason"] = f"{_why_still(result.losses[:, i], float(scores[0, i, 0]))}: the search kept its start"
        rows["explanations"].append(row | _compared(result.start[i], result.image[i], scores[[0, best], i], subject))
        rows["traces"] += trace(base["explanation_id"], result, i, score=scores[:, i, 1].tolist())
    return rows


def _why_still(losses: Tensor, activation: float) -> str:
    """Why a search with these losses (steps + 1,) went nowhere; a unit after a ReLU that is 0 has no gradient."""
    if bool((losses == losses[0]).all()):
        return f"the neuron has no gradient here, its activation is {activation:g} in every step"
    return "no step was better than the start"


def _compared(start: Tensor, end: Tensor, scores: Tensor, subject: _Subject) -> dict[str, Any]:
    """Start and result (3, h, w) of a search, kept as pictures; scores: (2, 3) of both."""
    (before, score_before, was), (after, score_after, now) = scores.tolist()
    seen_before, seen_after = subject.check.sees(torch.stack([start, end]), subject.class_name)
    return {
        "start_image_id": subject.pictures.add(to_uint8(start), "start"),
        "image_id": subject.pictures.add(to_uint8(end), "generated"),
        "activation_before": before,
        "activation_after": after,
        "score_before": score_before,
        "score_after": score_after,
        "flipped_before": bool(was),
        "flipped": bool(now),
        "seen_before": seen_before,
        "seen_after": seen_after,
    }


def _attack(starts: Tensor, bases: list[dict[str, Any]], subject: _Subject) -> list[dict[str, Any]]:
    """Rows of the feature attack on images (b, 3, h, w): the same objective, in pixel space."""
    options = subject.options
    objective = subject.objective([base["arm"] for base in bases])
    began = time.monotonic()
    ends = ascend(starts, objective, options.attack_steps, options.attack_step * starts[0].numel() ** 0.5)
    seconds = (time.monotonic() - began) / len(bases)
    scores = torch.stack([objective.scores(starts), objective.scores(ends)])
    return [
        {**base, "status": "ok", "seconds": seconds} | _compared(starts[i], ends[i], scores[:, i], subject)
        for i, base in enumerate(bases)
    ]


def _verdict(explanations: list[dict[str, Any]], facts: dict[str, Any], options: Options) -> dict[str, Any]:
    """Columns of `neurons` that rest on searches: those from other classes, and what the check is worth at all."""
    ended = [x for x in explanations if x["arm"] == "others" and x["status"] == "ok"]
    evidence = suspects.Evidence(
        triggered_before=np.array([x["flipped_before"] and not x["seen_before"] for x in ended], bool),
        triggered=np.array([x["flipped"] and not x["seen_after"] for x in ended], bool),
        seen_after=np.array([x["seen_after"] for x in ended], bool),
        top_seen=np.array(facts.get("top_seen", []), bool),
    )
    verdict = suspects.judge(evidence, options.level)
    columns: dict[str, Any] = {"searches": len(ended), "p_value": verdict.p_value, "verdict": verdict.name}
    columns["reason"] = verdict.reason
    if ended:
        columns["trigger_before"] = float(evidence.triggered_before.mean())
        columns["trigger_after"] = float(evidence.triggered.mean())
        columns["seen_after"] = float(evidence.seen_after.mean())
    drawn = [bool(x["seen_before"]) for x in explanations if x["arm"] == "minimise" and x["status"] == "ok"]
    if drawn:
        columns["check_hits"] = float(np.mean(drawn))
        starts = f"{len(drawn)} start{'s' * (len(drawn) != 1)}"
        columns["reason"] += f"; of {starts} drawn for the class, the check sees it on {sum(drawn)}"
    return columns
