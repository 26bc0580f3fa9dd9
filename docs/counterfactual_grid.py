"""Makes the pictures of counterfactuals in the docs: part of `make counterfactuals`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from audit.results import queries
from audit.results.sql import Run
from audit.zoo.counterfactuals import misled

DOCS = Path(__file__).resolve().parent
COUNT, COLUMNS, CELL, GAP, LINE = 40, 8, 76, 10, 18
A_ROW = 10
INK, BAD = (24, 28, 36), (190, 45, 45)


def grid(run: Run, stage: str, target: Path) -> None:
    """Pairs of original and counterfactual, in the order of ids, which are hashes; red: not flipped."""
    rows = run.rows(
        "select * from explanations where stage = ? and status = 'ok' order by explanation_id limit ?", [stage, COUNT]
    )
    width, height = 2 * CELL + GAP, CELL + LINE + GAP
    sheet = Image.new("RGB", (GAP + COLUMNS * width, GAP + -(-len(rows) // COLUMNS) * height), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, row in enumerate(rows):
        left, top = GAP + i % COLUMNS * width, GAP + i // COLUMNS * height
        for k, name in enumerate(("start_image_id", "image_id")):
            sheet.paste(_picture(run, row[name]), (left + k * CELL, top))
        text = f"{row['source_class']} to {row['target_class']}"
        draw.text((left, top + CELL + 1), text, fill=INK if row["flipped"] else BAD, font=font)
    sheet.save(target)


def shortcuts(run: Run, target: Path) -> None:
    """For each planted mode ten images that it misled, above what makes the model right, in the order of ids."""
    shown = misled(run)
    height = LINE + 2 * CELL + 2 * GAP
    sheet = Image.new("RGB", (2 * GAP + A_ROW * CELL, GAP + len(shown) * height), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (_, mode, images) in enumerate(shown):
        top = GAP + i * height
        text = f"{mode.classifier} says {mode.class_name} ({mode.id}); below, what makes it right"
        draw.text((GAP, top), text, fill=INK, font=font)
        for column, (row, _) in enumerate([pair for pair in images if pair[0]["flipped"]][:A_ROW]):
            for line, name in enumerate(("start_image_id", "image_id")):
                sheet.paste(_picture(run, row[name]), (GAP + column * CELL, top + LINE + line * CELL))
    sheet.save(target)


def _picture(run: Run, image_id: Any) -> Image.Image:
    data = queries.picture(run, image_id)
    assert data is not None
    return Image.open(io.BytesIO(data)).resize((CELL, CELL), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    grid(Run(Path(sys.argv[1])), "2-uvce", DOCS / "counterfactuals.png")
    shortcuts(Run(Path(sys.argv[2])), DOCS / "shortcuts.png")
