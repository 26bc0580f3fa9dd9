"""Find findings by what a user types: an id or its beginning, a rank in the list, or a name."""

from __future__ import annotations

from typing import Any

from audit.errors import ConfigError
from audit.results.sql import Run
from audit.sentences import claim

Row = dict[str, Any]

SHORTEST = 4  # characters of an id that are enough, if no other id begins with them
LISTED = 20  # findings that an error names


def mode_id(run: Run, text: str) -> str:
    """The id of a failure mode. `text`: its id or a beginning of it, its rank in `Run.failure_modes` from 1, its name,
    or a beginning of the name, whatever the case.

    Raises ConfigError if none or several match.
    """
    found = _of_modes(run, text) or _by_id(run, text, ("failure_modes",))
    return _only(run, found, text, "failure mode")


def subject_id(run: Run, text: str) -> str:
    """The id of a failure mode, by any text that `mode_id` takes, or of an explanation or a neuron, by its id or its
    beginning.

    Raises ConfigError if none or several match.
    """
    found = _exact(run, text) or _of_modes(run, text) or _by_id(run, text, tuple(_IDS))
    return _only(run, found, text, "failure mode, explanation or neuron")


def explanation_id(run: Run, text: str) -> str:
    """The id of an explanation, by its id or its beginning; or the id of the most typical search of a failure mode, by
    any text that `mode_id` takes.

    Raises ConfigError if none or several match, and for a failure mode that is based on no search.
    """
    found = _by_id(run, text, ("explanations",))
    if found:
        return _only(run, found, text, "explanation")
    modes = _of_modes(run, text) or _by_id(run, text, ("failure_modes",))
    chosen = _only(run, modes, text, "explanation or failure mode")
    rows = run.rows("select exemplars[1] as first from failure_modes where failure_mode_id = ?", [chosen])
    if not rows[0]["first"]:
        raise ConfigError(
            f"the failure mode {text!r} is based on no search, so it has no explanation to reproduce; the explanations "
            "of the run are in the table explanations"
        )
    return str(rows[0]["first"])


_IDS = {
    "failure_modes": "failure_mode_id",
    "explanations": "explanation_id",
    "neurons": "neuron_id",
}


def _exact(run: Run, text: str) -> list[str]:
    """The id itself, if a finding has it."""
    queries = [f"select {column} as id from {table} where {column} = ?" for table, column in _IDS.items()]
    return [row["id"] for row in run.rows(f"{' union all '.join(queries)} limit 1", [text] * len(queries))]


def _by_id(run: Run, text: str, tables: tuple[str, ...]) -> list[str]:
    """Ids that equal the text or begin with it, at most as many as an error lists."""
    found = []
    for table in tables:
        column = _IDS[table]
        rows = run.rows(f"select {column} as id from {table} where {column} = ? limit 1", [text])
        if not rows and len(text) >= SHORTEST:
            query = f"select distinct {column} as id from {table} where starts_with({column}, ?) order by id limit ?"
            rows = run.rows(query, [text, LISTED])
        found += [row["id"] for row in rows]
    return found


def _of_modes(run: Run, text: str) -> list[str]:
    """Failure modes by id, rank, name, or beginning of the name: the first of these rules that finds any."""
    modes = run.failure_modes()
    wanted = text.strip().casefold()
    if wanted.isdecimal() and 1 <= int(wanted) <= len(modes):
        return [modes[int(wanted) - 1]["failure_mode_id"]]
    for fits in (
        lambda mode: mode["failure_mode_id"] == text,
        lambda mode: wanted in _names(mode),
        lambda mode: bool(wanted) and any(name.startswith(wanted) for name in _names(mode)),
    ):
        found = [mode["failure_mode_id"] for mode in modes if fits(mode)]
        if found:
            return found
    return []


def _names(mode: Row) -> list[str]:
    return [name.casefold() for name in (mode["name"] or "", claim(mode)) if name]


def _only(run: Run, found: list[str], text: str, what: str) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"several findings match {text!r}; give the rank or a longer part of the id:\n{_listed(run, found)}"
        )
    modes = [mode["failure_mode_id"] for mode in run.failure_modes()]
    known = f"failure modes of this run:\n{_listed(run, modes)}" if modes else "this run lists no failure modes"
    raise ConfigError(f"{run.location} has no {what} {text!r}; give an id, a rank or a name. {known}")


def _listed(run: Run, ids: list[str]) -> str:
    """One line per finding: rank, id and claim of a failure mode; the id of another finding."""
    ranked = {mode["failure_mode_id"]: (rank, mode) for rank, mode in enumerate(run.failure_modes(), 1)}
    lines = []
    for one in ids[:LISTED]:
        rank, mode = ranked.get(one, (None, None))
        lines.append(f"  {one}" if mode is None else f"  {rank}  {one}  {claim(mode)}")
    more = [f"  and {len(ids) - LISTED} more"] if len(ids) > LISTED else []
    return "\n".join([*lines, *more])
