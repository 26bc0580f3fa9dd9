"""Data sets of the bad-input corpus: layouts that are hostile, damaged, or not what they claim."""

from __future__ import annotations

import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audit.decode import Limits
from audit.errors import ConfigError, DataError
from tests.bad_input import Case, Listed, Refused
from tests.sources import examples, hf_dataset, put, tarred

Make = Callable[[Path], dict[str, Any]]
Made = tuple[Make, Listed | Refused]

JPG, CLS = ("1.jpg", b"one"), ("1.cls", b"crab")
SECOND = ("2.jpg", b"two")
SCRIPT = "<script>alert(1)"
HOSTILE = {
    "a script": (SCRIPT, SCRIPT),
    "single quotes": ("a'b", "a'b"),
    "double quotes": ('a"b', 'a"b'),
    "a newline": ("a\nb", "a\\x0ab"),
    "ANSI codes": ("a\x1b[31mb", "a\\x1b[31mb"),
    "a text direction mark": ("a\u202egnp", "a\\x202egnp"),
    "percent signs": ("%2e%2e%2fa", "%2e%2e%2fa"),
    "a hash": ("a#0", "a#0"),
    "a backslash": ("b\\..\\a", "b\\..\\a"),
    "bytes that are no text": (os.fsdecode(b"a\xff"), "a\\xdcff"),
    "250 bytes": ("x" * 250, "x" * 250),
    "a leading dash": ("-rf", "-rf"),
}


def folder(root: Path, **options: Any) -> dict[str, Any]:
    return {"source": "folder", "path": str(root), **options}


def files(root: Path, *names: str) -> Path:
    """Files that hold their own names."""
    for name in names:
        put(root / name, os.fsencode(name))
    return root


def rows(*names: str, **reasons: str) -> Listed:
    return Listed((*((name, None) for name in names), *reasons.items()))


def one_bad(name: str, reason: str) -> Listed:
    """A good image, a.png, and one that is not used."""
    return Listed((("a.png", None), (name, reason)))


def named_bad(name: str, reason: str) -> Listed:
    """A folder of `metadata`, of which these name an image that is not used."""
    return Listed((("a.png", None), ("out", "linked_folder"), (name, reason)))


def linked(target: Callable[[Path], Path]) -> Make:
    """A folder with a.png and a link b.png beside a secret."""

    def make(root: Path) -> dict[str, Any]:
        put(root / "secret.png", b"secret")
        inside = files(root / "data", "a.png")
        (inside / "b.png").symlink_to(target(root))
        return folder(inside)

    return make


def special(create: Callable[[Path], None]) -> Make:
    def make(root: Path) -> dict[str, Any]:
        create(files(root, "a.png") / "b.png")
        return folder(root)

    return make


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        before = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            opened.bind(path.name)
        finally:
            os.chdir(before)


def link_loops(root: Path) -> dict[str, Any]:
    files(root, "c/a.png")
    (root / "c" / "up").symlink_to(root)
    (root / "c" / "x.png").symlink_to(root / "c" / "y.png")
    (root / "c" / "y.png").symlink_to(root / "c" / "x.png")
    return folder(root)


def big(root: Path) -> dict[str, Any]:
    with open(files(root, "a.png") / "b.png", "wb") as file:
        file.truncate(Limits.max_bytes + 1)  # no byte of it is on the disk
    return folder(root)


