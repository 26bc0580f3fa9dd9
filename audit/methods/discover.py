"""Stage: failure modes from the searches, confirmed on the pool's real images; and the screen-only baseline.

A mode is `confirmed` only if the models disagree more often on the real images nearest to what the search made
than on those nearest to the search's own starts; else it is a `hypothesis`, and `reason` says why.

Of each mode of the search it is measured whether it is one of the other model only (DiG-IN Figs. 21, 22):
`holds_against` every third model, the share of the group's images on which that model does not say the class either;
and against every other model from which the same stage searched the same class with the same seeds, `alike`, the
cosine of the two groups' mean shifts, and whether they are `both_confirmed`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from audit import discovery as d
from audit.class_names import canonical
from audit.config import Frozen, Job, Phrases, Template, digest
from audit.decode import decode
from audit.errors import ConfigError
from audit.methods import Context, Counts, Payload
from audit.pictures import image_row
from audit.results.schema import Rows

NEEDS, ONCE = ("screen", "disagreement"), True
VERSION = 5

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
    level: float = Field(0.01, gt=0, lt=1, description="corrected p-value under which evidence confirms")
    excess: float = Field(0.1, ge=0, le=1, description="least excess disagreement that confirms")
    exemplars: int = Field(12, ge=1, description="exemplars, and pictures of real images, kept for a mode")


@dataclass(frozen=True)
class _Claim:
    """What a mode says: `model_id` calls images of something else the class, and `other_model_id` does not."""

    source: Literal["search", "screen"]
    model_id: str
    other_model_id: str
    class_name: str


@dataclass(frozen=True)
class _Pool:
    """The pool's images on which every model gave a prediction.

    Their ids, embeddings (p, d), places along the concepts (p, c), and predicted classes.
    """

    ids: list[str]
    embeddings: d.Floats
    along: d.Floats
    predicted: dict[str, NDArray[np.object_]]

    def disagree(self, claim: _Claim) -> d.Bools:
        """Where the first model says the class and the other does not, (p,)."""
        name = canonical(claim.class_name)
        first, other = self.predicted[claim.model_id], self.predicted[claim.other_model_id]
        return np.asarray((first == name) & (other != name), bool)

    def halves(self) -> tuple[_Pool, _Pool]:
        """Split by the images' hashes."""
        even = np.array([int(item_id[:8], 16) % 2 == 0 for item_id in self.ids])
        return self._part(np.flatnonzero(even)), self._part(np.flatnonzero(~even))

    def _part(self, chosen: d.Ints) -> _Pool:
        predicted = {model_id: said[chosen] for model_id, said in self.predicted.items()}
        return _Pool([self.ids[i] for i in chosen], self.embeddings[chosen], self.along[chosen], predicted)


@dataclass(frozen=True)
class _Searches:
    """All searches of one stage for one pair of models."""

    stage: str
    model_id: str
    other_model_id: str
    ids: list[str]
    classes: NDArray[np.object_]
    flipped: d.Bools
    flipped_before: d.Bools
    images: NDArray[np.object_]
    starts: d.Floats
    results: d.Floats


@dataclass(frozen=True)
class _Group:
    """The searches behind a mode: their stage, the ids of their results, and their mean shift (c,)."""

    mode: dict[str, Any]
    stage: str
    images: list[str]
    shift: d.Floats


def check(options: Options, job: Job) -> None:
    if job.embedder is None:
        raise ConfigError("discover needs an embedder; add to the job file: embedder: {loader: clip, ref: ...}")


def plan(options: Options, context: Context) -> list[Payload]:
    """One unit: it reads what all searches found."""
    searches = context.run.rows(
        "select distinct stage from explanations where other_model_id is not null order by stage"
    )
    return [{"searches": [row["stage"] for row in searches]}]


