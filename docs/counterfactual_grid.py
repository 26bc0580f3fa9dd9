"""Makes the picture of 40 random counterfactuals: part of `make counterfactuals`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from audit.results.sql import Run
from dashboard import queries

DOCS = Path(__file__).resolve().parent
COUNT, COLUMNS, CELL, GAP, LINE = 40, 8, 76, 10, 18
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
            data = queries.picture(run, row[name])
            assert data is not None
            picture = Image.open(io.BytesIO(data)).resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + k * CELL, top))
        text = f"{row['source_class']} to {row['target_class']}"
        draw.text((left, top + CELL + 1), text, fill=INK if row["flipped"] else BAD, font=font)
    sheet.save(target)


if __name__ == "__main__":
    grid(Run(Path(sys.argv[1])), sys.argv[2], DOCS / "counterfactuals.png")
