"""What every stage that searches by optimisation takes from a job file, and what it writes of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from audit.config import Frozen
from audit.diffusion.optimise import CheckpointPolicy, Result


class SearchOptions(Frozen):
    """A preset of the method, and the numbers of its optimisation that the job gives instead."""

    preset: Literal["digin", "embedded"] = "digin"
    steps: int | None = Field(None, ge=1, description="optimisation steps; default: the preset's")
    step_size_latent: float | None = Field(None, gt=0)
    step_size_text: float | None = Field(None, gt=0)
    cutouts: int | None = Field(None, ge=1)
    cutout_noise: float | None = Field(None, ge=0)
    prediction_weights: tuple[float, ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        description="of the last predicted images in the loss, oldest first; the paper has the final one alone, "
        "its authors' code [0.167, 0.333, 0.5]",
    )
    checkpoint: CheckpointPolicy | Literal["auto"] = Field(
        "auto", description="what is computed again to save memory, at the same result; 'auto': what the memory allows"
    )

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the options that the job gives."""
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, "auto")}

    def given_optimisation(self) -> dict[str, Any]:
        """What replaces the preset's numbers in `Settings`."""
        named = ("steps", "step_size_latent", "step_size_text", "cutouts", "cutout_noise", "prediction_weights")
        return self.given(*named, "checkpoint")


def outcome(result: Result, i: int) -> dict[str, Any]:
    """Columns of `explanations` that say what the i-th search of a batch gained."""
    best = int(result.best_step[i])
    before, after = result.losses[[0, best], i].tolist()
    return {"best_step": best, "loss_before": before, "loss_after": after}


def trace(explanation_id: str, result: Result, i: int, **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of `traces`, one for each iterate of the i-th search of a batch; `columns`: one value for each iterate.

    The last iterate has no augmented loss: it is never stepped from.
    """
    columns = {
        "loss": result.losses[:, i].tolist(),
        "augmented_loss": [*result.augmented[:, i].tolist(), None],
    } | columns
    steps = range(len(result.losses))
    return [
        {"explanation_id": explanation_id, "step": step} | {name: values[step] for name, values in columns.items()}
        for step in steps
    ]