def expected(options: Options, counts: Counts) -> int:
    return 1


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: failure_modes of source 'search' and of source 'screen', measurements, images that are evidence."""
    if not context.models.data_classes:
        return {"failure_modes": []}
    concepts = _concepts(options, context)
    pool = _pool(context, concepts)
    groups: list[_Group] = []
    searches = context.run.rows(
        "select distinct stage, model_id, other_model_id from explanations "
        "where other_model_id is not null order by all"
    )
    for row in searches:
        ended = _searches(row, context)
        if ended is not None:
            groups += _groups(ended, concepts, pool, options)
    found = [group.mode for group in groups]
    if pool is not None:
        halves = pool.halves()
        for f, g in sorted({(row["model_id"], row["other_model_id"]) for row in searches}):
            for name in context.models.data_classes:
                found += _baseline(_Claim("screen", f, g, name), *halves, options)
    _judge(found, pool, options)
    modes = _merged(found)
    kept = [group for group in groups if any(group.mode is mode for mode in modes)]
    measured = [*_holds_against(kept, context), *_alike(kept, context)]
    return {"failure_modes": modes, "measurements": measured, "images": _evidence_images(modes, options, context)}


def _holds_against(groups: list[_Group], context: Context) -> list[dict[str, Any]]:
    """Of each group and each model that is not of its pair: on what share of the images it does not say the class."""
    wanted = sorted({image for group in groups for image in group.images})
    rows = context.run.rows(
        "select item_id, model_id, any_value(predicted) as predicted from predictions where role = 'generated' "
        "and status = 'ok' and item_id in (select unnest(?)) group by item_id, model_id",
        [wanted],
    )
    said = {(row["model_id"], row["item_id"]): canonical(row["predicted"]) for row in rows}
    measured = []
    for group, model_id in product(groups, context.job.models):
        if model_id in (group.mode["model_id"], group.mode["other_model_id"]):
            continue
        spoke = [said[model_id, image] for image in group.images if (model_id, image) in said]
        share = sum(name != canonical(group.mode["class_name"]) for name in spoke) / len(spoke) if spoke else None
        why = None if spoke else f"{model_id} says nothing of these images"
        measured.append(_measured(group, context, "holds_against", model_id, share, "share", why))
    return measured


def _alike(groups: list[_Group], context: Context) -> list[dict[str, Any]]:
    """Of each group and each other model that the same stage searched the class against: is the mode found there?"""
    searched = context.run.rows(
        "select distinct stage, model_id, other_model_id, target_class from explanations order by all"
    )
    by_place = {
        (g.stage, *(g.mode[k] for k in ("model_id", "class_name", "concept", "other_model_id"))): g for g in groups
    }
    measured = []
    for group, row in product(groups, searched):
        own, other = group.mode, row["other_model_id"]
        same = (group.stage, own["model_id"], own["class_name"]) == (row["stage"], row["model_id"], row["target_class"])
        if not same or other == own["other_model_id"]:
            continue
        twin = by_place.get((group.stage, own["model_id"], own["class_name"], own["concept"], other))
        cosine = None if twin is None else float(_unit(group.shift) @ _unit(twin.shift))
        why = None if twin else f"the searches against {other} made no group of this name"
        both = twin is not None and own["verdict"] == twin.mode["verdict"] == "confirmed"
        measured.append(_measured(group, context, "alike", other, cosine, "cosine", why))
        measured.append(_measured(group, context, "both_confirmed", other, float(both), "0 or 1", None))
    return measured


def _measured(
    group: _Group, context: Context, name: str, key: str, value: float | None, unit: str, reason: str | None
) -> dict[str, Any]:
    row = {"subject_id": group.mode["failure_mode_id"], "stage": context.stage, "name": name, "key": key}
    return {**row, "value": value, "unit": unit, "reason": reason}


def _evidence_images(modes: list[dict[str, Any]], options: Options, context: Context) -> list[dict[str, Any]]:
    """The first real images that modes name as evidence, so that a report needs nothing but the run."""
    wanted = sorted({item_id for mode in modes for item_id in mode.get("evidence", [])[: options.exemplars]})
    rows = context.run.rows(
        "select item_id, any_value(uri) as uri from items where role = 'pool' and item_id in "
        "(select unnest(?)) group by item_id order by item_id",
        [wanted],
    )
    contents = context.models.source("pool").read([row["uri"] for row in rows]) if rows else []
    images = []
    for row, data in zip(rows, contents, strict=True):
        if data is not None and hashlib.sha256(data).hexdigest() == row["item_id"]:
            images.append({**image_row(decode(data).image, "original"), "image_id": row["item_id"]})
    return images


def concept_name(phrase: str) -> str:
    """'{} on sand' is called 'on sand'."""
    return " ".join(phrase.replace("{}", " ").split())


def _concepts(options: Options, context: Context) -> d.Floats:
    embedder = context.models.embedder
    assert embedder is not None
    classes = [name.replace("_", " ") for name in context.models.data_classes]

    def embed(texts: list[str]) -> d.Floats:
        return np.asarray(embedder.embed_texts([options.prompt.format(text) for text in texts]), np.float64)

    return d.concept_directions(
        np.stack([embed([phrase.format(name) for name in classes]) for phrase in options.vocabulary]), embed(classes)
    )


def _pool(context: Context, concepts: d.Floats) -> _Pool | None:
    rows = context.run.rows(
        "select subject_id, values from arrays where role = 'pool' and name = 'embedding' and values is not null "
        "order by subject_id"
    )
    if not rows:
        return None
    by_model: dict[str, dict[str, str]] = {}
    for model_id in context.job.models:
        said = context.run.rows(
            "select item_id, predicted from predictions where role = 'pool' and model_id = ? and status = 'ok'",
            [model_id],
        )
        by_model[model_id] = {row["item_id"]: canonical(row["predicted"]) for row in said}
    rows = [row for row in rows if all(row["subject_id"] in said for said in by_model.values())]
    if not rows:
        return None
    ids = [row["subject_id"] for row in rows]
    embeddings = _unit(np.asarray([row["values"] for row in rows], np.float64))
    predicted = {model_id: np.array([said[i] for i in ids], object) for model_id, said in by_model.items()}
    return _Pool(ids, embeddings, embeddings @ concepts.T, predicted)


def _searches(of: dict[str, Any], context: Context) -> _Searches | None:
    """`of`: stage, model_id and other_model_id. None where no search ended."""
    rows = context.run.rows(
        "with e as (select subject_id, any_value(values) as values from arrays "
        "where role = 'generated' and name = 'embedding' and values is not null group by subject_id) "
        "select x.explanation_id, x.target_class, x.flipped, x.flipped_before, x.image_id, "
        "s.values as start, r.values as result "
        "from explanations x "
        "join e s on s.subject_id = x.start_image_id join e r on r.subject_id = x.image_id "
        "where x.status = 'ok' and x.stage = ? and x.model_id = ? and x.other_model_id = ? order by x.explanation_id",
        [of["stage"], of["model_id"], of["other_model_id"]],
    )
    if not rows:
        return None
    return _Searches(
        of["stage"],
        of["model_id"],
        of["other_model_id"],
        [row["explanation_id"] for row in rows],
        np.array([row["target_class"] for row in rows], object),
        np.array([row["flipped"] for row in rows], bool),
        np.array([row["flipped_before"] for row in rows], bool),
        np.array([row["image_id"] for row in rows], object),
        _unit(np.asarray([row["start"] for row in rows], np.float64)),
        _unit(np.asarray([row["result"] for row in rows], np.float64)),
    )


def _unit(x: d.Floats) -> d.Floats:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def _groups(searches: _Searches, concepts: d.Floats, pool: _Pool | None, options: Options) -> list[_Group]:
    """Groups of the successful searches of each class by their shifts; controls: the searches for other classes.

    A search on whose start the models disagree already joins no group: whatever it changed, that is not why. One
    that kept its start is no control either: it shows what no search did.
    """
    moved = d.shifts(searches.starts, searches.results, concepts)
    found = []
    for name in sorted(set(searches.classes)):
        claim = _Claim("search", searches.model_id, searches.other_model_id, name)
        own = searches.classes == name
        members = np.flatnonzero(own & searches.flipped & ~searches.flipped_before & moved.any(1))
        controls = moved[~own & moved.any(1)]
        for group in d.groups(moved[members], options.group_distance, options.smallest_group):
            chosen = members[group]
            results, starts = searches.results[chosen], searches.starts[chosen]
            told = _contrast(claim, results, pool, options) if pool else None
            mode = _named(claim, moved[chosen], controls, options, told)
            order = chosen[d.typical_first(moved[chosen])]
            mode |= {"support": len(chosen), "seeds": int(own.sum())}
            mode["exemplars"] = [searches.ids[i] for i in order[: options.exemplars]]
            if pool:
                mode |= _evidence(mode, claim, results, starts, pool, options)
            found.append(_Group(mode, searches.stage, searches.images[chosen].tolist(), moved[chosen].mean(0)))
    return found


def _contrast(claim: _Claim, results: d.Floats, pool: _Pool, options: Options) -> d.Floats | None:
    """What the real images near the results (n, d) on which the models disagree have and others lack, (c,).

    For each concept, AUC of telling them from the pool's images on which the models agree; all of them images that
    the other model does not call the class. None where there are too few.
    """
    disagrees = pool.disagree(claim)
    without = pool.predicted[claim.other_model_id] != canonical(claim.class_name)
    near = d.nearest(pool.embeddings, results, options.neighbours)
    return d.separation(pool.along[near[disagrees[near]]], pool.along[without & ~disagrees])


def _merged(modes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of groups with one name, the confirmed one, else the one with the most support, speaks for all."""
    best: dict[str, dict[str, Any]] = {}
    for mode in sorted(modes, key=lambda m: (m["verdict"] != "confirmed", -m["support"])):
        best.setdefault(mode["failure_mode_id"], mode)
    return list(best.values())


