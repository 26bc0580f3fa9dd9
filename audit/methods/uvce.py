"""Stage: the smallest realistic change of an image that flips a decision (DiG-IN section 6, UVCE).

`audit/counterfactual.py` is the method. Here images are chosen, captioned and given targets, inversions are kept as
artefacts, and what came of each item is measured. Beside every counterfactual stand its baselines: the original, what
the autoencoder and the inversion alone make of it, and the prompt edit without any optimisation.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from audit import measurements
from audit.artefacts import Artefacts
from audit.augment import cutouts
from audit.captions import names
from audit.class_names import spaced
from audit.classifiers import Embedder
from audit.config import Job, Names, Template, digest
from audit.counterfactual import Found, Numbers, Original, invert, prepare, search
from audit.decisions import AttributeDecision, Decision
from audit.diffusion.inversion import Inversion, NullText
from audit.diffusion.noise import generator_for
from audit.diffusion.optimise import Settings
from audit.diffusion.prompt_to_prompt import edited, edited_place
from audit.errors import BadItem, ConfigError
from audit.methods import Context, Counts, Payload, check_generator, check_model, chosen_classes, chunks
from audit.methods._search import SearchOptions, outcome, trace
from audit.metrics import proximity
from audit.neurons import activations, layer_of
from audit.objectives import masked_distance
from audit.pictures import Pictures
from audit.pixel_space import ascend
from audit.predictions import rows_for, to_uint8
from audit.results.schema import Rows
from audit.subjects import Subject, subjects_of
from audit.targets import AsTarget, Target, check_target, targets_of

NEEDS, READS = ("screen",), ("uvce",)  # after other such stages: what they invert is inverted once
ITEMS = "items"
VERSION = 1

PRESETS = {
    # DiG-IN Table C.1.5, for Stable Diffusion at 512 x 512.
    "digin": Numbers(optimisation=replace(Numbers().optimisation, checkpoint="step")),
    # For the embedded world at 64 x 64 and 10 DDIM steps. Its maps of 8 x 8 show objects best (IoU with the drawn
    # object .64 over all steps, .58 over the first half; maps of 16 x 16: .47, .44), and better the later.
    "embedded": Numbers(
        injection=(0.1, 0.3),
        blending=(0.3, 0.5),
        map_side=8,
        map_share=1.0,
        threshold=0.4,
        both_masks=True,
        null_text=NullText(step_size=0.03),
        refinements=3,
        optimisation=Settings(
            ddim_steps=10,
            steps=20,
            step_size_latent=0.001,
            step_size_text=0.02,
            schedule="constant",
            clip=None,
            cutouts=4,
            cutout_noise=0.3,
        ),
    ),
}


class Options(SearchOptions):
    model: str = Field(description="model id whose decision is explained")
    target: AsTarget = Field(Target(rule="runner_up"), description="what the decision should become")
    attribute: Names | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="instead of classes, two phrases: captions with the first get the second; for zero-shot models",
    )
    items: Literal["all", "correct", "misclassified"] = Field(
        "all", description="labelled images to explain, by what the model says of them"
    )
    classes: Names | str = Field("auto", description="labels to take images of; 'auto': every label")
    per_class: int | None = Field(None, ge=1, description="images of each label; default: all")
    caption: Literal["metadata", "template", "captioner"] = Field(
        "metadata", description="the data set's captions, where it has them, the template, or the job's captioner"
    )
    template: Template = Field("an image of a {}", description="what a caption says at least; {} is the class name")
    prompt: Literal["edit", "keep"] = Field(
        "edit", description="'keep' leaves the label in the prompt: all change comes from the optimisation"
    )
    mask: Literal["attention", "own", "none"] = Field(
        "attention", description="where changes are free: cross-attention maps, the data set's masks, or nowhere"
    )
    inversion: Literal["null_text", "ddim"] = "null_text"
    space: Literal["latent", "pixel"] = Field(
        "latent", description="'pixel': the same objective on pixels, a baseline that shows what the generator is for"
    )
    weight_latent: float | None = Field(None, ge=0, description="w_VAE of Eq. 5; default: the preset's, as below")
    weight_pixel: float | None = Field(None, ge=0, description="w_PX of Eq. 5")
    injection: tuple[float, ...] | None = Field(
        None, strict=False, min_length=1, description="shares of the steps with injected maps; the best one is taken"
    )
    blending: tuple[float, ...] | None = Field(
        None, strict=False, min_length=1, description="shares of the steps with the original's background"
    )
    map_side: int | None = Field(None, ge=1, description="height of the cross-attention maps that make the mask")
    map_share: float | None = Field(None, gt=0, le=1, description="share of the steps, noisiest first, that make it")
    sharpen: float | None = Field(None, ge=0, lt=1, description="subtracted from the mask; 0.3 in the authors' code")
    threshold: float | None = Field(None, gt=0, le=1, description="from where on the mask is 1, else 0; default: soft")
    both_masks: bool | None = Field(None, description="free also the place where the edited prompt puts the target")
    refinements: int | None = Field(None, ge=0, description="of each step of DDIM inversion; 0 in the paper")
    null_text_steps: int | None = Field(None, ge=1, description="Adam steps on the null text of each DDIM step")
    null_text_step_size: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=0, description="optimisation steps; 0 is the prompt edit alone")
    pixel_step: float = Field(0.004, gt=0, description="step in pixel space, as root mean square over all pixels")
    perceptual: str | None = Field(
        None,
        description="model id whose inputs of the last linear layer measure the perceptual distance; default: the "
        "embedder's embedding",
    )
    worst_reconstruction: float = Field(20.0, description="PSNR in dB of the inversion, under which no search is made")
    frames: bool = Field(False, description="keep the image of every optimisation step")
    unit_items: int = Field(8, ge=1, description="images in a unit of work")

    def settings(self, cutout_size: int) -> Settings:
        return self.numbers(cutout_size).optimisation

    def numbers(self, cutout_size: int) -> Numbers:
        """The preset, with what the job file says instead."""
        base = PRESETS[self.preset]
        optimisation = replace(
            base.optimisation,
            cutout_size=cutout_size,
            **self.given_optimisation(),
        )
        assert base.null_text is not None
        null_text = NullText(
            self.null_text_steps or base.null_text.iterations, self.null_text_step_size or base.null_text.step_size
        )
        carried = self.given("weight_latent", "weight_pixel", "injection", "blending", "refinements")
        masked = self.given("map_side", "map_share", "sharpen", "threshold", "both_masks")
        null = null_text if self.inversion == "null_text" else None
        return replace(base, optimisation=optimisation, null_text=null, **carried, **masked)


def check(options: Options, job: Job) -> None:
    check_generator(job)
    check_model(job, "counterfactual: model", options.model)
    if options.perceptual is not None:
        check_model(job, "counterfactual: perceptual", options.perceptual)
    if options.caption == "captioner" and job.captioner is None:
        raise ConfigError(
            "counterfactual: 'caption: captioner' needs one; add to the job file: captioner: {loader: blip, ref: ...}"
        )
    if options.attribute and options.caption != "metadata":
        raise ConfigError("counterfactual: 'attribute' needs captions that name it: leave 'caption' at 'metadata'")
    if options.attribute and job.models[options.model].name != "clip":
        raise ConfigError(
            f"counterfactual: 'attribute' compares prompts, which the model {options.model!r} does not read; "
            "name a model of loader clip"
        )


def plan(options: Options, context: Context) -> list[Payload]:
    """Labelled images with their targets, in chunks. Within a label the order is that of the ids, which are hashes."""
    labels, model = (
        chosen_classes(options.classes, context.models.data_classes),
        context.models.classifier(options.model),
    )
    if not options.attribute:
        check_target(options.target, model.class_names)
    rows = context.run.rows(
        "select i.uri, i.item_id, i.label, i.caption, p.predicted, p.top_classes, p.correct "
        "from items i join predictions p on p.item_id = i.item_id and p.role = 'data' "
        "where i.role = 'data' and i.status = 'ok' and p.status = 'ok' and p.model_id = ? and i.label in "
        "(select unnest(?)) and (? = 'all' or p.correct = (? = 'correct')) "
        "qualify row_number() over (partition by i.item_id order by i.position) = 1 order by i.label, i.item_id",
        [options.model, labels, options.items, options.items],
    )
    taken: dict[str, int] = {}
    chosen = []
    for row in rows:
        if options.attribute:
            named = [options.attribute[1]] if names(row["caption"] or "", options.attribute[0]) else []
        else:
            named = targets_of(options.target, row["predicted"], row["label"], row["top_classes"], model.class_names)
        if named and taken.get(row["label"], 0) < (options.per_class or len(rows)):
            taken[row["label"]] = taken.get(row["label"], 0) + 1
            chosen.append([row[key] for key in ("uri", "item_id", "label", "caption", "predicted")] + [named])
    parts = chunks(chosen, options.unit_items, len(chosen))
    return [{"items": part} | _masks_of(part, options, context) for part in parts]


def _masks_of(items: list[list[Any]], options: Options, context: Context) -> Payload:
    """What the data set's masks are, where they are used: a changed mask makes another unit."""
    if options.mask != "own":
        return {}
    masks = context.models.source("data").read_masks([item[0] for item in items])
    return {"masks": [None if mask is None else hashlib.sha256(mask).hexdigest() for mask in masks]}


