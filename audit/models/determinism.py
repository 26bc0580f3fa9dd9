"""Conditions that affect the results of a unit: batch size, device, number of threads, deterministic mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Conditions:
    """How a unit was computed. Equal conditions give equal bytes; other conditions change the rounding.

    `batch_size`: items of a search in one batch. `device`: kind and name. `threads`: of torch on the CPU.
    `deterministic`: whether `exact` was on.
    """

    batch_size: int
    device: str
    threads: int
    deterministic: bool

    @classmethod
    def now(cls, batch_size: int, device: str | torch.device) -> Conditions:
        """The conditions of this process, for models on a device."""
        if torch.device(device).type == "cuda":
            name = f"cuda ({torch.cuda.get_device_name(device)})"
        else:
            name = f"cpu ({torch.backends.cpu.get_cpu_capability()})"
        return cls(batch_size, name, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())

    def as_dict(self) -> dict[str, Any]:
        """Columns of `units`."""
        return asdict(self)


@contextmanager
def exact(wanted: bool, threads: int | None = None) -> Iterator[None]:
    """Inside the block: with `wanted`, torch's deterministic algorithms on one thread; without, `threads` threads if
    given.

    A CUDA operator without a deterministic form still runs, with a warning; the gradient of the pooling of cutouts is
    one. At the end of the block, the earlier settings are restored.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns, benchmark = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    if wanted or threads is not None:
        torch.set_num_threads(1 if wanted else threads or 1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[1], warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(before[0])
