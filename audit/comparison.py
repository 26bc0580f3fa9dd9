"""What changed between two audits, or between two models of one: failure modes new, fixed and unchanged, and accuracy.

A failure mode means that a model errs more often on images with a feature than on control images: other images of the
same classes. Error rates on images with the feature are not enough to compare two models, since a model may err as
often without the feature. So the comparison uses the excess, the difference of the two error rates, on the images that
both runs screened (formulas: `audit/metrics/excess.py`; rule for the status: `audit/review/decision.py`). An error of a
mode is an image for which the mode's model predicts the class and the other model does not. A mode belongs to the model
at fault, as far as that is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from audit.errors import ConfigError
from audit.metrics.excess import PairedExcess, paired_excess
from audit.results.sql import Run
from audit.review.decision import Status, not_comparable, reason_for, status_of
from audit.review.paired_accuracy import Accuracy, WorseClass, paired_accuracy
from audit.sentences import misses

Row = dict[str, Any]
_Said = dict[str, dict[str, str]]

FEWEST = 3  # images in common that can make modes of two names one
SHARED = 0.5  # of the evidence of the smaller one, with which modes of two names are one


@dataclass(frozen=True)
class Change:
    """A failure mode that at least one of the runs confirmed.

    before, after: its rows of `failure_modes`; None if a run does not have it. `excess`: of both models on the images
    that both runs screened; None if these are too few to compare. `images` and `controls`: the numbers of these images
    with and without the feature. `happened` and `happens`: the errors among `images`, before and after. `model_id`: the
    model at fault, by its id in the later run. `reason`: the figures behind the status.
    """

    status: Status
    model_id: str
    class_name: str
    name: str
    before: Row | None
    after: Row | None
    excess: PairedExcess | None
    reason: str

    @property
    def images(self) -> int | None:
        return None if self.excess is None else self.excess.images

    @property
    def controls(self) -> int | None:
        return None if self.excess is None else self.excess.control_images

    @property
    def happened(self) -> int | None:
        return None if self.excess is None else self.excess.errors[0]

    @property
    def happens(self) -> int | None:
        return None if self.excess is None else self.excess.errors[1]

    @property
    def shown(self) -> Row:
        """The row that is confirmed; of two, the later one."""
        return _shown(self.before, self.after)

    @property
    def ids(self) -> list[str]:
        """Of its rows."""
        return [row["failure_mode_id"] for row in (self.before, self.after) if row is not None]

    def as_dict(self) -> Row:
        """Plain values for JSON."""
        told: Row = {key: getattr(self, key) for key in ("status", "model_id", "class_name", "name")}
        for side, row in (("before", self.before), ("after", self.after)):
            told |= {f"{side}_{key}": row and row[key] for key in ("failure_mode_id", "verdict", "impact")}
        counts = {key: getattr(self, key) for key in ("images", "controls", "happened", "happens")}
        return {**told, **counts, **_intervals(self.excess), "reason": self.reason}


@dataclass(frozen=True)
class Comparison:
    """`changes`: new ones first, then unclear, unchanged and fixed ones, each by impact.

    ends: those that are the other end of one of these, what a model misses where it says something else, and of which
    the same is true. `worse`: classes of which a model gets more images wrong than before, the worst first.
    """

    changes: tuple[Change, ...]
    ends: tuple[Change, ...]
    accuracy: tuple[Accuracy, ...]
    worse: tuple[WorseClass, ...] = ()

    def as_dict(self) -> Row:
        """Plain values for JSON."""
        return {
            "failure_modes": [change.as_dict() for change in self.changes],
            "accuracy": [asdict(accuracy) for accuracy in self.accuracy],
            "worse_classes": [asdict(worse) for worse in self.worse],
        }


def compare(before: Run, after: Run, models: Mapping[str, str] | None = None) -> Comparison:
    """Compare two runs, which may be one and the same.

    models: which to compare, by their names in `before`, and what they are called in `after`; by default those of one
    name. Raises ConfigError for a model that its run does not have, and where none are left.
    """
    pairs = pairs_of(before, after, models)
    called = with_namesakes(before, after, pairs)
    changes: list[Change] = []
    earlier = before.failure_modes(ends=True)
    later = earlier if after is before else after.failure_modes(ends=True)
    images = _images_of(before, earlier), _images_of(after, later)
    for old_id, new_id in pairs.items():
        old = [mode for mode in earlier if owner(mode) == old_id]
        new = [mode for mode in later if owner(mode) == new_id]
        twins = twins_of(old, new, called)
        alone = set(range(len(new))) - set(twins.values())
        found: list[tuple[Row | None, Row | None]] = [
            *((mode, new[twins[i]] if i in twins else None) for i, mode in enumerate(old)),
            *((None, new[j]) for j in sorted(alone)),
        ]
        found = [two for two in found if any(map(_confirmed, two))]
        compared = [_compared_images(*two, images) for two in found]
        asked = {item_id for one in compared if one is not None for item_id in one["item_ids"]}
        said = _answers(before, asked)
        answers = said, said if after is before else _answers(after, asked)
        changes += (
            _change(*two, one, (old_id, new_id), called, answers) for two, one in zip(found, compared, strict=True)
        )
    changes.sort(key=lambda change: (_ORDER.index(change.status), -_impact(change), change.class_name, change.name))
    told, ends = without_ends(changes)
    return Comparison(tuple(told), tuple(ends), *paired_accuracy(before, after, pairs))


_ORDER = ("new", "unclear", "unchanged", "fixed")


def without_ends(changes: list[Change]) -> tuple[list[Change], list[Change]]:
    """Each failure once; and those that are the other end of one of these, of which the same is true."""
    known = {(change.status, failure_mode_id) for change in changes for failure_mode_id in change.ids}
    told: list[Change] = []
    ends: list[Change] = []
    for change in changes:
        (ends if (change.status, change.shown["part_of"]) in known else told).append(change)
    return told, ends


def owner(mode: Row) -> str:
    """The model whose failure a mode is: the one at fault or, where that is not known, the one that says the class."""
    return str(mode.get("at_fault") or mode["model_id"])


def twins_of(first: list[Row], second: list[Row], called: Mapping[str, str] | None = None) -> dict[int, int]:
    """Which modes are the same in two lists, by their places: of one class, and of one concept and, if there is such a
    one, with the same model held against it; or, where they are named otherwise, with half of the evidence in common.
    Each is the twin of one at most. called: what models of the first list are called in the second."""
    found: dict[int, int] = {}
    free: dict[str, list[int]] = {}
    for j, mode in enumerate(second):
        free.setdefault(mode["class_name"], []).append(j)
    first = [{**mode, "other_model_id": (called or {}).get(o := mode["other_model_id"], o)} for mode in first]
    for same in (_same_pair, _same_concept, _same_evidence):
        for i, mode in enumerate(first):
            left = free.get(mode["class_name"], [])
            twin = None if i in found else next((j for j in left if same(mode, second[j])), None)
            if twin is not None:
                found[i] = twin
                left.remove(twin)
    return found


def _same_pair(a: Row, b: Row) -> bool:
    return _same_concept(a, b) and bool(a["other_model_id"] == b["other_model_id"])


def _same_concept(a: Row, b: Row) -> bool:
    return bool(a["concept"] == b["concept"]) and misses(a) == misses(b)


def _same_evidence(a: Row, b: Row) -> bool:
    one, other = set(a["evidence"] or ()), set(b["evidence"] or ())
    smaller = min(len(one), len(other))
    return smaller >= FEWEST and len(one & other) >= SHARED * smaller and misses(a) == misses(b)


def models_of(run: Run) -> list[str]:
    """The models of a run, as its job names them."""
    return list(json.loads(run.store.read("job.json") or b"{}")["job"]["models"])


def pairs_of(before: Run, after: Run, models: Mapping[str, str] | None = None) -> dict[str, str]:
    """The models that `compare` compares, by their names in `before`: those that are asked for, else those of one name
    in both runs. Raises ConfigError for a model that its run does not have, and where none are left."""
    old, new, models = models_of(before), models_of(after), models or {}
    for model_id, side, there in (
        *((model_id, "the first run", old) for model_id in models),
        *((model_id, "the second run", new) for model_id in models.values()),
    ):
        if model_id not in there:
            raise ConfigError(f"{side} has no model {model_id!r}; it has: {', '.join(there)}")
    if models:
        return dict(models)
    if before.location == after.location:
        raise ConfigError(f"within one run, name the two models to compare; it has: {', '.join(old)}")
    both = {model_id: model_id for model_id in old if model_id in new}
    if not both:
        raise ConfigError(
            f"the runs have no model of one name (first: {', '.join(old)}; second: {', '.join(new)}); name which is "
            "which: --model OLD=NEW, or the models of the report's page"
        )
    return both


def with_namesakes(before: Run, after: Run, models: Mapping[str, str]) -> dict[str, str]:
    """What models of `before` are called in `after`: as given, and all others of one name by that."""
    named = {*models, *models.values()}
    both = {name: name for name in models_of(before) if name in models_of(after) and name not in named}
    return {**both, **models}


def _impact(change: Change) -> float:
    return max((row["impact"] or 0.0) for row in (change.before, change.after) if row is not None)


def _images_of(run: Run, modes: list[Row]) -> dict[str, Row]:
    """Rows of `compared_images` by their failure mode, of those modes that are confirmed."""
    ids = [mode["failure_mode_id"] for mode in modes if _confirmed(mode)]
    rows = run.rows("select * from compared_images where failure_mode_id in (select unnest(?::varchar[]))", [ids])
    return {row["failure_mode_id"]: row for row in rows}


def _compared_images(old: Row | None, new: Row | None, images: tuple[dict[str, Row], dict[str, Row]]) -> Row | None:
    """The images on which two modes are compared: those of the later one that is confirmed and has any."""
    for mode, there in ((new, images[1]), (old, images[0])):
        if _confirmed(mode) and (row := there.get(mode["failure_mode_id"])):  # type: ignore[index]
            return row
    return None


def _change(
    old: Row | None,
    new: Row | None,
    compared: Row | None,
    pair: tuple[str, str],
    called: Mapping[str, str],
    answers: tuple[_Said, _Said],
) -> Change:
    """At least one of the two modes is confirmed. `compared`: its row of `compared_images`; `answers`: before and
    after, of these images at least."""
    shown = _shown(old, new)
    excess = None if compared is None else _excess(shown, shown is old, compared, pair, called, answers)
    was, now = _confirmed(old), _confirmed(new)
    told = pair[1], shown["class_name"], shown["name"], old, new, excess
    if excess is not None:
        status = status_of(was, now, excess)
        both = (
            f"both runs confirmed it{', but most of the excess is new' if status == 'new' else ''}; "
            if was and now
            else ""
        )
        return Change(status, *told, both + reason_for(excess))
    if was and now:
        return Change("unchanged", *told, "both runs confirmed it")
    shows = [] if compared is None else compared["shows"]
    return Change("unclear", *told, not_comparable(sum(shows), len(shows) - sum(shows), "second" if now else "first"))


def _excess(
    shown: Row,
    is_old: bool,
    compared: Row,
    pair: tuple[str, str],
    called: Mapping[str, str],
    answers: tuple[_Said, _Said],
) -> PairedExcess | None:
    there: Mapping[str, str] = called if is_old else {after: before for before, after in called.items()}
    both = []
    for name in (shown["model_id"], shown["other_model_id"]):
        rival = name in pair and name != owner(shown)  # of the two that are compared: what one says decides
        both.append((name, there[name]) if name in there and not rival else (None, None))
    says, misses = both if is_old else ((second, first) for first, second in both)  # before, after
    happened, happens = (_happens(shown, says[i], misses[i], answers[i], compared["item_ids"]) for i in (0, 1))
    places = [i for i, item_id in enumerate(compared["item_ids"]) if item_id in happened and item_id in happens]
    common = [compared["item_ids"][i] for i in places]
    if not common:
        return None
    was, now = (np.array([side[item_id] for item_id in common], np.bool_) for side in (happened, happens))
    shows, strata = np.array(compared["shows"], np.bool_)[places], np.array(compared["strata"], object)[places]
    return paired_excess(was, now, shows, strata)


def _intervals(excess: PairedExcess | None) -> Row:
    """Excess before and after, and their change, each with its 95 % interval; None if nothing was compared."""
    intervals = (None, None, None) if excess is None else (excess.before.excess, excess.after.excess, excess.change)
    told: Row = {}
    for name, interval in zip(("excess_before", "excess_after", "excess_change"), intervals, strict=True):
        told[name] = interval and interval.value
        told |= {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}
    return told


def _happens(mode: Row, says: str | None, misses: str | None, answers: _Said, item_ids: list[str]) -> dict[str, bool]:
    """Whether each image with predictions is an error of a mode. says: the model of this run that has to predict the
    class; misses: the one that must not; None for a model that the runs do not share, which is then not used."""
    name = mode["class_name"]
    told = [(answers.get(model, {}), it_says) for model, it_says in ((says, True), (misses, False)) if model]
    return {
        item_id: all((side[item_id] == name) is it_says for side, it_says in told)
        for item_id in item_ids
        if told and all(item_id in side for side, _ in told)
    }


def _shown(old: Row | None, new: Row | None) -> Row:
    """Of two modes, the one that is confirmed; the later one where both are."""
    row = new if _confirmed(new) else old
    assert row is not None
    return row


def _confirmed(mode: Row | None) -> bool:
    return mode is not None and mode["verdict"] == "confirmed"


def _answers(run: Run, item_ids: set[str]) -> _Said:
    """What each model of a run says of some real images, of those that it screened."""
    said: dict[str, dict[str, str]] = {}
    if item_ids:
        rows = run.rows(
            "select model_id, item_id, any_value(predicted) as says from predictions "
            "where role in ('data', 'pool') and status = 'ok' and item_id in (select unnest(?)) "
            "group by model_id, item_id",
            [sorted(item_ids)],
        )
        for row in rows:
            said.setdefault(row["model_id"], {})[row["item_id"]] = row["says"]
    return said
