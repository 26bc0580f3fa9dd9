"""docs/data_sources.md: its examples run, and its reasons are those of the bad-input corpus."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from audit.config import parse_job
from audit.datasets import _notes
from audit.decode import Limits, decode
from audit.models import open_source
from audit.registry import names
from tests.bad_input import Accepted, cases, reasons
from tests.bad_jobs import GOOD
from tests.sources import examples, write_csv, write_folder, write_hf, write_parquet, write_webdataset

TEXT = (Path(__file__).parent.parent / "docs" / "data_sources.md").read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    """With the files that its section describes, beside the job file."""
    shown = examples()
    write_folder(tmp_path / "images", shown)
    write_parquet(tmp_path / "table", shown)
    write_webdataset(tmp_path / "shards", shown)
    write_hf(tmp_path, shown)
    (told,) = yaml.safe_load(example).items()
    role, options = told
    if options["source"] == "csv":
        write_csv(tmp_path, shown)
    job: dict[str, Any] = {**yaml.safe_load(GOOD), **yaml.safe_load(example)}
    source = open_source(parse_job(job, tmp_path), role)
    entries = list(source.entries())
    assert list(source.read([entry.uri for entry in entries])) == [one.data for one in shown]
    assert [entry.label for entry in entries] == [one.label if role == "data" else None for one in shown]


def test_every_source_has_a_section_and_an_example() -> None:
    assert {f"## {name}" for name in names("datasets")} <= set(TEXT.splitlines())
    assert {re.search(r"source: (\w+)", example)[1] for example in EXAMPLES} == set(names("datasets"))  # type: ignore[index]


def test_every_reason_is_explained_and_reached() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", TEXT.partition("## Bad input")[2], re.M))
    reached = reasons(cases())
    of_images = reasons([case for case in cases() if case.kind == "image"])
    assert explained == reached - {f"mask_{reason}" for reason in of_images}
    assert "mask_truncated" in reached


def test_every_warning_is_explained() -> None:
    """Those that are counted, and those that are said where they are found."""
    section = TEXT.partition("## Labels")[2].partition("## A part")[0]
    explained = {
        code for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.M) for code in row[1:-1].split("`, `")
    }
    folder = Path(inspect.getfile(_notes)).parent
    said = {code for file in folder.glob("*.py") for code in re.findall(r'\.say\(\s*"(\w+)"', file.read_text("utf-8"))}
    codes = {*_notes._KINDS, *said, "no_label", "no_label_column", "image_column_taken", "label_column_taken"}
    assert explained == codes
    blocking = {line for line in section.splitlines() if line.startswith("| `") and "not block" not in line}
    for code, kind in _notes._KINDS.items():
        assert any(f"`{code}`" in line for line in blocking) == kind.blocks_gate, code


def test_every_note_is_explained() -> None:
    notes = {case.expected.note for case in cases() if isinstance(case.expected, Accepted) and case.expected.note}
    for note in {part for several in notes for part in several.split(",")}:
        assert f"`{note}`" in TEXT


def test_the_limits_are_those_of_the_code() -> None:
    limits = Limits()
    assert (limits.max_bytes, limits.max_pixels, limits.min_side, limits.max_aspect) == (64 * 2**20, 64_000_000, 4, 100)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 400), np.uint8)).save(buffer, "PNG")
    assert decode(buffer.getvalue()).image.shape == (4, 400, 3)
