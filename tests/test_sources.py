"""What holds for every data source, local or in an object store, and what a job makes of each."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from audit import locations
from audit.config import parse_job
from audit.errors import DataError
from audit.zoo.export import export
from tests.in_process import done
from tests.s3_server import client, free_port
from tests.s3_server import s3_endpoint as s3_endpoint
from tests.sources import LOCAL, REMOTE, Shown, examples, on_s3, opened

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


def test_a_limit_takes_the_first(options: dict[str, Any]) -> None:
    assert list(opened({**options, "limit": 4}).entries()) == list(opened(options).entries())[:4]


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
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setitem(locations.RETRIES, "max_retries", 1)
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
