"""Labels of any type as text, by one rule for all sources; and samples of a data set."""

from __future__ import annotations

import datetime
import decimal
import json
import tracemalloc
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.config import parse_job, restored
from audit.datasets import DataSource
from audit.datasets._columns import PATHS, image_column, label_column
from audit.datasets._labels import label_of, of_class
from audit.datasets._notes import Notes
from audit.errors import ConfigError, DataError
from audit.results.sql import Run
from pipelines.serial import run_serially
from pipelines.unusable import reasons, told
from tests.sources import opened, picture, put, table

CAFE = unicodedata.normalize("NFC", "café")
DAY = datetime.date(2026, 1, 2)


@pytest.mark.parametrize(
    ("value", "text", "reason"),
    [
        ("cat", "cat", None),
        (" cat\t", "cat", None),
        (unicodedata.normalize("NFD", CAFE), CAFE, None),
        ("", None, None),
        (" \t", None, None),
        (None, None, None),
        (0, "0", None),
        (-1, "-1", None),
        (2**70, str(2**70), None),
        (0.0, "0", None),
        (-3.0, "-3", None),
        (1e17, "100000000000000000", None),
        (0.5, "0.5", None),
        (float("nan"), None, None),
        (float("inf"), None, "bad_label"),
        (decimal.Decimal("7.00"), "7", None),
        (decimal.Decimal("NaN"), None, None),
        (True, "true", None),
        (False, "false", None),
        (b"cat ", "cat", None),
        (CAFE.encode(), CAFE, None),
        (b"\xff", None, "bad_label"),
        (DAY, "2026-01-02", None),
        (["cat"], None, "several_labels"),
        ([], None, "several_labels"),
        ({"name": "cat"}, None, "bad_label"),
        ("x" * 1000, "x" * 1000, None),
        ("x" * 1001, None, "bad_label"),
        ("a\x1b[31mb", "a\\x1b[31mb", None),
    ],
)
def test_one_rule_for_labels(value: Any, text: str | None, reason: str | None) -> None:
    found = label_of(value, Notes())
    assert (found.text, found.reason) == (text, reason)


@pytest.mark.parametrize(
    ("value", "text", "reason"),
    [
        (0, "cat", None),
        (1.0, "dog", None),
        (2, None, None),
        (-1, None, None),
        (float("nan"), None, None),
        (float("inf"), None, "bad_label"),
        (None, None, None),
        (0.5, "0.5", None),
        (True, "true", None),  # of a column of booleans, not the second class
        ("dog", "dog", None),
        ([1], None, "several_labels"),
    ],
)
def test_numbers_that_stand_for_class_names(value: Any, text: str | None, reason: str | None) -> None:
    notes = Notes()
    found = of_class(("cat", "dog"), value, notes)
    assert (found.text, found.reason) == (text, reason)
    codes = [warning.code for warning in notes.warnings()]
    assert ("label_outside_names" in codes) == (value in (2, -1))


@pytest.mark.parametrize("name", ["img", "image_path", "path", "file", "file_name", "filename", " Image ", "IMG PATH"])
def test_names_that_a_column_of_images_may_have(name: str) -> None:
    notes = Notes()
    assert image_column("image", [name, "label"], PATHS, where="x", notes=notes) == name
    assert [(w.code, w.blocks_gate) for w in notes.warnings()] == [("image_column_taken", False)]
    with pytest.raises(DataError, match="has no column 'photo'"):
        image_column("photo", [name, "label"], PATHS, where="x", notes=notes)  # an option of the job is no guess


@pytest.mark.parametrize(
    "name",
    [
        "labels",
        "class",
        "class_name",
        "category",
        "target",
        "fine_label",
        "ground_truth",
        "Label",
        " label",
        "Class-Name",
    ],
)
def test_names_that_a_column_of_labels_may_have(name: str) -> None:
    notes = Notes()
    assert label_column("label", ["image", name, "split"], where="x", notes=notes) == name
    assert [(w.code, w.blocks_gate) for w in notes.warnings()] == [("label_column_taken", False)]
    assert label_column("label", ["label", name], where="x", notes=Notes()) == "label"
    assert label_column(None, [name], where="x", notes=Notes()) is None
    other = "LABEL " if name.strip().lower() == "label" else "gt"
    with pytest.raises(DataError, match="several columns may be 'label'"):
        label_column("label", [name, other], where="x", notes=notes)


def test_a_column_of_labels_that_is_asked_for_is_never_another_one() -> None:
    with pytest.raises(DataError, match="has no column 'kind'; it has image, label"):
        label_column("kind", ["image", "label"], where="x", notes=Notes())
    assert label_column("kind", ["image", "Kind "], where="x", notes=Notes()) == "Kind "
    notes = Notes()
    assert label_column("label", ["image", "split"], where="x", notes=notes) is None
    assert "it has image, split" in str(notes.missing_column)


