"""Makes the pictures of the docs: `make docs`. The finding comes from runs/demo, the grids from the shipped models."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from audit.generators import diffusers
from audit.results import queries
from audit.results.sql import Run
from audit.zoo.measure import GUIDANCE, STEPS, grid_picture
from audit.zoo.scenes import BACKGROUNDS, LABELS, Scene, render

DOCS = Path(__file__).resolve().parent
INK, SOFT, GOOD, BAD = (24, 28, 36), (110, 116, 128), (26, 127, 75), (190, 45, 45)
CELL = 132


def finding(run: Run, class_name: str, target: Path) -> None:
    """A confirmed failure mode of a class as one picture."""
    modes = (mode for mode in run.failure_modes() if mode["verdict"] == "confirmed")
    mode = next(m for m in modes if m["class_name"] == class_name)
    model = next(m for m in queries.models(run) if m["model_id"] == mode["model_id"])
    shown = queries.exemplars(run, mode["exemplars"])[:3]
    evidence = mode["evidence"][:7]
    said = queries.said(run, [i for x in shown for i in (x["start_image_id"], x["image_id"])] + evidence)
    sheet = Image.new("RGB", (1120, 640), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    text = f"{mode['model_id']} is right on {model['accuracy']:.1%} of its {model['images']:,} labelled images."
    _write(draw, (28, 20), text, 27, INK)
    text = f"Its failure, found by search: it says \u201c{mode['class_name']}\u201d for what is {mode['name']}."
    _write(draw, (28, 58), text, 27, BAD)
    _write(draw, (28, 106), "What the search made of its starts", 18, SOFT)
    for i, row in enumerate(shown):
        x = 28 + i * 364
        _cell(sheet, run, row["start_image_id"], (x, 134), "start", said, mode)
        tip, middle = x + CELL + 26, 134 + CELL // 2
        draw.polygon([(tip - 16, middle - 10), (tip - 16, middle + 10), (tip, middle)], fill=SOFT)
        _cell(sheet, run, row["image_id"], (x + CELL + 36, 134), "optimised", said, mode)
    text = (
        f"Real images that confirm it: the models disagree on {mode['evidence_rate']:.0%} of {mode['evidence_images']} "
        f"{mode['name']}, on {mode['control_rate']:.0%} of others of the same classes"
    )
    _write(draw, (28, 378), text, 18, SOFT)
    for i, item_id in enumerate(evidence):
        _cell(sheet, run, item_id, (28 + i * 154, 406), "real", said, mode)
    sheet.save(target)


def _cell(sheet: Image.Image, run: Run, image_id: str, at: tuple[int, int], title: str, said: Any, mode: Any) -> None:
    """An image with what the two models of the mode say of it."""
    data = queries.picture(run, image_id)
    assert data is not None
    picture = Image.open(io.BytesIO(data)).resize((CELL, CELL), Image.Resampling.NEAREST)
    sheet.paste(picture, at)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (at[0], at[1] + CELL + 4), title, 13, SOFT)
    rows = [r for r in said.get(image_id, []) if r["model_id"] in (mode["model_id"], mode["other_model_id"])]
    for i, row in enumerate(sorted(rows, key=lambda r: r["model_id"] != mode["model_id"])):
        colour = BAD if row["model_id"] == mode["model_id"] and row["predicted"] == mode["class_name"] else INK
        y = at[1] + CELL + 22 + i * 34
        _write(draw, (at[0], y), row["model_id"], 12, SOFT)
        _write(draw, (at[0], y + 14), f"{row['predicted']} {row['confidence']:.0%}", 15, colour)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
    draw.text(at, text, fill=colour, font=ImageFont.load_default(size))


def world(target: Path) -> None:
    """Every object on every background."""
    colours = ("red", "blue", "yellow", "green", "purple", "orange")
    rows = [
        np.concatenate(
            [
                render(Scene(name, place, colours[(i + j) % 6], badge=i == j, size=0.78, seed=i * 9 + j)).image
                for j, name in enumerate(LABELS)
            ],
            1,
        )
        for i, place in enumerate(BACKGROUNDS)
    ]
    _enlarged(np.concatenate(rows, 0)).save(target)


def samples(target: Path) -> None:
    """What the generator draws when prompted for every object on every background."""
    generator = diffusers.load(diffusers.Options(ref="zoo:diffusion", steps=STEPS, guidance_scale=GUIDANCE))
    _enlarged(grid_picture(generator)).save(target)


def _enlarged(image: np.ndarray[Any, Any]) -> Image.Image:
    picture = Image.fromarray(image)
    return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)


if __name__ == "__main__":
    finding(Run(Path(sys.argv[1])), sys.argv[2], DOCS / "finding.png")
    world(DOCS / "world.png")
    samples(DOCS / "samples.png")
