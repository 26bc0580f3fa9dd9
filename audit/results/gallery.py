"""Failure modes and explanations by the page: DuckDB chooses, sorts and counts, and no more than a page is read.

Every order ends with the id, so that no row is met on two pages and none is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audit.results import queries
from audit.results.sql import Run

Row = dict[str, Any]

MODE_SORTS = {
    "confirmed first": "m.verdict, m.impact desc nulls last, m.effect desc nulls last",
    "impact": "m.impact desc nulls last, m.effect desc nulls last",
    "effect": "m.effect desc nulls last, m.impact desc nulls last",
    "support": "m.support desc nulls last, m.impact desc nulls last",
    "newest review": "v.reviewed_at desc nulls last, m.impact desc nulls last",
    "class": "m.class_name, m.model_id, m.impact desc nulls last",
}
EXPLANATION_SORTS = {
    "surest first": "flipped desc nulls last, score_after desc nulls last",
    "largest change": "score_after - score_before desc nulls last",
    "class": "target_class, source_class nulls last, model_id",
    "slowest": "seconds desc nulls last",
}
_MODES = "from failure_modes m left join verdicts v on v.subject_id = m.failure_mode_id where m.listed"


@dataclass(frozen=True)
class Modes:
    """Which failure modes of the search; None or nothing: whatever it is.

    evidence: with real images that show it, or without. reviewed: a person's last verdicts, or `NOT_REVIEWED`.
    """

    class_name: str | None = None
    model_id: str | None = None
    kind: str | None = None
    evidence: bool | None = None
    least_effect: float | None = None
    least_impact: float | None = None
    verdicts: Sequence[str] = ()
    reviewed: Sequence[str] = ()


@dataclass(frozen=True)
class Explanations:
    """Which explanations; None: whatever it is."""

    stage: str | None = None
    method: str | None = None
    model_id: str | None = None
    source_class: str | None = None
    target_class: str | None = None
    flipped: bool | None = None
    status: str | None = None


AT_FAULT = "coalesce(at_fault, model_id)"  # the model whose failure a mode is, as `audit.comparison.owner` has it


def count_modes(run: Run, chosen: Modes) -> int:
    condition, values = _modes(chosen)
    return int(run.rows(f"select count(*) as found {_MODES}{condition}", values)[0]["found"])


def modes(run: Run, chosen: Modes, sort: str, number: int, size: int) -> list[Row]:
    """Page `number`, from 1, of failure modes; `reviewed` is a person's last verdict. `sort`: of `MODE_SORTS`.

    Without `showing`, which no list has a use for and which is most of the table.
    """
    condition, values = _modes(chosen)
    return run.rows(
        f"select m.* exclude (showing), v.verdict as reviewed {_MODES}{condition} "
        f"order by {MODE_SORTS[sort]}, m.failure_mode_id limit ? offset ?",
        [*values, size, (number - 1) * size],
    )


def beside(run: Run, failure_mode_id: str) -> tuple[str | None, str | None]:
    """The failure modes before and after one by impact, as ids; None at the ends."""
    rows = run.rows(
        f"select before, after from (select m.failure_mode_id, lag(m.failure_mode_id) over w as before, "
        f"lead(m.failure_mode_id) over w as after {_MODES} window w as "
        f"(order by {MODE_SORTS['impact']}, m.failure_mode_id)) where failure_mode_id = ?",
        [failure_mode_id],
    )
    return (rows[0]["before"], rows[0]["after"]) if rows else (None, None)


def related(run: Run, mode: Row, most: int) -> list[Row]:
    """Other failure modes that share real images, the class or the model at fault with this one, in this order.

    `shared`: how many real images of its evidence are evidence of both; `same_class`: whether the models say one class;
    `reviewed`: a person's last verdict.
    """
    return run.rows(
        "with shared as (select failure_mode_id, count(distinct item_id) as shared from "
        "(select failure_mode_id, unnest(evidence) as item_id from failure_modes where listed) "
        "where item_id in (select unnest(?)) group by all) "
        "select * exclude (evidence, exemplars) from (select m.* exclude (showing), v.verdict as reviewed, "
        "coalesce(shared, 0) as shared, class_name = ? as same_class, "
        f"{AT_FAULT} = ? as same_model from failure_modes m left join shared using (failure_mode_id) "
        "left join verdicts v on v.subject_id = m.failure_mode_id where listed and failure_mode_id <> ?) "
        "where shared > 0 or same_class or same_model "
        "order by shared desc, same_class desc, same_model desc, impact desc nulls last, failure_mode_id limit ?",
        [mode["evidence"] or [], mode["class_name"], _at_fault(mode), mode["failure_mode_id"], most],
    )


def parts_of(run: Run, failure_mode_id: str, most: int) -> list[Row]:
    """Failure modes that are a part of this one: they hold no more beside it, or are the other end of it.

    `total`: how many there are.
    """
    return run.rows(
        "select failure_mode_id, model_id, other_model_id, at_fault, class_name, name, count(*) over () as total "
        "from failure_modes where part_of = ? order by impact desc, failure_mode_id limit ?",
        [failure_mode_id, most],
    )


def neurons_of(run: Run, mode: Row, most: int) -> list[Row]:
    """Neurons of the model at fault that were looked at for the class, harmful ones first."""
    return run.rows(
        "select neuron_id, model_id, class_name, neuron, rank, layer, verdict, reason from neurons "
        "where model_id = ? and class_name = ? "
        "order by list_position(['harmful', 'spurious', 'core'], verdict) nulls last, rank nulls last, neuron_id "
        "limit ?",
        [_at_fault(mode), mode["class_name"], most],
    )


def _at_fault(mode: Row) -> str:
    return str(mode.get("at_fault") or mode["model_id"])


def count_explanations(run: Run, chosen: Explanations) -> int:
    condition, values = _explanations(chosen)
    return int(run.rows(f"select count(*) as found from explanations where {condition}", values)[0]["found"])


def explanations(run: Run, chosen: Explanations, sort: str, number: int, size: int) -> list[Row]:
    """Page `number`, from 1, of explanations. `sort`: of `EXPLANATION_SORTS`.

    The page is found by its ids alone, since whole rows of a million explanations are slow to sort.
    """
    condition, values = _explanations(chosen)
    ids = run.rows(
        f"select explanation_id from explanations where {condition} "
        f"order by {EXPLANATION_SORTS[sort]}, explanation_id limit ? offset ?",
        [*values, size, (number - 1) * size],
    )
    return queries.exemplars(run, [row["explanation_id"] for row in ids])


def values_of(run: Run, table: str, column: str, condition: str = "true") -> list[str]:
    """What a column of a table, or an expression, holds, each once, sorted. The last three are the caller's, never a
    person's."""
    query = f"select distinct {column} as value from {table} where {condition} and {column} is not null order by 1"
    return [row["value"] for row in run.rows(query)]


def _modes(chosen: Modes) -> tuple[str, list[Any]]:
    found = [
        ("m.class_name = ?", chosen.class_name),
        (f"{AT_FAULT} = ?", chosen.model_id),
        ("m.kind = ?", chosen.kind),
        ("(coalesce(len(m.evidence), 0) > 0) = ?", chosen.evidence),
        ("m.effect >= ?", chosen.least_effect),
        ("m.impact >= ?", chosen.least_impact),
        ("list_contains(?, m.verdict)", list(chosen.verdicts) or None),
        (f"list_contains(?, coalesce(v.verdict, '{queries.NOT_REVIEWED}'))", list(chosen.reviewed) or None),
    ]
    condition, values = _joined(found)
    return f" and {condition}", values


def _explanations(chosen: Explanations) -> tuple[str, list[Any]]:
    return _joined([(f"{column} = ?", value) for column, value in vars(chosen).items()])


def _joined(found: Sequence[tuple[str, Any]]) -> tuple[str, list[Any]]:
    """The conditions whose value is known, and the values."""
    known = [(text, value) for text, value in found if value is not None]
    return " and ".join(["true", *(text for text, _ in known)]), [value for _, value in known]
