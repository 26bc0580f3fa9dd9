"""Everything the report asks of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from audit.results.sql import CONCERNING, Run

Row = dict[str, Any]

NOT_REVIEWED = "not reviewed"
_EMBEDDER = "embedder: {loader: clip, ref: openai/clip-vit-base-patch32, revision: <commit>}"
_GENERATOR = "generator: {loader: diffusers, ref: path/to/stable-diffusion}"
SEARCHES = {"disagreement", "neuron", "uvce"}  # stages that need a generator and make explanations


def header(run: Run) -> Row:
    """Name, time and sizes of the run."""
    rows = run.rows(
        "select any_value(name) as name, any_value(created_at) as created_at, "
        "(select count(*) from items where role = 'data' and status = 'ok') as images, "
        "(select count(*) from items where role = 'pool' and status = 'ok') as pool, "
        "(select count(*) from items where status <> 'ok') as refused, "
        "(select count(*) from failure_modes where listed and verdict = 'confirmed') as confirmed, "
        "(select count(*) from failure_modes where listed and verdict = 'hypothesis') as hypotheses "
        "from runs"
    )
    return rows[0]


def roles(run: Run) -> list[Literal["pool", "data", "both"]]:
    """Among which images one can look: those of the roles that have any, the pool first; the pool where none has."""
    head = header(run)
    if head["pool"] and head["images"]:
        return ["pool", "data", "both"]
    return ["data"] if head["images"] else ["pool"]


def audited(run: Run) -> list[Row]:
    """What the job file named: data, pool, models, generator, embedder; the plugin that read each, and from where."""
    config = json.loads((run.rows("select any_value(config) as config from runs")[0]["config"]) or "{}")
    parts = {"data": config.get("data"), "pool": config.get("pool")}
    parts |= {f"model {model_id}": options for model_id, options in config.get("models", {}).items()}
    parts |= {"generator": config.get("generator"), "embedder": config.get("embedder")}
    return [
        {"what": what, "read by": part["plugin"], "from": str(part.get("path") or part.get("ref") or "")}
        for what, part in parts.items()
        if part
    ]


@dataclass(frozen=True)
class NotAsked:
    """Something that a job did not ask for. `lines`: of a job file, those that would ask for it."""

    what: str
    lines: tuple[str, ...]


def kinds(run: Run) -> list[str]:
    """The kinds of the job's stages, in their order."""
    return [str(stage["plugin"]) for stage in _job(run).get("stages") or []]


def not_asked(run: Run) -> list[NotAsked]:
    """What the job did not ask for, of what an audit can find: groups of errors with a name, and what only a search
    with a generator shows."""
    job, there = _job(run), set(kinds(run))
    if not job:
        return []
    embedder = [] if job.get("embedder") else [_EMBEDDER]
    generator = [] if job.get("generator") else [_GENERATOR]
    missing = []
    if "discover" not in there:
        lines = (*embedder, "stages:", "  - ...", "  - {kind: discover}")
        missing.append(
            NotAsked("failure modes: features that wrong images share, each named and tested on other images", lines)
        )
    if not there & SEARCHES:
        first, second = [*(job.get("models") or {}), "<a second model>", "<a second model>"][:2]
        search = f"  - {{kind: disagreement, maximise: {first}, minimise: {second}}}"
        lines = (*embedder, *generator, "stages:", "  - ...", "  - {kind: adequacy}", search)
        missing.append(NotAsked("failures that no image of the data shows: searches with a generator", lines))
    return missing


def _job(run: Run) -> Row:
    """The checked job, as the run's record has it; empty where that is not whole."""
    try:
        return dict(json.loads(run.store.read("job.json") or b"{}").get("job") or {})
    except (ValueError, AttributeError, TypeError):
        return {}


def surest_errors(run: Run, model_id: str, most: int) -> list[Row]:
    """Labelled images that a model gets wrong, the ones that it is surest of first: item_id, role, uri, display_name,
    label, predicted, confidence."""
    rows = run.rows(
        "select item_id, any_value(role) as role, any_value(label) as label, any_value(predicted) as predicted, "
        "max(confidence) as confidence from predictions where role = 'data' and correct is false and model_id = ? "
        "group by item_id order by confidence desc nulls last, item_id limit ?",
        [model_id, most],
    )
    places = run.rows(
        "select item_id, arg_min(uri, position) as uri, arg_min(display_name, position) as display_name from items "
        "where role = 'data' and item_id in (select unnest(?)) group by item_id",
        [[row["item_id"] for row in rows]],
    )
    by_id = {row["item_id"]: row for row in places}
    return [{"uri": None, "display_name": None, **row, **by_id.get(row["item_id"], {})} for row in rows]


