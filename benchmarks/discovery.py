"""How often discovery is right, how often it cries wolf, and whether it says the same twice, over runs that exist.

    python -m benchmarks.discovery RUN [RUN ...] [--nulls 60] [--twin RUN] [--fair RUN] [--output FILE]

Discovery is done again over each run's searches and real images. `precision` and `recall` are against the planted truth
of the run's embedded world, beside the screen-only baseline. A null run has the same searches and images, but what all
models but one say of real images is permuted among those of which that one says the same (labelled ones: that have one
label): no feature of an image has to do with it, and a run that confirms any mode that is named by a feature is a false
alarm. Null runs of one run share its searches, so they are less than so many independent ones. `--twin`: another run of
the first one's job with another seed; of the modes that either confirms, the share that both do, of those of searches
and of all that a report lists. `--fair`: a run of a
fair model against itself trained again: what it confirms as it is, and as many null runs of it alone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from audit.comparison import twins_of
from audit.failure_modes.claims import Material, Mode, Options, Real, material
from audit.methods import Context, discover, stage_names
from audit.models import Models
from audit.results.sql import Run
from audit.zoo.score import score_of
from pipelines.plan import job_of

Row = dict[str, Any]


def material_of(place: Path) -> Material:
    """What discovery makes failure modes from, of a run whose job ends with the stage `discover`."""
    run = Run(place)
    job = job_of(run.store)
    rows = run.rows("select distinct label from items where role = 'data' and label is not null order by label")
    context = Context(job, stage_names(job)[-1], place, Models(job, tuple(row["label"] for row in rows)), 64)
    options = job.stages[-1].options
    assert isinstance(options, Options)
    return material(options, context)


def anchor_of(made: Material) -> str:
    """The model that most searches hold others against."""
    rows = made.run.rows("select distinct model_id, other_model_id from explanations where other_model_id is not null")
    return Counter(name for row in rows for name in (row["model_id"], row["other_model_id"])).most_common(1)[0][0]


def permuted(real: Real | None, anchor: str, seed: int) -> Real | None:
    """What all models but the anchor say, permuted among images of one label or, without labels, one answer of it."""
    if real is None:
        return None
    rng = np.random.default_rng(seed)
    within = real.said.get(None, real.said[anchor])
    said = dict(real.said)
    for model_id in sorted(name for name in said if name not in (None, anchor, "embedder")):
        words = said[model_id].copy()
        for name in sorted(set(within)):
            places = np.flatnonzero(within == name)
            words[places] = words[rng.permutation(places)]
        said[model_id] = words
    return replace(real, said=said)


def null_run(made: Material, anchor: str, seed: int) -> list[Mode]:
    """What is confirmed where there is nothing to find; which label is called what is as it was, and no part of it."""
    empty = replace(made, pool=permuted(made.pool, anchor, seed), data=permuted(made.data, anchor, seed))
    found = [mode for mode in discover.found_in(empty)[1] if mode["verdict"] == "confirmed"]
    return [mode for mode in found if mode["concept"] in made.options.phrases]


def false_alarms(alarms: int, runs: int) -> Row:
    """The share, with its one-sided 95 % bound (Clopper and Pearson)."""
    bound = float(stats.beta.ppf(0.95, alarms + 1, runs - alarms)) if alarms < runs else 1.0
    return {"null_runs": runs, "false_alarms": alarms, "share": alarms / runs, "upper_bound": bound}


def overlap(first: list[Mode], second: list[Mode]) -> Row:
    """Of the modes that one of two runs confirmed, how many both did: by models, class, and concept or evidence."""
    one, other = ([m for m in modes if m["verdict"] == "confirmed"] for modes in (first, second))
    shared = 0
    for pair in {_pair(mode) for mode in one}:
        first, second = ([{"evidence": [], **m} for m in side if _pair(m) == pair] for side in (one, other))
        shared += len(twins_of(first, second))
    union = len(one) + len(other) - shared
    return {"first": len(one), "second": len(other), "both": shared, "share": shared / union if union else None}


def _pair(mode: Mode) -> tuple[str, str | None]:
    return mode["model_id"], mode["other_model_id"]


def alarms_of(made: Material, runs: int) -> Counter[str]:
    """Of so many null runs, how many confirm a mode of each source, and of any that a report lists."""
    alarms: Counter[str] = Counter()
    for seed in range(runs):
        found = null_run(made, anchor_of(made), seed)
        alarms.update({mode["source"] for mode in found})
        alarms["report"] += any(mode["listed"] for mode in found)
    return alarms


def calibrated(alarms: Counter[str], runs: int) -> dict[str, Row]:
    return {source: false_alarms(alarms[source], runs) for source in ("report", "search", "labels", "screen")}


def measured(places: list[Path], nulls: int, twin: Path | None = None, fair: Path | None = None) -> Row:
    """All figures of some runs; the null runs are divided among them."""
    figures: Row = {"worlds": [], "calibration": None, "stability": None, "fair": None}
    alarms: Counter[str] = Counter()
    for number, place in enumerate(places):
        made = material_of(place)
        modes = discover.found_in(made)[1]
        figures["worlds"].append({"run": place.name, **score_of(made.run, modes).as_dict()})
        alarms += alarms_of(made, nulls // len(places) + (number < nulls % len(places)))
        if twin is not None and number == 0:
            again = discover.found_in(material_of(twin))[1]
            searches = ([m for m in side if m["source"] == "search"] for side in (modes, again))
            listed = ([m for m in side if m["listed"]] for side in (modes, again))
            figures["stability"] = {"search": overlap(*searches), "report": overlap(*listed)}
    if nulls:
        figures["calibration"] = calibrated(alarms, nulls)
    if fair is not None:
        made = material_of(fair)
        confirmed = [m for m in discover.found_in(made)[1] if m["verdict"] == "confirmed" and m["listed"]]
        figures["fair"] = {"confirmed": [f"{m['model_id']}: {m['class_name']} {m['name']}" for m in confirmed]}
        if nulls:
            figures["fair"]["calibration"] = calibrated(alarms_of(made, nulls), nulls)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--nulls", type=int, default=60)
    parser.add_argument("--twin", type=Path)
    parser.add_argument("--fair", type=Path)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    figures = measured(given.runs, given.nulls, given.twin, given.fair)
    console = Console()
    table = Table(
        "run", "by", "confirmed", "planted", "precision", "found", "recall", title="against the planted truth"
    )
    for world in figures["worlds"]:
        for source in ("report", "search", "labels", "screen"):
            own = world[source]
            found = f"{len(own['found'])} of {len(own['found']) + len(own['missed'])}"
            shares = [own[name] for name in ("precision", "recall")]
            shown = ["-" if share is None else f"{share:.0%}" for share in shares]
            table.add_row(world["run"], source, str(own["confirmed"]), str(own["true"]), shown[0], found, shown[1])
            console.print(f"{world['run']}, {source}: missed {own['missed']}; false {own['false']}", highlight=False)
    console.print(table)
    console.print_json(data={name: figures[name] for name in ("calibration", "stability", "fair")})
    if given.output:
        given.output.write_text(json.dumps(figures, indent=1), "utf-8")


if __name__ == "__main__":
    main()
