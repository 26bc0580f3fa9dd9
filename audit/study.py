"""A blinded comparison of two ways of making counterfactuals: people look at both and say which of them is better.

The user study of DiG-IN (Augustin, Neuhaus and Hein, CVPR 2024; Sec. 6, Table 1 and Appendix F): 21 people saw 30 pairs
of original and target class, drawn at random from those on which both methods reach 80 % confidence in the target
class; beside four images of the target class, the original, and the two results as A and B, in an order drawn for each
person and pair. Of each result they said whether it (Q1) "is realistic", (Q2) "shows meaningful features of the target
class" and (Q3) "changes mainly the class object", and then which one is better, or that both are equal.

Differs from the paper: what is compared are two stages, or two methods, of one run. Q1 to Q3 are asked of both results
at once (A, B, both or neither), which says the same with three keys in place of six. The images of the target class are
those of the data set that the run keeps. Shares have an interval, and there is a test; the paper gives shares only.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from scipy import stats

from audit.errors import ConfigError, unknown
from audit.results.sql import Run
from audit.reviews import person

QUESTIONS = {
    "realistic": ("A", "B", "both", "neither"),
    "features": ("A", "B", "both", "neither"),
    "object": ("A", "B", "both", "neither"),
    "better": ("A", "B", "equal"),
}
LEAST_CONFIDENCE = 0.8  # in the target class, of both results
MOST_PAIRS = 30
STAGE = "answers"  # of the units that hold them; stages of a job begin with a number

_SHOWN = (
    "with shown as (select *, stage || ' ' || method as variant from explanations where status = 'ok' "
    "and item_id is not null and start_image_id is not null and image_id is not null and score_after is not null "
    "qualify row_number() over (partition by variant, item_id, model_id, target_class order by explanation_id) = 1) "
)


@dataclass(frozen=True)
class Pair:
    """Two results for one image and target class; `results`: explanation ids to image ids, in no telling order."""

    pair_id: str
    original: str
    source_class: str
    target_class: str
    results: tuple[tuple[str, str], tuple[str, str]]

    def shown(self, rater: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """What this person sees as A and as B: the same whenever it is asked."""
        first, second = self.results
        return (second, first) if _drawn(self.pair_id, rater) % 2 else (first, second)


def comparable(run: Run) -> list[dict[str, Any]]:
    """What can be compared: two variants, each '<stage> <method>', and the number of pairs that they share."""
    return run.rows(
        f"{_SHOWN} select a.variant as first, b.variant as second, count(*) as pairs from shown a join shown b "
        "using (item_id, model_id, target_class) where a.variant < b.variant group by all order by first, second"
    )


def pairs(run: Run, first: str, second: str, least: float = LEAST_CONFIDENCE) -> list[Pair]:
    """Up to `MOST_PAIRS` pairs of two variants, at random but always the same ones, on which both reach `least`."""
    rows = run.rows(
        f"{_SHOWN} select a.start_image_id as original, a.source_class, a.target_class, a.explanation_id as a_id, "
        "a.image_id as a_image, b.explanation_id as b_id, b.image_id as b_image from shown a join shown b "
        "using (item_id, model_id, target_class) "
        "where a.variant = ? and b.variant = ? and least(a.score_after, b.score_after) >= ?",
        [first, second, least],
    )
    found = []
    for row in rows:
        one, other = sorted([(row["a_id"], row["a_image"]), (row["b_id"], row["b_image"])])
        pair_id = hashlib.sha256(f"{one[0]} {other[0]}".encode()).hexdigest()[:32]
        found.append(Pair(pair_id, row["original"], row["source_class"] or "", row["target_class"], (one, other)))
    return sorted(found, key=lambda pair: pair.pair_id)[:MOST_PAIRS]


def ordered(found: list[Pair], rater: str) -> list[Pair]:
    """In this person's order."""
    return sorted(found, key=lambda pair: _drawn("order", pair.pair_id, rater))


