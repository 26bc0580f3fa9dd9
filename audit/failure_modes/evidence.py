"""The names of failure modes and what real images say of them, whatever kind they are of.

One half of the images proposes a name, from where on an image has what it says, and whom that befalls. The other half
is asked. Embeddings have norm 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from audit import discovery as d
from audit.config import digest
from audit.failure_modes.claims import EMBEDDER, Claim, Group, Material, Mode, Options, Real, Searches, concept_name

BEFALLEN = 0.95  # share of the images on which it happens whose classes are compared
ALIKE = 0.02  # difference in AUC within which names tell equally well
MOST_EVIDENCE = 1000  # real images that a mode names; the pictures of the first `exemplars` are kept with the run


@dataclass(frozen=True)
class Asked:
    """Images that were asked about a mode, which of them show it, and which classes it befalls. A bit an image, since
    there may be thousands of modes; where it happens follows from the claim."""

    claim: Claim
    real: Real
    bits: NDArray[np.uint8]
    classes: list[str]

    @property
    def shows(self) -> d.Bools:
        return np.unpackbits(self.bits, count=len(self.real.ids)).astype(np.bool_)

    @property
    def happens(self) -> d.Bools:
        """Those that show it and to which it happens, (p,)."""
        return self.real.wrong(self.claim) & self.shows

    def beside(self, others: list[Asked]) -> d.Evidence:
        """Whether it happens to those that show it more often than to images which show the same of the others."""
        strata = self.real.seen
        for other in others:
            strata = strata + np.where(other.shows, "/1", "/0").astype(object)
        among = np.isin(self.real.seen, self.classes)
        return d.matched(self.real.wrong(self.claim)[among], self.shows[among], strata[among])

    def shared(self, other: Asked) -> int:
        """Images that show both and to which it happens."""
        return int((self.happens & other.shows).sum())


def groups_of(claim: Claim, own: Searches, controls: d.Floats, material: Material, seeds: int) -> list[Group]:
    """Groups of searches that moved alike, each with its name and what real images say; controls: shifts (m, c).

    Those that moved like no others are a last group, if it has a sure name: from few different starts one and the same
    feature is reached in as many ways, and it is the real images near the results that tell which it is.
    seeds: of how many searches these are the ones that bear the claim out. Searches that explain images which are asked
    propose nothing: those images may have been chosen because of what the model says of them. Exemplars go by how much
    they look like the real images on which it happens; where there are none, by how far they moved along the name.
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
        if halves is None:
            modes = [named(claim, shift, controls, options)]
        else:
            modes = evidence(claim, part, shift, controls, *halves, options)
        for mode in modes:
            along = shift[:, options.phrases.index(mode["concept"])]
            if halves is not None and mode.get("evidence"):
                along = part.results @ halves[1].embeddings[np.isin(halves[1].ids, mode["evidence"])].mean(0)
            order = np.argsort(-along, kind="stable")[: options.exemplars]
            mode["exemplars"] = [part.rows[i]["explanation_id"] for i in order]
            if chosen is not rest or not (mode["reason"] or mode.get("unsure")):
                images = part.column("image_id").tolist()
                found.append(Group(common | mode, part.rows[0]["stage"], images, shift.mean(0)))
    return found


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
        phrase = concept_name(options.phrases[best])
        if p_values[best] >= options.name_level and told is None:
            doubt = f"no phrase of the vocabulary is surely above the controls: the best is “{phrase}”"
        elif p_values[best] >= options.name_level and best < len(options.vocabulary):
            doubt = f"the real images share “{phrase}”, along which the searches did not surely move"
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
    said = asked(claim, shows, np.isin(testing.seen, befallen), testing.seen, towards, testing)
    return said | {"asked": Asked(claim, testing, np.packbits(shows), befallen)}


def asked(claim: Claim, shows: d.Bools, among: d.Bools, strata: d.Names, towards: d.Floats, real: Real) -> Mode:
    """What real images say of those that show something (p,), against others of the same strata (p,): the columns of
    that; none where nothing can be compared, as nothing then says that it is these. among (p,): which are compared.

    Prevalence is the share of all that are compared and show it. `showing` names such images whether the model is wrong
    or right, but for those of the class itself where a label or the embedder tells. `compared` names them and control
    images for a comparison with another run, where the excess is above 0 with confidence.
    """
    wrong = real.wrong(claim)
    found = np.flatnonzero(shows & wrong)
    found = found[np.argsort(-(real.embeddings[found] @ towards), kind="stable")]
    facts = d.matched(wrong[among], shows[among], strata[among])
    if not facts.images:
        return {}
    by_model = claim.other_model_id not in (None, EMBEDDER)
    blind = by_model and np.mean(real.seen[found] == claim.class_name) > 0.5 if len(found) else False
    prevalence = facts.images / len(real.ids)
    excess = {"impact": facts.rate - facts.control_rate, "impact_low": facts.low, "impact_high": facts.high}
    usable = among if by_model else among & ~real.says(claim)[1]
    return {
        "evidence": real.ids[found[:MOST_EVIDENCE]].tolist(),
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
        "showing": sorted(real.ids[shows & usable])[:MOST_EVIDENCE],
        **({"compared": _arms(real.ids, shows, usable, strata)} if facts.low > 0 else {}),
    }


def _arms(ids: d.Names, shows: d.Bools, usable: d.Bools, strata: d.Names) -> Mode:
    """Columns of `compared_images`: of the usable images (p,) those with the feature, then those without it."""
    arms = [np.flatnonzero(usable & arm) for arm in (shows, ~shows)]
    chosen = np.concatenate([arm[np.argsort(ids[arm], kind="stable")][:MOST_EVIDENCE] for arm in arms])
    return {"item_ids": ids[chosen].tolist(), "shows": shows[chosen].tolist(), "strata": strata[chosen].tolist()}


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
