"""Views that answer common questions: on the data set under audit, how often is each model right, what does it say
instead, and where do two models differ? What is the last word of people on a finding, and on a counterfactual?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """`columns`: what each holds, in the order of the query's."""

    comment: str
    columns: Mapping[str, str]
    query: str


_LABEL = "class of the data set"
_MODEL = "id in the job file"

VIEWS = {
    "accuracy": View(
        "how often a model is right on a class of the data set",
        {
            "model_id": _MODEL,
            "label": _LABEL,
            "images": "labelled images that it gave an answer for",
            "accuracy": "share of them on which the answer is the label",
        },
        "select model_id, label, count(*) as images, avg(correct::int) as accuracy from predictions "
        "where role = 'data' and correct is not null group by model_id, label",
    ),
    "confusions": View(
        "what a model says instead of a class of the data set",
        {
            "model_id": _MODEL,
            "label": _LABEL,
            "predicted": "what it says, another class",
            "images": "labelled images on which it does",
            "share": "of the class's images",
        },
        "select model_id, label, predicted, images, share from (select model_id, label, predicted, "
        "bool_and(correct) as correct, count(*) as images, "
        "count(*) / sum(count(*)) over (partition by model_id, label) as share from predictions "
        "where role = 'data' and correct is not null group by model_id, label, predicted) where not correct",
    ),
    "disagreements": View(
        "how often one model says another class than a second one, by what the first says",
        {
            "model_id": _MODEL,
            "other_model_id": "the second model",
            "says": "what the first says",
            "images": "images of the data set on which it does",
            "disagreement": "share of them on which the second says another class",
        },
        "select model_id, other_model_id, says, sum(images)::bigint as images, "
        "sum(images * (says <> other_says)::int) / sum(images) as disagreement from ("
        "select a.model_id, b.model_id as other_model_id, a.predicted as says, b.predicted as other_says, "
        "count(*) as images "
        "from predictions a join predictions b using (item_id, role) where role = 'data' and a.model_id <> b.model_id "
        "and a.status = 'ok' and b.status = 'ok' group by all) group by model_id, other_model_id, says",
    ),
    "verdicts": View(
        "the last review of each finding",
        {
            "subject_id": "failure mode, explanation or neuron",
            "verdict": "bug, expected, needs review, not a failure",
            "note": "free text",
            "reviewer": "who",
            "reviewed_at": "when",
            "reviews": "how many there are of it",
        },
        "select subject_id, verdict, note, reviewer, reviewed_at, count(*) over (partition by subject_id) as reviews "
        "from reviews qualify row_number() over "
        "(partition by subject_id order by reviewed_at desc, reviewer, verdict, note) = 1",
    ),
    "ratings": View(
        "the last answer of each rater in a blinded comparison, by explanation: two rows an answer",
        {
            "pair_id": "hash of the two explanations that were compared",
            "question": "realistic, features, object or better",
            "explanation_id": "one of the two",
            "stage": "its stage in the job file",
            "method": "plugin that made it",
            "yes": "it is so; of better: it was called the better one",
            "rater": "who",
            "answered_at": "when",
        },
        "with last as (select * from answers qualify row_number() over "
        "(partition by pair_id, question, rater order by answered_at desc, answer) = 1), "
        "sides as (select *, a_id as explanation_id, answer in ('A', 'both') as yes from last "
        "union all select *, b_id, answer in ('B', 'both') from last) "
        "select pair_id, question, explanation_id, stage, method, yes, rater, answered_at "
        "from sides join explanations using (explanation_id)",
    ),
}
