"""A Jupyter notebook that opens the run and asks what is asked first; the cells are there to be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audit.locations import absolute, name_of
from audit.results.sql import Run

SUFFIX = ".ipynb"

_CELLS = (
    ("Each failure mode with its pictures, confirmed ones first.", "run.failure_modes().show()"),
    ("How often is each model right, class by class?", 'run.frame("select * from accuracy order by accuracy")'),
    ("What do the models say instead?", 'run.frame("select * from confusions order by images desc limit 20")'),
    ("Where do the models differ?", 'run.frame("select * from disagreements order by disagreement desc limit 20")'),
    ("What else can be asked: tables, views and columns.", "import pandas as pd\n\npd.DataFrame(run.schema())"),
)


def write(run: Run, target: Path) -> None:
    """nbformat 4.5."""
    cells = [_markdown("title", f"# Audit: {name_of(run.location)}")]
    cells.append(_code("open", f"import audit\n\nrun = audit.open({absolute(run.location)!r})"))
    for number, (text, code) in enumerate(_CELLS):
        cells += [_markdown(f"text-{number}", text), _code(f"code-{number}", code)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    body = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    target.write_text(json.dumps(body, indent=1), "utf-8")


def _markdown(cell_id: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": cell_id, "metadata": {}, "source": text}


def _code(cell_id: str, text: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "id": cell_id,
        "metadata": {},
        "source": text,
        "execution_count": None,
        "outputs": [],
    }
