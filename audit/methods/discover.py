"""Stage: failure modes of every kind, confirmed on real images; and what screening alone finds.

A mode is `confirmed` only if the model is wrong on real images that show what it is named after, and more often than
on others of the same classes (of a label: than on all others); else it is a `hypothesis`, and `reason` says why. The
images that are asked are not those that proposed the name. The kinds are files of `audit/failure_modes`.

What screening alone finds, without any search, is the baseline that searches are held against, and is kept whole for
that. What of it is confirmed is a failure mode like any other: `listed`, unless a search says the same.

Of each mode between two models it is measured whether it is one of the other model only (DiG-IN Figs. 21, 22):
`holds_against` every third model, the share of the group's images on which that model does not say the class either;
and against every other model from which the same stage searched the same class with the same seeds, `alike`, the
cosine of the two groups' mean shifts, and whether they are `both_confirmed`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from audit import discovery as d
from audit import sentences
from audit.config import Job
from audit.errors import ConfigError
from audit.failure_modes import confusions, disagreements, flips, spurious_neurons
from audit.failure_modes.claims import Group, Material, Mode, Options, material, place_of, unit
from audit.failure_modes.ends import join_ends
from audit.failure_modes.evidence import MOST_EVIDENCE
from audit.methods import Context, Counts, Payload
from audit.results.schema import Rows
from audit.screened import originals

__all__ = ["Options", "check", "expected", "found_in", "plan", "run"]

NEEDS, READS, ONCE = ("screen",), ("disagreement", "neuron", "uvce"), True
VERSION = 12


def check(options: Options, job: Job) -> None:
    if job.embedder is None:
        raise ConfigError("discover needs an embedder; add to the job file: embedder: {loader: clip, ref: ...}")


def plan(options: Options, context: Context) -> list[Payload]:
    """One unit: it reads what all searches found."""
    stages = context.run.rows("select distinct stage from explanations order by stage")
    return [{"searches": [row["stage"] for row in stages]}]


def expected(options: Options, counts: Counts) -> int:
    return 1


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: failure_modes, compared_images, measurements, images that are evidence."""
    if not context.models.data_classes:
        return {"failure_modes": []}
    groups, modes = found_in(material(options, context))
    kept = [g for g in groups if g.mode["kind"] == "disagreement" and any(g.mode is mode for mode in modes)]
    measured = [*_holds_against(kept, context), *_alike(kept, groups, context)]
    pictures = _pictures(modes, options, context)
    return {"failure_modes": modes, "compared_images": _compared(modes), "measurements": measured, "images": pictures}


def _compared(modes: list[Mode]) -> list[dict[str, Any]]:
    """Rows of `compared_images`, of those that are confirmed; they leave the modes."""
    compared = [(mode, mode.pop("compared", None)) for mode in modes]
    return [
        {"failure_mode_id": mode["failure_mode_id"], **images}
        for mode, images in compared
        if images is not None and mode["verdict"] == "confirmed"
    ]


def found_in(made: Material) -> tuple[list[Group], list[Mode]]:
    """All groups of searches and images, and the failure modes that they make, judged together."""
    groups = [group for kind in (disagreements, spurious_neurons, flips, confusions) for group in kind.find(made)]
    modes = [group.mode for group in groups] + disagreements.screened_alone(made)
    _judge(modes, made.pool is not None or made.data is not None, made.options)
    modes = _listed(_merged(modes, made.options), made.options)
    _tell_apart(modes, made.options)
    join_ends(modes)
    for mode in modes:
        mode.pop("asked", None)
    return groups, modes


def _judge(modes: list[Mode], real: bool, options: Options) -> None:
    """Correct the p-values of all groups of the run together; say which modes are confirmed, and why others are not."""
    tested = [mode for mode in modes if "p_value" in mode]
    for mode, corrected in zip(tested, d.holm([mode["p_value"] for mode in tested]), strict=True):
        mode["p_corrected"] = corrected
    for mode in modes:
        doubt = _doubt(mode, real, options, len(tested))
        unsure = mode.pop("unsure", None)
        if doubt and unsure:
            doubt = unsure, "more searches, for this class and for others, until its name is sure"
        mode["verdict"] = "hypothesis" if doubt else "confirmed"
        mode["reason"], mode["to_confirm"] = doubt or (None, None)


