"""The same images written for every data source: what the contract tests and the whole-job test read."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from audit.config import parse_job
from audit.datasets import DataSource
from audit.models import open_source
from benchmarks.s3_server import client


class Shown(NamedTuple):
    """An image of a data set. `name`: of its file, without a suffix."""

    name: str
    data: bytes
    label: str
    caption: str | None = None
    mask: bytes | None = None


def picture(seed: int, form: str = "PNG", side: int = 8, mode: str = "RGB") -> bytes:
    """An image file of random pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, form)
    return buffer.getvalue()


def examples(count: int = 11) -> list[Shown]:
    """Of two classes; some without a caption, some without a mask. In the order of their names."""
    return [
        Shown(
            f"{i:04d}",
            picture(i),
            ("boat", "ice cream")[2 * i // count],
            None if i % 3 == 0 else f'caption {i}, with a comma, "quotes" and ümlauts',
            picture(1000 + i, mode="L") if i % 2 else None,
        )
        for i in range(count)
    ]


def write_folder(root: Path, shown: Sequence[Shown]) -> dict[str, Any]:
    rows = []
    for one in shown:
        path, mask = f"{one.label}/{one.name}.png", f"masks/{one.name}.png"
        put(root / path, one.data)
        if one.mask:
            put(root / mask, one.mask)
        rows.append([path, one.label, one.caption or "", mask if one.mask else ""])
    table(root / "metadata.csv", ["file_name", "label", "caption", "mask"], rows)
    return {"source": "folder", "path": str(root)}


def write_parquet(root: Path, shown: Sequence[Shown]) -> dict[str, Any]:
    """Two files of several row groups."""
    root.mkdir(parents=True, exist_ok=True)
    half = len(shown) // 2
    for part, some in enumerate((shown[:half], shown[half:])):
        columns = {"image": [one.data for one in some], "label": [one.label for one in some]}
        columns |= {"caption": [one.caption for one in some], "mask": [one.mask for one in some]}
        pq.write_table(pa.table(columns), root / f"part-{part}.parquet", row_group_size=3)
    return {"source": "parquet", "path": str(root)}


def write_csv(root: Path, shown: Sequence[Shown]) -> dict[str, Any]:
    write_folder(root, shown)
    (root / "metadata.csv").rename(root / "manifest.csv")
    return {"source": "csv", "path": str(root / "manifest.csv"), "image_column": "file_name"}


def write_jsonl(root: Path, shown: Sequence[Shown]) -> dict[str, Any]:
    options = write_csv(root, shown)
    with open(root / "manifest.csv", newline="") as file:
        lines = [json.dumps(row) for row in csv.DictReader(file)]
    (root / "manifest.jsonl").write_text("\n".join(lines))
    return {**options, "path": str(root / "manifest.jsonl")}


def write_webdataset(root: Path, shown: Sequence[Shown]) -> dict[str, Any]:
    """Three shards; labels as text, in one shard in JSON."""
    for number in range(3):
        members: list[tuple[str, bytes]] = []
        for one in shown[number * len(shown) // 3 : (number + 1) * len(shown) // 3]:
            told = {"label": one.label, "caption": one.caption}
            members += [(f"{one.name}.png", one.data)]
            members += [(f"{one.name}.mask.png", one.mask)] if one.mask else []
            if number == 1:
                members += [(f"{one.name}.json", json.dumps(told).encode())]
            else:
                members += [(f"{one.name}.cls", one.label.encode())]
                members += [(f"{one.name}.txt", one.caption.encode())] if one.caption else []
        put(root / f"shard-{number:03d}.tar", tarred(members))
    return {"source": "webdataset", "path": str(root / "shard-{000..002}.tar")}


def write_hf(root: Path, shown: Sequence[Shown]) -> dict[str, Any]:
    """Class names as numbers, images as {bytes, path}."""
    hf_dataset(shown).save_to_disk(str(root / "saved"))
    return {"source": "hf", "path": str(root / "saved")}


def write_hf_parquet(root: Path, shown: Sequence[Shown]) -> dict[str, Any]:
    (root / "data").mkdir(parents=True)
    for number in range(2):
        some = shown[number * len(shown) // 2 : (number + 1) * len(shown) // 2]
        hf_dataset(some).to_parquet(root / "data" / f"train-{number:05d}-of-00002.parquet")
    hf_dataset(shown[:1]).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return {"source": "hf", "path": str(root), "split": "train"}


def hf_dataset(shown: Sequence[Shown]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    names = sorted({one.label for one in examples()} | {one.label for one in shown})
    columns = {
        "image": [{"bytes": one.data, "path": f"{one.name}.png"} for one in shown],
        "label": [names.index(one.label) for one in shown],
        "caption": [one.caption for one in shown],
        "mask": [one.mask and {"bytes": one.mask, "path": None} for one in shown],
    }
    kinds = {"image": Picture(), "label": ClassLabel(names=names), "caption": Value("string"), "mask": Picture()}
    return Dataset.from_dict(columns, features=Features(kinds))


LOCAL: dict[str, Callable[[Path, Sequence[Shown]], dict[str, Any]]] = {
    "folder": write_folder,
    "parquet": write_parquet,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "webdataset": write_webdataset,
    "hf": write_hf,
    "hf-parquet": write_hf_parquet,
}
REMOTE = ("folder", "parquet", "csv", "jsonl", "webdataset")


def on_s3(endpoint: str, options: dict[str, Any], root: Path, prefix: str) -> dict[str, Any]:
    """Copy a folder to the bucket of a test server; the options that read it there."""
    store = client(endpoint)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            store.put_object(Bucket="bucket", Key=f"{prefix}/{path.relative_to(root)}", Body=path.read_bytes())
    return {**options, "path": f"s3://bucket/{prefix}" + options["path"].removeprefix(str(root))}


def opened(data: dict[str, Any], folder: Path = Path("/")) -> DataSource:
    """The source that this part of a job file names."""
    model = {"id": "m", "loader": "hf", "ref": "zoo:reference"}
    job = {"version": 1, "name": "x", "data": data, "models": [model], "stages": [{"kind": "screen"}]}
    return open_source(parse_job(job, folder), "data")


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def table(path: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def tarred(members: Iterable[tuple[str, bytes] | tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar file of these members: names and contents, or headers of what is no file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            tar.addfile(header, io.BytesIO(member[1]))
    return buffer.getvalue()
