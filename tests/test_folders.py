"""Folders of images as people have them: what is listed, under which label, and what is said about the rest."""

from __future__ import annotations

import io
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from audit.datasets import DataSource, warnings_of
from audit.datasets._selection import READ, is_image
from audit.decode import FORMATS, HEIC_READ, decode
from audit.errors import ConfigError, DataError
from audit.results.warnings import RunWarning
from tests.s3_server import s3_endpoint as s3_endpoint
from tests.sources import on_s3, opened, picture, put

CAFE = "café"


def pictures(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        put(root / name, picture(i))
    return root


def source_of(root: Path, **options: Any) -> DataSource:
    return opened({"source": "folder", "path": str(root), **options})


def labels(root: Path, **options: Any) -> dict[str, str | None]:
    return {entry.display_name: entry.label for entry in source_of(root, **options).entries()}


def warned(source: DataSource) -> dict[str, RunWarning]:
    """The warnings of a whole listing, by code."""
    list(source.entries())
    found = source.warnings()
    assert len({warning.code for warning in found}) == len(found)
    assert all("\n" not in warning.message for warning in found)
    return {warning.code: warning for warning in found}


def test_a_zip_made_on_a_mac(tmp_path: Path) -> None:
    """1,120 files in __MACOSX sort before the classes; they are neither images nor reasons to stop."""
    for name in ("cat", "dog"):
        for i in range(6):
            put(tmp_path / name / f"{i}.png", picture(i))
        for i in range(560):
            put(tmp_path / "__MACOSX" / name / f"._{i}.png", b"\0\5\x16\7" + b"\0" * 78)
    put(tmp_path / "cat" / "._0.png", b"\0\5\x16\7")
    put(tmp_path / "cat" / ".DS_Store", b"\0\0\0\1Bud1")
    put(tmp_path / "dog" / "Thumbs.db", b"\xd0\xcf")
    put(tmp_path / ".git" / "x.png", picture(0))
    put(tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png", picture(0))
    source = source_of(tmp_path)
    assert [entry.display_name for entry in source.entries()] == [
        f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)
    ]
    (warning,) = source.warnings()
    assert (warning.code, warning.items, warning.blocks_gate) == ("hidden", 6, False)
    assert ".git/, .ipynb_checkpoints/, __MACOSX/" in warning.message


def test_leftovers_in_a_store_are_skipped_too(tmp_path: Path, s3_endpoint: str) -> None:
    pictures(tmp_path, "cat/a.png", "cat/._a.png", "__MACOSX/cat/._a.png", ".git/b.png", "cat/nosuffix")
    source = opened(on_s3(s3_endpoint, {"source": "folder", "path": str(tmp_path)}, tmp_path, "leftovers"))
    assert [entry.display_name for entry in source.entries()] == ["cat/a.png", "cat/nosuffix"]
    assert warned(source)["hidden"].items == 3


def test_class_folders_that_are_links(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere", "dog/a.png", "dog/deep/b.png")
    root = pictures(tmp_path / "data", "cat/a.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (root / "cat" / "loop").symlink_to(root)
    put(tmp_path / "secret.png", b"secret")
    (root / "cat" / "out.png").symlink_to(tmp_path / "secret.png")

    source = source_of(root)
    rows = [(entry.display_name, entry.reason) for entry in source.entries()]
    assert rows == [("cat/a.png", None), ("cat/out.png", "link_out_of_root"), ("dog", "linked_folder")]
    assert list(source.read(["dog", "dog/a.png", "cat/loop/cat/out.png", "cat/out.png"])) == [None] * 4
    found = warned(source)
    assert (found["linked_folder"].items, found["linked_folder"].blocks_gate) == (1, True)
    assert "(dog)" in found["linked_folder"].message
    assert "follow_links: true" in found["linked_folder"].message
    assert not found["link_loop"].blocks_gate
    assert "cat/out.png" in found["links_out"].message

    followed = source_of(root, follow_links=True)
    entries = list(followed.entries())
    assert [(entry.display_name, entry.label, entry.reason) for entry in entries] == [
        ("cat/a.png", "cat", None),
        ("cat/out.png", "cat", None),
        ("dog/a.png", "dog", None),
        ("dog/deep/b.png", "deep", None),
    ]
    read = list(source_of(root, follow_links=True).read([entry.uri for entry in entries]))
    assert read == [picture(0), b"secret", picture(0), picture(1)]
    leading_out = ["../secret.png", str(tmp_path / "secret.png"), "dog/../../secret.png", "cat/loop", "dog"]
    assert list(followed.read(leading_out)) == [None] * len(leading_out)
    os.mkfifo(tmp_path / "elsewhere" / "dog" / "pipe.png")
    assert list(followed.read(["dog/pipe.png"])) == [None]


def test_a_walk_through_links_ends(tmp_path: Path) -> None:
    """Thirty folders with two links each to the next would be 2 ** 30 folders."""
    for i in range(30):
        here = tmp_path / "far" / str(i)
        pictures(here, "a.png")
        for name in ("x", "y"):
            (here / name).symlink_to(tmp_path / "far" / str(i + 1))
    root = tmp_path / "data"
    root.mkdir()
    (root / "c").symlink_to(tmp_path / "far" / "0")
    entries = list(source_of(root, follow_links=True).entries())
    assert sum(entry.reason is None for entry in entries) == 30
    assert sum(entry.reason == "linked_again" for entry in entries) == 29


def test_which_level_is_the_label(tmp_path: Path) -> None:
    root = pictures(tmp_path, "cat/batch1/a.png", "cat/batch2/b.png", "dog/batch1/c.png", "dog/d.png", "e.png")
    inside, outside = ["batch1", "batch2", "batch1", "dog", None], ["cat", "cat", "dog", "dog", None]
    for options, expected in (
        ({}, inside),
        ({"label_level": "parent"}, inside),
        ({"label_level": "first"}, outside),
        ({"label_level": 1}, outside),
        ({"label_level": 2}, ["batch1", "batch2", "batch1", None, None]),
    ):
        assert list(labels(root, **options).values()) == expected, options
    for wrong in (0, -1, "last", True):
        with pytest.raises(ConfigError, match="label_level"):
            source_of(root, label_level=wrong)
    warning = warned(source_of(root))["label_level"]
    assert warning.blocks_gate
    for word in ("depth 1 (dog/d.png) and 2 (cat/batch1/a.png)", "'batch1', 'batch2', 'dog'", "'cat', 'dog'"):
        assert word in warning.message
    for level in ("parent", "first", 2):
        assert "label_level" not in warned(source_of(root, label_level=level))
    assert warned(source_of(root))["no_label"].items == 1
    assert warned(source_of(root, label_level=2))["no_label"].items == 2


def test_one_level_of_folders_needs_no_word(tmp_path: Path) -> None:
    assert warned(source_of(pictures(tmp_path, "cat/a.png", "dog/a.png"))) == {}


def test_splits_in_one_folder(tmp_path: Path) -> None:
    root = pictures(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png")
    assert set(labels(root).values()) == {"cat", "dog"}
    found = warned(source_of(root))
    assert list(found) == ["several_splits"]
    assert "'train', 'val'" in found["several_splits"].message
    assert warned(source_of(root / "train")) == {}
    put(root / "test.txt", b"")
    assert set(warned(source_of(pictures(tmp_path / "one", "train/cat/a.png", "train/dog/b.png")))) == set()


def test_a_folder_of_masks_among_the_classes(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a", *(f"cat/{i}.jpg" for i in range(9)), *(f"masks/{i}.png" for i in range(9)))
    assert "'masks'" in warned(source_of(root))["folder_of_masks"].message
    named = [f"{folder}/{folder}-{i}.png" for folder in ("with mask", "mask") for i in range(9)]
    assert "folder_of_masks" not in warned(source_of(pictures(tmp_path / "b", *named)))


def test_images_without_a_label_are_counted(tmp_path: Path) -> None:
    root = pictures(tmp_path, "cat/a.png", "loose.png", "more.png")
    warning = warned(source_of(root))["no_label"]
    assert (warning.items, warning.blocks_gate) == (2, True)
    assert "2 of 3 images have no label (loose.png, more.png)" in warning.message
    source = source_of(root)
    list(source.entries())
    assert [one.role for one in warnings_of(source, "data")] == ["data"]
    assert warnings_of(source, "pool") == ()
    flat = warned(source_of(pictures(tmp_path / "flat", "a.png", "b.png")))["no_label_column"]
    assert "no image has a label" in flat.message
    assert "label_pattern" in flat.message


def test_names_of_folders_as_labels(tmp_path: Path) -> None:
    """Normalised to NFC, without spaces at their ends; the uri keeps the name."""
    nfd = unicodedata.normalize("NFD", CAFE)
    assert nfd != CAFE
    root = pictures(tmp_path, f"{nfd}/a.png", "cat /b.png", "cat/c.png", " /d.png")
    source = source_of(root)
    entries = list(source.entries())
    assert [entry.label for entry in entries] == [None, CAFE, "cat", "cat"]
    assert None not in list(source.read([entry.uri for entry in entries]))
    assert not warned(source)["label_spaces"].blocks_gate


def test_metadata_without_a_column_of_labels_keep_those_of_the_folders(tmp_path: Path) -> None:
    root = pictures(tmp_path, "cat/a.png", "dog/b.png")
    (root / "metadata.csv").write_text("file_name,caption\ncat/a.png,one\ndog/b.png,two\n")
    assert labels(root) == {"cat/a.png": "cat", "dog/b.png": "dog"}
    (root / "metadata.csv").write_text("filename, Class \ncat/a.png, lion\n")
    source = source_of(root)
    assert {entry.display_name: entry.label for entry in source.entries()} == {"cat/a.png": "lion", "dog/b.png": "dog"}
    found = warned(source)
    assert found["not_in_metadata"].blocks_gate
    assert "dog/b.png" in found["not_in_metadata"].message
    assert "'filename'" in found["image_column_taken"].message
    assert "'Class'" in found["label_column_taken"].message


def encoded(form: str, image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


RAMP = np.stack([np.tile(np.arange(0, 240, 8, dtype=np.uint8), (20, 1))] * 3, -1)


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        *(("JPEG", ".JPG"), ("PNG", ".Png"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("GIF", ".gif"), ("TIFF", ".tif")),
        *(("PPM", ".pgm"), ("AVIF", ".avif"), ("JPEG2000", ".jp2"), ("JPEG", ".jfif")),
        pytest.param(
            "HEIF", ".HEIC", marks=pytest.mark.skipif(not HEIC_READ, reason="needs the extra 'heic' (pillow-heif)")
        ),
    ],
)
def test_formats_with_and_without_a_suffix(form: str, suffix: str, tmp_path: Path) -> None:
    assert form in FORMATS
    data = encoded(form, RAMP)
    put(tmp_path / "cat" / f"a{suffix}", data)
    put(tmp_path / "cat" / "b", data)
    put(tmp_path / "cat" / "LICENSE", b"MIT License")
    source = source_of(tmp_path)
    entries = list(source.entries())
    assert [entry.display_name for entry in entries] == [f"cat/a{suffix}", "cat/b"]
    for found in source.read([entry.uri for entry in entries]):
        assert found is not None
        assert np.abs(decode(found).image.astype(int) - RAMP).mean() < 4
    assert "1 no suffix" in warned(source)["files_not_listed"].message
    assert is_image(data[:16])


def test_what_is_not_looked_at_is_counted_by_suffix(tmp_path: Path) -> None:
    pictures(tmp_path, "cat/a.png")
    for name in ("b.jxl", "c.JXL", "d.tga", "e.dcm", "notes.txt", "f.svg"):
        put(tmp_path / "cat" / name, b"x")
    found = warned(source_of(tmp_path))
    assert (found["images_not_read"].items, found["images_not_read"].blocks_gate) == (5, True)
    assert "2 .jxl, 1 .tga, 1 .dcm, 1 .svg" in found["images_not_read"].message
    assert (found["files_not_listed"].items, found["files_not_listed"].blocks_gate) == (1, False)
    assert (".heic" in READ) == HEIC_READ


def test_a_folder_of_nothing_but_other_images_says_so(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.jxl", b"x")
    with pytest.raises(DataError, match=r"no images in .*1 \.jxl"):
        list(source_of(tmp_path).entries())