def _doubt(mode: Mode, real: bool, options: Options, tests: int) -> tuple[str, str] | None:
    """Why a mode is not confirmed, and what it would take; None where it is."""
    if not real:
        return "no real images to confirm it on: none were screened", "a pool of real images, and the stage 'screen'"
    if mode["reason"]:
        return mode["reason"], "more searches, for this class and for others, until its name is sure"
    if "p_corrected" not in mode:
        lacking = f"real images that are {mode['name']} and not {mode['class_name']}"
        return f"too few real images are wrongly called {mode['class_name']} to compare any", lacking
    rate, control_rate, images = mode["evidence_rate"], mode["control_rate"], mode["evidence_images"]
    larger = rate > control_rate and rate - control_rate >= options.excess
    if mode["p_corrected"] < options.level and larger:
        return None
    why = (
        f"real images do not show it: it happens to {rate:.0%} of the {images} that show it, "
        f"and to {control_rate:.0%} of {sentences.control(mode)}"
    )
    if not larger:
        return (
            why,
            f"real images that show it, to which it happens at least {options.excess:.0%} more often than to others",
        )
    others = mode["control_images"]
    control = min((control_rate * others + 1) / (others + 2), 0.9 * rate)  # none of a few is no proof of none
    needed = d.images_needed(rate, control, options.level / tests)
    more = needed - images if needed > images else images  # so many should have done: it was bad luck, or there is none
    return why, f"about {more} more real images that show it, should it happen to as many of those"


def _merged(modes: list[Mode], options: Options) -> list[Mode]:
    """Modes with one name become one, whatever found them.

    Of those with one id the confirmed, else the best supported, speaks for all. What a single model was found to do, by
    its neurons, counterfactuals or labelled images, joins the same finding against another model, unless it alone is
    confirmed. `found_by`, `neurons`, exemplars and evidence are those of all; figures are those of the one that speaks.
    """
    kept: dict[str, Mode] = {}
    pairs: dict[tuple[str, ...], str] = {}
    for mode in sorted(modes, key=_standing):
        place = place_of(mode)
        key = str(mode["failure_mode_id"])
        if mode["source"] != "screen":
            if mode["kind"] != "disagreement":
                key = pairs.get(place, key)
            pairs.setdefault(place, key)
        best = kept.setdefault(key, mode)
        if best is not mode:
            _join(best, mode, options)
    return list(kept.values())


def _listed(modes: list[Mode], options: Options) -> list[Mode]:
    """Say which modes a report lists, so that each is listed once.

    Of what screening alone finds those that are confirmed. A confirmed search or label speaks for them, and they for
    one that is not confirmed; the one that is listed has what all of them show.
    """
    others: dict[tuple[str, ...], list[Mode]] = {}
    for mode in modes:
        mode["listed"] = mode["source"] != "screen" or mode["verdict"] == "confirmed"
        if mode["source"] != "screen":
            others.setdefault(place_of(mode), []).append(mode)
    for mode in (each for each in modes if each["source"] == "screen" and each["listed"]):
        pair = mode["other_model_id"]
        there = (other for other in others.get(place_of(mode), ()) if other["listed"])
        alike = [other for other in there if other["kind"] != "disagreement" or other["other_model_id"] == pair]
        sure = [other for other in alike if other["verdict"] == "confirmed"]
        for other in [mode] if sure else alike:
            other["listed"] = False
            _join(sure[0] if sure else mode, other, options)
    return modes


def _tell_apart(modes: list[Mode], options: Options) -> None:
    """Find listed modes that are part of another, and list them no more.

    Of those that say one class of one pair of models each has to hold beside all others: it happens to images that show
    it more often than to others which show the same of the rest. The one that holds the least is taken away until all
    hold. Where it happens anywhere but on sand, it happens on snow, and that is no second failure.
    """
    places: dict[tuple[Any, ...], list[Mode]] = {}
    for mode in modes:
        if mode["listed"] and mode["verdict"] == "confirmed" and "asked" in mode:
            place = id(mode["asked"].real), mode["model_id"], mode["other_model_id"], mode["class_name"]
            places.setdefault(place, []).append(mode)
    for left in places.values():
        parts = []
        while weakest := _weakest(left, options):
            left.remove(weakest)
            parts.append(weakest)
        for mode in parts:
            whole = max(left, key=lambda other: mode["asked"].shared(other["asked"]))
            mode |= {"listed": False, "part_of": whole["failure_mode_id"]}