def models(run: Run) -> list[Row]:
    """Each model's accuracy on the labelled data."""
    return run.rows(
        "select model_id, count(*) as images, avg(correct::int) as accuracy "
        "from predictions where role = 'data' and correct is not null "
        "group by model_id order by model_id"
    )


def modes(run: Run, most: int = 200) -> list[Row]:
    """What the first failure modes are called, confirmed ones first, by impact; without their lists of
    exemplars and evidence. `audit.results.gallery` has all of them by the page."""
    return run.rows(
        "select failure_mode_id, model_id, other_model_id, at_fault, class_name, name, concept, verdict, kind "
        "from failure_modes where listed "
        "order by verdict, impact desc nulls last, effect desc nulls last, failure_mode_id limit ?",
        [most],
    )


def mode(run: Run, failure_mode_id: str) -> Row | None:
    """All columns but `showing`."""
    rows = run.rows("select * exclude (showing) from failure_modes where failure_mode_id = ?", [failure_mode_id])
    return rows[0] if rows else None


def verdict(run: Run, subject_id: str) -> Row | None:
    """The last review of a finding."""
    rows = run.rows("select * from verdicts where subject_id = ?", [subject_id])
    return rows[0] if rows else None


def verdicts(run: Run, subject_ids: list[str]) -> dict[str, str]:
    """A person's last verdict on each finding that has one."""
    rows = run.rows("select subject_id, verdict from verdicts where subject_id in (select unnest(?))", [subject_ids])
    return {row["subject_id"]: row["verdict"] for row in rows}


def against_others(run: Run, failure_mode_id: str) -> list[Row]:
    """What discovery measured of a failure mode against models that are not of its pair, one row a model."""
    names = ("holds_against", "alike", "both_confirmed")
    columns = [f"max(value) filter (name = '{name}') as {name}" for name in names]
    columns += ["count(*) filter (name = 'both_confirmed') > 0 as searched"]
    return run.rows(
        f"select key as model_id, {', '.join(columns)} from measurements where subject_id = ? "
        f"and name in {names} group by key order by key",
        [failure_mode_id],
    )


def exemplars(run: Run, ids: list[str] | None) -> list[Row]:
    """Explanations in the order asked; of a failure mode that rests on none, none."""
    ids = ids or []
    rows = {
        row["explanation_id"]: row
        for row in run.rows("select * from explanations where explanation_id in (select unnest(?))", [ids])
    }
    return [rows[i] for i in ids if i in rows]


def typical(run: Run, modes: list[Row]) -> list[Row | None]:
    """Of each failure mode its most typical search; None where it rests on none. All are looked up at once."""
    first = [(mode["exemplars"] or [None])[0] for mode in modes]
    rows = {row["explanation_id"]: row for row in exemplars(run, [name for name in first if name is not None])}
    return [rows.get(name) for name in first]


def said(run: Run, image_ids: list[str]) -> dict[str, list[Row]]:
    """What every model says of images, by image. A start that several searches share was asked about several times."""
    rows = run.rows(
        "select item_id, model_id, arg_max(predicted, confidence) as predicted, max(confidence) as confidence "
        "from predictions where item_id in (select unnest(?)) and status = 'ok' "
        "group by item_id, model_id order by item_id, model_id",
        [image_ids],
    )
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row["item_id"], []).append(row)
    return by_image


def kept(run: Run, image_ids: list[list[str]], most: int) -> list[list[str]]:
    """Of each of these lists the first images that the run holds, in their order; all are looked up at once."""
    every = sorted({image_id for ids in image_ids for image_id in ids})
    rows = run.rows("select distinct image_id from images where image_id in (select unnest(?))", [every])
    there = {row["image_id"] for row in rows}
    return [[image_id for image_id in ids if image_id in there][:most] for ids in image_ids]


def measured(run: Run, explanation_id: str) -> list[Row]:
    """What was measured of an explanation: a row a quantity, a column a variant."""
    return run.rows(
        "pivot (select name, coalesce(key, 'counterfactual') as key, value from measurements where subject_id = "
        f"'{_hexadecimal(explanation_id)}') on key using max(value) order by name"
    )


