"""CSV manifests, Parquet tables and tar shards as people have them: the same four images, two cats and two dogs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.datasets import DataSource
from audit.datasets import parquet as parquet_source
from audit.errors import ConfigError, DataError
from audit.results.warnings import RunWarning
from tests.sources import examples as shown_examples
from tests.sources import hf_dataset, opened, picture, put, tarred

IMAGES = [picture(i) for i in range(4)]
LABELS = ["cat", "cat", "dog", "dog"]
PATHS = [f"img/{i}.png" for i in range(4)]


def warned(source: DataSource) -> dict[str, RunWarning]:
    list(source.entries())
    return {warning.code: warning for warning in source.warnings()}


def holds_all(source: DataSource, labels: list[Any] | None = None) -> None:
    """Whether a source has the four images, with these labels."""
    entries = list(source.entries())
    assert [entry.reason for entry in entries] == [None] * 4
    assert list(source.read([entry.uri for entry in entries])) == IMAGES
    assert [entry.label for entry in entries] == (LABELS if labels is None else labels)


def manifest(root: Path, text: str | bytes, name: str = "m.csv", **options: Any) -> DataSource:
    for path, data in zip(PATHS, IMAGES, strict=True):
        put(root / path, data)
    put(root / name, text.encode() if isinstance(text, str) else text)
    return opened({"source": "csv", "path": str(root / name), **options})


def lines(header: str, separator: str = ",", labels: list[str] = LABELS) -> str:
    return header + "".join(f"\n{path}{separator}{label}" for path, label in zip(PATHS, labels, strict=True))


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (lines("image,label"), set()),
        (lines("image, label", ", "), set()),
        (lines(" image ,label ", " , "), set()),
        ("\ufeff" + lines("image,label"), set()),
        (lines("image;label", ";"), set()),
        (lines("image\tlabel", "\t"), set()),
        (lines("image|label", "|"), set()),
        (lines("image,label").replace("\n", "\r"), set()),
        (lines("image,label").replace("\n", "\r\n\r\n") + "\r\n \r\n", set()),
        (lines("image,label").replace("/", "\\"), set()),
        (lines("Image,Label"), {"image_column_taken", "label_column_taken"}),
        (lines("image,class"), {"label_column_taken"}),
        (lines("img_path,Category"), {"image_column_taken", "label_column_taken"}),
        (lines("file name,target"), {"image_column_taken", "label_column_taken"}),
    ],
)
def test_manifests(text: str, taken: set[str], tmp_path: Path) -> None:
    source = manifest(tmp_path, text)
    holds_all(source)
    found = warned(source)
    assert found.keys() == taken
    assert not any(warning.blocks_gate for warning in found.values())


def test_a_separator_within_cells_is_no_separator(tmp_path: Path) -> None:
    text = "image,label,caption" + "".join(f'\n{p},{n},"a; b; c; d"' for p, n in zip(PATHS, LABELS, strict=True))
    source = manifest(tmp_path, text)
    holds_all(source)
    assert {entry.caption for entry in source.entries()} == {"a; b; c; d"}


def test_a_manifest_without_labels_says_which_columns_it_has(tmp_path: Path) -> None:
    source = manifest(tmp_path, lines("image,kind of pet"))
    holds_all(source, [None] * 4)
    warning = warned(source)["no_label_column"]
    assert (warning.items, warning.blocks_gate) == (4, True)
    for word in ("m.csv", "it has kind of pet", "'label_column'"):
        assert word in warning.message
    holds_all(manifest(tmp_path, lines("image,kind of pet"), label_column="kind of pet"))
    unlabelled = manifest(tmp_path, lines("image,kind of pet"), label_column=None)
    holds_all(unlabelled, [None] * 4)
    assert warned(unlabelled) == {}


def parquet(root: Path, name: str = "t.parquet", _options: Any = None, **columns: Any) -> DataSource:
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / name, row_group_size=3)
    return opened({"source": "parquet", "path": str(root), **(_options or {})})


BINARY = pa.array(IMAGES, pa.binary())
LAYOUTS = {
    "binary": BINARY,
    "large binary": BINARY.cast(pa.large_binary()),
    "struct": pa.array([{"bytes": data, "path": "x.png"} for data in IMAGES]),
    "struct of bytes": pa.array([{"bytes": data} for data in IMAGES]),
    "dictionary": BINARY.dictionary_encode(),
    "list of uint8": pa.array([list(data) for data in IMAGES], pa.list_(pa.uint8())),
    "large list of uint8": pa.array([list(data) for data in IMAGES], pa.large_list(pa.uint8())),
    "Base64": pa.array([base64.b64encode(data).decode() for data in IMAGES]),
    "a data URI": pa.array([f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in IMAGES]),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_images(layout: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large row group, two rows at a time are read."""
    if large:
        monkeypatch.setattr(parquet_source, "_WHOLE", 0)
        monkeypatch.setattr(parquet_source, "_ROWS", 2)
    source = parquet(tmp_path, image=LAYOUTS[layout], label=LABELS)
    holds_all(source)
    uris = [entry.uri for entry in source.entries()]
    assert list(source.read(uris[::-1])) == IMAGES[::-1]