def _drawn(*names: str) -> int:
    """A number that follows from names."""
    return int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:8])


def references(run: Run, class_name: str, but: str, most: int = 4) -> list[str]:
    """Images of a class in the data set of which the run keeps pictures, without `but`: image ids."""
    rows = run.rows(
        "select distinct image_id from images join items on item_id = image_id "
        "where role = 'data' and label = ? and image_id <> ? order by image_id limit ?",
        [class_name, but, most],
    )
    return [row["image_id"] for row in rows]


def answered(run: Run, rater: str) -> set[str]:
    """Pairs of which this person has answered all questions."""
    rows = run.rows(
        "select pair_id from answers where rater = ? group by pair_id having count(distinct question) = ?",
        [rater, len(QUESTIONS)],
    )
    return {row["pair_id"] for row in rows}


def answer(run: Run, pair: Pair, given: dict[str, str], rater: str) -> None:
    """Keep a person's answers on a pair: to each question one. Earlier ones stay; the last count.

    Raises ConfigError for an answer that is none, for a question that is missing or unknown, and for a bad name.
    """
    name = person(rater)
    for question in {**dict.fromkeys(QUESTIONS), **given}:
        if question not in QUESTIONS:
            raise ConfigError(unknown("question", question, QUESTIONS))
        if given.get(question) not in QUESTIONS[question]:
            raise ConfigError(unknown("answer", str(given.get(question)), QUESTIONS[question]))
    (a_id, _), (b_id, _) = pair.shown(name)
    same = {"pair_id": pair.pair_id, "a_id": a_id, "b_id": b_id, "rater": name, "answered_at": datetime.now(UTC)}
    rows = [{**same, "question": question, "answer": said} for question, said in given.items()]
    run.store.commit(f"answers-{uuid.uuid4().hex}", STAGE, {"answers": rows})
    run.refresh()


def shares(run: Run, first: str, second: str) -> list[dict[str, Any]]:
    """Of each question and variant the share of yes, with Wilson's 95 % interval.

    Each answer of each person counts once, as in the paper; people and images repeat, so the interval is, if anything,
    too narrow.
    """
    found = []
    for question in QUESTIONS:
        rows = _both(run, first, second, question)
        for place, variant in enumerate((first, second)):
            yes = sum(row["yes"][place] for row in rows)
            row = {"question": question, "variant": variant, "yes": yes, "answers": len(rows), "share": None}
            row |= {"low": None, "high": None, "raters": len({row["rater"] for row in rows})}
            if rows:
                interval = stats.binomtest(yes, len(rows)).proportion_ci(method="wilson")
                row |= {"share": yes / len(rows), "low": interval.low, "high": interval.high}
            found.append(row)
    return found


def sign_tests(run: Run, first: str, second: str) -> list[dict[str, Any]]:
    """Of each question the images on which more people said yes of one variant than of the other, and the two-sided
    sign test over them. Images are what is drawn at random: people agree on an image."""
    found = []
    for question in QUESTIONS:
        balance: dict[str, int] = {}
        for row in _both(run, first, second, question):
            balance[row["pair_id"]] = balance.get(row["pair_id"], 0) + row["yes"][0] - row["yes"][1]
        wins = sum(value > 0 for value in balance.values())
        losses = sum(value < 0 for value in balance.values())
        p_value = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
        row = {"question": question, "images": len(balance), "first": wins, "second": losses}
        found.append({**row, "tied": len(balance) - wins - losses, "p_value": p_value})
    return found


def _both(run: Run, first: str, second: str, question: str) -> list[dict[str, Any]]:
    """Of each person and pair, what was said of both variants: `yes`, two booleans."""
    return run.rows(
        "select pair_id, rater, [a.yes, b.yes] as yes from ratings a join ratings b using (pair_id, rater, question) "
        "where question = ? and a.stage || ' ' || a.method = ? and b.stage || ' ' || b.method = ?",
        [question, first, second],
    )
