"""The checks of `audit validate`: the listing and some images of the data, and one image through every model of a
job."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.classifiers import Classifier, Embedder
from audit.config import Job, load_job
from audit.datasets import Entry, warnings_of
from audit.decode import decode
from audit.errors import AuditError, BadItem, DataError, ModelError
from audit.labels.matching import classes_of
from audit.methods import check_classes, check_order, stage_names
from audit.models import Models, can_predict, digests, folder_of, open_source
from audit.models.doubts import warnings_of_models
from audit.models.prediction_rows import Place
from audit.predictions import TOP, to_tensor
from audit.reference import LOAD_ERRORS
from audit.results.warnings import RunWarning
from pipelines.plan import run_place, why_not_resumed
from pipelines.validation_text import mapping

FIRST = 200  # images at the beginning of a listing that are tried before a data set counts as unreadable
SPREAD = 12  # images over the whole listing that are read
SAME = 0.01  # difference of probabilities of one image, asked alone and in a batch

# Exceptions that a user's model may raise in its forward pass.
RAISED = (ImportError, NameError, AttributeError, TypeError, LookupError, ArithmeticError, AssertionError, *LOAD_ERRORS)
SAME_AS = {"no_labels": {"no_label", "no_label_column"}}  # warnings of a source that say the same, and more

Tell = Callable[[str], None]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class SourceCheck:
    """The listing of a role, and some of its images.

    `images`: number of listed images; None if the listing was cut. `classes`: number of images by label. `read`: number
    of images that were read. `refused`: how many of them cannot be used, by reason. `sides`: shorter sides of the
    others, in pixels.
    """

    role: str
    images: int | None
    unlabelled: int
    classes: dict[str, int]
    read: int
    refused: dict[str, int]
    sides: tuple[int, ...]


@dataclass(frozen=True)
class Input:
    """An image as it enters a model: height and width in pixels, and the preprocessed values."""

    height: int
    width: int
    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class ModelCheck:
    """A model, and its prediction for one image. `outputs`: the class of every output. `top`: the most probable
    classes.

    `named_by_data`: whether the names are those of the data set, in its order, not the model's own. `renamed`: labels
    that the model spells differently, with the model's name and the rule that matched the two.
    """

    model_id: str
    loader: str
    ref: str
    seconds: float
    outputs: tuple[str, ...]
    named_by_data: bool
    renamed: tuple[tuple[str, str, str], ...]
    image: str
    label: str | None
    entered: Input
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class PartCheck:
    """A generator or captioner with its result for one image, or a table of predictions with its content, as text."""

    part: str
    loader: str
    ref: str
    seconds: float
    made: str


@dataclass(frozen=True)
class Validation:
    """All results. `notes`: what prevents a run on this machine, although the job is valid."""

    job: Job
    sources: tuple[SourceCheck, ...]
    models: tuple[ModelCheck, ...]
    parts: tuple[PartCheck, ...]
    warnings: tuple[RunWarning, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "job": self.job.name,
            "models": list(self.job.models),
            "stages": stage_names(self.job),
            "data": [asdict(source) for source in self.sources],
            "loaded": [asdict(model) for model in self.models],
            "parts": [asdict(part) for part in self.parts],
            "warnings": [warning.as_dict() for warning in self.warnings],
            "notes": list(self.notes),
        }


@dataclass
class _Listing:
    """The listing of a role, read once. Keeps a few entries and, if `root` is given, the place of every entry."""

    role: str
    whole: bool
    root: str | None = None
    count: int = 0
    labels: Counter[str | None] = field(default_factory=Counter)
    first: list[Entry] = field(default_factory=list)
    spread: list[Entry] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def walk(self, entries: Iterator[Entry]) -> None:
        """Keep the first entries, and a random sample of all entries that is the same at every call."""
        chance = random.Random(0)
        for entry in entries if self.whole else islice(entries, FIRST):
            self.count += 1
            self.labels[entry.label] += 1
            if self.root is not None:
                uri, name, label = entry.uri, entry.display_name, entry.label
                self.places.append(Place(self.role, uri, uri, name, self.root, entry.reason is None, label))
            if len(self.first) < FIRST:
                self.first.append(entry)
            if len(self.spread) < SPREAD:
                self.spread.append(entry)
            elif (place := chance.randrange(self.count)) < SPREAD:
                self.spread[place] = entry


def validate(job_file: Path, tell: Tell = lambda _: None) -> Validation:
    """Check a job file as far as possible without running it: keys, options, weights, the data's listing, some of its
    images, and one of them through every model.

    tell: called with progress messages. Raises ConfigError, DataError or ModelError as a run would.
    """
    job = load_job(job_file)
    check_order(job)
    tell("reading the weights' digests")
    found = digests(job)
    listings, sources, seen = [], [], []
    warnings: list[RunWarning] = []
    for role in ("data", "pool") if job.pool else ("data",):
        tell(f"listing the {role}")
        source = open_source(job, role)
        stored = role == "data" and not all(map(can_predict, job.models.values()))
        listing = _Listing(role, role == "data", folder_of(job, role) if stored else None)
        listing.walk(source.entries())
        listings.append(listing)
        warnings += warnings_of(source, role)
        checked, images = _looked_at(listing, source)
        sources.append(checked)
        seen += images
    labels = (label for label in listings[0].labels if label is not None)
    classes = classes_of(labels, open_source(job, "data").classes())
    check_classes(job, classes.labels)
    entry, image = next(((e, i) for e, i in seen if e.label is not None), seen[0])
    models = Models(job, classes, _device(job))
    checks, more = _models(models, entry, image, sources[0].sides, tell)
    stored_parts, doubts = _stored(models, listings[0].places, tell)
    parts = [*stored_parts, *_parts(models, entry, image, tell)]
    codes = {warning.code for warning in warnings}
    warnings += [warning for warning in _about_sources(job, sources) if not codes & SAME_AS.get(warning.code, set())]
    warnings += [*more, *doubts]
    warnings += models.generator.warnings if job.generator else ()
    notes = [*_about_machine(job), *why_not_resumed(job, run_place(job, Path.cwd()), found)]
    return Validation(job, tuple(sources), tuple(checks), tuple(parts), tuple(warnings), tuple(notes))


def _device(job: Job) -> str:
    return "cuda" if job.compute.gpus and torch.cuda.is_available() else "cpu"


def _looked_at(listing: _Listing, source: Any) -> tuple[SourceCheck, list[tuple[Entry, Image]]]:
    """Read and decode a few images. Raises DataError if none of them can be used."""
    images: list[tuple[Entry, Image]] = []
    refused: dict[str, str] = {}
    tried = 0
    spread = list(dict.fromkeys([*listing.first[:1], *listing.spread]))
    for batch in (spread, [entry for entry in listing.first if entry not in spread]):
        if images:
            break
        tried += len(batch)
        for entry, found in zip(batch, _decoded(source, batch), strict=True):
            if isinstance(found, str):
                refused[entry.display_name] = found
            else:
                images.append((entry, found))
    reasons = Counter(refused.values())
    if not images:
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        example = next(iter(refused))
        raise DataError(
            f"none of {tried} tested images of the {listing.role} can be used: {told}; for example {example!r}"
        )
    sides = tuple(min(image.shape[:2]) for _, image in images)
    labels = {name: count for name, count in listing.labels.items() if name is not None}
    count = listing.count if listing.whole or listing.count < FIRST else None
    checked = SourceCheck(listing.role, count, listing.labels[None], labels, tried, dict(reasons), sides)
    return checked, images


def _decoded(source: Any, entries: Sequence[Entry]) -> Iterator[Image | str]:
    """Each entry's image, or the reason why it cannot be used."""
    readable = [entry.uri for entry in entries if entry.reason is None]
    contents = iter(source.read(readable))
    for entry in entries:
        data = next(contents) if entry.reason is None else None
        try:
            yield entry.reason or "unreadable" if data is None else decode(data).image
        except BadItem as error:
            yield error.reason