def test_two_classes_of_one_name_are_told(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog", "cat "], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rows = pa.table({"image": [b"a", b"b"], "label": pa.array([0, 2])}).replace_schema_metadata(metadata)
    pq.write_table(rows, tmp_path / "x.parquet")
    source = opened({"source": "parquet", "path": str(tmp_path)})
    assert [entry.label for entry in source.entries()] == ["cat", "cat"]
    (warning,) = [one for one in source.warnings() if one.code == "class_twice"]
    assert warning.blocks_gate
    assert "two classes 'cat '" in warning.message


COLUMNS: dict[str, tuple[Any, list[str | None]]] = {
    "text": (["cat", "", " ", "dog"], ["cat", None, None, "dog"]),
    "dictionary": (pa.array(["cat", "dog", None, "dog"]).dictionary_encode(), ["cat", "dog", None, "dog"]),
    "bytes": ([b"cat", b"dog", None, b"dog"], ["cat", "dog", None, "dog"]),
    "floats": ([0.0, 1.0, None, float("nan")], ["0", "1", None, None]),
    "integers": (pa.array([0, 10, 2, None], pa.uint8()), ["0", "10", "2", None]),
    "bools": ([True, False, None, True], ["true", "false", None, "true"]),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("source", ["parquet", "hf"])
def test_columns_of_every_type(kind: str, source: str, tmp_path: Path) -> None:
    values, expected = COLUMNS[kind]
    images = [picture(i) for i in range(4)]
    if source == "parquet":
        pq.write_table(pa.table({"image": images, "label": values}), tmp_path / "x.parquet")
    else:
        import datasets

        rows = datasets.Dataset(pa.table({"image": images, "label": values}))
        rows.save_to_disk(str(tmp_path))
    opened_at = opened({"source": source, "path": str(tmp_path)})
    entries = list(opened_at.entries())
    assert [entry.label for entry in entries] == expected
    assert list(opened_at.read([entry.uri for entry in entries])) == images
    missing = expected.count(None)
    (warning,) = [one for one in opened_at.warnings() if one.code == "no_label"] or (None,)
    assert (warning.items if warning else 0) == missing


def of_manifest(root: Path, labels: list[str]) -> tuple[list[str | None], DataSource]:
    put(root / "a.png", picture(0))
    table(root / "m.csv", ["image", "label"], [["a.png", label] for label in labels])
    source = opened({"source": "csv", "path": str(root / "m.csv")})
    return [entry.label for entry in source.entries()], source


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0.0", "1.0", "", "10.0"], ["0", "1", None, "10"]),
        (["0.", "-1.0"], ["0", "-1"]),
        (["1.0", "1.5"], ["1.0", "1.5"]),  # versions, say
        (["1.0", "cat"], ["1.0", "cat"]),
        (["007", "7"], ["007", "7"]),
        (["True", "False"], ["True", "False"]),
        (["nan", "None", "-"], ["nan", "None", "-"]),
    ],
)
def test_text_of_a_manifest_stays_but_for_whole_floats(
    labels: list[str], expected: list[str | None], tmp_path: Path
) -> None:
    assert of_manifest(tmp_path, labels)[0] == expected


def test_a_fraction_is_no_class_and_that_is_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"a", b"b"], "label": [0.25, 1.0]}), tmp_path / "x.parquet")
    source = opened({"source": "parquet", "path": str(tmp_path)})
    assert [entry.label for entry in source.entries()] == ["0.25", "1"]
    assert [(one.code, one.items, one.blocks_gate) for one in source.warnings()] == [("fractional_labels", 1, True)]