def _named(
    claim: _Claim, group: d.Floats, controls: d.Floats, options: Options, told: d.Floats | None = None
) -> dict[str, Any]:
    """Name a group (n, c), and say how sure it is that it moved along its name, against the controls (m, c).

    Real images propose the name: the concept that best tells those near the group on which the models disagree
    (`told` (c,)). One test then asks whether the searches moved along it. Without such images the name is the
    concept along which they moved most surely, corrected for all that could have been.
    """
    effect, doubt = None, None
    if len(controls) < options.smallest_control:
        best = int((group.mean(0) if told is None else told).argmax())
        needed = options.smallest_control
        doubt = f"only {len(controls)} searches for other classes to compare with, {needed} are needed"
    else:
        standard = d.against_controls(group, controls)
        p_values = d.shift_p_values(group, controls)
        if told is None:
            p_values = np.asarray(d.holm(p_values.tolist()))
            best = min(range(len(p_values)), key=lambda c: (p_values[c], -standard[:, c].mean()))
        else:
            best = int(told.argmax())
        effect = d.difference(standard[:, best], d.against_controls(controls, controls)[:, best])
        phrase = options.vocabulary[best]
        if p_values[best] >= options.name_level and told is None:
            doubt = f"no phrase of the vocabulary is surely above the controls: the best is {phrase!r}"
        elif p_values[best] >= options.name_level:
            doubt = f"the real images share {phrase!r}, along which the searches did not surely move"
    concept = options.vocabulary[best]
    return {
        "failure_mode_id": digest([*asdict(claim).values(), concept])[:16],
        "kind": "disagreement",
        **asdict(claim),
        "name": concept_name(concept),
        "concept": concept,
        "effect": effect.value if effect else None,
        "effect_low": effect.low if effect else None,
        "effect_high": effect.high if effect else None,
        "reason": doubt,
    }


