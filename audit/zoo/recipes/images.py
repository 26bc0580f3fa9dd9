"""Splits rendered once into a memory-mapped array, for training."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.zoo.scenes import SIZE, render
from audit.zoo.world import World, scene_at, world_digest

_CHUNK = 500


def rendered(world: World, split: str, count: int, cache: Path) -> NDArray[np.uint8]:
    """The first `count` scenes of a split, uint8 (count, 64, 64, 3), rendered at the first call and mapped after.

    The file's name holds a hash of the world, so that each has its own and a changed one is rendered anew.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{split.replace(':', '-')}-{count}-{world_digest(world)}.npy"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}.partial")
        out = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, SIZE, SIZE, 3))
        with multiprocessing.get_context("spawn").Pool() as pool:
            jobs = ((world, split, start, min(count, start + _CHUNK)) for start in range(0, count, _CHUNK))
            for start, images in pool.imap_unordered(_render_chunk, jobs):
                out[start : start + len(images)] = images
        out.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def _render_chunk(job: tuple[World, str, int, int]) -> tuple[int, NDArray[np.uint8]]:
    world, split, start, stop = job
    return start, np.stack([render(scene_at(world, split, i).scene).image for i in range(start, stop)])


def as_batch(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (b, h, w, 3) to float32 (b, 3, h, w) in [0, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def batches(images: NDArray[np.uint8], size: int) -> Iterator[Tensor]:
    for start in range(0, len(images), size):
        yield as_batch(images[start : start + size])