def test_a_large_row_group_is_read_once_where_its_rows_are_asked_for_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three groups of ten rows, one of them below the bound; at most three rows of a large one are held."""
    monkeypatch.setattr(parquet_source, "_ROWS", 3)
    images = [picture(i) if 10 <= i < 20 else picture(i) + bytes(2000) for i in range(30)]
    monkeypatch.setattr(parquet_source, "_WHOLE", 15_000)
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=10, use_dictionary=False)
    source = opened({"source": "parquet", "path": str(tmp_path / "t.parquet")})
    assert isinstance(source, parquet_source.ParquetSource)
    uris = [entry.uri for entry in source.entries()]
    groups: list[int] = []

    class Counted(pq.ParquetFile):
        def iter_batches(self, *given: Any, row_groups: list[int], **more: Any) -> Any:
            groups.extend(row_groups)
            yield from super().iter_batches(*given, row_groups=row_groups, **more)

        def read_row_group(self, group: int, *given: Any, **more: Any) -> Any:
            groups.append(10 * group)
            return super().read_row_group(group, *given, **more)

    monkeypatch.setattr(parquet_source.pq, "ParquetFile", Counted)
    source._opened = None
    for uri, image in zip(uris, images, strict=True):
        assert list(source.read([uri])) == [image]
        assert len(source._held["image"][3]) <= (10 if groups[-1] == 10 else 3)
    assert groups == [0, 10, 2]
    assert list(source.read([uris[25], uris[21], uris[22], uris[3]])) == [images[i] for i in (25, 21, 22, 3)]
    assert groups == [0, 10, 2, 2, 2, 0]  # from the beginning for row 25, and again for row 21 before it


def test_images_of_a_fixed_size_keep_their_zeros(tmp_path: Path) -> None:
    padded = [data.ljust(4000, b"\0") for data in IMAGES]
    source = parquet(tmp_path, image=pa.array(padded, pa.binary(4000)), label=LABELS)
    assert list(source.read([entry.uri for entry in source.entries()])) == padded


@pytest.mark.parametrize("bytes_column", [True, False])
def test_images_beside_a_table_are_read_by_their_paths(bytes_column: bool, tmp_path: Path) -> None:
    """Relative to the file that names them, or absolute; the first row group has bytes of one."""
    for path, data in zip(PATHS, IMAGES, strict=True):
        put(tmp_path / "sub" / path, data)
    paths = [PATHS[0], f"./{PATHS[1]}", str(tmp_path / "sub" / PATHS[2]), PATHS[3]]
    fields: list[Any] = [("bytes", pa.binary()), ("path", pa.string())]
    kind = pa.struct(fields if bytes_column else fields[1:])
    cells = [{"path": path} | ({"bytes": None} if bytes_column else {}) for path in paths]
    holds_all(parquet(tmp_path / "sub", image=pa.array(cells, kind), label=LABELS))
    inner = opened({"source": "parquet", "path": str(tmp_path / "**" / "*.parquet")})
    holds_all(inner)
    if bytes_column:
        cells[0]["bytes"] = IMAGES[0]
        cells[0]["path"] = "gone.png"
        holds_all(parquet(tmp_path / "sub", image=pa.array(cells, kind), label=LABELS))
    text = parquet(tmp_path / "sub", image=paths, label=LABELS)
    holds_all(text)


@pytest.mark.parametrize(
    ("columns", "code", "says"),
    [
        ({"img": BINARY, "label": LABELS}, "image_column_taken", "the column 'img' is used instead"),
        ({"jpg bytes": BINARY, "label": LABELS}, "image_column_taken", "the column 'jpg bytes' is used instead"),
        ({"image": BINARY, "labels": LABELS}, "label_column_taken", "set label_column: labels"),
        ({"image": BINARY, "fine_label": LABELS}, "label_column_taken", "set label_column: fine_label"),
    ],
)
def test_columns_of_other_names(columns: dict[str, Any], code: str, says: str, tmp_path: Path) -> None:
    source = parquet(tmp_path, **columns)
    holds_all(source)
    found = warned(source)
    assert found.keys() == {code}
    assert says in found[code].message
    assert list(opened({"source": "parquet", "path": str(tmp_path)}).read(["t.parquet#1"])) == [IMAGES[1]]


def test_a_manifest_without_a_header_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it has img/0.png, cat. The first line names an image: add a header line"):
        list(manifest(tmp_path, lines("").strip()).entries())


def test_several_columns_that_may_be_it_are_refused_with_their_names(tmp_path: Path) -> None:
    columns = {"image": BINARY, "fine_label": LABELS, "coarse_label": ["pet"] * 4}
    with pytest.raises(DataError, match=r"'label': fine_label, coarse_label\. Name one with 'label_column'"):
        list(parquet(tmp_path, **columns).entries())
    holds_all(parquet(tmp_path, _options={"label_column": "fine_label"}, **columns))
    with pytest.raises(DataError, match=r"no column 'kind'; it has fine_label, coarse_label.*'label_column'"):
        list(parquet(tmp_path, _options={"label_column": "kind"}, **columns).entries())


@pytest.mark.parametrize("key", ["label", "class"])
@pytest.mark.parametrize("path", [".", "**/*.parquet", "*/p.parquet"])
def test_labels_in_the_names_of_partitions(key: str, path: str, tmp_path: Path) -> None:
    for name, images in (("cat", IMAGES[:2]), ("hot%20dog", IMAGES[2:])):
        put(tmp_path / f"{key}={name}" / "x.txt", b"")
        pq.write_table(pa.table({"image": images}), tmp_path / f"{key}={name}" / "p.parquet")
    put(tmp_path / f"{key}=cat" / "._p.parquet", b"\0\5\x16\7")
    source = opened({"source": "parquet", "path": str(tmp_path / path)})
    holds_all(source, ["cat", "cat", "hot dog", "hot dog"])
    found = warned(source)
    assert found.keys() == {"labels_from_partitions"}
    assert found["labels_from_partitions"].items == 4
    unlabelled = opened({"source": "parquet", "path": str(tmp_path / path), "label_column": None})
    holds_all(unlabelled, [None] * 4)


def test_splits_in_one_folder_of_tables(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(pa.table({"image": BINARY, "label": LABELS}), tmp_path / f"{name}.parquet")
    assert warned(opened({"source": "parquet", "path": str(tmp_path)})).keys() == {"several_splits"}
    assert warned(opened({"source": "parquet", "path": str(tmp_path / "train-*.parquet")})) == {}


@pytest.mark.parametrize("values", [["train", "train", "val", "test"], ["Train", "Train ", "train", "val"]])
@pytest.mark.parametrize("kind", ["csv", "text", "dictionary"])
def test_splits_in_a_column(kind: str, values: list[str], tmp_path: Path) -> None:
    if kind == "csv":
        rows = "".join(f"\n{p},{label},{split}" for p, label, split in zip(PATHS, LABELS, values, strict=True))
        source = manifest(tmp_path, "image,label,Split" + rows)
    else:
        column = pa.array(values) if kind == "text" else pa.array(values).dictionary_encode()
        pq.write_table(pa.table({"image": BINARY, "label": LABELS, "Split": column}), tmp_path / "a.parquet")
        source = opened({"source": "parquet", "path": str(tmp_path)})
    (warning,) = warned(source).values()
    assert (warning.code, warning.blocks_gate) == ("several_splits", True)
    assert f"the column 'Split' names several splits ({values[0]!r}, " in warning.message
    holds_all(source)


@pytest.mark.parametrize(
    ("column", "values"),
    [("split", ["test", "Test", "TEST ", "test"]), ("split", list("abcd")), ("fox", ["train", "test"] * 2)],
)
def test_a_column_that_names_no_splits_or_one_is_no_warning(column: str, values: list[str], tmp_path: Path) -> None:
    rows = "".join(f"\n{p},{label},{split}" for p, label, split in zip(PATHS, LABELS, values, strict=True))
    assert warned(manifest(tmp_path, f"image,label,{column}{rows}")) == {}
    pq.write_table(pa.table({"image": BINARY, "label": LABELS, column: values}), tmp_path / "a.parquet")
    assert warned(opened({"source": "parquet", "path": str(tmp_path)})) == {}


def test_a_damaged_column_of_splits_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": BINARY, "label": LABELS, "split": ["test"] * 4}), path, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = b"\xff" * (
        chunk.total_compressed_size
    )
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"the column 'split' cannot be read"):
        warned(opened({"source": "parquet", "path": str(tmp_path)}))


def test_a_column_of_labels_is_no_column_of_splits(tmp_path: Path) -> None:
    text = "image,split" + "".join(f"\n{p},{v}" for p, v in zip(PATHS, ["train", "test"] * 2, strict=True))
    assert warned(manifest(tmp_path, text, label_column="split")) == {}


def with_classes(table: pa.Table, names: list[str], column: str = "label") -> pa.Table:
    features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})


def test_class_labels_name_the_classes_in_their_own_order(tmp_path: Path) -> None:
    names = ["zebra", "dog", "cat", "unseen"]
    pq.write_table(with_classes(pa.table({"image": BINARY, "label": [2, 2, 1, 1]}), names), tmp_path / "t.parquet")
    for source in ("parquet", "hf"):
        opened_at = opened({"source": source, "path": str(tmp_path)})
        holds_all(opened_at)
        assert opened_at.classes() == tuple(names)
        assert warned(opened_at) == {}
    assert opened({"source": "parquet", "path": str(tmp_path), "label_column": None}).classes() == ()
    hf_dataset(shown_examples()).save_to_disk(str(tmp_path / "saved"))
    assert opened({"source": "hf", "path": str(tmp_path / "saved")}).classes() == ("boat", "ice cream")


@pytest.mark.parametrize("saved", [False, True])
def test_a_number_that_stands_for_no_class_is_no_label(saved: bool, tmp_path: Path) -> None:
    table = with_classes(pa.table({"image": BINARY, "label": [0, -1, 1, 5]}), ["cat", "dog"])
    pq.write_table(table, tmp_path / "train.parquet")
    if saved:
        from datasets import ClassLabel, Dataset, Features
        from datasets import Image as Picture

        features = Features({"image": Picture(), "label": ClassLabel(names=["cat", "dog"])})
        columns = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": [0, None, 1, -1]}
        Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    source = opened({"source": "hf", "path": str(tmp_path / "saved" if saved else tmp_path)})
    holds_all(source, ["cat", None, "dog", None])
    found = warned(source)
    assert found["no_label"].items == 2
    assert found["label_outside_names"].items == (1 if saved else 2)


def shard(root: Path, *members: tuple[str, bytes], **options: Any) -> DataSource:
    put(root / "s.tar", tarred(members))
    return opened({"source": "webdataset", "path": str(root / "s.tar"), **options})


def samples(name: str, *suffixes: tuple[str, str]) -> list[tuple[str, bytes]]:
    """Members of the four samples; {i} and {label} in names and contents."""
    told = [{"i": i, "label": label, "number": i // 2} for i, label in enumerate(LABELS)]
    return [
        (name.format(**one) + end, IMAGES[i] if not text else text.replace("LABEL", str(one["label"])).encode())
        for i, one in enumerate(told)
        for end, text in suffixes
    ]


@pytest.mark.parametrize(
    ("members", "code"),
    [
        (samples("{i:04}", (".png", ""), (".cls", "LABEL")), None),
        (samples("./{i:04}", (".PNG", ""), (".CLS", "LABEL")), None),
        (samples("{i:04}", (".png", ""), (".cls", " LABEL\n")), None),
        (samples("{i:04}", (".png", ""), (".label", "LABEL")), "label_suffix_taken"),
        (samples("{i:04}", (".png", ""), (".Class", "LABEL")), "label_suffix_taken"),
        (samples("{i:04}", (".png", ""), (".json", '{"class": "LABEL"}')), "label_in_json"),
        (samples("{i:04}", (".png", ""), (".json", '{"Category": "LABEL", "id": 7}')), "label_in_json"),
        (samples("{label}/{i:04}", (".png", "")), "labels_from_folders"),
        (samples("./x/{label}/0001{i}", (".png", ""), (".txt", "a caption")), "labels_from_folders"),
    ],
)
def test_labels_in_shards(members: list[tuple[str, bytes]], code: str | None, tmp_path: Path) -> None:
    source = shard(tmp_path, *members)
    holds_all(source)
    found = warned(source)
    assert found.keys() == ({code} if code else set())
    assert not any(warning.blocks_gate for warning in found.values())
    holds_all(shard(tmp_path, *members, label_suffix=None, label_key=None), [None] * 4)


@pytest.mark.parametrize(
    ("label", "expected"), [("1", "dog"), ("1.0", "dog"), ('"dog"', "dog"), ("-1", None), ("2", None)]
)
def test_numbers_in_shards(label: str, expected: str | None, tmp_path: Path) -> None:
    members = [("a.png", IMAGES[0]), ("a.json", f'{{"label": {label}}}'.encode())]
    source = shard(tmp_path, *members, class_names=["cat", "dog"])
    (entry,) = source.entries()
    assert (entry.label, entry.reason) == (expected, None)
    assert source.classes() == ("cat", "dog")
    assert ("label_outside_names" in warned(source)) == (expected is None)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    named = opened({"source": "webdataset", "path": "s.tar", "class_names": "names.txt"}, tmp_path)
    assert [entry.label for entry in named.entries()] == [expected]


def test_samples_with_labels_of_their_own_lend_no_folder_to_others(tmp_path: Path) -> None:
    source = shard(tmp_path, ("x/a.png", IMAGES[0]), ("x/a.cls", b"cat"), ("x/b.png", IMAGES[1]))
    assert [entry.label for entry in source.entries()] == ["cat", None]
    assert warned(source).keys() == {"no_label"}


def test_several_keys_that_may_hold_the_label_are_refused(tmp_path: Path) -> None:
    source = shard(tmp_path, ("a.png", IMAGES[0]), ("a.json", b'{"class": 1, "target": 2}'))
    with pytest.raises(DataError, match=r"class, target\. Name one with 'label_key'"):
        list(source.entries())


def test_names_with_dots_of_their_own(tmp_path: Path) -> None:
    """As Kaggle's cat.0.jpg: at the first dot, all cats were one sample without an image."""
    members = samples("{label}.{i}", (".png", ""), (".cls", "LABEL"), (".mask.png", "a mask"))
    with pytest.raises(DataError, match=r"8 files with several dots are images.*Set key: last_dot"):
        list(shard(tmp_path, *members).entries())
    source = shard(tmp_path, *members, key="last_dot")
    holds_all(source)
    assert list(source.read_masks([entry.uri for entry in source.entries()])) == [b"a mask"] * 4
    mixed = shard(tmp_path, *members, ("good.png", IMAGES[0]), ("good.depth.png", IMAGES[1]))
    assert [entry.reason for entry in mixed.entries()] == ["no_image", "no_image", None]
    warning = warned(mixed)["dotted_names"]
    assert (warning.items, warning.blocks_gate) == (8, True)
    with pytest.raises(ConfigError, match="key"):
        shard(tmp_path, *members, key="second_dot")


def test_a_sample_with_two_images_is_said_until_one_is_chosen(tmp_path: Path) -> None:
    members = samples("{i:04}", (".png", ""), (".jpg", "another picture"), (".cls", "LABEL"))
    warning = warned(shard(tmp_path, *members))["several_images"]
    assert (warning.items, warning.blocks_gate) == (4, True)
    assert "of (jpg, png), the first is used" in warning.message
    chosen = shard(tmp_path, *members, image_suffixes=["png"])
    assert "several_images" not in warned(chosen)
    holds_all(chosen)


def test_leftovers_in_shards_are_skipped(tmp_path: Path) -> None:
    source = shard(tmp_path, ("__MACOSX/._a.png", b"\0\5"), ("._a.png", b"\0\5"), ("a.png", IMAGES[0]), ("a.cls", b"x"))
    assert [entry.display_name for entry in source.entries()] == ["s.tar/a.png"]
    assert warned(source)["hidden"].items == 2