def _hexadecimal(text: str) -> str:
    """An id that is safe inside a query: PIVOT takes no parameters."""
    return f"{int(text, 16):032x}"


def traces(run: Run, ids: list[str] | None) -> list[Row]:
    return run.rows(
        "select explanation_id, step, loss, score, other_score from traces "
        "where explanation_id in (select unnest(?)) order by explanation_id, step",
        [ids or []],
    )


def classes(run: Run) -> list[Row]:
    """What the adequacy stage measured of each class."""
    return run.rows(
        "select subject_id as class, max(value) filter (name = 'agreement') as agreement, "
        "max(value) filter (name = 'kid') as kid, "
        "coalesce(max(reason) filter (name = 'auditable' and value = 0), '') as reason "
        "from measurements where name in ('agreement', 'kid', 'auditable') group by subject_id order by subject_id"
    )


def refused(run: Run) -> list[Row]:
    """Why images could not be used, and how many."""
    return run.rows(
        "select role, reason, count(*) as images, min(display_name) as example from items "
        "where status <> 'ok' group by role, reason order by images desc"
    )


def coverage(run: Run) -> list[Row]:
    """Of each class, what was looked at: labelled images and their accuracy over all models, explanations that ended
    and failure modes that concern it; and what the adequacy stage measured."""
    return run.rows(
        "with labelled as (select label as class, count(*) as images from items "
        "where role = 'data' and status = 'ok' and label is not null group by label), "
        "right_ as (select label as class, sum(images * accuracy) / sum(images) as accuracy from accuracy "
        "group by label), "
        "searched as (select target_class as class, count(*) as explanations from explanations where status = 'ok' "
        "and target_class is not null group by target_class), "
        "found as (select class_name as class, count(*) as modes, count(*) filter (verdict = 'confirmed') as confirmed "
        f"from {CONCERNING} group by class_name), "
        "adequate as (select subject_id as class, max(value) filter (name = 'agreement') as agreement, "
        "max(value) filter (name = 'kid') as kid, max(reason) filter (name = 'auditable' and value = 0) as reason "
        "from measurements where name in ('agreement', 'kid', 'auditable') group by subject_id) "
        'select class, images as "labelled images", accuracy, explanations, modes as "failure modes", confirmed, '
        'agreement, kid, reason as "not audited because" '
        "from labelled full join right_ using (class) full join searched using (class) full join found using (class) "
        "full join adequate using (class) order by class"
    )


def failures(run: Run) -> list[Row]:
    """What could not be done: images refused, predictions and explanations that failed, units given up; by reason."""
    return run.rows(
        "select what, stage, reason, count, example from ("
        "select 'image of the ' || role as what, '0-inventory' as stage, reason, count(*) as count, "
        "min(display_name) as example from items where status <> 'ok' group by role, reason "
        "union all select 'prediction of ' || model_id, null, reason, count(*), min(item_id) from predictions "
        "where status <> 'ok' group by model_id, reason "
        "union all select 'explanation', stage, reason, count(*), min(explanation_id) from explanations "
        "where status <> 'ok' group by stage, reason "
        "union all select 'unit given up', stage, reason, count(*), min(unit_id) from (select stage, unit_id, "
        "string_split(trim(error, chr(10)), chr(10))[-1] as reason from units where status = 'quarantined') "
        "group by stage, reason) order by count desc, what, stage, reason limit 200"
    )


def pairs(run: Run) -> list[Row]:
    """Of each pair of models: on how many of the images under audit both spoke, and the share on which they differ."""
    return run.rows(
        "select model_id as model, other_model_id as other, sum(images)::bigint as images, "
        "sum(images * disagreement) / sum(images) as disagreement from disagreements "
        "where model_id < other_model_id group by all order by all"
    )


def disagreements(run: Run) -> list[Row]:
    """Per class that the first model says: how often every other model says something else, on the data."""
    return run.rows(
        "select model_id as model, other_model_id as other, says, images, disagreement from disagreements "
        "order by disagreement desc, images desc, model, other, says limit 50"
    )


def confusions(run: Run) -> list[Row]:
    """What each model says instead of the label, most often first."""
    return run.rows(
        "select model_id as model, label, predicted as says, images, share from confusions "
        "order by images desc, share desc, model, label, says limit 50"
    )


def picture(run: Run, image_id: str) -> bytes | None:
    """The stored PNG bytes of an image."""
    rows = run.rows("select png from images where image_id = ? limit 1", [image_id])
    return rows[0]["png"] if rows else None