def expected(options: Options, counts: Counts) -> int:
    return min(counts.data, counts.classes_of(options.classes) * (options.per_class or counts.data))


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: explanations, images, traces, measurements, artefacts, and what all models say of the images."""
    work = _Work(options, context)
    for start in range(0, len(payload["items"]), context.batch_size):
        work.explain(payload["items"][start : start + context.batch_size])
    return work.rows()


class _Work:
    """A unit of work as it fills up."""

    def __init__(self, options: Options, context: Context) -> None:
        self.options, self.context, self.models = options, context, context.models
        self.model = context.models.classifier(options.model)
        self.numbers = options.numbers(self.model.preprocess.side)
        schedule = self.numbers.optimisation.ddim_steps, self.numbers.optimisation.guidance_scale
        self.generator = context.models.generator.scheduled(*schedule)
        if options.mask != "attention":
            self.numbers = replace(self.numbers, both_masks=False)
        if options.mask == "none":
            self.numbers = replace(self.numbers, blending=(0.0,))
        self._keeps_prompt = options.prompt == "keep"
        if self._keeps_prompt:
            self.numbers = replace(self.numbers, injection=(0.0,), blending=(0.0,))
        self.artefacts = Artefacts(context.root)
        self.pictures = Pictures()
        self.found: Rows = {"explanations": [], "traces": [], "measurements": [], "artefacts": []}

    def rows(self) -> Rows:
        said = {row["image_id"] for row in self.pictures.rows if row["kind"] in _JUDGED}
        judged = {key: pixels for key, pixels in self.pictures.pixels.items() if key in said}
        predictions = rows_for(self.models, list(judged.values()), list(judged), "generated")
        return {**self.found, "images": self.pictures.rows, **predictions}

    def explain(self, items: list[list[Any]]) -> None:
        """From items of the plan to rows; what cannot be used becomes a failed row for each of its targets."""
        ready = []
        contents = self.models.source("data").read([item[0] for item in items])
        own, uris = self.options.mask == "own", [item[0] for item in items]
        masks = self.models.source("data").read_masks(uris) if own else [None] * len(items)
        for item, data, mask in zip(items, contents, masks, strict=True):
            for subject in subjects_of(item, self.options):
                try:
                    self._read(subject, data, mask)
                except BadItem as error:
                    self._fail(subject, error.reason, subject.targets)
                else:
                    ready.append(subject)
        for start in range(0, len(ready), self.context.batch_size):
            self._explain([subject for subject in ready[start : start + self.context.batch_size] if subject.targets])

    def _explain(self, ready: list[Subject]) -> None:
        if not ready:
            return
        original = self._original(ready)
        good = []
        for i, decibels in enumerate(proximity.psnr(original.reconstruction, original.image).tolist()):
            if not decibels >= self.options.worst_reconstruction:
                self._fail(ready[i], f"poor_reconstruction: {decibels:.1f} dB", ready[i].targets)
                for target in ready[i].targets:
                    poor = _base(self.options, self.context, ready[i], target)["explanation_id"]
                    self._measure(poor, [("psnr", "reconstruction", decibels)])
            else:
                good += [(i, target) for target in ready[i].targets]
        for start in range(0, len(good), self.context.batch_size):
            chunk = good[start : start + self.context.batch_size]
            self._search([(ready[i], target) for i, target in chunk], original.rows([i for i, _ in chunk]))

    def _read(self, subject: Subject, data: bytes | None, mask: bytes | None) -> None:
        """Decode an image and its mask, and see that its prompts name what they should. Raises BadItem.

        A target that its prompt has no room for becomes a failed row, the others go on.
        """
        if not self.options.attribute and subject.source not in self.model.class_names:
            raise BadItem("source_unknown_to_model")
        size = self.generator.image_size
        subject.read(data, mask, self.options.mask == "own", size)
        if self.options.mask == "none":
            subject.mask = torch.zeros(size)
        if self.options.caption == "captioner":
            subject.prompt = self.models.captioner(subject.image, subject.prompt)
        self.generator.positions(subject.prompt, subject.word)
        for target in list(subject.targets):
            words = spaced(target)
            place = edited_place(subject.prompt, subject.word, words)
            try:
                self.generator.positions(edited(subject.prompt, subject.word, words), words, place)
            except BadItem as error:
                subject.targets.remove(target)
                self._fail(subject, error.reason, [target])

    def _original(self, subjects: list[Subject]) -> Original:
        images = torch.stack([subject.image for subject in subjects]).to(self.generator.device)
        masks = None
        if self.options.mask != "attention":
            masks = torch.stack([subject.mask for subject in subjects]).to(images)
        prompts, words = [s.prompt for s in subjects], [s.word for s in subjects]
        inversion = self._inverted(subjects, images)
        return prepare(self.generator, images, prompts, words, inversion, self.numbers, masks)

    def _inverted(self, subjects: list[Subject], images: Tensor) -> Inversion:
        """Inversions as artefacts: read where they were made before, by whatever run, model or target."""
        keys = [self._artefact_key(subject) for subject in subjects]
        held = {key: kept for key in keys if (kept := self.artefacts.get("inversion", key)) is not None}
        missing = list({key: i for i, key in enumerate(keys) if key not in held}.values())
        if missing:
            made = invert(self.generator, images[missing], [subjects[i].prompt for i in missing], self.numbers)
            for j, i in enumerate(missing):
                tensors = {"latent": made.latent[j], "null": made.null[j], "null_losses": made.null_losses[:, :, j]}
                held[keys[i]] = self.artefacts.put("inversion", keys[i], tensors)
        for key, subject in zip(keys, subjects, strict=True):
            uri = self.artefacts.uri("inversion", key)
            row = {"artefact_id": key, "kind": "inversion", "uri": uri, "item_id": subject.item_id}
            self.found["artefacts"].append(row | {"prompt": subject.prompt})
        stacked = {name: torch.stack([held[key][name] for key in keys]) for name in ("latent", "null", "null_losses")}
        device = self.generator.device
        losses = stacked["null_losses"].permute(1, 2, 0)
        return Inversion(stacked["latent"].to(device), stacked["null"].to(device), losses)

    def _artefact_key(self, subject: Subject) -> str:
        """Everything that decides an inversion, and whether rounding was that of batches."""
        null = self.numbers.null_text
        decides = {"version": VERSION, "item": subject.item_id, "prompt": subject.prompt}
        decides |= {"null_text": None if null is None else [null.iterations, null.step_size]}
        decides |= {"refinements": self.numbers.refinements, "generator": self.models.generator_digest}
        decides |= {"steps": len(self.generator.levels()), "guidance_scale": self.generator.guidance_scale}
        decides |= {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {}
        return digest(decides)

    def _search(self, asked: list[tuple[Subject, str]], original: Original) -> None:
        """Counterfactuals of a batch, one for each item of `original`, and their rows."""
        objective = self._decision(asked)
        keys = [f"{self.context.job.seed}/uvce/{subject.item_id}/{target}" for subject, target in asked]
        steps: list[tuple[Tensor, Tensor | None]] = []

        def record(step: int, images: Tensor, losses: Tensor) -> None:
            steps.append((objective.scores(images), images if self.options.frames else None))

        began = time.monotonic()
        if self.options.space == "pixel":
            found, results, mask = None, self._in_pixels(original, objective, keys), original.mask
        else:
            becomes = [subject.word if self._keeps_prompt else spaced(target) for subject, target in asked]
            found = search(self.generator, original, becomes, objective, self.numbers, keys, record)
            results, mask = found.result.image, found.mask
        seconds = (time.monotonic() - began) / len(asked)
        variants = {"original": original.image, "autoencoder": original.autoencoded}
        variants |= {"reconstruction": original.reconstruction}
        variants |= {"edit": found.result.start} if found else {}
        measured = measurements.measured({**variants, "result": results}, original, mask, objective, self._features())
        for i, (subject, target) in enumerate(asked):
            row = _base(self.options, self.context, subject, target) | {"seconds": seconds}
            said = [measured[name][key][i] for name in ("original", "result") for key in ("p_source", "p_target")]
            if not all(p is not None and math.isfinite(p) for p in said) or (
                found is not None and not bool(found.result.finite[i])
            ):
                self.found["explanations"].append({**row, "status": "failed", "reason": "not_finite"})
                continue
            row |= self._pictured(i, original, results, mask, found) | self._scored(i, measured)
            row |= self._traced(i, found, steps, row) if found else {}
            self.found["explanations"].append({**row, "status": "ok"})
            alone = {"mask_area": float(proximity.mask_area(mask)[i])}
            alone |= {"injection": float(found.injection[i]), "blending": float(found.blending[i])} if found else {}
            named: list[_Named] = [(name, None, value) for name, value in alone.items()]
            named += [(name, key, values[i]) for key, of in measured.items() for name, values in of.items()]
            self._measure(row["explanation_id"], named)

    def _measure(self, explanation_id: str, named: Sequence[_Named]) -> None:
        """Rows of `measurements` of an explanation, from (name, key, value)."""
        self.found["measurements"] += [measurements.row(explanation_id, self.context.stage, *one) for one in named]

    def _features(self) -> measurements.Features | None:
        """Of the network of the perceptual distance."""
        if self.options.perceptual is None:
            return self.models.embedder.embed_images if self.models.embedder else None
        network = self.context.models.classifier(self.options.perceptual)
        layer = layer_of(network)
        return lambda images: activations(network, layer, images)[0]

    def _decision(self, asked: list[tuple[Subject, str]]) -> Decision:
        if self.options.attribute is None:
            return Decision(self.model, [subject.source for subject, _ in asked], [target for _, target in asked])
        prompts = [subject.prompt for subject, _ in asked]
        after = [edited(subject.prompt, subject.word, spaced(target)) for subject, target in asked]
        assert isinstance(self.model, Embedder)  # check_order refuses other models
        return AttributeDecision(self.model, prompts, after)

    def _in_pixels(self, original: Original, objective: Decision, keys: list[str]) -> Tensor:
        """Eq. 6 on the pixels themselves, with the same cutouts: what remains of the method without its generator."""
        settings, step = self.numbers.optimisation, itertools.count()

        def distance(x: Tensor) -> Tensor:
            return masked_distance(x, original.image, original.mask, self.numbers.weight_pixel)

        def augmented(x: Tensor) -> Tensor:
            k = next(step)
            draws = [generator_for(key, "cutouts", k) for key in keys]
            crops = cutouts(x, settings.cutout_size, settings.cutouts, settings.cutout_noise, draws)
            return objective(crops).mean(1) - distance(x)

        length = self.options.pixel_step * original.image[0].numel() ** 0.5
        return ascend(original.image, augmented, settings.steps, length, judge=lambda x: objective(x) - distance(x))

    def _fail(self, subject: Subject, reason: str, targets: list[str]) -> None:
        for target in targets:
            self.found["explanations"].append(
                _base(self.options, self.context, subject, target) | {"status": "failed", "reason": reason}
            )

    def _pictured(
        self, i: int, original: Original, results: Tensor, mask: Tensor, found: Found | None
    ) -> dict[str, Any]:
        """Columns with the ids of an item's images."""

        def keep(image: Tensor, kind: str) -> str:
            return self.pictures.add(to_uint8(image), kind)

        difference = proximity.difference_image(original.image[i : i + 1], results[i : i + 1])[0]
        columns = {
            "start_image_id": keep(original.image[i], "original"),
            "image_id": keep(results[i], "generated"),
            "reconstruction_image_id": keep(original.reconstruction[i], "reconstruction"),
            "mask_image_id": keep(mask[i].expand(3, -1, -1), "mask"),
            "difference_image_id": keep(difference, "difference"),
        }
        if original.attention is not None:
            columns["attention_image_id"] = keep(original.attention[i].expand(3, -1, -1), "attention")
        return columns | ({"edit_image_id": keep(found.result.start[i], "edit")} if found else {})

    def _scored(self, i: int, measured: dict[str, measurements.Measured]) -> dict[str, Any]:
        """Columns with what the model said before and after."""
        before, after = measured["original"], measured["result"]
        return {
            "score_before": before["p_target"][i],
            "score_after": after["p_target"][i],
            "source_before": before["p_source"][i],
            "source_after": after["p_source"][i],
            "flipped_before": bool(before["flipped"][i]),
            "flipped": bool(after["flipped"][i]),
        }

    def _traced(
        self, i: int, found: Found, steps: list[tuple[Tensor, Tensor | None]], base: dict[str, Any]
    ) -> dict[str, Any]:
        """Columns with what the optimisation did; its steps become rows of `traces`."""
        said = {"source_score": 0, "score": 1}
        columns: dict[str, list[Any]] = {
            name: [float(scores[i, column]) for scores, _ in steps] for name, column in said.items()
        }
        if self.options.frames:
            columns["image_id"] = [self.pictures.add(to_uint8(x[i]), "frame") for _, x in steps if x is not None]
        self.found["traces"] += trace(base["explanation_id"], found.result, i, **columns)
        return outcome(found.result, i)


