"""Where labels, captions and masks come from. test_sources.py has what all sources share, bad_data.py bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.datasets import folder, parquet
from audit.errors import ConfigError, DataError


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def listed(root: Path, **options: object) -> list[tuple[str, str | None, str | None]]:
    source = folder.open_source(folder.Options.model_validate({"path": str(root), **options}))
    return [(entry.uri, entry.label, entry.reason) for entry in source.entries()]


def test_sub_folders_are_labels(tmp_path: Path) -> None:
    images(tmp_path, "crab/b.png", "crab/a.jpg", "car/x.PNG", "car/notes.txt", "loose.png")
    assert listed(tmp_path) == [
        ("car/x.PNG", "car", None),
        ("crab/a.jpg", "crab", None),
        ("crab/b.png", "crab", None),
        ("loose.png", None, None),
    ]
    assert listed(tmp_path, first=2) == listed(tmp_path)[:2]


def test_labels_from_names_and_from_metadata(tmp_path: Path) -> None:
    images(tmp_path, "n01_crab.jpg", "n02_car.jpg")
    assert [label for _, label, _ in listed(tmp_path, label_pattern="^(n[0-9]+)_")] == ["n01", "n02"]
    (tmp_path / "metadata.csv").write_text("file_name,label\nn01_crab.jpg,crab\nn02_car.jpg,\n")
    assert [label for _, label, _ in listed(tmp_path, label_pattern="^(n[0-9]+)_")] == ["crab", None]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "n02_car.jpg", "label": "car"}\n')
    assert [label for _, label, _ in listed(tmp_path)] == [None, "car"]


def test_metadata_as_spreadsheets_write_it(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,label\r\n./a.jpg,crab\r\n")
    assert listed(tmp_path) == [("a.jpg", "crab", None)]


def test_names_that_are_no_text_can_be_stored_and_read_again(tmp_path: Path) -> None:
    folder_name = os.fsencode(tmp_path) + b"/c\xfe"
    os.mkdir(folder_name)
    with open(folder_name + b"/a\xff.png", "wb") as file:
        file.write(b"data")
    source = folder.open_source(folder.Options(path=tmp_path))
    (entry,) = source.entries()
    for text in (entry.uri, entry.display_name, entry.label or ""):
        text.encode("utf-8")
    assert entry.display_name == "c\\xdcfe/a\\xdcff.png"
    assert list(source.read([entry.uri])) == [b"data"]


def test_a_pattern_of_labels_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        listed(tmp_path, label_pattern="(")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for part in range(2):
        rows = [f"{part}-{i}" for i in range(10)]
        columns = {"image": [r.encode() for r in rows], "label": ["crab"] * 10, "name": rows}
        pq.write_table(pa.table(columns), tmp_path / f"part-{part}.parquet", row_group_size=4)
    return tmp_path


def test_parquet_rows_are_listed_and_read_in_any_order(table: Path) -> None:
    source = parquet.open_source(parquet.Options(path=table))
    entries = list(source.entries())
    assert len(entries) == 20
    assert entries[13].uri == "part-1.parquet#3"
    assert (entries[13].label, entries[13].display_name) == ("crab", "1-3")
    uris = ["part-1.parquet#9", "part-0.parquet#0", "part-1.parquet#3", "part-0.parquet#99"]
    assert list(source.read(uris)) == [b"1-9", b"0-0", b"1-3", None]


def test_parquet_in_the_hugging_face_layout(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [{"bytes": b"abc", "path": "x.png"}]}), tmp_path / "x.parquet")
    source = parquet.open_source(parquet.Options(path=tmp_path / "x.parquet"))
    assert [e.label for e in source.entries()] == [None]
    assert list(source.read(["x.parquet#0"])) == [b"abc"]


def test_a_folder_that_cannot_be_listed_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("car", "locked"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x")
    scandir = os.scandir

    def guarded(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    rows = [(e.display_name, e.reason) for e in folder.open_source(folder.Options(path=tmp_path)).entries()]
    assert rows == [("car/a.png", None), ("locked", "unreadable_folder")]


def test_captions_and_masks_from_metadata(tmp_path: Path) -> None:
    """The folder of masks is not walked, a mask among images is not listed, and names are safe to print."""
    images(tmp_path, "crab/a.png", "crab/b.png", "crab/b-mask.png", "masks/a.png", "masks/unnamed.png")
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,caption,mask\n"
        "crab/a.png,crab,a red\x1b[31m crab,./masks/a.png\n"
        "crab/b.png,crab,,crab/b-mask.png\n"
        "crab/gone.png,crab,a crab,\n"
    )
    source = folder.open_source(folder.Options(path=tmp_path))
    told = [(e.uri, e.caption, e.mask, e.reason) for e in source.entries()]
    assert told == [
        ("crab/a.png", "a red\\x1b[31m crab", "masks/a.png", None),
        ("crab/b.png", None, "crab/b-mask.png", None),
        ("crab/gone.png", "a crab", None, "missing"),
    ]
    assert list(source.read_masks(["crab/b.png", "crab/gone.png", "crab/a.png", "crab/c.png"])) == [
        b"crab/b-mask.png",
        None,
        b"masks/a.png",
        None,
    ]


def test_a_folder_that_holds_masks_and_images_is_walked(tmp_path: Path) -> None:
    images(tmp_path, "data/x/a.png", "data/a.png", "loose.png", "mask.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "data/x/a.png", "mask": "data/a.png"}\n{"file_name": "loose.png", "mask": "mask.png"}\n'
    )
    assert [uri for uri, _, _ in listed(tmp_path)] == ["data/x/a.png", "loose.png"]
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "loose.png", "mask": "mask.png"}\n{"file_name": "mask.png", "label": "a mask as an image"}\n'
    )
    assert [uri for uri, _, _ in listed(tmp_path)] == ["data/a.png", "data/x/a.png", "loose.png", "mask.png"]


def test_captions_and_masks_of_other_columns_or_none(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "m/a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,where\na.png,a crab,m/a.png\n")
    named = folder.Options(path=tmp_path, caption_column="text", mask_column="where")
    (entry,) = folder.open_source(named).entries()
    assert (entry.caption, entry.mask) == ("a crab", "m/a.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption,mask\na.png,a crab,m/a.png\n")
    ignored = folder.open_source(folder.Options(path=tmp_path, caption_column=None, mask_column=None))
    assert [(e.uri, e.caption, e.mask) for e in ignored.entries()] == [("a.png", None, None), ("m/a.png", None, None)]
    assert list(ignored.read_masks(["a.png"])) == [None]


def test_masks_obey_the_rules_of_images(tmp_path: Path) -> None:
    """Nothing outside the folder is read as a mask, no pipe, no folder; what is missing is None."""
    root = images(tmp_path / "root", *(f"{i}.png" for i in range(7)))
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "m").mkdir()
    os.mkfifo(root / "m" / "pipe.png")
    (root / "m" / "out.png").symlink_to(tmp_path / "secret.png")
    masks = ["../secret.png", str(tmp_path / "secret.png"), "m/pipe.png", "m/out.png", "m", "m/gone.png", "m/a\0.png"]
    rows = [json.dumps({"file_name": f"{i}.png", "mask": mask}) for i, mask in enumerate(masks)]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    source = folder.open_source(folder.Options(path=root))
    entries = list(source.entries())
    assert [e.display_name for e in entries] == [f"{i}.png" for i in range(7)]
    assert all(e.mask for e in entries)
    assert list(source.read_masks([e.uri for e in entries])) == [None] * 7


@pytest.mark.parametrize("statistics", [True, False])
def test_parquet_captions_and_masks(tmp_path: Path, statistics: bool) -> None:
    """Of three row groups: all rows, some rows and no row have a mask; in both layouts of images."""
    masks = [b"m0", b"m1", None, b"m3", None, None]
    columns = {"image": [b"x"] * 6, "caption": ["a\ncrab", "", None, "d", "e", "f"]}
    plain = pa.table({**columns, "mask": masks})
    nested = pa.table({**columns, "mask": [m and {"bytes": m, "path": "m.png"} for m in masks]})
    unnamed = pa.table({**columns, "mask": [{"bytes": m, "path": "m.png"} for m in masks]})
    for name, table in {"plain": plain, "nested": nested, "unnamed": unnamed}.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path, row_group_size=2, write_statistics=statistics)
        source = parquet.open_source(parquet.Options(path=path))
        entries = list(source.entries())
        assert [e.caption for e in entries] == ["a\\x0acrab", None, None, "d", "e", "f"]
        assert [e.mask for e in entries] == [e.uri if m else None for e, m in zip(entries, masks, strict=True)]
        backwards = [e.uri for e in reversed(entries)]
        assert list(source.read_masks(backwards)) == masks[::-1]
        both = zip(source.read(backwards), source.read_masks(backwards), strict=True)
        assert list(both) == [(b"x", mask) for mask in reversed(masks)]
        without = parquet.open_source(parquet.Options(path=path, caption_column=None, mask_column=None))
        assert {(e.caption, e.mask) for e in without.entries()} == {(None, None)}
        assert list(without.read_masks(backwards)) == [None] * 6


def test_parquet_columns_of_another_kind_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"a"], "mask": [[1, 2]], "caption": [["a", "b"]]}), tmp_path / "x.parquet")

    def first(**options: str | None) -> str:
        source = parquet.open_source(parquet.Options.model_validate({"path": str(tmp_path), **options}))
        return next(source.entries()).uri

    with pytest.raises(DataError, match=r"'caption' holds list.*, not text. Name another column with 'caption_column'"):
        first()
    with pytest.raises(DataError, match=r"'mask' holds list.*, not encoded images.*'mask_column', or set it to null"):
        first(caption_column=None)
    assert first(caption_column=None, mask_column=None) == "x.parquet#0"
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "x.parquet")
    source = parquet.open_source(parquet.Options(path=tmp_path))
    assert list(source.read_masks(["x.parquet#0"])) == [None]
