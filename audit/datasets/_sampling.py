"""A part of a data set: the first items of its listing, or a seeded sample of all of them.

A sample depends only on the seed and on the uris of the items: each item gets a number by hashing both, and the items
with the lowest numbers are taken. So every listing gives the same sample, and a larger one contains a smaller one.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from itertools import islice

from pydantic import Field, model_validator

from audit.config import Frozen
from audit.datasets import Entry


class Part(Frozen):
    """The part of a data set that is used. Base of the options of all sources."""

    limit: int | None = Field(None, ge=1, description="number of items in a seeded sample of the whole listing")
    per_class: int | None = Field(
        None, ge=1, description="number of items of each label, and of the items without a label, in a seeded sample"
    )
    first: int | None = Field(
        None, ge=1, description="number of items at the beginning of the listing; the rest is not listed"
    )
    sample_seed: int = Field(0, description="seed of limit and per_class")

    @model_validator(mode="after")
    def _one_way(self) -> Part:
        given = [name for name in ("limit", "per_class", "first") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; give one of limit, per_class and first")
        return self


def sampled(entries: Iterator[Entry], part: Part) -> Iterator[Entry]:
    """The entries that are used, in the order of the listing. Holds only the sample in memory."""
    if part.first is not None:
        return islice(entries, part.first)
    size = part.limit or part.per_class
    return entries if size is None else _lowest(entries, size, part)


def _lowest(entries: Iterator[Entry], size: int, part: Part) -> Iterator[Entry]:
    heaps: dict[str | None, list[tuple[int, int, Entry]]] = {}
    for position, entry in enumerate(entries):
        heap = heaps.setdefault(entry.label if part.per_class else None, [])
        key = (-_number(part.sample_seed, entry.uri), -position, entry)  # a heap has its lowest first, here the highest
        if len(heap) < size:
            heapq.heappush(heap, key)
        elif key[:2] > heap[0][:2]:
            heapq.heapreplace(heap, key)
    taken = sorted((-position, entry) for heap in heaps.values() for _, position, entry in heap)
    yield from (entry for _, entry in taken)


def _number(seed: int, uri: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{uri}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest)
