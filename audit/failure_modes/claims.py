"""What every kind of failure mode shares: a claim, a name for it, and what real images say of it.

A claim is that a model calls images of something else a class. What is held against it is what another model says of
them, or the embedder as a zero-shot classifier, or their labels. Embeddings have norm 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from audit import discovery as d
from audit.check import Check, check_of
from audit.class_names import canonical
from audit.config import Frozen, Phrases, Template, digest
from audit.methods import Context
from audit.results.sql import Run
from audit.screened import matrix, names, naming_half

Mode = dict[str, Any]

EMBEDDER = "embedder"  # as a zero-shot classifier over the data set's classes
BEFALLEN = 0.95  # share of the images on which it happens whose classes are compared
ALIKE = 0.02  # difference in AUC within which names tell equally well
MOST_EVIDENCE = 1000  # real images that a mode names; the pictures of the first `exemplars` are kept with the run

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
        name = canonical(claim.class_name)
        return np.asarray(self.said[claim.model_id] == name), np.asarray(self.said[claim.other_model_id] == name)

    def wrong(self, claim: Claim) -> d.Bools:
        """Where the model says the class and what it is held against does not, (p,)."""
        first, other = self.says(claim)
        return first & ~other

    def halves(self) -> tuple[Real, Real]:
        """Those that propose, and those that are asked."""
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


def groups_of(claim: Claim, own: Searches, controls: d.Floats, material: Material, seeds: int) -> list[Group]:
    """Groups of searches that moved alike, each with its name and what real images say; controls: shifts (m, c).

    Those that moved like no others are a last group, if it has a sure name: from few different starts one and the same
    feature is reached in as many ways, and it is the real images near the results that tell which it is.
    seeds: of how many searches these are the ones that bear the claim out. Searches that explain images which are asked
    propose nothing: those images may have been chosen because of what the model says of them.
    """
    found, every, options = [], material.pool or material.data, material.options
    halves = None if every is None else every.halves()
    if halves is not None:
        asked_ids = set(halves[1].ids)
        own = own.part(np.array([row.get("item_id") not in asked_ids for row in own.rows], np.bool_))
    moved = d.shifts(own.starts, own.results, material.concepts)
    alike = d.groups(moved, options.group_distance, options.smallest_group)
    rest = np.setdiff1d(np.arange(len(moved)), np.concatenate(alike) if alike else [])
    for chosen in [*alike, *([rest] if len(rest) >= options.smallest_group else [])]:
        part, shift = own.part(chosen), moved[chosen]
        common: Mode = {"support": len(chosen), "seeds": seeds, "found_by": sorted({row["stage"] for row in part.rows})}
        order = d.typical_first(shift)
        common["exemplars"] = [part.rows[i]["explanation_id"] for i in order[: options.exemplars]]
        if halves is None:
            modes = [named(claim, shift, controls, options)]
        else:
            modes = evidence(claim, part, shift, controls, *halves, options)
        for mode in modes:
            if chosen is not rest or not (mode["reason"] or mode.get("unsure")):
                images = part.column("image_id").tolist()
                found.append(Group(common | mode, part.rows[0]["stage"], images, shift.mean(0)))
    return found


def material(options: Options, context: Context) -> Material:
    """Read the real images of a run once."""
    concepts = _concepts(options, context)
    check = check_of(context.models, None, options.prompt)
    pool, data = (_real(role, context, concepts, check) for role in ("pool", "data"))
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
    classes = [name.replace("_", " ") for name in context.models.data_classes]

    def embed(texts: list[str]) -> d.Floats:
        return np.asarray(embedder.embed_texts([options.prompt.format(text) for text in texts]), np.float64)

    directions = d.concept_directions(
        np.stack([embed([phrase.format(name) for name in classes]) for phrase in options.vocabulary]), embed(classes)
    )
    return np.concatenate([directions, -directions]).astype(np.float32)


def _real(role: str, context: Context, concepts: d.Floats, check: Check) -> Real | None:
    models = list(context.job.models)
    columns = "".join(f", p{i}.predicted as said{i}" for i in range(len(models)))
    joins = " ".join(
        f"join predictions p{i} on p{i}.item_id = subject_id and p{i}.role = a.role and p{i}.status = 'ok' "
        f"and p{i}.model_id = ?"
        for i in range(len(models))
    )
    labelled = "and p0.label is not null" if role == "data" else ""
    table = context.run.sql(
        f"select subject_id, values, coalesce(p0.label, '') as label{columns} from arrays a {joins} "
        f"where a.role = ? and name = 'embedding' and values is not null {labelled} order by subject_id",
        [*models, role],
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


def contrast(claim: Claim, near: d.Ints, real: Real, least: float) -> d.Floats | None:
    """How well each phrase tells those of some real images that are wrong from right ones, (2c,); None with too few,
    and where no AUC is as high as `least`.

    Right are the images of which the model says what is held against it; compared are images of one class, as far as
    that is known. For a phrase it is the AUC of its direction. For its negation it is that of not having what it says:
    by direction alone "not on water" would be what snow is most of all. Where several tell about as well, all but
    the one that most wrong ones have and right ones have not get `ALIKE` less: what is wrong anywhere but on water is
    all more like snow than water is, but not on snow.
    """
    wrong = np.zeros(len(real.ids), bool)
    wrong[near[real.wrong(claim)[near]]] = True
    right = real.said[claim.model_id] == real.said[claim.other_model_id]
    told = d.separation(real.along, wrong, right, real.seen)
    lacks = d.separation((real.along < real.halfway).astype(float), wrong, right, real.seen)
    if told is None or lacks is None:
        return None
    tells, has = np.concatenate([told, lacks]), np.concatenate([1 - lacks, lacks])
    if tells.max() < least:
        return None
    alike = tells > tells.max() - ALIKE
    return np.asarray(tells - ALIKE * (alike & (has < has[alike].max())))


def having(claim: Claim, concept: str, wrong: d.Ints, naming: Real, testing: Real, options: Options) -> d.Bools:
    """Which images of `testing` show a concept, (p,): from where on the wrong ones of `naming` part from right ones of
    their classes; of a negation those that do not have what it denies.
    """
    number = options.phrases.index(concept)
    if number >= len(options.vocabulary):
        number -= len(options.vocabulary)
        return testing.along[:, number] < naming.halfway[number]
    right = naming.said[claim.model_id] == naming.said[claim.other_model_id]
    right &= np.isin(naming.seen, list(set(naming.seen[wrong])))
    along = naming.along[:, number]
    return testing.along[:, number] >= d.cut(along[wrong], along[right] if right.any() else along)


def named(claim: Claim, group: d.Floats, controls: d.Floats, options: Options, told: d.Floats | None = None) -> Mode:
    """Name a group (n, c), and say how sure it is that it moved along its name, against the controls (m, c).

    Real images propose the name: the concept that best tells those near the group on which it happens (`told` (c,)).
    One test then asks whether the searches moved along it. Without such images the name is the phrase of the
    vocabulary along which they moved most surely, corrected for all that could have been. That something is not so,
    real images alone can say: a search need not move to keep clear of it.
    """
    effect, doubt = None, None
    sayable = len(options.phrases if told is not None else options.vocabulary)
    if len(controls) < options.smallest_control:
        best = int((group.mean(0)[:sayable] if told is None else told).argmax())
        needed = options.smallest_control
        doubt = f"only {len(controls)} searches for other classes to compare with, {needed} are needed"
    else:
        standard = d.against_controls(group, controls)
        p_values = d.shift_p_values(group, controls)
        if told is None:
            p_values = np.asarray(d.holm(p_values[:sayable].tolist()))
            best = min(range(sayable), key=lambda c: (p_values[c], -standard[:, c].mean()))
        else:
            best = int(told.argmax())
        effect = d.difference(standard[:, best], d.against_controls(controls, controls)[:, best])
        phrase = options.phrases[best]
        if p_values[best] >= options.name_level and told is None:
            doubt = f"no phrase of the vocabulary is surely above the controls: the best is {phrase!r}"
        elif p_values[best] >= options.name_level and best < len(options.vocabulary):
            doubt = f"the real images share {phrase!r}, along which the searches did not surely move"
    return described(claim, options.phrases[best]) | {
        "effect": effect.value if effect else None,
        "effect_low": effect.low if effect else None,
        "effect_high": effect.high if effect else None,
        "reason": doubt,
    }


def described(claim: Claim, concept: str) -> Mode:
    """The columns that say what a mode is."""
    what = (claim.source, claim.model_id, claim.other_model_id, claim.class_name, concept)
    return {
        "failure_mode_id": digest(list(what))[:16],
        **asdict(claim),
        "name": concept_name(concept),
        "concept": concept,
    }


def evidence(
    claim: Claim,
    searches: Searches,
    shift: d.Floats,
    controls: d.Floats,
    naming: Real,
    testing: Real,
    options: Options,
) -> list[Mode]:
    """The names of a group of searches, and what real images say of each: the columns of both.

    One half of the images proposes: which concept it is, by those nearest to what the searches made, and from where on
    an image has it. The other half is asked. Where it happens to too few near the searches to propose any, there is the
    name that the searches alone have, and beside it what all those to which it happens propose, if the searches moved
    along that.
    """
    near = d.nearest(naming.embeddings, searches.results, options.neighbours) if len(naming.ids) else np.zeros(0, int)
    wrong, told = np.flatnonzero(naming.wrong(claim)), contrast(claim, near, naming, options.name_auc)
    first = named(claim, shift, controls, options, told)
    names = [(first, np.intersect1d(near, wrong))]
    if told is None:
        first |= {"reason": None, "unsure": first["reason"]}  # real images can still be asked
        names = [(first, wrong)]
        told = contrast(claim, np.arange(len(naming.ids)), naming, options.name_auc)
        second = None if told is None else named(claim, shift, controls, options, told)
        if second and not second["reason"] and second["concept"] != first["concept"]:
            names.append((second, wrong))
    towards = searches.results.mean(0)
    return [mode | compared(claim, mode["concept"], of, towards, naming, testing, options) for mode, of in names]


def compared(
    claim: Claim, concept: str, wrong: d.Ints, towards: d.Floats, naming: Real, testing: Real, options: Options
) -> Mode:
    """What the images that are asked say of a concept that those of the other half propose which are `wrong`.

    That half says as well which classes it befalls: the fewest that make up `BEFALLEN` of all to which it happens and
    that have it. Only images of those are compared, as others dilute both rates alike. towards (d,): evidence goes by
    nearness to it.
    """
    if len(wrong) < 2:
        return {}
    proposed, shows = (having(claim, concept, wrong, naming, half, options) for half in (naming, testing))
    befallen = _most(naming.seen[proposed & naming.wrong(claim)])
    return asked(claim, shows, np.isin(testing.seen, befallen), testing.seen, towards, testing)


def asked(claim: Claim, shows: d.Bools, among: d.Bools, strata: d.Names, towards: d.Floats, real: Real) -> Mode:
    """What real images say of those that show something (p,), against others of the same strata (p,): the columns of
    that; without figures where nothing can be compared. among (p,): which are compared.

    Prevalence is the share of all that are compared and show it. `showing` names such images whether the model is wrong
    or right, but for those of the class itself where a label or the embedder tells.
    """
    wrong = real.wrong(claim)
    found = np.flatnonzero(shows & wrong)
    found = found[np.argsort(-(real.embeddings[found] @ towards), kind="stable")]
    told = {"evidence": real.ids[found[:MOST_EVIDENCE]].tolist()}
    facts = d.matched(wrong[among], shows[among], strata[among])
    if not facts.images:
        return told
    by_model = claim.other_model_id not in (None, EMBEDDER)
    blind = by_model and np.mean(real.seen[found] == canonical(claim.class_name)) > 0.5 if len(found) else False
    prevalence = facts.images / len(real.ids)
    excess = {"impact": facts.rate - facts.control_rate, "impact_low": facts.low, "impact_high": facts.high}
    known = shows & among if by_model else shows & among & ~real.says(claim)[1]
    return {
        **told,
        "at_fault": claim.other_model_id if blind else claim.model_id,
        "evidence_rate": facts.rate,
        "control_rate": facts.control_rate,
        "evidence_images": facts.images,
        "control_images": facts.control_images,
        "excess_low": facts.low,
        "excess_high": facts.high,
        "p_value": facts.p_value,
        "prevalence": prevalence,
        **{name: prevalence * value for name, value in excess.items()},
        "showing": sorted(real.ids[known])[:MOST_EVIDENCE],
    }


def _most(classes: d.Names) -> list[str]:
    """The most frequent of some names, as few as make up `BEFALLEN` of all."""
    chosen: list[str] = []
    counted, left = Counter(classes.tolist()), BEFALLEN * len(classes)
    for name, count in sorted(counted.items(), key=lambda each: (-each[1], each[0])):
        if left <= 0:
            break
        chosen.append(name)
        left -= count
    return chosen


def screened(claim: Claim, naming: Real, testing: Real, options: Options) -> list[Mode]:
    """What real images alone show: groups of those that are wrong, alike in embeddings.

    Groups, names and thresholds come from one half of the images, tests, impact and evidence from the other.
    """
    modes = []
    wrong = naming.wrong(claim)
    members = np.flatnonzero(wrong)[:2000]
    for group in d.groups(naming.embeddings[members], options.group_distance, options.smallest_group):
        chosen = members[group]
        told = contrast(claim, chosen, naming, options.name_auc)
        both = np.concatenate([naming.along, -naming.along], 1)
        mode = named(claim, both[chosen], both[~wrong], options, told)
        mode |= {"support": len(chosen)}
        towards = naming.embeddings[chosen].mean(0)
        modes.append(mode | compared(claim, mode["concept"], chosen, towards, naming, testing, options))
    return modes
