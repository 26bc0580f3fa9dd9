"""Real images by words: the stored embeddings of a run's images against the embedding of a text.

A second road to real images that confirm a finding (DiG-IN, appendix B), beside the nearest neighbours of what a search
made. Differs from the paper: the images are those that the run has screened, so what every model says of them is known
and the disagreement among the retrieved ones can be tested against the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from audit import discovery, registry
from audit.config import Plugin, restored
from audit.embedding_index import available, index_of
from audit.errors import ConfigError, ModelError, unknown
from audit.failure_modes.claims import EMBEDDER
from audit.results.sql import Run

if TYPE_CHECKING:
    from audit.classifiers import Embedder

Role = Literal["pool", "data", "both"]
Row = dict[str, Any]

LONGEST_QUERY = 500
MOST_IMAGES = 1000
# A run may be a stranger's: no loader that runs code which its folder names.
_EMBEDDERS = ("clip",)

EXACT = 1_000_000  # embeddings that are compared with a query one by one; of more, an index proposes some

_SCREENED = "from arrays where name = 'embedding' and values is not null and list_contains(?::varchar[], role) "
# Every screened image once, one that is in both roles as the data set's.
_STORED = f"select subject_id as item_id, min(role) as role {_SCREENED} group by subject_id"
_INDEXED = (
    "select item_id, min(role) as role from read_parquet(?) where list_contains(?::varchar[], role) group by item_id"
)


@dataclass(frozen=True)
class Retrieval:
    """What a query found.

    images: how many could have been retrieved; `approximate`: an index proposed those whose similarity was looked at,
    so that a few others may be as similar. rows: the retrieved ones, most similar first, each with `said`, what
    every model says of it, and `disagrees`, whether the models disagree on it as `mode` says (None without a mode).
    said: for each model and class, the share of the retrieved images and of all. mode: the rates of disagreement and
    the one-sided Fisher test of the retrieved images against the rest. The p-value is that of one query; who tries
    many has to correct it.
    """

    query: str
    role: Role
    images: int
    approximate: bool
    rows: tuple[Row, ...]
    said: tuple[Row, ...]
    mode: Row | None

    def as_dict(self) -> Row:
        """Plain values for JSON."""
        return {**self.__dict__, "rows": list(self.rows), "said": list(self.said)}


def retrieve(
    run: Run, embedder: Embedder, query: str, role: Role = "pool", top: int = 20, mode_id: str | None = None
) -> Retrieval:
    """The `top` images of a role that are most similar to a text. `embedder`: the run's own, see `embedder_of`.

    Raises ConfigError for a query that says nothing or that the text model does not read to its end, for a failure
    mode that the run does not have, and where the run has no embeddings of the role.
    """
    text = checked_query(query)
    if not 1 <= top <= MOST_IMAGES:
        raise ConfigError(f"{top} images cannot be retrieved; ask for 1 to {MOST_IMAGES}")
    mode = None if mode_id is None else _mode(run, mode_id)
    vector, roles = _embedded(embedder, text), ["data", "pool"] if role == "both" else [role]
    index = index_of(run) if _many(run) and available() else None
    if index is None:
        screened = _Screened(_STORED, [roles])
        rows = run.rows(_nearest(len(vector)), [vector, roles, top])
    else:
        screened = _Screened(_INDEXED, [str(index.ids), roles])
        proposed = index.nearest(vector, roles, top)
        those = (
            f"and subject_id in ({', '.join('?' * len(proposed)) or 'null'})"  # one by one: files without are skipped
        )
        rows = run.rows(_nearest(len(vector), those), [vector, roles, *proposed, top])
    if not rows:
        raise ConfigError(_no_images(run, role))
    ids = [row["item_id"] for row in rows]
    tested = None if mode is None else _tested(run, mode, ids, screened)
    images = rows[0]["images"]  # all that were compared; of those that an index proposed, the count tells nothing
    if index is not None:
        images = run.rows(f"select count(*) as images from ({screened.query})", screened.parameters)[0]["images"]
    said = tuple(_said(run, ids, screened))
    return Retrieval(text, role, images, index is not None, _described(run, rows, mode), said, tested)


@dataclass(frozen=True)
class _Screened:
    """item_id and role of every image that could be retrieved, as a query."""

    query: str
    parameters: list[Any]


def _nearest(d: int, only: str = "") -> str:
    """The images of roles that are nearest to a vector (d,). As lists DuckDB would refuse all where one is NULL."""
    return (
        "select *, count(*) over () as images from (select subject_id as item_id, min(role) as role, "
        f"max(array_cosine_similarity(values::float[{d}], ?::float[{d}])) as similarity {_SCREENED} {only} "
        "group by subject_id) qualify not isnan(similarity) order by similarity desc, item_id limit ?"
    )


def _many(run: Run) -> bool:
    found = run.rows("select count(*) as found from arrays where name = 'embedding' and role <> 'generated'")
    return bool(found[0]["found"] > EXACT)


def checked_query(query: str) -> str:
    """The query with single spaces. Raises ConfigError where it is empty, too long or holds control characters."""
    text = " ".join(query.split())
    if not text:
        raise ConfigError("the query is empty; say what the images show, such as: a photograph of a crab on sand")
    if len(text) > LONGEST_QUERY:
        raise ConfigError(f"the query has {len(text)} characters, more than {LONGEST_QUERY}: shorten it")
    strange = next((c for c in text if not c.isprintable()), None)
    if strange is not None:
        raise ConfigError(f"the query holds the character U+{ord(strange):04X}, which is no text: leave it out")
    return text


def embedder_of(run: Run) -> Embedder:
    """The embedder that the run was made with, from the run's own job.

    Raises ConfigError where it had none or one of another kind, ModelError where its weights are gone or are others.
    """
    from audit.classifiers import Embedder

    record = _record(run)
    if not record["job"].get("embedder"):
        raise ConfigError(
            f"{run.location} has no embeddings: its job names no embedder. Add to the job file: "
            "embedder: {loader: clip, ref: ...}, and run it anew"
        )
    plugin = _allowed(record["job"]["embedder"])
    module = registry.plugin("classifiers", plugin.name)
    before, now = record["digests"].get("embedder"), module.digest(plugin.options)
    if before != now:
        raise ModelError(
            f"the embedder {plugin.options.ref} has other weights now (digest {now[:12]}) than when the run was made "
            f"({str(before)[:12]}): its texts do not compare with the stored embeddings. Restore the weights, or run "
            "the job anew"
        )
    loaded = module.load(plugin.options, ())  # its zero-shot classes are of no use here
    assert isinstance(loaded, Embedder)
    return loaded


def _record(run: Run) -> Row:
    """The run's `job.json`: the job's numbers, and the digests of its models."""
    return json.loads(run.store.read("job.json") or b"{}")


def _allowed(dumped: Row) -> Plugin:
    if dumped["plugin"] not in _EMBEDDERS:
        raise ConfigError(f"embedder: loader {dumped['plugin']!r} gives no embeddings of texts; use clip")
    return restored("classifiers", dumped)


def _embedded(embedder: Embedder, text: str) -> list[float]:
    """The embedding of a text, (d,). Raises ConfigError where leaving out its last word changes nothing."""
    shorter = text.rpartition(" ")[0]
    whole, part = np.asarray(embedder.embed_texts([text, shorter or text]))
    if shorter and np.allclose(whole, part, rtol=0, atol=1e-6):
        raise ConfigError(f"the embedder does not read the query to its end ({text[-40:]!r}): shorten it")
    return whole.tolist()


def _no_images(run: Run, role: Role) -> str:
    rows = run.rows("select distinct role from arrays where name = 'embedding' and role <> 'generated' order by role")
    there = " and ".join(row["role"] for row in rows) or "none: its job needs an embedder and the stage 'screen'"
    return f"{run.location} has no embeddings of images of the role {role!r}; it has: {there}"


def _mode(run: Run, mode_id: str) -> Row:
    modes = run.rows("select * from failure_modes")
    by_id = {mode["failure_mode_id"]: mode for mode in modes}
    if mode_id not in by_id:
        raise ConfigError(unknown("failure mode", mode_id, by_id))
    mode = by_id[mode_id]
    if mode["other_model_id"] == EMBEDDER:
        raise ConfigError(
            f"the failure mode {mode_id} holds the embedder's answers against {mode['model_id']}, and the embedder "
            "finds images by words: words prove nothing there. Ask without the failure mode"
        )
    return mode


def _described(run: Run, found: list[Row], mode: Row | None) -> tuple[Row, ...]:
    """Each retrieved image: where it is, what every model says of it, whether the mode's models disagree on it."""
    ids = [row["item_id"] for row in found]
    items = run.rows(
        "select item_id, role, uri, display_name, label from items where item_id in (select unnest(?)) "
        "qualify row_number() over (partition by item_id, role order by position) = 1",
        [ids],
    )
    by_place = {(item["item_id"], item["role"]): item for item in items}
    said: dict[tuple[str, str], list[Row]] = {place: [] for place in by_place}
    for row in run.rows(
        "select item_id, role, model_id, predicted, confidence, reason from predictions "
        "where item_id in (select unnest(?)) order by model_id",
        [ids],
    ):
        said.get((row.pop("item_id"), row.pop("role")), []).append(row)
    described = []
    for rank, row in enumerate(found, 1):
        place = (row["item_id"], row["role"])
        item = {**by_place[place], "rank": rank, "similarity": row["similarity"], "said": said[place]}
        described.append({**item, "disagrees": None if mode is None else _disagree(item, mode)})
    return tuple(described)


