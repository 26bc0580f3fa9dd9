"""What holds for every data source, local or in an object store, and what a job makes of each."""

from __future__ import annotations

import hashlib
import random
import socket
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit import locations
from audit.config import parse_job
from audit.datasets._places import expanded
from audit.errors import DataError
from audit.zoo.export import export
from benchmarks.s3_server import client
from tests.bad_data import with_size
from tests.in_process import done
from tests.s3_server import s3_endpoint as s3_endpoint
from tests.sources import LOCAL, REMOTE, Shown, examples, on_s3, opened, put, table, tarred

PLACES = [*LOCAL, *(f"{name} on s3" for name in REMOTE)]
SHOWN = examples()


@pytest.fixture(scope="module", params=PLACES)
def options(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The lines of a job file for the same images in each source."""
    name, _, remote = request.param.partition(" on ")
    root = tmp_path_factory.mktemp(name)
    written = LOCAL[name](root, SHOWN)
    return on_s3(request.getfixturevalue("s3_endpoint"), written, root, f"contract/{name}") if remote else written


def test_the_same_images_labels_captions_and_masks(options: dict[str, Any]) -> None:
    source = opened(options)
    entries = list(source.entries())
    uris = [entry.uri for entry in entries]
    assert [entry.reason for entry in entries] == [None] * len(SHOWN)
    assert list(source.read(uris)) == [one.data for one in SHOWN]
    assert [entry.label for entry in entries] == [one.label for one in SHOWN]
    assert [entry.caption for entry in entries] == [one.caption for one in SHOWN]
    assert [entry.mask is not None for entry in entries] == [one.mask is not None for one in SHOWN]
    assert list(source.read_masks(uris)) == [one.mask for one in SHOWN]


def test_a_second_listing_is_the_first_and_a_uri_is_all_that_a_worker_needs(options: dict[str, Any]) -> None:
    entries = list(opened(options).entries())
    source = opened(options)
    shuffled = random.Random(0).sample(list(zip(entries, SHOWN, strict=True)), len(SHOWN))
    uris = [entry.uri for entry, _ in shuffled]
    assert list(source.read(uris)) == [one.data for _, one in shuffled]
    assert list(source.read_masks(uris)) == [one.mask for _, one in shuffled]
    assert list(source.read([])) == []
    assert list(source.entries()) == entries == list(opened(options).entries())
    assert len({entry.uri for entry in entries}) == len(SHOWN)
    for entry in entries:
        assert entry.uri.isascii()
        assert entry.display_name.isprintable()


def test_first_takes_the_first(options: dict[str, Any]) -> None:
    assert list(opened({**options, "first": 4}).entries()) == list(opened(options).entries())[:4]


def test_a_limit_takes_a_sample_that_its_uris_and_seed_decide(options: dict[str, Any]) -> None:
    """Those with the lowest hashes, in the order of the listing; all of them where the limit is above their number."""
    whole = list(opened(options).entries())
    for seed in (0, 1):

        def number(uri: str, seed: int = seed) -> bytes:
            return hashlib.blake2b(f"{seed}\0{uri}".encode(), digest_size=8).digest()

        lowest = sorted(whole, key=lambda entry: number(entry.uri))[:4]
        sampled = list(opened({**options, "limit": 4, "sample_seed": seed}).entries())
        assert sampled == [entry for entry in whole if entry in lowest]
    assert list(opened({**options, "limit": 1000}).entries()) == whole


def test_so_many_of_each_class(options: dict[str, Any]) -> None:
    whole = [entry.label for entry in opened(options).entries()]
    counted = Counter(entry.label for entry in opened({**options, "per_class": 3}).entries())
    assert counted == {"boat": 3, "ice cream": 3}
    assert counted.total() < len(whole)


def test_a_data_set_without_doubts_leaves_no_warning(options: dict[str, Any]) -> None:
    source = opened(options)
    assert source.warnings() == ()
    list(source.entries())
    assert source.warnings() == ()


def test_where_an_item_is_can_be_said(options: dict[str, Any]) -> None:
    source = opened(options)
    for entry, one in zip(source.entries(), SHOWN, strict=True):
        where = source.where(entry.uri)
        assert where.startswith(options["path"].partition("{")[0].rpartition("/")[0])
        if options["source"] == "folder":
            assert where == f"{options['path']}/{one.label}/{one.name}.png"


@pytest.mark.parametrize("name", REMOTE)
def test_a_store_that_does_not_answer_and_a_bucket_that_is_not_there_are_named(
    name: str, tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LOCAL[name](tmp_path, SHOWN[:3])
    there = on_s3(s3_endpoint, written, tmp_path, f"gone/{name}")
    uris = [entry.uri for entry in opened(there).entries()]
    nowhere = {**there, "path": there["path"].replace("s3://bucket/gone", "s3://bucket/never")}
    with pytest.raises(DataError, match="s3://bucket/never"):
        list(opened(nowhere).entries())
    with pytest.raises(DataError, match="s3://no-such-bucket"):
        list(opened({**there, "path": there["path"].replace("s3://bucket", "s3://no-such-bucket")}).entries())
    monkeypatch.setitem(locations.RETRIES, "max_retries", 1)
    with socket.socket() as silent:  # bound and not listening, so that no other process answers there
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for act in (lambda source: list(source.entries()), lambda source: list(source.read(uris))):
            with pytest.raises(DataError, match=r"cannot (list|read) s3://bucket.*AWS_ENDPOINT_URL"):
                act(opened(there))


@pytest.mark.parametrize("name", REMOTE)
def test_what_is_gone_from_a_store_reads_as_none(name: str, tmp_path: Path, s3_endpoint: str) -> None:
    there = on_s3(s3_endpoint, LOCAL[name](tmp_path, SHOWN), tmp_path, f"vanish/{name}")
    source = opened(there)
    uris = [entry.uri for entry in source.entries()]
    store = client(s3_endpoint)
    kept = {"parquet": "part-0.parquet", "webdataset": "shard-000.tar"}.get(name, "boat/0000.png")
    for found in store.list_objects_v2(Bucket="bucket", Prefix=f"vanish/{name}/")["Contents"]:
        if not found["Key"].endswith((kept, ".csv", ".jsonl")):
            store.delete_object(Bucket="bucket", Key=found["Key"])
    read = list(opened(there).read(uris))
    assert read[0] == SHOWN[0].data
    assert read[-1] is None


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """Held-out scenes of the embedded world, by class."""
    folder = tmp_path_factory.mktemp("world") / "heldout"
    export("heldout", folder, "parquet", 24)
    source = opened({"source": "parquet", "path": str(folder)})
    entries = list(source.entries())
    uris = [entry.uri for entry in entries]
    told = zip(entries, source.read(uris), source.read_masks(uris), strict=True)
    by_class = sorted(told, key=lambda one: one[0].label or "")
    return [Shown(f"{i:04d}", data, e.label, e.caption, mask) for i, (e, data, mask) in enumerate(by_class)]


def test_a_job_gives_the_same_predictions_from_every_source(
    scenes: list[Shown], tmp_path: Path, s3_endpoint: str
) -> None:
    """Every unit of a screening job in this process; the fair classifier and one with planted shortcuts."""
    found = {}
    for place in PLACES:
        name, _, remote = place.partition(" on ")
        root = tmp_path / place.replace(" ", "-")
        data = LOCAL[name](root, scenes)
        data = on_s3(s3_endpoint, data, root, f"job/{name}") if remote else data
        models = [{"id": ref, "loader": "hf", "ref": f"zoo:{ref}"} for ref in ("reference", "shortcut-a")]
        job = {"version": 1, "name": "sources", "data": data, "models": models, "stages": [{"kind": "screen"}]}
        run = done(parse_job(job, tmp_path), tmp_path / f"run-{place}", batch=4)
        items = run.rows("select item_id, label, caption, has_mask, status, reason from items order by position")
        columns = "item_id, model_id, label, predicted, confidence, correct, status, reason"
        found[place] = items, run.rows(f"select {columns} from predictions order by item_id, model_id")
    items, predictions = found["parquet"]
    assert [item["item_id"] for item in items] == [hashlib.sha256(one.data).hexdigest() for one in scenes]
    assert len(predictions) == 2 * len(scenes)
    assert sum(row["correct"] for row in predictions) > len(scenes)
    for place in PLACES:
        assert found[place] == (items, predictions), place


def test_listing_keeps_no_entries(tmp_path: Path) -> None:
    """Of 5,000 entries: next to nothing, but for a folder its names and for a shard its index."""
    count = 5_000
    names = [f"{i:05d}.png" for i in range(count)]
    for name in names:
        put(tmp_path / "folder" / name, b"")
    table(tmp_path / "m.csv", ["image", "label"], [[f"folder/{name}", "crab"] for name in names])
    pq.write_table(pa.table({"image": [b""] * count, "name": names}), tmp_path / "x.parquet", row_group_size=500)
    (tmp_path / "x.tar").write_bytes(tarred((name, b"x") for name in names))
    bytes_each = {
        "csv": ("m.csv", 40),
        "parquet": ("x.parquet", 120),
        "folder": ("folder", 120),
        "webdataset": ("x.tar", 1500),
    }
    for source, (path, most) in bytes_each.items():
        listing = opened({"source": source, "path": str(tmp_path / path)})
        next(listing.entries())  # what is imported on first use
        tracemalloc.start()
        assert sum(1 for _ in listing.entries()) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used < most * count, (source, used / count)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a-1.tar", "a-2.tar", "b-1.tar"]),
        ("/a-*.tar", ["a-1.tar", "a-2.tar"]),
        ("/[ab]-1.tar", ["a-1.tar", "b-1.tar"]),
        ("/{b,a}-{1..1}.tar", ["b-1.tar", "a-1.tar"]),
        ("/{b-1,a-*}.tar", ["b-1.tar", "a-1.tar", "a-2.tar"]),
        ("/sub/c-?.tar", ["c-1.tar"]),
        ("/s*/c-1.tar", ["sub/c-1.tar"]),
        ("/b-1.tar", ["b-1.tar"]),
    ],
)
def test_what_a_pattern_stands_for(
    pattern: str, names: list[str], remote: bool, tmp_path: Path, s3_endpoint: str
) -> None:
    for name in ("a-1.tar", "a-2.tar", "b-1.tar", "sub/c-1.tar", "a-1.txt"):
        put(tmp_path / name, tarred([("1.jpg", b"x")]))
    options = {"source": "webdataset", "path": str(tmp_path) + pattern}
    if remote:
        there = on_s3(s3_endpoint, {"path": str(tmp_path)}, tmp_path, "patterns")
        options["path"] = there["path"] + pattern
    assert [entry.uri.partition("#")[0] for entry in opened(options).entries()] == names


def test_braces_count_with_their_zeros_and_upwards_only(tmp_path: Path) -> None:
    assert expanded("x-{008..010}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar"]
    assert expanded("{8..10}{a,}") == ["8a", "8", "9a", "9", "10a", "10"]
    assert expanded("plain") == ["plain"]
    for wrong in ("{2..1}.tar", "{0..99999999999}.tar"):
        with pytest.raises(DataError, match="counts upwards"):
            list(opened({"source": "webdataset", "path": f"{tmp_path}/{wrong}"}).entries())


HOSTILE_KEYS = ("<script>alert(1).png", "a'b\".png", "a#0.png", "a%41.png", "né.png", "~[x]{y}^`|*?.png")


def test_hostile_keys_are_listed_read_and_safe_to_print(s3_endpoint: str) -> None:
    store = client(s3_endpoint)
    for key in HOSTILE_KEYS:
        store.put_object(Bucket="bucket", Key=f"hostile/c/{key}", Body=key.encode())
    source = opened({"source": "folder", "path": "s3://bucket/hostile"})
    entries = list(source.entries())
    assert {entry.display_name for entry in entries} == {f"c/{key}" for key in HOSTILE_KEYS}
    assert {entry.label for entry in entries} == {"c"}
    read = source.read([entry.uri for entry in entries])
    assert [data.decode() for data in read if data] == [entry.display_name.removeprefix("c/") for entry in entries]


def test_a_key_that_no_name_can_stand_for_is_named(s3_endpoint: str) -> None:
    """A store client that cannot address a key must not leave it, or what follows it, out of the data set."""
    client(s3_endpoint).put_object(Bucket="bucket", Key="dots/a/../up.png", Body=b"x")
    with pytest.raises(DataError, match=r"cannot list s3://bucket/dots.*dots/a/\.\./up\.png"):
        list(opened({"source": "folder", "path": "s3://bucket/dots"}).entries())


def test_metadata_and_manifests_in_a_store_lead_nowhere_else(tmp_path: Path, s3_endpoint: str) -> None:
    store = client(s3_endpoint)
    lines = [
        "a.png",
        "gone.png",
        "../secret.png",
        "s3://bucket/secret.png",
        "s3://bucket/inside/a.png",
        "/etc/hostname",
    ]
    text = "image,file_name\n" + "".join(f"{line},{line}\n" for line in lines)
    for key, body in (("inside/a.png", "a"), ("secret.png", "secret"), ("inside/m.csv", text)):
        store.put_object(Bucket="bucket", Key=key, Body=body.encode())
    manifest = {"source": "csv", "path": "s3://bucket/inside/m.csv"}
    entries = list(opened(manifest).entries())
    out = "name_out_of_root"
    assert [entry.reason for entry in entries] == [None, None, out, out, None, out]
    read = list(opened(manifest).read([entry.uri for entry in entries]))
    assert read == [b"a", None, None, None, b"a", None]  # a request for each row would cost more than the listing
    allowed = {**manifest, "allow_outside": True}
    read = list(opened(allowed).read([entry.uri for entry in opened(allowed).entries()]))
    assert read[:5] == [b"a", None, b"secret", b"secret", b"a"]
    store.put_object(Bucket="bucket", Key="inside/metadata.csv", Body=text.encode())
    folder = opened({"source": "folder", "path": "s3://bucket/inside"})
    rows = {entry.display_name: entry.reason for entry in folder.entries()}
    assert rows["a.png"] is None
    assert rows["gone.png"] == "missing"
    assert rows["../secret.png"] == out
    assert b"secret" not in list(folder.read([entry.uri for entry in folder.entries()]))


def test_a_manifest_here_of_images_in_a_store(tmp_path: Path, s3_endpoint: str) -> None:
    client(s3_endpoint).put_object(Bucket="bucket", Key="far/a.png", Body=b"far")
    table(tmp_path / "m.csv", ["image"], [["a.png"], ["s3://bucket/far/a.png"]])
    source = opened({"source": "csv", "path": str(tmp_path / "m.csv"), "root": "s3://bucket/far"})
    assert list(source.read([entry.uri for entry in source.entries()])) == [b"far", b"far"]


def test_a_big_parquet_file_and_shard_are_read_by_ranges(
    tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of 40 MB of them costs a few MB, whatever the file."""
    images = [np.random.default_rng(i).bytes(100_000) for i in range(400)]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet", row_group_size=10, compression="none")
    (tmp_path / "x.tar").write_bytes(tarred((f"{i:03d}.jpg", data) for i, data in enumerate(images)))
    there = on_s3(s3_endpoint, {"path": str(tmp_path)}, tmp_path, "ranges")["path"]
    asked: list[int] = []
    fetch = obstore.get_range

    def counted(store: Any, path: str, *, start: int, length: int) -> Any:
        asked.append(length)
        return fetch(store, path, start=start, length=length)

    def whole(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a whole object was read")

    monkeypatch.setattr(obstore, "get_range", counted)
    monkeypatch.setattr(obstore, "get", whole)
    for source, uri, most in (("parquet", "x.parquet#207", 4_000_000), ("webdataset", None, 100_000)):
        opened_at = opened({"source": source, "path": there})
        chosen = uri or [entry.uri for entry in opened_at.entries()][207]
        asked.clear()
        assert list(opened_at.read([chosen])) == [images[207]]
        assert 0 < sum(asked) <= most


@pytest.mark.parametrize("remote", [False, True])
def test_a_shard_that_is_shorter_now_reads_as_none(remote: bool, tmp_path: Path, s3_endpoint: str) -> None:
    shard = tarred([("1.jpg", b"one"), ("2.jpg", b"two" * 400)])
    put(tmp_path / "x.tar", shard)
    options = {"source": "webdataset", "path": str(tmp_path)}
    options = on_s3(s3_endpoint, options, tmp_path, "shorter") if remote else options
    uris = [entry.uri for entry in opened(options).entries()]
    put(tmp_path / "x.tar", shard[:1000])  # before the second image; then within it
    on_s3(s3_endpoint, options, tmp_path, "shorter")
    assert list(opened(options).read(uris)) == [b"one", None]
    put(tmp_path / "x.tar", shard[:1600])
    on_s3(s3_endpoint, options, tmp_path, "shorter")
    assert list(opened(options).read(uris)) == [b"one", None]


def test_a_folder_of_masks_in_a_store_is_not_listed(s3_endpoint: str) -> None:
    store = client(s3_endpoint)
    metadata = "file_name,mask\nc/a.png,masks/deep/a.png\n"
    bodies = {
        "c/a.png": "a",
        "c/b.png": "b",
        "masks/deep/a.png": "m",
        "masks/deep/no.png": "n",
        "metadata.csv": metadata,
    }
    for key, body in bodies.items():
        store.put_object(Bucket="bucket", Key=f"masked/{key}", Body=body.encode())
    source = opened({"source": "folder", "path": "s3://bucket/masked"})
    assert [entry.uri for entry in source.entries()] == ["c/a.png", "c/b.png"]
    assert list(source.read_masks(["c/b.png", "c/a.png"])) == [None, b"m"]


def test_a_header_that_claims_much_is_not_read_into_memory(tmp_path: Path) -> None:
    """A long name of 200 MB, of which no byte is on the disk."""
    size = 200 * 2**20
    shard = tarred([("1.jpg", b"one"), ("y" * 200 + ".jpg", b"2")], tarfile.GNU_FORMAT)
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(with_size(shard, 1024, b"%011o\0" % size)[:1536])
        file.truncate(size + 4096)
    tracemalloc.start()
    entries = list(opened({"source": "webdataset", "path": str(tmp_path)}).entries())
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [entry.reason for entry in entries] == [None, "broken_shard"]
    assert used < size / 10


def test_a_manifest_may_say_its_root_by_a_link(tmp_path: Path) -> None:
    put(tmp_path / "disk" / "a.png", b"a")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    table(tmp_path / "disk" / "m.csv", ["image"], [[f"{tmp_path}/data/a.png"], [f"{tmp_path}/data/../disk/a.png"]])
    source = opened({"source": "csv", "path": f"{tmp_path}/data/m.csv"})
    entries = list(source.entries())
    assert [entry.reason for entry in entries] == [None, None]
    assert list(source.read([entry.uri for entry in entries])) == [b"a", b"a"]


def test_a_missing_label_is_none_and_not_a_class_named_nan(tmp_path: Path) -> None:
    labels = pa.array([1.0, None, float("nan")])
    pq.write_table(pa.table({"image": [b"a", b"b", b"c"], "label": labels}), tmp_path / "x.parquet")
    (tmp_path / "m.jsonl").write_text('{"image": "a"}\n{"image": "a", "label": null}\n{"image": "a", "label": NaN}\n')
    for source, path, known in (("parquet", "x.parquet", "1"), ("csv", "m.jsonl", None)):
        entries = opened({"source": source, "path": str(tmp_path / path)}).entries()
        assert [entry.label for entry in entries] == [known, None, None]
