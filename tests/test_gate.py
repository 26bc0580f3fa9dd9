"""Rules on runs made by hand: what breaks each, what does not, and that no rule passes for want of knowledge."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from audit.comparison import compare
from audit.errors import ConfigError
from audit.gate import Outcome, check, junit, load_rules
from audit.results.sql import Run
from audit.reviews import review
from pipelines.cli import app
from tests import audited as made
from tests.audited import CONTROLS, against, mode, said

audited = partial(made.audited, askable=True)  # enough images to confirm something
NO_NEW = "- {name: nothing new, failure_modes: {status: [new, unclear]}, at_most: 0}"


def outcomes(folder: Path, rules: str, run: Run, baseline: Run | None = None) -> list[Outcome]:
    (folder / "rules.yaml").write_text(f"version: 1\nrules:\n{rules}\n", "utf-8")
    return check(load_rules(folder / "rules.yaml"), run, baseline)


@pytest.fixture
def before(tmp_path: Path) -> Run:
    """Has a mode of its own, and was right on the images of another one."""
    answers = {**dict.fromkeys("abcde", "crab"), **dict.fromkeys("uvxyz", "boat")}
    return audited(tmp_path / "before", [mode("crab", "on sand", evidence="abcde")], against(answers))


@pytest.fixture
def worse(tmp_path: Path) -> Run:
    """One more mode."""
    modes = [mode("crab", "on sand", evidence="abcde"), mode("crab", "red", evidence="uvxyz", impact=0.02)]
    return audited(tmp_path / "worse", modes, against(dict.fromkeys("abcdeuvxyz", "crab")))


@pytest.fixture
def better(tmp_path: Path) -> Run:
    """One mode fewer."""
    return audited(tmp_path / "better", [], against(dict.fromkeys("abcdeuvxyz", "boat")))


def test_a_new_confirmed_mode_is_blocked_and_a_fixed_one_is_not(
    tmp_path: Path, before: Run, worse: Run, better: Run
) -> None:
    found = outcomes(tmp_path, NO_NEW, worse, before)[0]
    assert (found.passed, found.value, found.message) == (False, 1.0, "1; at most 0 is wanted")
    assert found.modes == (
        "v says “crab” for what is red, impact 2.00% "
        "(new: error rate on 5 images with the feature: 0% before, 100% after; on 20 control images of the same "
        "classes: 0% before, 0% after; excess: +0% [-16%, 43%] before, +100% [54%, 100%] after; "
        "change: +100% [36%, 116%])",
    )
    assert outcomes(tmp_path, NO_NEW, better, before)[0].passed


def ended(folder: Path, boats: str, cars: str, *, cars_told: bool, listed: bool = False) -> Run:
    """v says crab for boats and cars on sand, as many as these letters; what it misses are other ends of that."""
    whole = mode("crab", "on sand", evidence=boats + cars)
    part = {"listed": listed, "at_fault": "v", "model_id": "reference", "other_model_id": "v"}
    part |= {"impact": 0.05} if listed else {"impact": 0.05, "part_of": whole["failure_mode_id"]}
    ends = [mode("boat", "on sand", evidence=boats, **part)]
    ends += [mode("car", "on sand", evidence=cars, **part)] if cars_told else []
    wrong = boats + (cars if cars_told else "")
    truth = {
        **dict.fromkeys("abcdefghij", "boat"),
        **dict.fromkeys("qrstuvwxyz", "car"),
        **dict.fromkeys(CONTROLS, "car"),
    }
    answers = [*said("pool", "reference", truth), *said("pool", "v", truth | dict.fromkeys(wrong, "crab"))]
    return audited(folder, [whole, *ends], answers)


def test_a_class_that_is_newly_missed_is_blocked_although_what_is_said_instead_is_not_new(tmp_path: Path) -> None:
    """Before it said crab for boats on sand, now for cars on sand as well."""
    before = ended(tmp_path / "before", "abcdefghij", "", cars_told=False)
    after = ended(tmp_path / "after", "abcdefghij", "qrstuvwxyz", cars_told=True)
    found = outcomes(tmp_path, NO_NEW, after, before)[0]
    assert (found.passed, found.value) == (False, 1.0)
    assert found.modes[0].startswith(
        "v misses “car” in what is on sand, impact 5.00% (new: error rate on 10 images with the feature: "
    )
    same = outcomes(tmp_path, NO_NEW, after, ended(tmp_path / "same", "abcdefghij", "qrstuvwxyz", cars_told=True))[0]
    assert same.passed
    apart = ended(tmp_path / "apart", "abcdefghij", "qrstuvwxyz", cars_told=True, listed=True)
    for one, other in ((after, apart), (apart, after)):  # whichever run lists both ends
        assert outcomes(tmp_path, NO_NEW, one, other)[0].passed
    compared = compare(before, after)
    assert [(change.status, change.class_name) for change in compared.changes] == [
        ("new", "car"),
        ("unchanged", "crab"),
    ]
    assert [(change.status, change.class_name) for change in compared.ends] == [("unchanged", "boat")]
    back = [(change.status, change.class_name) for change in compare(after, before).changes]
    assert back == [("unchanged", "crab"), ("fixed", "car")]


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ("{}", 1),  # a failure with three ends
        ("{classes: [crab]}", 1),
        ("{classes: [car]}", 1),
        ("{classes: [car, boat]}", 2),
        ("{classes: [car, boat, crab]}", 1),
        ("{model: v}", 1),
        ("{status: [unchanged]}", 1),
        ("{status: [unchanged], classes: [car]}", 1),
    ],
)
def test_a_failure_counts_once_unless_a_rule_is_about_what_is_missed(tmp_path: Path, wanted: str, value: float) -> None:
    run, before = (ended(tmp_path / name, "abcdefghij", "qrstuvwxyz", cars_told=True) for name in ("run", "before"))
    rule = f"- {{name: modes, failure_modes: {wanted}, at_most: 0}}"
    assert outcomes(tmp_path, rule, run, before)[0].value == value


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ("{}", 2),
        ("{verdict: any}", 3),
        ("{verdict: hypothesis}", 1),
        ("{model: v}", 2),
        ("{model: reference}", 0),
        ("{classes: [boat]}", 0),
        ("{classes: [CRAB]}", 2),
        ("{classes: [water bottle]}", 1),
        ("{least_impact: 0.02}", 2),
        ("{least_impact: 0.03}", 1),
    ],
)
def test_which_modes_a_rule_counts(tmp_path: Path, wanted: str, value: float) -> None:
    modes = [mode("crab", "on sand"), mode("crab", "red", impact=0.02), mode("boat", "red", "hypothesis", impact=None)]
    if "bottle" in wanted:
        modes.append(mode("Water_Bottle", "on sand"))
    run = audited(tmp_path / "run", modes, [])
    found = outcomes(tmp_path, f"- {{name: r, failure_modes: {wanted}, at_least: {value}, at_most: {value}}}", run)
    assert found[0].passed
    assert found[0].value == value


@pytest.mark.parametrize(
    ("verdict", "unless", "blocked"),
    [
        ("expected", "", False),
        ("not a failure", "", False),
        ("bug", "", True),
        ("needs review", "", True),
        ("bug", ", unless: [bug]", False),
        ("expected", ", unless: []", True),
    ],
)
@pytest.mark.parametrize("where", ["worse", "before"])
def test_what_a_person_called_expected_blocks_nothing(
    tmp_path: Path, before: Run, worse: Run, verdict: str, unless: str, blocked: bool, where: str
) -> None:
    """A verdict on the mode of the run before counts as well: ids are the same for the same content."""
    rules = f"- {{name: r, failure_modes: {{classes: [crab]{unless}}}, at_most: 0}}"
    if where == "worse":
        review(worse, "crab red", verdict, reviewer="Ada")
        review(worse, "crab on sand", verdict, reviewer="Ada")
        assert outcomes(tmp_path, rules, worse)[0].passed is not blocked
    else:
        review(before, "crab on sand", verdict, reviewer="Ada")
        assert outcomes(tmp_path, rules, worse, before)[0].value == (2 if blocked else 1)


def test_what_was_let_pass_as_a_hypothesis_is_blocked_once_it_is_confirmed(tmp_path: Path, worse: Run) -> None:
    guess = mode("crab", "red", "hypothesis")
    before = audited(tmp_path / "guessed", [guess], against(dict.fromkeys("abcdeuvxyz", "boat")))
    review(before, "crab red", "not a failure", reviewer="Ada")
    rules = "- {name: r, failure_modes: {least_impact: 0.0}, at_most: 0}"
    assert outcomes(tmp_path, rules, worse, before)[0].value == 2
    assert outcomes(tmp_path, NO_NEW, worse, before)[0].value == 2


@pytest.mark.parametrize(
    ("query", "passed", "value"),
    [
        ("select 0.9", True, 0.9),
        ("select 0.95::decimal(4, 2)", True, 0.95),
        ("select 0.79", False, 0.79),
        ("select 1.1", False, 1.1),
        ("select null", False, None),
        ("select 'nan'::double", False, None),
        ("select avg(impact) from failure_modes where false", False, None),
    ],
)
def test_a_query_s_number_is_held_between_its_bounds(
    tmp_path: Path, before: Run, query: str, passed: bool, value: float | None
) -> None:
    found = outcomes(tmp_path, f'- {{name: q, sql: "{query}", at_least: 0.8, at_most: 1}}', before)[0]
    assert (found.passed, found.value) == (passed, value)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("- {name: r, at_most: 0}", "either 'failure_modes' or 'sql'"),
        ("- {name: r, sql: select 1, failure_modes: {}, at_most: 0}", "either 'failure_modes' or 'sql'"),
        ("- {name: r, sql: select 1}", "'at_most', 'at_least' or both"),
        ("- {name: r, failure_modes: {status: [newer]}, at_most: 0}", "'new', 'fixed'"),
        ("- {name: r, failure_modes: {status: [new], verdict: any}, at_most: 0}", "leave out 'verdict'"),
        ("- {name: r, failure_mode: {}, at_most: 0}", "failure_mode"),
        ("- {name: r, sql: select 1, at_most: .nan}", "number"),
        ("- {name: r, sql: selec 1, at_most: 0}", "the query failed"),
        ("- {name: r, sql: select 1 union all select 2, at_most: 0}", "2 rows of 1 columns, not one number"),
        ("- {name: r, sql: select 'x', at_most: 0}", "'x', not a number"),
        ("- {name: r, sql: select true, at_most: 0}", "True, not a number"),
        (NO_NEW, "needs the run of before"),
        ("- {name: r, failure_modes: {model: referense}, at_most: 0}", "unknown model 'referense'. Did you mean"),
        ("- {name: r, failure_modes: {classes: [crap]}, at_most: 0}", "unknown class 'crap'. Did you mean 'crab'"),
        ("  []", "at least 1 item"),
    ],
)
def test_rules_that_cannot_be_told_are_refused(tmp_path: Path, before: Run, rules: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        outcomes(tmp_path, rules, before)


def test_a_model_that_the_run_before_has_not_passes_no_rule_on_what_is_new(tmp_path: Path, before: Run) -> None:
    """A version of another name: with confirmed modes it has to be said which one it was; without, it is no matter."""
    answers = [
        *said("pool", "v2", {**dict.fromkeys(CONTROLS, "boat"), **dict.fromkeys("abcdeuvxyz", "crab")}),
        *against(dict.fromkeys("abcde", "crab")),
    ]
    modes = [mode("crab", "red", evidence="uvxyz", model_id="v2")]
    renamed = audited(tmp_path / "renamed", modes, answers, models=("v2", "v", "reference"))
    with pytest.raises(ConfigError, match=r"has no model 'v2'.*it has: v, reference.*models: \{old: v2\}"):
        outcomes(tmp_path, NO_NEW, renamed, before)
    of_one = NO_NEW.replace("status:", "model: v, status:")
    assert outcomes(tmp_path, of_one, renamed, before)[0].passed
    (tmp_path / "named.yaml").write_text(f"version: 1\nmodels: {{v: v2}}\nrules:\n{NO_NEW}\n", "utf-8")
    (found,) = check(load_rules(tmp_path / "named.yaml"), renamed, before)
    assert (found.passed, found.value) == (False, 1.0)
    quiet = audited(tmp_path / "quiet", [], answers, models=("v2", "v", "reference"))
    assert outcomes(tmp_path, NO_NEW, quiet, before)[0].passed
    guessed = [mode("crab", "red", "hypothesis", model_id="v2")]
    unsure = audited(tmp_path / "unsure", guessed, answers, models=("v2", "v", "reference"))
    assert outcomes(tmp_path, NO_NEW, unsure, before)[0].passed


def unlabelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "correct": None} for row in rows]


FAIR = [
    row for name in ("v", "reference") for i in range(60) for row in said("data", name, {f"{i:08x}": "crab"}, "crab")
]
OTHER = [{**row, "predicted": "LABEL_0", "correct": False} for row in FAIR]


@pytest.mark.parametrize(
    ("items", "arrays", "predictions", "wanted", "why"),
    [
        (0, 60, FAIR, "{}", "none of its images has a label, and the data set declares no classes"),
        (60, 0, FAIR, "{}", "no real image has an embedding"),
        (60, 60, OTHER, "{}", r"v predicts no class of the data set: it predicts “LABEL_0”, the labels are “crab”"),
        (60, 60, [*FAIR[:60], *OTHER[60:]], "{}", "reference predicts no class of the data set"),
        (60, 60, unlabelled(FAIR), "{}", "v has no class for the label of any of the 60 labelled images"),
        (60, 60, FAIR[:60], "{}", "too few real images have an embedding, a prediction of every model .*: none"),
        (60, 12, FAIR, "{}", "a label: 12 of the data"),
        (60, 60, [*FAIR[:60], *OTHER[60:]], "{model: v}", None),
        (60, 60, FAIR, "{classes: [crab]}", None),
        (60, 24, FAIR, "{}", None),
        (60, 60, FAIR, "{}", None),
    ],
)
@pytest.mark.parametrize("status", ["", "status: [new], "])
def test_a_run_that_could_confirm_nothing_passes_no_rule_on_failure_modes(
    tmp_path: Path,
    items: int,
    arrays: int,
    predictions: list[dict[str, Any]],
    wanted: str,
    why: str | None,
    status: str,
) -> None:
    """Half of the images propose, half are asked: of 18 asked images or fewer than 9 no test gets below a hundredth."""
    run = made.audited(tmp_path / "run", [], predictions, done=("2-discover",))
    labels = [{"item_id": f"{i:08x}", "role": "data", "label": "crab"} for i in range(items)]
    embedded = [{"subject_id": f"{i:08x}", **made.EMBEDDED} for i in range(arrays)]
    run.store.commit("u0", "0-inventory", {"items": labels})
    run.store.commit("u1", "1-screen", {"arrays": embedded, "predictions": predictions})
    run.refresh()
    rule = f"- {{name: r, failure_modes: {wanted.replace('{', '{' + status)}, at_most: 0}}"
    before = made.audited(tmp_path / "before", [], FAIR)
    *_, found = outcomes(tmp_path, rule, run, before)  # warnings may come before
    assert found.passed is (why is None), found.message
    if why is not None:
        assert found.value is None
        assert re.match(f"the run cannot decide this rule: no failure mode could be confirmed: .*{why}", found.message)


@pytest.mark.parametrize("halves", ["odd", "even", "both"])
def test_images_of_one_half_alone_confirm_nothing(tmp_path: Path, halves: str) -> None:
    """Images whose eighth digit is even propose what a failure mode is, the others are asked: both are needed."""
    run = made.audited(tmp_path / "run", [], [], done=("2-discover",))
    ids = [f"{i:08x}" for i in range(60) if halves == "both" or (i % 2 == 1) is (halves == "odd")]
    run.store.commit("u0", "0-inventory", {"items": [{"item_id": i, "role": "data", "label": "crab"} for i in ids]})
    embedded = [{"subject_id": i, **made.EMBEDDED} for i in ids]
    run.store.commit("u1", "1-screen", {"arrays": embedded, "predictions": FAIR})
    run.refresh()
    (found,) = outcomes(tmp_path, "- {name: r, failure_modes: {}, at_most: 0}", run)
    assert found.passed is (halves == "both"), found.message


def test_a_class_that_a_model_never_names_passes_no_rule_on_it(tmp_path: Path) -> None:
    rule = "- {name: r, failure_modes: {classes: [%s]}, at_most: 0}"
    run = audited(tmp_path / "run", [], [])
    run.store.commit("more", "0-inventory", {"items": [{"item_id": "x", "role": "data", "label": "tench"}]})
    run.refresh()
    (found,) = outcomes(tmp_path, rule % "tench", run)
    assert not found.passed
    assert found.message.endswith("“tench” is never among the five most probable classes of v")
    assert outcomes(tmp_path, rule % "tench, boat", run)[0].passed
    top = {"item_id": "x", "role": "data", "status": "ok", "predicted": "boat", "label": "tench", "correct": False}
    named = [{**top, "model_id": name, "top_classes": ["boat", "tench"]} for name in ("v", "reference")]
    run.store.commit("named", "1-screen", {"predictions": named})
    run.refresh()
    assert outcomes(tmp_path, rule % "tench", run)[0].passed


@pytest.mark.parametrize("lacking", ["abcde", CONTROLS])
def test_a_rule_on_new_ones_fails_where_the_runs_share_no_images_to_compare(tmp_path: Path, lacking: str) -> None:
    found = mode("crab", "red", evidence="abcde")
    after = audited(tmp_path / "after", [found], against(dict.fromkeys("abcde", "crab")))
    there = [row for row in against(dict.fromkeys("abcde", "boat")) if row["item_id"] not in lacking]
    before = audited(tmp_path / "before", [], there)
    rule = "- {name: r, failure_modes: {status: [new]%s}, at_most: 0}"
    (outcome,) = outcomes(tmp_path, rule % "", after, before)
    assert (outcome.passed, outcome.value) == (False, None)
    assert outcome.message == "the run cannot decide this rule: confirmed failure modes that may be new or old: 1"
    assert "(5 with the feature, 20 without)" in outcome.modes[0]
    assert outcomes(tmp_path, rule % ", classes: [boat]", after, before)[0].passed  # it is none of these
    assert outcomes(tmp_path, NO_NEW, after, before)[0].value == 1  # the rule counts what is unclear itself
    review(after, "crab red", "expected", reviewer="Ada")
    assert outcomes(tmp_path, rule % "", after, before)[0].passed
    assert outcomes(tmp_path, rule % "", before, after)[0].passed  # what may be fixed is not new


def test_what_may_be_fixed_stops_no_model(tmp_path: Path) -> None:
    """Confirmed before, of 3 images; now nobody can tell: that is no failure of the run that is to ship."""
    before = audited(
        tmp_path / "before", [mode("crab", "red", evidence="abcde")], against(dict.fromkeys("abcde", "crab"))
    )
    after = audited(tmp_path / "after", [], against({}))
    assert [change.status for change in compare(before, after).changes] == ["unclear"]
    assert outcomes(tmp_path, NO_NEW, after, before)[0].passed
    assert not outcomes(tmp_path, NO_NEW, before, after)[0].passed


def test_a_rule_on_renamed_models_holds_for_all_others_too(tmp_path: Path) -> None:
    """v became v2, w kept its name: a new mode of w is one."""
    models = {"before": ("v", "w", "reference"), "after": ("v2", "w", "reference")}
    images = dict.fromkeys("abcde", "boat")
    before = audited(tmp_path / "before", [], against(images, "w"), models["before"])
    modes = [mode("crab", "red", evidence="abcde", model_id="w")]
    after = audited(tmp_path / "after", modes, against(dict.fromkeys("abcde", "crab"), "w"), models["after"])
    (tmp_path / "renamed.yaml").write_text(f"version: 1\nmodels: {{v: v2}}\nrules:\n{NO_NEW}\n", "utf-8")
    (found,) = check(load_rules(tmp_path / "renamed.yaml"), after, before)
    assert (found.passed, found.value) == (False, 1.0)


def test_a_rule_on_a_model_counts_what_it_is_at_fault_for(tmp_path: Path) -> None:
    blind = mode("fish", "not on water", model_id="reference", other_model_id="v", at_fault="v")
    run = audited(tmp_path / "run", [blind], [])
    for model, value in (("v", 1.0), ("reference", 0.0)):
        rule = f"- {{name: r, failure_modes: {{model: {model}}}, at_most: 0}}"
        assert outcomes(tmp_path, rule, run)[0].value == value


def test_a_run_that_looked_for_nothing_passes_no_rule_on_failure_modes(tmp_path: Path) -> None:
    run = audited(tmp_path / "run", [], [], done=("0-inventory", "1-screen"))
    with pytest.raises(ConfigError, match="looked for no failure modes"):
        outcomes(tmp_path, "- {name: r, failure_modes: {}, at_most: 0}", run)


def test_junit_holds_each_rule_and_any_text() -> None:
    found = [Outcome("fine", True, 0.0, "0"), Outcome("a <b> & \x07", False, 1.0, 'not "1"', ("crab & co", "boat"))]
    suite = ElementTree.fromstring(junit(found, "runs/x"))
    assert suite.attrib == {"name": "audit gate: runs/x", "tests": "2", "failures": "1", "errors": "0"}
    fine, failed = suite.findall("testcase")
    assert (fine.get("name"), fine.find("failure")) == ("fine", None)
    failure = failed.find("failure")
    assert failure is not None
    assert (failed.get("name"), failure.get("message"), failure.text) == (
        "a <b> & \ufffd",
        'not "1"',
        "crab & co\nboat",
    )


def test_the_command_exits_with_one_where_a_rule_is_broken(
    tmp_path: Path, before: Run, worse: Run, better: Run
) -> None:
    rules = tmp_path / "gate.yaml"
    rules.write_text(f"version: 1\nbaseline: before\nrules:\n{NO_NEW}\n", "utf-8")
    shell = CliRunner()
    report = tmp_path / "out.xml"
    broken = shell.invoke(app, ["gate", str(worse.root), "--rules", str(rules), "--junit", str(report)])
    assert broken.exit_code == 1, broken.output
    assert "failed  nothing new: 1; at most 0 is wanted" in broken.stdout
    assert ElementTree.parse(report).getroot().get("failures") == "1"
    nowhere = ["gate", str(worse.root), "--rules", str(rules), "--junit", str(tmp_path / "none" / "out.xml")]
    assert "failed  nothing new: 1; at most 0 is wanted" in shell.invoke(app, nowhere).stdout
    passed = shell.invoke(app, ["gate", str(better.root), "--rules", str(rules), "--json"])
    assert passed.exit_code == 0, passed.output
    assert json.loads(passed.stdout)["passed"] is True
    against = ["gate", str(worse.root), "--rules", str(rules), "--baseline", str(worse.root)]
    assert shell.invoke(app, against).exit_code == 2  # one run: which models?
    unfinished = audited(tmp_path / "u", [], [], done=("0-inventory",))
    assert shell.invoke(app, ["gate", str(unfinished.root), "--rules", str(rules)]).exit_code == 2


def test_the_examples_are_rules_and_commands_that_there_are(
    tmp_path: Path, better: Run, worse: Run, before: Run
) -> None:
    folder = Path(__file__).parent.parent / "examples" / "ci"
    rules = load_rules(folder / "gate.yaml")
    found = check(rules, better, before)
    assert [(outcome.passed, outcome.value) for outcome in found] == [(True, 0.0), (True, 0.0), (True, 1.0)]
    alone = load_rules(folder / "no-new-modes.yaml")
    assert [outcome.passed for outcome in check(alone, better, before)] == [True]
    assert [outcome.passed for outcome in check(alone, worse, before)] == [False]
    screened = load_rules(folder / "accuracy.yaml")
    assert [(outcome.passed, outcome.value) for outcome in check(screened, better, None)] == [(True, 1.0), (True, 1.0)]
    # v is right on 60 images, 16 of them crabs, and wrong on ten more crabs: of all images, and of the worst class.
    wrong = audited(tmp_path / "wrong", [], said("data", "v", dict.fromkeys("abcdefghij", "boat"), "crab"))
    assert [outcome.value for outcome in check(screened, wrong, None)] == pytest.approx([60 / 70, 16 / 26])
    steps = yaml.safe_load((folder / "github-actions.yml").read_text("utf-8"))["jobs"]["gate"]["steps"]
    commands = [step["run"] for step in steps if str(step.get("run", "")).startswith("audit ")]
    assert [command.split()[1] for command in commands] == ["run", "gate"]
    options = {word for command in commands for word in command.split() if word.startswith("--")}
    known = {option for command in ("run", "gate") for option in _options(command)}
    assert options <= known


def _options(command: str) -> set[str]:
    return {name for option in get_command(app).commands[command].params for name in option.opts}  # type: ignore[attr-defined]
