"""Splits of the world as users' data looks: folders of images with metadata and masks, or Parquet files."""

from __future__ import annotations

import csv
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from audit.decode import encode_png
from audit.errors import ConfigError, unknown
from audit.zoo.scenes import Scene, caption, render
from audit.zoo.world import World, load_world, scene_at

_CHUNK = 500
_LABELLED = ("labelled", "heldout", "train")


@dataclass(frozen=True)
class _Exported:
    name: str
    label: str
    scene: Scene
    png: bytes
    mask: bytes


def export(
    split: str, folder: Path, layout: Literal["folder", "parquet"], limit: int | None = None, number: int = 1
) -> int:
    """Write a split of a world, by its number, to a new folder, whole or not at all; returns how many scenes.

    The pool has no labels.
    """
    world = load_world(number)
    base = split.partition(":")[0]
    if base not in world.splits or split.partition(":")[2] not in ("", *world.classifiers):
        raise ConfigError(unknown("split", split, world.splits))
    if base == "pool" and layout == "folder":
        raise ConfigError("the pool has no labels to make folders of; use --layout parquet")
    count = min(world.splits[base].size, limit or world.splits[base].size)
    if folder.exists():
        raise ConfigError(f"{folder} exists; name a new folder")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if layout == "folder":
        _write_folder(partial, _rendered(world, split, count))
    else:
        _write_parquet(partial, split, _rendered(world, split, count), labelled=base in _LABELLED)
    partial.rename(folder)
    return count


def _rendered(world: World, split: str, count: int) -> Iterator[list[_Exported]]:
    jobs = [(world.number, split, start, min(count, start + _CHUNK)) for start in range(0, count, _CHUNK)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        yield from pool.imap(_render, jobs)


def _render(job: tuple[int, str, int, int]) -> list[_Exported]:
    number, split, start, stop = job
    world, chunk = load_world(number), []
    for index in range(start, stop):
        item = scene_at(world, split, index)
        name = f"{split.replace(':', '-')}-{index:06d}.png"
        drawn = render(item.scene)
        chunk.append(_Exported(name, item.label, item.scene, encode_png(drawn.image), encode_png(drawn.mask)))
    return chunk


def _attributes(item: _Exported) -> dict[str, Any]:
    return {"caption": caption(item.scene), **{k: v for k, v in asdict(item.scene).items() if k != "seed"}}


def _write_folder(folder: Path, chunks: Iterator[list[_Exported]]) -> None:
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for number, item in enumerate(item for chunk in chunks for item in chunk):
            attributes = _attributes(item)
            if number == 0:
                writer.writerow(["file_name", "label", "mask", *attributes])
            places = (f"{item.label}/{item.name}", item.png), (f"masks/{item.name}", item.mask)
            for place, png in places:
                (folder / place).parent.mkdir(exist_ok=True)
                (folder / place).write_bytes(png)
            writer.writerow([places[0][0], item.label, places[1][0], *attributes.values()])


def _write_parquet(folder: Path, split: str, chunks: Iterator[list[_Exported]], labelled: bool) -> None:
    path = folder / f"{split.replace(':', '-')}-00000.parquet"
    writer: pq.ParquetWriter | None = None
    for chunk in chunks:
        columns: dict[str, Any] = {"image": [i.png for i in chunk], "name": [i.name for i in chunk]}
        if labelled:
            columns["label"] = [i.label for i in chunk]
            columns["mask"] = [i.mask for i in chunk]
            described = [_attributes(i) for i in chunk]
            columns |= {name: [row[name] for row in described] for name in described[0]}
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none")
        writer.write_table(table)
    if writer:
        writer.close()
