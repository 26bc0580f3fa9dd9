"""Random numbers that belong to an item: the same item draws the same, in any batch, order or worker."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_for(*key: object) -> torch.Generator:
    """A generator seeded by a key such as (job seed, item, what is drawn)."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def latent(shape: tuple[int, int, int], *key: object) -> Tensor:
    """Standard normal z_T (c, h, w) for a key."""
    return torch.randn(shape, generator=generator_for(*key, "latent"))
