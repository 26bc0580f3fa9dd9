"""Rules that a run has to keep before a model ships: on the number of failure modes, and on any number of SQL.

A rule that the run cannot answer fails. A rule about failure modes fails if the run could not have confirmed any
(`audit/review/askable.py`). A rule about new ones fails if a confirmed one has no images in common with the run of
before. It also fails if a class got worse and no new one was found among the images of this class: discovery finds only
what its embedder and its vocabulary describe. A query that gives no number fails.

A rule sets itself whether a confirmed failure mode with the status `unclear` counts; a mode that only the earlier run
confirmed, and that may be fixed, never counts. What a model misses where it says something else counts with that as one
failure, and by itself for a rule that is about the missed class alone, or where only that is new.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.etree import ElementTree

from pydantic import Field, model_validator

from audit.class_names import resolve
from audit.comparison import Change, Comparison, compare, models_of, owner, pairs_of, with_namesakes, without_ends
from audit.config import AnyPlace, Frozen, Names, checked, parse_yaml
from audit.errors import ConfigError, unknown
from audit.results.sql import Run
from audit.review.askable import unaskable
from audit.review.blocking import blocking
from audit.review.decision import Status
from audit.review.paired_accuracy import WorseClass
from audit.sentences import claim

Row = dict[str, Any]
WORSE_CLASS = "worse_class"  # the code in accept_warnings
RELABELLED = "relabelled"  # another code in accept_warnings
MOST_RELABELLED = 0.01  # share of the labelled images of both runs above which what got worse is not known


class Modes(Frozen):
    """Which failure modes a rule counts."""

    model: str | None = Field(None, description="of this model, which is at fault; default: of all")
    classes: Names | None = Field(None, description="of these classes; default: of all")
    verdict: Literal["confirmed", "hypothesis", "any"] = Field("confirmed", description="of the audit")
    status: Annotated[tuple[Status, ...], Field(strict=False)] | None = Field(
        None,
        description="against the baseline: new, unclear, unchanged, fixed; needs one, and counts what is confirmed",
    )
    least_impact: float = Field(0.0, ge=0, le=1, description="of at least this impact")
    unless: Annotated[tuple[Literal["bug", "expected", "needs review", "not a failure"], ...], Field(strict=False)] = (
        Field(("expected", "not a failure"), description="not those that a person's last verdict calls so")
    )

    @model_validator(mode="after")
    def _confirmed(self) -> Modes:
        if self.status is not None and self.verdict != "confirmed":
            raise ValueError("a status tells of confirmed failure modes: leave out 'verdict'")
        return self


class Rule(Frozen):
    """A number, and what it may be."""

    name: str = Field(min_length=1)
    failure_modes: Modes | None = Field(None, description="the number of these failure modes")
    sql: str | None = Field(None, description="a query over the run's tables that gives one number")
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _one_number(self) -> Rule:
        if (self.failure_modes is None) == (self.sql is None):
            raise ValueError("a rule has either 'failure_modes' or 'sql'")
        if self.at_most is None and self.at_least is None:
            raise ValueError("a rule has 'at_most', 'at_least' or both")
        return self


class Rules(Frozen):
    """A rules file."""

    version: Literal[1]
    baseline: AnyPlace | None = Field(None, description="run of before, that a status is told against")
    models: dict[str, str] = Field({}, description="what a model of the baseline is called in the run, where otherwise")
    accept_warnings: Names = Field(
        (), description="codes of warnings of the run that do not block the gate, such as at_chance"
    )
    rules: Annotated[tuple[Rule, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True)
class Outcome:
    """What became of a rule. `value`: the number, None where there was none; `modes`: what was counted, in words."""

    name: str
    passed: bool
    value: float | None
    message: str
    modes: tuple[str, ...] = ()

    def as_dict(self) -> Row:
        """Plain values for JSON."""
        return asdict(self)


def load_rules(path: Path) -> Rules:
    """Read and check a rules file; its relative paths are relative to it. Raises ConfigError."""
    try:
        raw = parse_yaml(path.read_text("utf-8"), "rules file")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the rules file {path}: {why}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"a rules file is a mapping with 'version' and 'rules', found {type(raw).__name__}")
    return checked(Rules, raw, "rules file", {"folder": path.parent.resolve()})


def check(rules: Rules, run: Run, baseline: Run | None) -> list[Outcome]:
    """Hold a finished run against rules, one outcome each, in their order.

    Warnings that block (audit/review/warnings.py) are an outcome of their own, before those of the rules. A rule that
    the run cannot answer fails, and its message says why. Raises ConfigError where a rule asks for a status
    without a baseline, or of a model that the baseline has not, where it names a model or a class that the run does not
    have, where the run's job has no stage that looks for failure modes, and where a query is wrong.
    """
    outcomes = [
        _counted(rule, rules, run, baseline) if rule.failure_modes else _asked(rule, run) for rule in rules.rules
    ]
    return [*_warned(rules, run, baseline), *outcomes]


def _warned(rules: Rules, run: Run, baseline: Run | None) -> list[Outcome]:
    """A failed outcome for warnings that block, of the run and, where a rule compares, of the run of before."""
    wanted = [rule.failure_modes for rule in rules.rules]
    own = {modes.model for modes in wanted if modes is not None and modes.model is not None}
    models = own if all(modes is not None and modes.model is not None for modes in wanted) else None
    words = blocking(run, rules.accept_warnings, models)
    if baseline is not None and any(modes is not None and modes.status is not None for modes in wanted):
        words += [f"the baseline: {each}" for each in blocking(baseline, rules.accept_warnings, None)]
    if not words:
        return []
    count = f"{len(words)} warning{'s' * (len(words) != 1)}"
    why = f"{count}: numbers of the run may be wrong. Fix the cause, or add the code to accept_warnings"
    return [Outcome("warnings", False, float(len(words)), why, tuple(words))]


def _asked(rule: Rule, run: Run) -> Outcome:
    table = run.sql(rule.sql or "")
    if table.num_columns != 1 or table.num_rows != 1:
        raise ConfigError(
            f"rule {rule.name!r}: its query gives {table.num_rows} rows of {table.num_columns} columns, not one number"
        )
    value = table.column(0)[0].as_py()
    if isinstance(value, bool) or not (value is None or hasattr(value, "__float__")):
        raise ConfigError(f"rule {rule.name!r}: its query gives {value!r}, not a number")
    return _outcome(rule, None if value is None else float(value))


def _outcome(rule: Rule, value: float | None, modes: tuple[str, ...] = ()) -> Outcome:
    bounds = {"at least": rule.at_least, "at most": rule.at_most}
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    if value is None or not math.isfinite(value):
        return Outcome(rule.name, False, None, f"no number; {wanted} is wanted", modes)
    passed = (rule.at_least is None or value >= rule.at_least) and (rule.at_most is None or value <= rule.at_most)
    return Outcome(rule.name, passed, value, f"{value:g}; {wanted} is wanted", modes)


def _counted(rule: Rule, rules: Rules, run: Run, baseline: Run | None) -> Outcome:
    wanted = rule.failure_modes
    assert wanted is not None
    if not run.rows("select 1 from units where stage like '%-discover' and status = 'ok' limit 1"):
        why = "its job has no stage 'discover'"
        raise ConfigError(f"rule {rule.name!r}: {run.location} looked for no failure modes: {why}")
    _check_names(rule.name, wanted, run)
    if wanted.status is not None and baseline is None:
        raise ConfigError(f"rule {rule.name!r} needs the run of before; name it with --baseline, or in the rules file")
    unknown = unaskable(run, models_of(run) if wanted.model is None else [wanted.model], wanted.classes)
    if unknown is not None:
        return _unknown(rule, f"no failure mode could be confirmed: {unknown}")
    excused = _reviewed(run, wanted.unless) | (_reviewed(baseline, wanted.unless, True) if baseline else set())
    if wanted.status is not None and baseline is not None:
        return _changed(rule, rules, run, baseline, excused)
    found = run.failure_modes(ends=True)
    modes = [mode for mode in found if wanted.verdict in ("any", mode["verdict"]) and _counts(mode, wanted)]
    once = {mode["failure_mode_id"] for mode in modes}  # the other end of one of them is no second failure
    modes = [mode for mode in modes if mode["part_of"] not in once]
    words = [_words(mode) for mode in modes if mode["failure_mode_id"] not in excused]
    return _outcome(rule, float(len(words)), tuple(words))


def _changed(rule: Rule, rules: Rules, run: Run, baseline: Run, excused: set[str]) -> Outcome:
    """A rule on what changed since the baseline."""
    wanted = rule.failure_modes
    assert wanted is not None
    assert wanted.status is not None
    within = baseline.location == run.location
    models = rules.models if within else with_namesakes(baseline, run, rules.models)
    pairs = pairs_of(baseline, run, models)
    _check_compared(rule, run, baseline, pairs)
    compared = compare(baseline, run, pairs)
    meant = [change for change in (*compared.changes, *compared.ends) if _counts(change.shown, wanted)]
    once, _ = without_ends([change for change in meant if change.status in wanted.status and _ships(change)])
    changes = [change for change in once if excused.isdisjoint(change.ids)]
    once, _ = without_ends([change for change in meant if _ships(change) and _unknowable(change, wanted.status)])
    doubtful = [change for change in once if excused.isdisjoint(change.ids)]
    if doubtful:
        them = tuple(f"{_words(change.shown)} ({change.reason})" for change in doubtful)
        return _unknown(rule, f"confirmed failure modes that may be new or old: {len(doubtful)}", them)
    outcome = _outcome(
        rule,
        float(len(changes)),
        tuple(f"{_words(change.shown)} ({change.status}: {change.reason})" for change in changes),
    )
    if outcome.passed and "new" in wanted.status and RELABELLED not in rules.accept_warnings:
        notes = tuple(
            str(one.note)
            for one in compared.accuracy
            if wanted.model in (None, one.model_id) and one.relabelled > MOST_RELABELLED * (one.images + one.relabelled)
        )
        if notes:
            why = (
                f"more than {MOST_RELABELLED:.0%} of the images have another label than in the baseline. Compare runs "
            )
            return _unknown(rule, f"{why}with the same labels, or set accept_warnings: [{RELABELLED}]", notes)
    if outcome.passed and "new" in wanted.status and WORSE_CLASS not in rules.accept_warnings:
        worse = _unexplained(compared, wanted, run)
        if worse:
            why = f"classes that got worse without a new failure mode that explains it: {len(worse)}. Discovery finds "
            why += "only what its embedder and its vocabulary describe. Look at the errors of these classes, or set "
            return _unknown(rule, f"{why}accept_warnings: [{WORSE_CLASS}]", tuple(map(str, worse)))
    return outcome


def _unexplained(compared: Comparison, wanted: Modes, run: Run) -> list[WorseClass]:
    """Classes that got worse, none of whose images belong to a failure mode with a status that the rule counts."""
    assert wanted.status is not None
    new = [one for one in (*compared.changes, *compared.ends) if one.status in wanted.status and _ships(one)]
    rows = run.rows("select failure_mode_id, list_distinct(strata) as classes from compared_images")
    labels = {row["failure_mode_id"]: row["classes"] for row in rows}
    explained = {
        (one.model_id, name)
        for one in new
        for name in (one.class_name, *(name for failure_mode_id in one.ids for name in labels.get(failure_mode_id, ())))
    }
    return [
        worse
        for worse in compared.worse
        if (worse.model_id, worse.class_name) not in explained
        and wanted.model in (None, worse.model_id)
        and (wanted.classes is None or resolve(worse.class_name, wanted.classes) is not None)
        and worse.share >= wanted.least_impact
    ]


def _ships(change: Change) -> bool:
    """Whether a change concerns the new run: a doubt whether an earlier failure was fixed does not stop it."""
    return change.status != "unclear" or (change.after is not None and change.after["verdict"] == "confirmed")


def _unknowable(change: Change, statuses: tuple[Status, ...]) -> bool:
    """Whether a rule about new failure modes would pass only because there are no images to compare."""
    return change.status == "unclear" and change.excess is None and "new" in statuses and "unclear" not in statuses


def _unknown(rule: Rule, why: str, modes: tuple[str, ...] = ()) -> Outcome:
    return Outcome(rule.name, False, None, f"the run cannot decide this rule: {why}", modes)


def _check_names(rule: str, wanted: Modes, run: Run) -> None:
    """A rule about a model or a class that the run does not have would always pass."""
    models = models_of(run)
    if wanted.model not in (None, *models):
        raise ConfigError(f"rule {rule!r}: {unknown('model', str(wanted.model), models)}")
    if wanted.classes is None:
        return
    rows = run.rows(
        "select label as name from items where label is not null union select label from predictions where label is "
        "not null union select class_name from failure_modes union select predicted from predictions "
        "where predicted is not null"
    )
    known = [row["name"] for row in rows]
    for name in wanted.classes:
        if resolve(name, known) is None:
            raise ConfigError(f"rule {rule!r}: {unknown('class', name, known)}")


def _check_compared(rule: Rule, run: Run, baseline: Run, pairs: Mapping[str, str]) -> None:
    """What a model that has no older version did is neither new nor old."""
    wanted, compared = rule.failure_modes, pairs.values()
    assert wanted is not None
    for mode in run.failure_modes(ends=True):
        if mode["verdict"] == "confirmed" and owner(mode) not in compared and _counts(mode, wanted):
            raise ConfigError(
                f"rule {rule.name!r}: {baseline.location} has no model {owner(mode)!r}, for which failure modes "
                f"are confirmed now; it has: {', '.join(models_of(baseline))}. Say in the rules file which one it was, "
                f"as models: {{old: {owner(mode)}}}, or which model the rule is about"
            )


def _counts(mode: Row, wanted: Modes) -> bool:
    return (
        wanted.model in (None, owner(mode))
        and (wanted.classes is None or resolve(mode["class_name"], wanted.classes) is not None)
        and (mode["impact"] or 0.0) >= wanted.least_impact
    )


def _reviewed(run: Run, verdicts: tuple[str, ...], confirmed: bool = False) -> set[str]:
    """What people's last verdict is one of these on; `confirmed`: of what that run confirmed. What a person let pass as
    a mere hypothesis is not let pass once it is more."""
    rows = run.rows(
        "select subject_id from verdicts where verdict in (select unnest(?)) and (not ? or subject_id in "
        "(select failure_mode_id from failure_modes where verdict = 'confirmed'))",
        [list(verdicts), confirmed],
    )
    return {row["subject_id"] for row in rows}


def _words(mode: Row) -> str:
    impact = "" if mode["impact"] is None else f", impact {mode['impact']:.2%}"
    return f"{claim(mode)}{impact}"


def junit(outcomes: list[Outcome], name: str) -> bytes:
    """The outcomes as JUnit XML, a test case a rule."""
    failures = sum(not outcome.passed for outcome in outcomes)
    counts: Mapping[str, str] = {"tests": str(len(outcomes)), "failures": str(failures), "errors": "0"}
    suite = ElementTree.Element("testsuite", {"name": _printable(f"audit gate: {name}"), **counts})
    for outcome in outcomes:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "audit.gate", "name": _printable(outcome.name)})
        if not outcome.passed:
            failure = ElementTree.SubElement(case, "failure", {"message": _printable(outcome.message)})
            failure.text = _printable("\n".join(outcome.modes))
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def _printable(text: str) -> str:
    """Without characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