def lost(options: Options, payload: Payload, reason: str, context: Context) -> Rows:
    """Rows of a given-up unit's images and targets."""
    asked = [(one, target) for item in payload["items"] for one in subjects_of(item, options) for target in one.targets]
    failed = {"status": "failed", "reason": reason}
    return {"explanations": [_base(options, context, *one) | failed for one in asked]}


def _base(options: Options, context: Context, subject: Subject, target: str) -> dict[str, Any]:
    """What a row of `explanations` says of a task before it ran."""
    decides = options.model_dump(mode="json", exclude=_UNIMPORTANT)
    key = {"options": decides, "version": VERSION, "stage": context.stage, "seed": context.job.seed}
    key |= {"item": subject.item_id, "source": subject.source, "target": target}
    return {
        "explanation_id": digest(key)[:32],
        "stage": context.stage,
        "method": "uvce",
        "item_id": subject.item_id,
        "prompt": subject.prompt,
        "source_class": subject.source,
        "target_class": target,
        "model_id": options.model,
    }


_Named = tuple[str, str | None, float | None]
_JUDGED = ("original", "reconstruction", "edit", "generated")
# What changes no number of a counterfactual.
_UNIMPORTANT = {"classes", "per_class", "items", "checkpoint", "frames", "unit_items", "worst_reconstruction"}