def _evidence(
    mode: dict[str, Any], claim: _Claim, results: d.Floats, starts: d.Floats, pool: _Pool, options: Options
) -> dict[str, Any]:
    """What real images say of a named group of searches (n, d), (n, d)."""
    disagrees = pool.disagree(claim)
    facts = d.evidence(pool.embeddings, disagrees, results, starts, options.neighbours)
    columns: dict[str, Any] = {
        "evidence_rate": facts.rate,
        "control_rate": facts.control_rate,
        "evidence_images": facts.images,
        "control_images": facts.control_images,
        "p_value": facts.p_value,
        "evidence": [pool.ids[i] for i in facts.found[:MOST_EVIDENCE]],
    }
    if len(facts.found) < 2 or len(facts.control) < 2:
        return columns
    along = pool.along[:, options.vocabulary.index(mode["concept"])]
    if mode["reason"] is None and d.difference(along[facts.found], along[facts.control]).low <= 0:
        reason = "the real images on which the models disagree do not show it more than those near the starts"
        columns["reason"] = reason
    return columns | _impact_columns(along >= np.quantile(along[facts.found], 0.25), disagrees)


def _impact_columns(shows: d.Bools, disagrees: d.Bools) -> dict[str, Any]:
    """Prevalence: pool images at least as far along the concept as the upper three quarters of the evidence."""
    prevalence, effect = d.impact(shows, disagrees)
    return {"prevalence": prevalence, "impact": effect.value, "impact_low": effect.low, "impact_high": effect.high}


