"""Reusable intermediates, such as inversions: tensors in files named by a hash of all that decides them.

They lie beside the runs, so that stages, models and runs share them. A file is created whole, once, and never changed;
of two workers that make the same one, the first wins and both use its numbers.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from audit.errors import StoreError
from audit.locations import Location, child, parent
from audit.results.store import Store

FOLDER = "_artefacts"  # no job can have this name


class Artefacts:
    """The artefacts beside a run."""

    def __init__(self, run: Location) -> None:
        self.store = Store(child(parent(run), FOLDER))

    def uri(self, kind: str, key: str) -> str:
        """Path of an artefact, relative to the folder of the runs."""
        return f"{FOLDER}/{self._file(kind, key)}"

    def get(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """The tensors of an artefact, None where it has not been made. Raises StoreError for a broken file."""
        data = self.store.read(self._file(kind, key))
        if data is None:
            return None
        try:
            return load(data)
        except SafetensorError as error:
            raise StoreError(f"{self.store.where(self._file(kind, key))} is broken ({error}); delete it") from error

    def put(self, kind: str, key: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep an artefact, unless it is there already; returns the one that is kept."""
        whole = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in tensors.items()}
        if self.store.create(self._file(kind, key), save(whole)):
            return whole
        kept = self.get(kind, key)
        return whole if kept is None else kept

    @staticmethod
    def _file(kind: str, key: str) -> str:
        return f"{kind}/{key[:2]}/{key}.safetensors"
