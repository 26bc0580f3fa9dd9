"""What every kind of failure mode shares: a claim, a name for it, and what real images say of it.

A claim is that a model calls images of something else a class. What is held against it is what another model says of
them, or the embedder as a zero-shot classifier, or their labels. Embeddings have norm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from audit import discovery as d
from audit.check import Check, check_of
from audit.class_names import spaced
from audit.config import Frozen, Phrases, Template
from audit.methods import Context
from audit.results.sql import Run
from audit.screened import matrix, names, naming_half

Mode = dict[str, Any]

EMBEDDER = "embedder"  # as a zero-shot classifier over the data set's classes

VOCABULARY = (
    *(
        f"{{}} {place}"
        for place in ("on grass", "in water", "on sand", "in snow", "in the sky", "on a road", "in a forest")
    ),
    *(
        f"{{}} {place}"
        for place in ("indoors", "on a table", "on a wooden surface", "against a white background", "in a city")
    ),
    *(f"{colour} {{}}" for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")),
    *(f"{colour} {{}}" for colour in ("black", "white", "grey", "colourful", "shiny", "transparent")),
    *(
        f"{look} {{}}"
        for look in ("striped", "dotted", "furry", "metal", "wooden", "small", "large", "blurry", "cartoon")
    ),
    *(f"{{}} with {thing}" for thing in ("a person", "a hand", "text", "a logo", "a dog", "a cat", "trees", "flowers")),
)


class Options(Frozen):
    vocabulary: Phrases = Field(
        VOCABULARY, description="phrases with {} for the class name, among which modes are named"
    )
    prompt: Template = Field("a photograph of a {}", description="{} is a phrase of the vocabulary or a class name")
    smallest_group: int = Field(3, ge=2, description="searches (or images) that make a group")
    group_distance: float = Field(0.7, gt=0, le=2, description="average cosine distance of the shifts within a group")
    smallest_control: int = Field(6, ge=2, description="searches for other classes that a pair needs for names")
    images: int = Field(
        1_000_000, ge=2, description="real images of a role that are asked at most; of more, the first by their hashes"
    )
    neighbours: int = Field(20, ge=1, description="nearest real images of one search, in the evidence")
    name_level: float = Field(0.05, gt=0, lt=1, description="p-value under which a group moved along its name")
    name_auc: float = Field(0.8, ge=0.5, le=1, description="least AUC of a name that real images propose")
    level: float = Field(0.01, gt=0, lt=1, description="corrected p-value under which evidence confirms")
    excess: float = Field(0.05, ge=0, le=1, description="least excess disagreement that confirms")
    exemplars: int = Field(12, ge=1, description="exemplars, and pictures of real images, kept for a mode")

    @property
    def phrases(self) -> tuple[str, ...]:
        """What a mode can be named: the vocabulary, and that something is not so."""
        return (*self.vocabulary, *(negated(phrase) for phrase in self.vocabulary))


@dataclass(frozen=True)
class Claim:
    """`model_id` calls images of something else the class.

    other_model_id: whose answer is held against it: a model's, EMBEDDER's or, where it is None, the label.
    source: search (optimised images), labels (labelled images), or screen (the pool alone, without searches).
    """

    kind: Literal["disagreement", "confusion", "neuron", "flip"]
    source: Literal["search", "labels", "screen"]
    model_id: str
    other_model_id: str | None
    class_name: str


@dataclass(frozen=True)
class Real:
    """The real images of one role on which every model gave a prediction.

    Their ids, embeddings (p, d), places along the phrases of the vocabulary (p, c) and the place `halfway` (c,) from
    which on an image has what a phrase says, and class names: `said` by each model and by EMBEDDER, and under None the
    labels. Where there are labels, they stand for EMBEDDER too: a model that is right is not wrong for its mistake.
    """

    ids: d.Names
    embeddings: d.Floats
    along: d.Floats
    halfway: d.Floats
    said: dict[str | None, d.Names]

    @property
    def seen(self) -> d.Names:
        """What is on the images, as far as is known: their labels, else what the embedder sees.

        Rates are compared within these classes, not within what a model of the pair says: which of the two is wrong is
        not known, and among images of which the wrong one says the same there may be none to compare with.
        """
        return self.said.get(None, self.said[EMBEDDER])

    def says(self, claim: Claim) -> tuple[d.Bools, d.Bools]:
        """Where the model says the class, and where what it is held against does, (p,) each."""
        name = claim.class_name
        return np.asarray(self.said[claim.model_id] == name), np.asarray(self.said[claim.other_model_id] == name)

    def wrong(self, claim: Claim) -> d.Bools:
        """Where the model says the class and what it is held against does not, (p,)."""
        first, other = self.says(claim)
        return first & ~other

    def halves(self) -> tuple[Real, Real]:
        """Those that propose, and those that are asked; the same two each time."""
        return self._halves

    @cached_property
    def _halves(self) -> tuple[Real, Real]:
        naming = naming_half(self.ids)
        return self.part(np.flatnonzero(naming)), self.part(np.flatnonzero(~naming))

    def part(self, chosen: d.Ints) -> Real:
        """The images at these places."""
        said = {model_id: words[chosen] for model_id, words in self.said.items()}
        return Real(self.ids[chosen], self.embeddings[chosen], self.along[chosen], self.halfway, said)


@dataclass(frozen=True)
class Material:
    """What failure modes are made from: a run with its models and classes, possible names, and real images.

    concepts: unit directions (2c, d) of `options.phrases`. check: EMBEDDER's classes. pool and data: None where no
    image of that role has an embedding and a prediction of every model; of the data, images with a label.
    """

    options: Options
    run: Run
    models: tuple[str, ...]
    classes: tuple[str, ...]
    concepts: d.Floats
    check: Check
    pool: Real | None
    data: Real | None

    def screenings(self) -> list[str]:
        """Stages that screened images, which is what found a mode that no search found."""
        rows = self.run.rows("select distinct stage from units where stage like '%-screen' order by stage")
        return [row["stage"] for row in rows]


@dataclass(frozen=True)
class Group:
    """A mode, and the searches behind it: their stage, the ids of their results, and their mean shift (c,)."""

    mode: Mode
    stage: str = ""
    images: list[str] = field(default_factory=list)
    shift: d.Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Searches:
    """Searches that ended: their rows of `explanations`, and where they began and ended, in embeddings (n, d)."""

    rows: list[dict[str, Any]]
    starts: d.Floats
    results: d.Floats

    def column(self, name: str) -> d.Names:
        return np.array([row[name] for row in self.rows], object)

    def part(self, chosen: d.Ints | d.Bools) -> Searches:
        numbers = np.arange(len(self.rows))[chosen]
        return Searches([self.rows[i] for i in numbers], self.starts[numbers], self.results[numbers])

    def turned(self) -> Searches:
        """From the results back to the starts."""
        return Searches(self.rows, self.results, self.starts)


def material(options: Options, context: Context) -> Material:
    """Read the real images of a run once."""
    concepts = _concepts(options, context)
    check = check_of(context.models, None, options.prompt)
    pool, data = (_real(role, options.images, context, concepts, check) for role in ("pool", "data"))
    classes = tuple(context.models.data_classes)
    return Material(options, context.run, tuple(context.job.models), classes, concepts, check, pool, data)


def ended(run: Run, where: str, parameters: list[Any]) -> Searches | None:
    """Searches that ended and are as the SQL condition says, in the order of their ids; None where there are none."""
    table = run.sql(
        "with e as (select subject_id, any_value(values) as values from arrays "
        "where name = 'embedding' and values is not null group by subject_id) "
        "select x.*, s.values as start, r.values as result from explanations x "
        "join e s on s.subject_id = x.start_image_id join e r on r.subject_id = x.image_id "
        f"where x.status = 'ok' and {where} order by x.explanation_id",
        parameters,
    )
    if not len(table):
        return None
    starts, results = (unit(matrix(table[name])) for name in ("start", "result"))
    return Searches(table.drop_columns(["start", "result"]).to_pylist(), starts, results)


def _concepts(options: Options, context: Context) -> d.Floats:
    embedder = context.models.embedder
    assert embedder is not None
    classes = [spaced(name) for name in context.models.data_classes]

    def embed(texts: list[str]) -> d.Floats:
        return np.asarray(embedder.embed_texts([options.prompt.format(text) for text in texts]), np.float64)

    directions = d.concept_directions(
        np.stack([embed([phrase.format(name) for name in classes]) for phrase in options.vocabulary]), embed(classes)
    )
    return np.concatenate([directions, -directions]).astype(np.float32)


def _real(role: str, most: int, context: Context, concepts: d.Floats, check: Check) -> Real | None:
    """The real images of a role; of more than `most` the first by their ids, which are hashes: a fair sample.

    Of the data set, images with a label that every model has a class for: of others none of its answers is an error.
    """
    models = list(context.job.models)
    columns = "".join(f", p{i}.predicted as said{i}" for i in range(len(models)))
    joins = " ".join(
        f"join predictions p{i} on p{i}.item_id = subject_id and p{i}.role = a.role and p{i}.status = 'ok' "
        f"and p{i}.model_id = ?"
        for i in range(len(models))
    )
    scored = "".join(f" and p{i}.correct is not null" for i in range(len(models))) if role == "data" else ""
    table = context.run.sql(
        f"select subject_id, values, coalesce(p0.label, '') as label{columns} from arrays a {joins} "
        f"where a.role = ? and name = 'embedding' and values is not null{scored} order by subject_id "
        "limit ?",
        [*models, role, most],
    )
    if len(table) < 2:
        return None
    embeddings = unit(matrix(table["values"]))
    assert callable(check.of_real)
    said: dict[str | None, d.Names] = {model: names(table[f"said{i}"]) for i, model in enumerate(models)}
    said[EMBEDDER] = check.of_real(embeddings.astype(np.float32))
    if role == "data":
        said[None] = said[EMBEDDER] = names(table["label"])
    along = embeddings @ concepts[: len(concepts) // 2].T
    return Real(np.array(table["subject_id"].to_pylist(), object), embeddings, along, d.halves(along), said)


def place_of(mode: Mode) -> tuple[str, ...]:
    """What a mode says, whatever it was found against."""
    return str(mode["model_id"]), str(mode["class_name"]), str(mode["concept"])


def unit(x: d.Floats) -> d.Floats:
    """Rows (n, d) with norm 1."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def negated(phrase: str) -> str:
    """'{} on sand' becomes '{} not on sand', 'red {}' 'not red {}'."""
    before, after = phrase.split("{}")
    return f"not {phrase}" if before.strip() else f"{{}} not {after.strip()}"


def concept_name(phrase: str) -> str:
    """'{} on sand' is called 'on sand'."""
    return " ".join(phrase.replace("{}", " ").split())
