"""Data sources: what is listed, what is refused, and that what was listed can be read again."""

from __future__ import annotations

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
    assert len(listed(tmp_path, limit=2)) == 2


def test_labels_from_names_and_from_metadata(tmp_path: Path) -> None:
    images(tmp_path, "n01_crab.jpg", "n02_car.jpg")
    assert [label for _, label, _ in listed(tmp_path, label_pattern="^(n[0-9]+)_")] == ["n01", "n02"]
    (tmp_path / "metadata.csv").write_text("file_name,label\nn01_crab.jpg,crab\nn02_car.jpg,\n")
    assert [label for _, label, _ in listed(tmp_path, label_pattern="^(n[0-9]+)_")] == ["crab", None]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "n02_car.jpg", "label": "car"}\n')
    assert [label for _, label, _ in listed(tmp_path)] == [None, "car"]


def test_metadata_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_text("name,label\na.jpg,crab\n")
    with pytest.raises(DataError, match="needs a column 'file_name'"):
        listed(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        listed(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes("file_name,label\na.jpg,Krabbe \xe4\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        listed(tmp_path)


def test_metadata_as_spreadsheets_write_it(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,label\r\n./a.jpg,crab\r\n")
    assert listed(tmp_path) == [("a.jpg", "crab", None)]


def test_what_must_not_be_opened(tmp_path: Path) -> None:
    """A pipe would block for ever, links may lead outside; loops of links are not followed."""
    root = images(tmp_path / "root", "c/a.png")
    (tmp_path / "secret.png").write_bytes(b"secret")
    os.mkfifo(root / "c" / "pipe.png")
    (root / "c" / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "c" / "in.png").symlink_to(root / "c" / "a.png")
    (root / "c" / "dead.png").symlink_to(root / "nothing.png")
    (root / "loop").symlink_to(root)
    assert listed(root) == [
        ("c/a.png", "c", None),
        ("c/dead.png", "c", "unreadable"),
        ("c/in.png", "c", None),
        ("c/out.png", "c", "link_out_of_root"),
        ("c/pipe.png", "c", "not_a_regular_file"),
    ]
    source = folder.open_source(folder.Options(path=root))
    assert list(source.read(["c/a.png", "c/pipe.png", "c/out.png", "c/gone.png"])) == [b"c/a.png", None, None, None]


@pytest.mark.parametrize("name", ["a'b.png", 'a"b.png', "<script>alert(1)</script>.png", "a\nb.png", "a\x1b[31m.png"])
def test_hostile_names_are_listed_read_and_safe_to_print(tmp_path: Path, name: str) -> None:
    target = tmp_path / "c" / name.replace("/", "_")
    target.parent.mkdir()
    target.write_bytes(b"data")
    source = folder.open_source(folder.Options(path=tmp_path))
    (entry,) = source.entries()
    assert entry.display_name.isprintable()
    assert list(source.read([entry.uri])) == [b"data"]


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


def test_nothing_to_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        listed(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        listed(tmp_path / "none")
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


def test_parquet_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet file"):
        list(parquet.open_source(parquet.Options(path=tmp_path)).entries())
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(parquet.open_source(parquet.Options(path=tmp_path)).entries())
    pq.write_table(pa.table({"img": [b"a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column 'image'; it has img"):
        list(parquet.open_source(parquet.Options(path=tmp_path)).entries())


def test_what_metadata_names_and_is_not_there_becomes_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,crab\ngone/b.png,car\n../out.png,car\n")
    source = folder.open_source(folder.Options(path=tmp_path))
    rows = [(e.display_name, e.label, e.reason) for e in source.entries()]
    assert rows == [
        ("a.png", "crab", None),
        ("gone/b.png", "car", "missing"),
        ("../out.png", "car", "name_out_of_root"),
    ]
    (tmp_path.parent / "out.png").write_bytes(b"secret")
    assert list(source.read([e.uri for e in source.entries()])) == [b"x", None, None]


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


def test_a_metadata_cell_without_an_end_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('file_name,label\n"' + "x" * 200_000)
    with pytest.raises(DataError, match="not a table in CSV"):
        list(folder.open_source(folder.Options(path=tmp_path)).entries())