def _weakest(modes: list[Mode], options: Options) -> Mode | None:
    """The mode that holds the least beside the others, if there is one that does not."""
    doubtful = []
    for mode in modes if len(modes) > 1 else []:
        facts = mode["asked"].beside([other["asked"] for other in modes if other is not mode])
        if facts.p_value >= options.level or facts.rate - facts.control_rate < options.excess:
            doubtful.append((facts.p_value, -mode["impact"], mode))
    return max(doubtful, key=lambda each: each[:2])[2] if doubtful else None


def _join(best: Mode, mode: Mode, options: Options) -> None:
    """Give one mode what another of its name shows, but no figures."""
    for name in ("found_by", "neurons"):
        if mode.get(name):
            best[name] = sorted({*best.get(name, []), *mode[name]})
    for name, most in (("exemplars", options.exemplars), ("evidence", MOST_EVIDENCE)):
        if mode.get(name):
            best[name] = list(dict.fromkeys([*best.get(name, []), *mode[name]]))[:most]


def _standing(mode: Mode) -> tuple[bool, bool, int]:
    """The order in which modes speak for others of their name."""
    return mode["verdict"] != "confirmed", mode["kind"] != "disagreement", -mode["support"]


def _holds_against(groups: list[Group], context: Context) -> list[dict[str, Any]]:
    """Of each group and each model that is not of its pair: on what share of the images it does not say the class."""
    wanted = sorted({image for group in groups for image in group.images})
    rows = context.run.rows(
        "select item_id, model_id, any_value(predicted) as predicted from predictions where role = 'generated' "
        "and status = 'ok' and item_id in (select unnest(?)) group by item_id, model_id",
        [wanted],
    )
    said = {(row["model_id"], row["item_id"]): row["predicted"] for row in rows}
    measured = []
    for group, model_id in product(groups, context.job.models):
        if model_id in (group.mode["model_id"], group.mode["other_model_id"]):
            continue
        spoke = [said[model_id, image] for image in group.images if (model_id, image) in said]
        share = sum(name != group.mode["class_name"] for name in spoke) / len(spoke) if spoke else None
        why = None if spoke else f"{model_id} says nothing of these images"
        measured.append(_measured(group, context, "holds_against", model_id, share, "share", why))
    return measured


def _alike(groups: list[Group], every: list[Group], context: Context) -> list[dict[str, Any]]:
    """Of each group and each other model that the same stage searched the class against: is the mode found there?

    `every`: those too that other groups of their name speak for.
    """
    searched = context.run.rows(
        "select distinct stage, model_id, other_model_id, target_class from explanations order by all"
    )
    by_place: dict[tuple[str, ...], Group] = {}
    for g in sorted(every, key=lambda each: _standing(each.mode)):
        if g.mode["kind"] == "disagreement":
            place = (g.mode[k] for k in ("model_id", "class_name", "concept", "other_model_id"))
            by_place.setdefault((g.stage, *place), g)
    measured = []
    for group, row in product(groups, searched):
        own, other = group.mode, row["other_model_id"]
        same = (group.stage, own["model_id"], own["class_name"]) == (row["stage"], row["model_id"], row["target_class"])
        if not same or other == own["other_model_id"]:
            continue
        twin = by_place.get((group.stage, own["model_id"], own["class_name"], own["concept"], other))
        cosine = None if twin is None else float(unit(group.shift) @ unit(twin.shift))
        why = None if twin else f"the searches against {other} made no group of this name"
        both = twin is not None and own["verdict"] == twin.mode["verdict"] == "confirmed"
        measured.append(_measured(group, context, "alike", other, cosine, "cosine", why))
        measured.append(_measured(group, context, "both_confirmed", other, float(both), "0 or 1", None))
    return measured


def _measured(
    group: Group, context: Context, name: str, key: str, value: float | None, unit: str, reason: str | None
) -> dict[str, Any]:
    row = {"subject_id": group.mode["failure_mode_id"], "stage": context.stage, "name": name, "key": key}
    return {**row, "value": value, "unit": unit, "reason": reason}


def _pictures(modes: list[Mode], options: Options, context: Context) -> list[dict[str, Any]]:
    """The first real images that modes name as evidence, so that a report needs nothing but the run."""
    wanted = sorted({item_id for mode in modes for item_id in mode.get("evidence", [])[: options.exemplars]})
    return originals(context.run, context.models, wanted)
