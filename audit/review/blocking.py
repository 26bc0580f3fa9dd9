"""The warnings of a run that block a gate."""

from __future__ import annotations

from collections.abc import Collection

from audit.results.sql import Run
from audit.results.warnings import RunWarning
from audit.review.warnings import warnings_of


def blocking(run: Run, accepted: Collection[str], models: Collection[str] | None) -> list[str]:
    """The warnings of a run that block a gate, as text, without those whose code is `accepted`.

    models: those that the gate's rules concern; None for all.
    """
    return [words_of(warning) for warning in warnings_of(run) if _blocks(warning, accepted, models)]


def words_of(warning: RunWarning) -> str:
    """A warning in one line, with its code, model and role."""
    about = ", ".join(name for name in (warning.model_id, warning.role) if name)
    return f"{warning.code}{f' ({about})' if about else ''}: {warning.message}"


def _blocks(warning: RunWarning, accepted: Collection[str], models: Collection[str] | None) -> bool:
    if not warning.blocks_gate or warning.code in accepted:
        return False
    return models is None or warning.model_id is None or warning.model_id in models