def _baseline(claim: _Claim, names: _Pool, tests: _Pool, options: Options) -> list[dict[str, Any]]:
    """What screening alone finds: groups of pool images on which the first model says the class and the other not.

    Groups, names and thresholds come from one half of the pool, tests and impact from the other.
    """
    modes = []
    disagrees, tested = names.disagree(claim), tests.disagree(claim)
    members = np.flatnonzero(disagrees)[:2000]
    for group in d.groups(names.embeddings[members], options.group_distance, options.smallest_group):
        chosen = members[group]
        mode = _named(claim, names.along[chosen], names.along[~disagrees], options)
        order = chosen[d.typical_first(names.embeddings[chosen])]
        mode |= {"support": len(chosen), "evidence": [names.ids[i] for i in order[:MOST_EVIDENCE]]}
        concept = options.vocabulary.index(mode["concept"])
        shows = tests.along[:, concept] >= np.quantile(names.along[chosen, concept], 0.25)
        inside, outside = tested[shows], tested[~shows]
        if len(inside) and len(outside):
            mode |= {"evidence_rate": float(inside.mean()), "evidence_images": len(inside)}
            mode |= {"control_rate": float(outside.mean()), "control_images": len(outside)}
            mode["p_value"] = d.fisher(inside, outside)
            mode |= _impact_columns(shows, tested)
        modes.append(mode)
    return modes


def _judge(modes: list[dict[str, Any]], pool: _Pool | None, options: Options) -> None:
    """Correct the p-values of all groups of the run together, and say which modes are confirmed."""
    tested = [mode for mode in modes if "p_value" in mode]
    for mode, corrected in zip(tested, d.holm([mode["p_value"] for mode in tested]), strict=True):
        mode["p_corrected"] = corrected
    for mode in modes:
        mode["reason"] = mode["reason"] if pool is not None else "no real images to confirm it on: no screened pool"
        mode["reason"] = mode["reason"] or _doubt(mode, options)
        mode["verdict"] = "hypothesis" if mode["reason"] else "confirmed"


def _doubt(mode: dict[str, Any], options: Options) -> str | None:
    """Why the evidence does not confirm a mode, or None."""
    if "p_corrected" not in mode:
        return "too few real images on either side to compare"
    if mode["p_corrected"] < options.level and mode["evidence_rate"] - mode["control_rate"] >= options.excess:
        if mode.get("impact_low", 1.0) > 0:
            return None
        return f"the name is not why: over the whole pool the models disagree no more on images that are {mode['name']}"
    other = "nearest to the starts" if mode["source"] == "search" else "that do not show it"
    return (
        f"real images do not show it: the models disagree on {mode['evidence_rate']:.0%} of {mode['evidence_images']}, "
        f"and on {mode['control_rate']:.0%} of those {other}"
    )