def _models(
    models: Models, entry: Entry, image: Image, sides: Sequence[int], tell: Tell
) -> tuple[list[ModelCheck], list[RunWarning]]:
    """Load every model and the embedder, one after another, and show each the image."""
    checks: list[ModelCheck] = []
    warnings: list[RunWarning] = []
    job = models.job
    for model_id in [*job.models, *(["embedder"] if job.embedder else [])]:
        plugin = job.models.get(model_id) or job.embedder
        assert plugin is not None
        if not can_predict(plugin):
            continue
        ref = str(getattr(plugin.options, "ref", ""))
        tell(f"loading {model_id} ({plugin.name}) and showing it an image")
        began = time.monotonic()
        loaded = models.classifier(model_id) if model_id in job.models else models.embedder
        assert loaded is not None
        with _named(f"{model_id} ({ref})", entry):
            batch = to_tensor(image)[None].to(models.device)
            entered, alone = _entered(loaded, batch), _probabilities(loaded, batch)
            together = _probabilities(loaded, torch.cat([batch, batch]))
        names = getattr(plugin.options, "class_names", None)
        by_data = names == "data" or (names is None and isinstance(loaded, Embedder))
        top = alone[0].topk(min(TOP, alone.shape[1]))
        checks.append(
            ModelCheck(
                model_id=model_id,
                loader=plugin.name,
                ref=ref,
                seconds=time.monotonic() - began,
                outputs=loaded.class_names,
                named_by_data=by_data,
                renamed=tuple(models.matching(model_id).other_spellings()) if model_id in job.models else (),
                image=entry.display_name,
                label=entry.label,
                entered=entered,
                top=tuple(zip([loaded.class_names[i] for i in top.indices], top.values.tolist(), strict=True)),
            )
        )
        if all(warning.code != "unstable_output" for warning in loaded.warnings):  # which says the same
            warnings += filter(None, [_unstable(model_id, alone, together)])
    return checks, [*warnings, *warnings_of_models(models, sides)]