def test_rows_of_json_with_keys_of_their_own(tmp_path: Path) -> None:
    """One without a label, one under another name: the first does not decide for all."""
    put(tmp_path / "a.png", picture(0))
    rows = [{"image": "a.png"}, {"image": "a.png", "label": 3.0}, {"image": "a.png", "class": True}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = opened({"source": "csv", "path": str(tmp_path / "m.jsonl")})
    assert [entry.label for entry in source.entries()] == [None, "3", "true"]
    assert {one.code for one in source.warnings()} == {"no_label", "label_column_taken"}


# --- samples -------------------------------------------------------------------------------------------------------


def classes_in_a_row(root: Path, each: int = 100) -> dict[str, Any]:
    rows = [{"image": b"x", "label": name} for name in ("cat", "dog", "eel") for _ in range(each)]
    pq.write_table(pa.Table.from_pylist(rows), root / "x.parquet")
    return {"source": "parquet", "path": str(root)}


def test_a_limit_on_sorted_classes_has_all_of_them(tmp_path: Path) -> None:
    """The first 90 are all cats. Of a fair sample of 90 of 300, a class has 30 +- 3.9 (hypergeometric): 15 to 45 is
    within 3.8 standard deviations."""
    data = classes_in_a_row(tmp_path)
    beginning = opened({**data, "first": 90})
    assert {entry.label for entry in beginning.entries()} == {"cat"}
    assert [(one.code, one.blocks_gate) for one in beginning.warnings()] == [("one_class", False)]
    both = opened({**data, "first": 101})
    assert {entry.label for entry in both.entries()} == {"cat", "dog"}
    assert both.warnings() == ()
    for seed in range(5):
        counts = Counter(entry.label for entry in opened({**data, "limit": 90, "sample_seed": seed}).entries())
        assert counts.total() == 90
        assert all(15 <= counts[name] <= 45 for name in ("cat", "dog", "eel")), counts
    by_class = Counter(entry.label for entry in opened({**data, "per_class": 7}).entries())
    assert by_class == {"cat": 7, "dog": 7, "eel": 7}


def test_a_larger_sample_contains_a_smaller_one_and_another_seed_another(tmp_path: Path) -> None:
    data = classes_in_a_row(tmp_path)

    def uris(**options: int) -> list[str]:
        return [entry.uri for entry in opened({**data, **options}).entries()]

    assert set(uris(limit=10)) < set(uris(limit=50)) < set(uris())
    assert uris(limit=50) == uris(limit=50)
    assert uris(limit=50) != uris(limit=50, sample_seed=1)
    assert set(uris(per_class=5)) < set(uris(per_class=20))
    assert uris(limit=300) == uris(limit=10**6) == uris()


def test_a_sample_of_a_long_listing_holds_no_more_than_itself(tmp_path: Path) -> None:
    count = 20_000
    table(tmp_path / "m.csv", ["image", "label"], [[f"{i:09d}.png", "crab"] for i in range(count)])
    put(tmp_path / "000000000.png", b"x")
    data = {"source": "csv", "path": str(tmp_path / "m.csv")}
    sampled = opened({**data, "limit": 100})
    tracemalloc.start()
    assert sum(1 for _ in sampled.entries()) == 100
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 40 * count


@pytest.mark.parametrize(
    "options", [{"limit": 1, "first": 1}, {"per_class": 1, "limit": 1}, {"first": 0}, {"per_class": 0}, {"limit": 1.5}]
)
def test_one_way_to_take_a_part(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limit|first|per_class"):
        opened({**classes_in_a_row(tmp_path), **options})


def test_a_run_that_goes_on_has_the_same_sample(tmp_path: Path) -> None:
    model = {"id": "m", "loader": "hf", "ref": "zoo:reference"}
    data = {**classes_in_a_row(tmp_path), "per_class": 2}
    job = parse_job(
        {"version": 1, "name": "x", "data": data, "models": [model], "stages": [{"kind": "screen"}]}, tmp_path
    )
    assert restored("datasets", json.loads(json.dumps(job.data.dump()))) == job.data


# --- why a run stops -----------------------------------------------------------------------------------------------


def test_the_commonest_reasons_are_named_with_one_full_path(tmp_path: Path) -> None:
    put(tmp_path / "data" / "cat" / "good.png", picture(0))
    for i in range(3):
        put(tmp_path / "data" / "cat" / f"broken{i}.png", b"<html>%d" % i)
    put(tmp_path / "data" / "dog" / "cut.jpg", picture(1, "JPEG", side=64)[:300])
    put(tmp_path / "data" / "dog" / "tiny.png", picture(2, side=2))
    put(tmp_path / "data" / "dog" / "long.bmp", b"")
    model = {"id": "m", "loader": "hf", "ref": "zoo:reference"}
    data = {"source": "folder", "path": "data"}
    job = parse_job(
        {"version": 1, "name": "x", "data": data, "models": [model], "stages": [{"kind": "screen"}]}, tmp_path
    )
    root = tmp_path / "run"
    run_serially(job, root, 4)
    counted = Run(root).rows("select reason from items where status = 'quarantined'")
    assert Counter(row["reason"] for row in counted) == {"unidentified": 4, "truncated": 1, "too_small": 1}
    said = reasons(job, root, "0-inventory")
    assert said.startswith("4 unidentified, 1 too_small, 1 truncated; for example ")
    where = said.removesuffix(" (unidentified)").partition("for example ")[2]
    broken = [*(f"cat/broken{i}.png" for i in range(3)), "dog/long.bmp"]
    assert Path(where) in [tmp_path / "data" / name for name in broken]
    assert told(job, root, "0-inventory") == f": {said}. All are in the run's tables"
    assert reasons(job, root, "1-screen") == ""
    assert told(job, root, "1-screen").startswith("; status and reason")
    assert reasons(job, tmp_path / "no run", "0-inventory") == ""
