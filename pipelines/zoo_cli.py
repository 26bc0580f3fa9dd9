"""The commands `audit zoo ...`: the embedded world, and how the audit scores on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from audit.locations import located
from pipelines.terminal import AsJson, RunFolder, exit_codes, for_json, out, print_json, print_rows

app = typer.Typer(
    help="The embedded world: scenes, models with planted failure modes, and the audit's own score.",
    no_args_is_help=True,
)

World = Annotated[
    int, typer.Option(min=1, help="Which world: 1 is the demo's, any other is drawn from its number and has two models")
]


@app.command("export")
def zoo_export(
    folder: Annotated[Path, typer.Argument(help="Folder to write to")],
    split: Annotated[str, typer.Option(help="labelled, pool, heldout or train")] = "labelled",
    world: World = 1,
    layout: Annotated[
        Literal["folder", "parquet"], typer.Option(help="ImageFolder with metadata, or Parquet")
    ] = "folder",
    limit: Annotated[Optional[int], typer.Option(help="Only the first so many scenes")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a split of the embedded world as users' data looks."""
    from audit.zoo.export import export

    with exit_codes():
        with for_json(as_json):
            scenes = export(split, folder, layout, limit, world)
        if as_json:
            print_json({"world": world, "scenes": scenes, "folder": str(folder), "split": split, "layout": layout})
        else:
            out.print(f"wrote {scenes} scenes to {folder}")


@app.command("train")
def zoo_train(
    model: Annotated[
        str,
        typer.Argument(
            help="Model to train: autoencoder, diffusion, clip, zero-shot, reference, shortcut-a, shortcut-b, or all"
        ),
    ],
    world: World = 1,
    work: Annotated[Path, typer.Option(help="Folder of checkpoints and rendered scenes; the same one resumes")] = Path(
        "zoo-work"
    ),
    weights: Annotated[
        Optional[Path], typer.Option(help="Where to write the weights; default: into the package")
    ] = None,
    minutes: Annotated[
        Optional[float], typer.Option(help="Stop after so many minutes; the same command resumes")
    ] = None,
    without: Annotated[
        Optional[str],
        typer.Option(help="Id of a planted failure mode that the model is to be free of: a mended version"),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of a classifier, its weights and batches; those that ship have 0")
    ] = 0,
    short: Annotated[bool, typer.Option(help="A few steps of everything, to see that the recipe runs")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model of the world again, from its seed; resumes from its checkpoint."""
    from audit.zoo.recipes.loop import Unfinished
    from audit.zoo.recipes.train import train

    with exit_codes():
        stopped = None
        try:
            with for_json(as_json):
                train(model, work, weights, minutes=minutes, short=short, number=world, without=without, seed=seed)
        except Unfinished as error:
            stopped = str(error)
        if as_json:
            print_json({"world": world, "model": model, "finished": stopped is None, "message": stopped})
        elif stopped:
            out.print(stopped)


@app.command("measure")
def zoo_measure(
    world: World = 1,
    work: Annotated[Path, typer.Option(help="Folder for rendered scenes")] = Path("zoo-work"),
    as_json: AsJson = False,
) -> None:
    """Measure a world's models on held-out scenes; rewrites its truth table and their cards."""
    from audit.zoo.measure import measure_all

    with exit_codes():
        with for_json(as_json):
            figures = measure_all(work, world)
        if as_json:
            print_json(figures)


@app.command("score")
def zoo_score(run: RunFolder, as_json: AsJson = False) -> None:
    """Precision and recall of a run's failure modes against the planted ones, beside a screen-only baseline."""
    from audit.results.sql import Run
    from audit.zoo.score import score

    with exit_codes():
        with for_json(as_json):
            result = score(Run(located(run)))
        if as_json:
            print_json(result.as_dict())
        else:
            result.print(out)


@app.command("neurons")
def zoo_neurons(
    run: RunFolder,
    work: Annotated[Path, typer.Option(help="Folder for rendered scenes")] = Path("zoo-work"),
    as_json: AsJson = False,
) -> None:
    """Whether a run's suspect neurons are those that carry the planted features, and whether they trigger the class."""
    from audit.results.sql import Run
    from audit.zoo.neurons import measure

    with exit_codes():
        with for_json(as_json):
            report = measure(Run(located(run)), work)
        if as_json:
            print_json(report.as_dict())
        else:
            report.print(out)


@app.command("counterfactuals")
def zoo_counterfactuals(run: RunFolder, as_json: AsJson = False) -> None:
    """Judge a run's counterfactuals: flips, distances, what the world's CLIP sees, and what of the change flips."""
    from audit.results.sql import Run
    from audit.zoo.counterfactuals import figures, planted

    with exit_codes():
        opened = Run(located(run))
        with for_json(as_json):
            tables = {"stages": figures(opened), "planted": planted(opened)}
        if as_json:
            print_json(tables)
            return
        for title, rows in tables.items():
            print_rows(title, rows)