def _disagree(item: Row, mode: Row) -> bool | None:
    """Whether the mode's model says its class and what is held against it does not: the other model, or the label.

    None where one of them says nothing.
    """
    names = {row["model_id"]: row["predicted"] for row in item["said"] if row["predicted"] is not None}
    other = names.get(mode["other_model_id"])
    if mode["other_model_id"] is None:
        other = item["label"]
    first, name = names.get(mode["model_id"]), mode["class_name"]
    return None if first is None or other is None else first == name and other != name


def _said(run: Run, ids: list[str], screened: _Screened) -> list[Row]:
    """For each model and class: how many of the retrieved images, and of all, it says the class of."""
    return run.rows(
        f"with candidates as ({screened.query}), counted as (select model_id, predicted as says, "
        "count(*) filter (list_contains(?::varchar[], item_id)) as retrieved, count(*) as images "
        "from candidates join predictions using (item_id, role) where status = 'ok' group by all) "
        "select model_id, says, retrieved::bigint as retrieved, images::bigint as images, "
        "coalesce(retrieved / nullif(sum(retrieved) over (partition by model_id), 0), 0) as share_retrieved, "
        "images / sum(images) over (partition by model_id) as share "
        "from counted order by model_id, retrieved desc, images desc, says",
        [*screened.parameters, ids],
    )