def _stored(models: Models, places: Sequence[Place], tell: Tell) -> tuple[list[PartCheck], list[RunWarning]]:
    """Load the models with stored predictions only, and match their rows with the images of the data."""
    tell("reading files of predictions")
    began = time.monotonic()
    checks, warnings = [], []
    for model_id, loaded in models.stored():
        made = f"predictions of {len(loaded.keys):,} images; outputs {mapping(loaded.class_names)}"
        warnings += loaded.before_a_run(model_id, places, pool=models.job.pool is not None)
        plugin = models.job.models[model_id]
        checks.append(PartCheck(model_id, plugin.name, loaded.source, time.monotonic() - began, made))
    return checks, warnings


def _entered(model: Classifier, batch: Tensor) -> Input:
    x = model.preprocess(batch).float()
    return Input(x.shape[-2], x.shape[-1], x.mean().item(), x.min().item(), x.max().item())


@torch.no_grad()
def _probabilities(model: Classifier, batch: Tensor) -> Tensor:
    """(b, classes). Raises ModelError for another shape, and for NaN or infinity."""
    logits = model.logits(batch).cpu().double()
    wanted = (len(batch), len(model.class_names))
    if tuple(logits.shape) != wanted:
        raise ModelError(f"returns shape {tuple(logits.shape)} for {len(batch)} images, expected {wanted}")
    if not logits.isfinite().all():
        raise ModelError("returns NaN or infinity")
    return logits.softmax(-1)


def _unstable(model_id: str, alone: Tensor, together: Tensor) -> RunWarning | None:
    """A warning if the probabilities of an image change from call to call, or with its batch."""
    most = float((together - alone).abs().max())
    if most <= SAME:
        return None
    message = (
        f"{model_id}: the probabilities of one image alone and in a batch of two differ by {most:.2g}; "
        "the model draws random numbers or mixes the images of a batch: make its forward pass deterministic"
    )
    return RunWarning("answers_differ", message, model_id, blocks_gate=False)


def _parts(models: Models, entry: Entry, image: Image, tell: Tell) -> Iterator[PartCheck]:
    """Load generator and captioner, and run them on the image."""
    job = models.job
    for part, plugin, work in (
        ("generator", job.generator, _through_generator),
        ("captioner", job.captioner, _through_captioner),
    ):
        if plugin is None:
            continue
        ref = str(getattr(plugin.options, "ref", ""))
        tell(f"loading the {part} ({plugin.name}) and showing it an image")
        began = time.monotonic()
        loaded = getattr(models, part)
        with _named(f"{part} ({ref})", entry), torch.no_grad():
            made = work(loaded, to_tensor(image)[None].to(models.device), entry.label or "thing")
        yield PartCheck(part, plugin.name, ref, time.monotonic() - began, made)


def _through_generator(generator: Any, batch: Tensor, name: str) -> str:
    """One image encoded and decoded, and one step of its U-Net under a prompt."""
    height, width = generator.image_size
    x = torch.nn.functional.interpolate(batch, (height, width), mode="bilinear", antialias=True)
    z = generator.encode(x.to(generator.device))
    back = generator.decode(z)
    level = generator.levels()[0]
    noise = generator.eps(z, level.t, generator.embed([f"a photograph of a {name}"]))
    if not (back.isfinite().all() and noise.isfinite().all()):
        raise ModelError("returns NaN or infinity")
    far = float((back.clamp(0, 1).cpu() - x.cpu()).abs().mean())
    return f"{width} x {height}, encoded and decoded with a mean difference of {far:.3f}, one step of the U-Net"


def _through_captioner(captioner: Any, batch: Tensor, name: str) -> str:
    return str(captioner(batch[0], f"a photograph of a {name}"))


@contextmanager
def _named(what: str, entry: Entry) -> Iterator[None]:
    """Convert every error of a model to a ModelError that names the model and the image."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{what}, shown the image {entry.display_name!r}: {error}") from error
    except AuditError:
        raise
    except RAISED as error:
        raise ModelError(
            f"{what} fails on the image {entry.display_name!r}: {type(error).__name__}: {error}"
        ) from error


def _about_sources(job: Job, sources: Sequence[SourceCheck]) -> Iterator[RunWarning]:
    for source in sources:
        if source.refused:
            told = ", ".join(f"{reason} ({count})" for reason, count in Counter(source.refused).most_common(3))
            message = f"{source.role}: of {source.read} tested images, some cannot be used: {told}"
            yield RunWarning(
                "unusable_images", message, None, source.role, sum(source.refused.values()), blocks_gate=False
            )
        if source.role == "data" and not source.classes:
            message = (
                f"data: none of {source.images:,} images has a label, so accuracy, errors and classes are unknown; "
                f"the options of the source {job.data.name!r} set where labels are read from"
            )
            yield RunWarning("no_labels", message, None, "data", source.images, blocks_gate=False)


def _about_machine(job: Job) -> Iterator[str]:
    there = torch.cuda.device_count()
    if job.compute.gpus > there:
        yield (
            f"compute.gpus is {job.compute.gpus}, but this machine has {there}: run the job on a cluster that has "
            "as many, or set gpus: 0"
        )