def deep(root: Path) -> dict[str, Any]:
    """Deeper than Python's stack, and than one path may be long."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    put(root / "z.png", b"z.png")
    return folder(root)


def metadata(text: str | bytes, name: str = "metadata.csv") -> Make:
    """A folder with a.png, a link to what is outside and this metadata file, beside a secret."""

    def make(root: Path) -> dict[str, Any]:
        put(root / "secret.png", b"secret")
        put(root / "data" / name, text.encode() if isinstance(text, str) else text)
        (root / "data" / "out").symlink_to(root)
        return folder(files(root / "data", "a.png"))

    return make


def manifest(text: str | bytes, name: str = "m.csv", **options: Any) -> Make:
    """A manifest beside a.png, a link out of the folder, a pipe and a folder; and beside the folder a secret."""

    def make(root: Path) -> dict[str, Any]:
        put(root / "secret.png", b"secret")
        data = files(root / "data", "a.png", "f.png/x")
        (data / "link.png").symlink_to(root / "secret.png")
        (data / "out").symlink_to(root)
        os.mkfifo(data / "pipe.png")
        content = text.replace("ROOT", str(root)) if isinstance(text, str) else text
        put(data / name, content.encode() if isinstance(content, str) else content)
        return {"source": "csv", "path": str(data / name), **options}

    return make


def parquet(columns: dict[str, Any], **options: Any) -> Make:
    def make(root: Path) -> dict[str, Any]:
        pq.write_table(pa.table(columns), root / "x.parquet")
        return {"source": "parquet", "path": str(root), **options}

    return make


def parquet_of_paths(paths: list[str]) -> Make:
    """A folder with a.png, a link that leads out and a table in Hugging Face's layout without bytes, beside a
    secret."""

    def make(root: Path) -> dict[str, Any]:
        put(root / "secret.png", b"secret")
        data = files(root / "data", "a.png")
        (data / "out").symlink_to(root)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
        pq.write_table(pa.table({"image": images}), data / "x.parquet")
        return {"source": "parquet", "path": str(data)}

    return make


def linked_classes(root: Path) -> dict[str, Any]:
    """Two links to one folder, and one to a folder that it is in."""
    files(root / "elsewhere", "b.png")
    inside = files(root / "data", "cat/a.png")
    for name in ("dog", "hound"):
        (inside / name).symlink_to(root / "elsewhere")
    (inside / "cat" / "up").symlink_to(inside)
    return folder(inside)


def broken_row_group(root: Path) -> dict[str, Any]:
    table = pa.table({"image": [bytes([65 + i]) * 100 for i in range(4)]})
    pq.write_table(table, root / "x.parquet", row_group_size=2, compression="zstd", use_dictionary=False)
    data = bytearray((root / "x.parquet").read_bytes())
    start = pq.ParquetFile(root / "x.parquet").metadata.row_group(0).column(0).data_page_offset
    data[start : start + 30] = b"\xff" * 30
    (root / "x.parquet").write_bytes(data)
    return {"source": "parquet", "path": str(root)}


def raw(name: str, data: bytes, **options: Any) -> Make:
    """A folder with one file."""

    def make(root: Path) -> dict[str, Any]:
        put(root / name, data)
        return {"path": str(root), **options}

    return make


def shard(*members: tuple[str, bytes] | tarfile.TarInfo, cut: int | None = None, **options: Any) -> Make:
    """A shard; `cut`: how many bytes of it are there."""
    return raw("x.tar", tarred(members)[:cut], source="webdataset", **options)


def header(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, to
    return found


def with_size(data: bytes, member: int, size: bytes) -> bytes:
    """A tar file in which one header (its offset) claims another size, with a checksum that fits."""
    changed = bytearray(data)
    changed[member + 124 : member + 136] = size
    changed[member + 148 : member + 156] = b" " * 8
    changed[member + 148 : member + 156] = b"%06o\0 " % sum(changed[member : member + 512])
    return bytes(changed)


def big_member(root: Path) -> dict[str, Any]:
    size = Limits.max_bytes + 512
    data = with_size(tarred([JPG, ("2.jpg", b"")]), 1024, b"%011o\0" % size)[:1536]
    with open(root / "x.tar", "wb") as file:
        file.write(data)
        file.truncate(len(data) + size + 1024)  # zeros, of which no byte is on the disk
    return {"source": "webdataset", "path": str(root)}


def saved_hf(damage: Callable[[Path], None] = lambda path: None, **options: Any) -> Make:
    def make(root: Path) -> dict[str, Any]:
        hf_dataset(examples(4)).save_to_disk(str(root / "saved"))
        damage(root / "saved")
        return {"source": "hf", "path": str(root / "saved"), **options}

    return make


def state_that_leads_out(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../other/data.arrow"
    (saved / "state.json").write_text(json.dumps(state))


def hf_of_paths(root: Path) -> dict[str, Any]:
    from datasets import Dataset, Features, Image

    put(root / "saved" / "in.png", b"in")
    put(root / "secret.png", b"secret")
    paths = [str(root / "saved" / "in.png"), "in.png", str(root / "secret.png"), "../secret.png", "gone.png", None]
    images = [path and {"bytes": None, "path": path} for path in paths]
    names = ["1", "2", "3", "4", "5", "6"]
    data = Dataset.from_dict({"image": images, "name": names})
    schema = Features({"image": Image(), "name": data.features["name"]}).arrow_schema
    with pa.OSFile(str(root / "saved" / "data-train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        kind = schema.field("image").type
        writer.write_table(pa.table({"image": pa.array(images, kind), "name": names}, schema=schema))
    return {"source": "hf", "path": str(root / "saved")}


FOLDERS: dict[str, Made] = {
    "nothing there": (lambda root: folder(root / "none"), Refused(DataError, ("no folder of images at", "none"))),
    "an empty folder": (folder, Refused(DataError, ("no images in", ".jpg"))),
    "a file for a folder": (
        lambda root: folder(files(root, "a.png") / "a.png"),
        Refused(DataError, ("no folder of images at",)),
    ),
    "a link out of the folder": (linked(lambda root: root / "secret.png"), one_bad("b.png", "link_out_of_root")),
    "a link to a device": (linked(lambda _: Path("/dev/zero")), one_bad("b.png", "link_out_of_root")),
    "a link to nothing": (linked(lambda root: root / "data" / "gone"), one_bad("b.png", "unreadable")),
    "a link within the folder": (linked(lambda root: root / "data" / "a.png"), rows("a.png", "b.png")),
    "a pipe": (special(os.mkfifo), one_bad("b.png", "not_a_regular_file")),
    "a socket": (special(listening), one_bad("b.png", "not_a_regular_file")),
    "a folder named as an image": (special(Path.mkdir), rows("a.png")),
    "loops of links": (
        link_loops,
        Listed((("c/a.png", None), ("c/x.png", "unreadable"), ("c/y.png", "unreadable"))),
    ),
    "links to folders": (
        linked_classes,
        Listed((("cat/a.png", None), ("dog", "linked_folder"), ("hound", "linked_folder"))),
    ),
    "links to folders that are followed": (
        lambda root: {**linked_classes(root), "follow_links": True},
        Listed((("cat/a.png", None), ("dog/b.png", None), ("hound", "linked_again"))),
    ),
    "nothing but links to folders": (
        lambda root: [(root / "data").mkdir(), (root / "data" / "cat").symlink_to(root)] and folder(root / "data"),
        Refused(DataError, ("no images in", "1 folders in it are links", "follow_links: true")),
    ),
    "a file above the byte limit": (big, one_bad("b.png", "too_many_bytes")),
    "folders nested deeper than a path can be": (
        deep,
        Listed((("d/...", "unreadable_folder"), ("z.png", None))),
    ),
    "the same name in two folders": (
        lambda root: folder(files(root, "x/a.png", "y/a.png")),
        rows("x/a.png", "y/a.png"),
    ),
    "the same bytes twice": (
        lambda root: folder([put(root / name, b"same") for name in ("a.png", "b.png")] and root),
        rows("a.png", "b.png"),
    ),
    **{
        f"a name with {what}": (
            lambda root, name=name: folder(files(root, f"{name}.png")),
            Listed(((f"{shown}.png", None),)),
        )
        for what, (name, shown) in HOSTILE.items()
    },
    "'../' in the metadata": (
        metadata("file_name,label\n../secret.png,x\n"),
        named_bad("../secret.png", "name_out_of_root"),
    ),
    "an absolute path in the metadata": (
        metadata("file_name,label\n/etc/hostname,x\n"),
        named_bad("/etc/hostname", "name_out_of_root"),
    ),
    "a path through a link in the metadata": (
        metadata("file_name\nout/secret.png\n"),
        named_bad("out/secret.png", "link_out_of_root"),
    ),
    "metadata of a file that is gone": (metadata("file_name\ngone.png\n"), named_bad("gone.png", "missing")),
    "a NUL in the metadata": (
        metadata('{"file_name": "a\\u0000.png"}', "metadata.jsonl"),
        named_bad("a\\x00.png", "unreadable"),
    ),
    "metadata without file names": (
        metadata("name,label\na.png,x\n"),
        Refused(DataError, ("metadata.csv, row 1", "no column 'file_name'; it has name, label", "'image_column'")),
    ),
    "metadata with more cells than columns": (
        metadata("file_name,label\na.png,x,y\n"),
        Refused(DataError, ("row 1", "more cells than the header")),
    ),
    "metadata whose label is a list": (
        metadata('{"file_name": "a.png", "label": [1]}\n{"file_name": "b.png", "label": {}}', "metadata.jsonl"),
        Listed((("a.png", "several_labels"), ("out", "linked_folder"), ("b.png", "missing"))),
    ),
    "metadata in no JSON": (metadata("{broken\n", "metadata.jsonl"), Refused(DataError, ("line 1 is not JSON",))),
    "metadata in deep JSON": (metadata("[" * 100_000, "metadata.jsonl"), Refused(DataError, ("line 1 is not JSON",))),
    "metadata in no UTF-8": (
        metadata("file_name,label\na.png,Krabbe \xe4\n".encode("latin-1")),
        Refused(DataError, ("metadata.csv is not UTF-8",)),
    ),
    "metadata with a cell without an end": (
        metadata('file_name,label\n"' + "x" * 200_000),
        Refused(DataError, ("not a table in CSV",)),
    ),
}

MANIFESTS: dict[str, Made] = {
    "no manifest": (
        lambda root: {"source": "csv", "path": str(root / "none.csv")},
        Refused(DataError, ("no file at", "none.csv")),
    ),
    "a manifest of an unknown kind": (
        manifest("image\na.png\n", "m.xlsx"),
        Refused(ConfigError, ("m.xlsx", ".csv, .tsv, .jsonl")),
    ),
    "an empty manifest": (manifest(""), Refused(DataError, ("no rows in", "m.csv"))),
    "a header alone": (manifest("image,label\n"), Refused(DataError, ("no rows in", "m.csv"))),
    "a manifest without the column": (
        manifest("picture number,label\na.png,x\n"),
        Refused(DataError, ("row 1", "no column 'image'; it has picture number, label", "'image_column'")),
    ),
    "a manifest with several columns of paths": (
        manifest("file,path\na.png,a.png\n"),
        Refused(DataError, ("row 1", "several columns may be 'image': file, path", "'image_column'")),
    ),
    "a manifest with several columns of labels": (
        manifest("image,fine_label,coarse_label\na.png,x,y\n"),
        Refused(DataError, ("row 1", "several columns may be 'label': fine_label, coarse_label", "'label_column'")),
    ),
    "a manifest without the label column that is asked for": (
        manifest("image,label\na.png,x\n", label_column="kind"),
        Refused(DataError, ("row 1", "no column 'kind'; it has label", "'label_column'")),
    ),
    "a manifest with a column twice": (
        manifest("image,label,label\na.png,x,y\n"),
        Refused(DataError, ("m.csv", "several columns 'label'")),
    ),
    "a manifest of several labels an image": (
        manifest('{"image": "a.png", "label": ["x", "y"]}\n{"image": "a.png", "label": {"x": 1}}', "m.jsonl"),
        Listed((("a.png", "several_labels"), ("a.png", "bad_label"))),
    ),
    "a manifest that is a pipe": (
        lambda root: {"source": "csv", "path": os.mkfifo(root / "m.csv") or str(root / "m.csv")},
        Refused(DataError, ("m.csv", "no regular file")),
    ),
    "'../' in a manifest": (
        manifest("image\na.png\n../secret.png\n"),
        one_bad("../secret.png", "name_out_of_root"),
    ),
    "'../' that stays inside": (manifest("image\nx/../a.png\n"), rows("x/../a.png")),
    "an absolute path inside": (
        manifest('{"image": "ROOT/data/a.png"}', "m.jsonl"),
        rows("ROOT/data/a.png"),
    ),
    "an absolute path outside": (
        manifest('{"image": "/etc/hostname"}', "m.jsonl"),
        Listed((("/etc/hostname", "name_out_of_root"),)),
    ),
    "a path outside that is allowed": (
        manifest("image\n../secret.png\n", allow_outside=True),
        rows("../secret.png"),
    ),
    "a device that is allowed": (
        manifest("image\n/dev/zero\n", allow_outside=True),
        Listed((("/dev/zero", "not_a_regular_file"),)),
    ),
    "a URI of a store outside": (
        manifest("image\ns3://other/a.png\n"),
        Listed((("s3://other/a.png", "name_out_of_root"),)),
    ),
    "a path through a link": (
        manifest("image\na.png\nout/secret.png\n"),
        one_bad("out/secret.png", "link_out_of_root"),
    ),
    "a link out of the root": (manifest("image\na.png\nlink.png\n"), one_bad("link.png", "link_out_of_root")),
    "a pipe in a manifest": (manifest("image\na.png\npipe.png\n"), one_bad("pipe.png", "not_a_regular_file")),
    "a folder in a manifest": (manifest("image\na.png\nf.png\n"), one_bad("f.png", "unreadable_folder")),
    "a file that is gone": (manifest("image\na.png\ngone.png\n"), one_bad("gone.png", "missing")),
    "an empty cell": (manifest("image,label\na.png,x\n,y\n"), one_bad("row 2", "no_image")),
    "a short row": (manifest("label,image\nx,a.png\ny\n"), one_bad("row 2", "no_image")),
    "a duplicate row": (manifest("image\na.png\na.png\n"), rows("a.png", "a.png")),
    "a web address": (
        manifest("image\na.png\nhttps://example.org/a.png\n"),
        Refused(DataError, ("row 2", "'https://example.org/a.png' cannot be read", "download")),
    ),
    "a URI of an unknown scheme": (
        manifest("image\ngs://bucket/a.png\n"),
        Refused(DataError, ("row 1", "gs://", "s3://")),
    ),
    "a row with more cells than columns": (
        manifest("image,caption\na.png,a crab, on sand\n"),
        Refused(DataError, ("row 1", "quote cells")),
    ),
    "a line of 5 MB": (manifest("image\n" + "x" * 5_000_000), Refused(DataError, ("line 2 is longer than",))),
    "a JSON list": (manifest("[1]", "m.jsonl"), Refused(DataError, ("line 1 is not a JSON object",))),
    "no UTF-8": (manifest(b"image\n\xff\n"), Refused(DataError, ("m.csv is not UTF-8",))),
    "a byte-order mark": (manifest(b"\xef\xbb\xbfimage\r\na.png\r\n"), rows("a.png")),
}

SHARDS: dict[str, Made] = {
    "members out of order": (shard(JPG, SECOND, CLS), rows("x.tar/1.jpg", "x.tar/2.jpg")),
    "a shard cut in an image": (
        shard(JPG, ("2.jpg", b"x" * 2000), cut=3 * 512 + 100),
        Listed((("x.tar/1.jpg", None), ("x.tar/2.jpg", "truncated_shard"), ("x.tar", "truncated_shard"))),
    ),
    "a shard cut in a header": (
        shard(JPG, SECOND, cut=1024 + 100),
        Listed((("x.tar/1.jpg", None), ("x.tar", "truncated_shard"))),
    ),
    "a shard cut between members": (
        shard(JPG, SECOND, cut=1024),
        Listed((("x.tar/1.jpg", None), ("x.tar", "truncated_shard"))),
    ),
    "a shard with a broken header": (
        raw("x.tar", tarred([JPG])[:1024] + b"garbage " * 128, source="webdataset"),
        Listed((("x.tar/1.jpg", None), ("x.tar", "broken_shard"))),
    ),
    "a member of negative size": (
        raw("x.tar", with_size(tarred([JPG, SECOND]), 1024, b"\xff" * 10 + b"\xfc\0"), source="webdataset"),
        Listed((("x.tar/1.jpg", None), ("x.tar", "broken_shard"))),
    ),
    "a header that claims 8 GB": (
        raw(
            "x.tar",
            with_size(tarred([JPG, ("y" * 200 + ".jpg", b"2")], tarfile.GNU_FORMAT), 1024, b"77777777777\0"),
            source="webdataset",
        ),
        Listed((("x.tar/1.jpg", None), ("x.tar", "broken_shard"))),
    ),
    "an image above the byte limit": (
        big_member,
        Listed((("x.tar/1.jpg", None), ("x.tar/2.jpg", "too_many_bytes"))),
    ),
    "nothing but half an image": (
        shard(("1.jpg", b"x" * 2000), cut=1000),
        Listed((("x.tar/1.jpg", "truncated_shard"), ("x.tar", "truncated_shard"))),
    ),
    "the same name twice": (
        shard(JPG, CLS, ("1.jpg", b"other")),
        Listed((("x.tar/1.jpg", None), ("x.tar/1.jpg", "duplicate_name"))),
    ),
    "'../' in a shard": (
        shard(JPG, ("../2.jpg", b"2")),
        Listed((("x.tar/1.jpg", None), ("x.tar/../2.jpg", "name_out_of_root"))),
    ),
    "an absolute name in a shard": (
        shard(("/etc/2.jpg", b"2")),
        Listed((("x.tar//etc/2.jpg", "name_out_of_root"),)),
    ),
    "links and devices in a shard": (
        shard(
            JPG,
            header("2.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            header("3.jpg", tarfile.LNKTYPE, "1.jpg"),
            header("4.jpg", tarfile.FIFOTYPE),
            header("5.jpg", tarfile.CHRTYPE),
        ),
        Listed((("x.tar/1.jpg", None), *((f"x.tar/{i}.jpg", "not_a_regular_file") for i in range(2, 6)))),
    ),
    "folders and notes in a shard": (
        shard(header("d.jpg", tarfile.DIRTYPE), ("README", b"hi"), ("__meta__.json", b"{}"), ("d/1.jpg", b"one")),
        rows("x.tar/d/1.jpg"),
    ),
    "a name in a shard that is no text": (
        raw("x.tar", tarred([("a\udcff.jpg", b"1")], tarfile.GNU_FORMAT), source="webdataset"),
        rows("x.tar/a\\xdcff.jpg"),
    ),
    "a sample without an image": (
        shard(JPG, ("2.txt", b"a crab")),
        Listed((("x.tar/1.jpg", None), ("x.tar/2.txt", "no_image"))),
    ),
    "a label that is no text": (shard(JPG, ("1.cls", b"\xff")), Listed((("x.tar/1.jpg", "bad_label"),))),
    "a label of 2 KB": (shard(JPG, ("1.cls", b"x" * 2000)), Listed((("x.tar/1.jpg", "bad_label"),))),
    "a label out of the classes": (
        shard(JPG, ("1.cls", b"7"), class_names=["a", "b"]),
        rows("x.tar/1.jpg"),
    ),
    "a label that is no class": (
        shard(JPG, ("1.cls", b"c"), class_names=["a", "b"]),
        Listed((("x.tar/1.jpg", "bad_label"),)),
    ),
    "several labels in JSON": (
        shard(JPG, ("1.json", b'{"label": ["a", "b"]}')),
        Listed((("x.tar/1.jpg", "several_labels"),)),
    ),
    "a label in no JSON": (shard(JPG, ("1.json", b"{")), Listed((("x.tar/1.jpg", "bad_label"),))),
    "a label in a JSON list": (shard(JPG, ("1.json", b"[1]")), Listed((("x.tar/1.jpg", "bad_label"),))),
    "an empty shard": (shard(), Refused(DataError, ("no samples in", "*.jpg"))),
    "a shard of no bytes": (raw("x.tar", b"", source="webdataset"), Refused(DataError, ("1 of its shards",))),
    "a zip named tar": (raw("x.tar", b"PK\3\4" * 500, source="webdataset"), Refused(DataError, ("no tar files",))),
    "no shard": (raw("x.txt", b"", source="webdataset"), Refused(DataError, ("no *.tar at", "pattern"))),
    "a compressed shard": (
        lambda root: {"source": "webdataset", "path": str(files(root, "x.tar.gz") / "x.tar.gz")},
        Refused(DataError, ("x.tar.gz is compressed", "unpack")),
    ),
    "a shard of a range that is gone": (
        lambda root: {"source": "webdataset", "path": f"{put(root / '0.tar', tarred([JPG])) or root}/{{0..1}}.tar"},
        Refused(DataError, ("no file at", "1.tar")),
    ),
    "a shard that is a pipe": (
        lambda root: {"source": "webdataset", "path": str(os.mkfifo(root / "x.tar") or root)},
        Refused(DataError, ("x.tar", "no regular file")),
    ),
    "a good shard beside a bad one": (
        lambda root: {**shard(JPG)(root), "path": str(put(root / "y.tar", b"x" * 2000) or root)},
        Listed((("x.tar/1.jpg", None), ("y.tar", "broken_shard"))),
    ),
}

TABLES: dict[str, Made] = {
    "no parquet": (lambda root: {"source": "parquet", "path": str(root)}, Refused(DataError, ("no *.parquet at",))),
    "parquet of four bytes": (
        raw("x.parquet", b"PAR1", source="parquet"),
        Refused(DataError, ("x.parquet is not a Parquet file",)),
    ),
    "parquet without its end": (
        lambda root: {
            **parquet({"image": [b"a" * 100]})(root),
            "path": str(os.truncate(root / "x.parquet", 150) or root),
        },
        Refused(DataError, ("x.parquet is not a Parquet file",)),
    ),
    "parquet without images": (
        parquet({"number": [1]}),
        Refused(DataError, ("no column 'image'; it has number", "'image_column'")),
    ),
    "parquet with several columns of images": (
        parquet({"img": [b"a"], "photo": [b"a"]}),
        Refused(DataError, ("several columns may be 'image': img, photo", "'image_column'")),
    ),
    "parquet of several labels an image": (
        parquet({"image": [b"a", b"b"], "label": [["x"], ["x", "y"]], "name": ["a", "b"]}),
        Listed((("a", "several_labels"), ("b", "several_labels"))),
    ),
    "parquet of labels that are no text": (
        parquet({"image": [b"a", b"b"], "label": [b"x", b"\xff"], "name": ["a", "b"]}),
        Listed((("a", None), ("b", "bad_label"))),
    ),
    "parquet of paths that lead out": (
        parquet_of_paths(["a.png", "../secret.png", "/etc/hostname", "out/secret.png", "gone.png"]),
        Listed(
            (
                ("x.parquet#0", None),
                ("x.parquet#1", "name_out_of_root"),
                ("x.parquet#2", "name_out_of_root"),
                ("x.parquet#3", "link_out_of_root"),
                ("x.parquet#4", "missing"),
            )
        ),
    ),
    "parquet of pixels": (
        parquet({"image": [[1, 2, 3]]}),
        Refused(DataError, ("'image' holds list", "not encoded images")),
    ),
    "parquet without rows": (parquet({"image": pa.array([], pa.binary())}), Refused(DataError, ("no rows in",))),
    "parquet without an image": (
        parquet({"image": [b"a", None], "name": ["a", "b"]}),
        Listed((("a", None), ("b", None)), gone=("b",)),
    ),
    "parquet with a label of NaN": (
        parquet({"image": [b"a"], "label": [float("nan")], "name": ["a"]}),
        rows("a"),
    ),
    "a broken row group": (
        broken_row_group,
        Listed(
            tuple((f"x.parquet#{i}", None) for i in range(4)),
            gone=("x.parquet#0", "x.parquet#1"),
        ),
    ),
    "hf: nothing there": (
        lambda root: {"source": "hf", "path": f"{root}/none"},
        Refused(DataError, ("no folder at", "save_to_disk")),
    ),
    "hf: another folder": (
        lambda root: {"source": "hf", "path": str(files(root, "a.png"))},
        Refused(DataError, ("holds no data set of Hugging Face", "save_to_disk")),
    ),
    "hf: a hub id without a revision": (
        lambda root: {"source": "hf", "path": "cifar10"},
        Refused(DataError, ("'cifar10'", "pinned 'revision'", "none is given")),
    ),
    "hf: a hub id at a branch": (
        lambda root: {"source": "hf", "path": "cifar10", "revision": "main"},
        Refused(DataError, ("'revision'", "found 'main'")),
    ),
    "hf: a hub id offline": (
        lambda root: {"source": "hf", "path": "none/none", "revision": "0" * 40},
        Refused(DataError, ("cannot fetch the data set 'none/none'", "save_to_disk")),
    ),
    "hf: an unknown column": (
        saved_hf(image_column="img"),
        Refused(DataError, ("no column 'img'; it has image, label, caption, mask",)),
    ),
    "hf: damaged rows": (
        saved_hf(lambda saved: os.truncate(saved / "data-00000-of-00001.arrow", 100)),
        Refused(DataError, ("cannot be opened", "saved")),
    ),
    "hf: a state that leads out": (
        saved_hf(state_that_leads_out),
        Refused(DataError, ("leads out of the folder", "../other/data.arrow")),
    ),
    "hf: a state that is none": (
        saved_hf(lambda saved: put(saved / "state.json", b"{}")),
        Refused(DataError, ("cannot be opened",)),
    ),
    "hf: images by path": (
        hf_of_paths,
        Listed(
            (
                ("1", None),
                ("2", None),
                ("3", "name_out_of_root"),
                ("4", "name_out_of_root"),
                ("5", "missing"),
                ("6", "no_image"),
            )
        ),
    ),
}

CASES = [
    Case(f"data: {name}", "data", make, expected)
    for table in (FOLDERS, MANIFESTS, SHARDS, TABLES)
    for name, (make, expected) in table.items()
]
