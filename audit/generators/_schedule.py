"""The noise schedule of a pipeline as DDIM, refused where DDIM over it would be another model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audit.errors import ModelError
from audit.reference import LOAD_ERRORS

WORKS = "What works: a scheduler over the cumulative alphas that the U-Net was trained with, such as DDIMScheduler"

# What the U-Net was trained with. Classes of schedulers differ in the defaults of these, so all are handed on.
_TRAINED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
# Values of keys that DDIM does not know but that change what the U-Net must be given.
_REFUSED = {"thresholding": (True,), "use_flow_sigmas": (True,), "timestep_type": ("continuous",)}
_DISTILLED = ("LCMScheduler", "TCDScheduler")


def declared(ref: str, folder: Path, name: str) -> Any:
    """The scheduler that a pipeline's index names, over its own configuration. Raises ModelError."""
    import diffusers

    kind: Any = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise ModelError(
            f"{ref} has the scheduler {name}, which the installed diffusers {diffusers.__version__} does not have, or "
            f"for which a package is missing. {WORKS}"
        )
    try:
        scheduler = kind.from_pretrained(folder / "scheduler", local_files_only=True)
    except (*LOAD_ERRORS, TypeError, AttributeError) as error:
        raise ModelError(f"the scheduler of {ref} cannot be made from scheduler_config.json: {error}") from error
    _check(ref, name, scheduler)
    own = kind.load_config(folder / "scheduler", local_files_only=True).get("_class_name", name)
    if own != name and not _equal(declared(ref, folder, own), scheduler):
        raise ModelError(
            f"model_index.json of {ref} names the scheduler {name}, but its scheduler_config.json names {own}, and the "
            "two have different noise schedules. Name the one that the U-Net was trained with in both files"
        )
    return scheduler


def ddim(ref: str, scheduler: Any) -> Any:
    """A DDIMScheduler with the cumulative alphas of another scheduler. Raises ModelError."""
    from diffusers import DDIMScheduler

    config = scheduler.config
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(f"{ref} predicts {config.prediction_type!r}; known: epsilon, v_prediction. {WORKS}")
    try:
        made = DDIMScheduler.from_config(config, **{key: config[key] for key in _TRAINED if key in config})
    except LOAD_ERRORS as error:
        raise ModelError(f"the noise schedule of {ref} cannot be used with DDIM: {error}") from error
    if not _equal(made, scheduler):
        raise ModelError(
            f"the noise schedule of {ref}, a {type(scheduler).__name__}, is not the one that DDIM computes from its "
            f"scheduler_config.json. {WORKS}"
        )
    return made


def _check(ref: str, name: str, scheduler: Any) -> None:
    config = scheduler.config
    alphas: Tensor | None = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ModelError(
            f"{ref} has the scheduler {name}, which has no cumulative alphas: flow matching and continuous noise "
            f"levels are not supported. {WORKS}"
        )
    if name in _DISTILLED:
        raise ModelError(
            f"{ref} has the scheduler {name}: its U-Net is distilled to a few steps without guidance, and cannot be "
            f"searched with DDIM. {WORKS}"
        )
    for key, values in _REFUSED.items():
        if config.get(key) in values:
            raise ModelError(f"the scheduler of {ref} has {key}: {config[key]}, which is not supported. {WORKS}")
    steps = config.num_train_timesteps
    if len(alphas) != steps or not _falls(alphas):
        raise ModelError(
            f"the scheduler of {ref} has num_train_timesteps: {steps} and {len(alphas)} cumulative alphas from "
            f"{float(alphas[0]):.3g} to {float(alphas[-1]):.3g}; expected one per timestep, falling from near 1 to "
            "near 0"
        )


def _falls(alphas: Tensor) -> bool:
    return bool(alphas.isfinite().all() and (alphas.diff() <= 0).all() and alphas[0] <= 1 and alphas[-1] >= 0)


def _equal(first: Any, second: Any) -> bool:
    """Whether two schedulers have one noise schedule. Some replace a last alpha of 0 by 2^-24."""
    a, b = first.alphas_cumprod.double(), second.alphas_cumprod.double()
    same = first.config.prediction_type == second.config.prediction_type
    return same and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-7)