def _tested(run: Run, mode: Row, ids: list[str], screened: _Screened) -> Row:
    """How often the model says the class and what is held against it does not, among the retrieved images and among the
    rest."""
    against, models = "b.predicted", [mode["model_id"], mode["other_model_id"]]
    joined = "join predictions b using (item_id, role) where b.status = 'ok' and a.status = 'ok' and a.model_id = ? "
    joined += "and b.model_id = ?"
    if mode["other_model_id"] is None:
        against, models = "a.label", models[:1]
        joined = "where a.label is not null and a.status = 'ok' and a.model_id = ?"
    counts = run.rows(
        f"with candidates as ({screened.query}) "
        "select list_contains(?::varchar[], item_id) as retrieved, count(*) as images, "
        f"count(*) filter (a.predicted = ? and {against} <> ?) as hits "
        f"from candidates join predictions a using (item_id, role) {joined} group by all",
        [*screened.parameters, ids, *[mode["class_name"]] * 2, *models],
    )
    by_side = {row["retrieved"]: (row["hits"], row["images"]) for row in counts}
    sides = [by_side.get(side, (0, 0)) for side in (True, False)]
    arm, rest = (np.repeat([True, False], [hits, images - hits]) for hits, images in sides)
    described = {key: mode[key] for key in ("failure_mode_id", "model_id", "other_model_id", "class_name", "name")}
    for name, (hits, images) in zip(("retrieved", "rest"), sides, strict=True):
        described |= {f"{name}_images": images, f"{name}_rate": hits / images if images else None}
    return described | {"p_value": discovery.fisher(arm, rest)}
