"""The training loop that all recipes share: warm-up, constant rate, linear decay; EMA; checkpoints; resume.

The batch of step k depends on (seed, k) alone, so a resumed run sees what an uninterrupted one sees. Batches and
noise are drawn on the CPU, the networks run on `DEVICE`: a GPU where PyTorch sees one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from audit.errors import AuditError

Loss = Callable[[torch.Generator], Mapping[str, Tensor]]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_bfloat16() -> torch.autocast:
    """Mixed precision where the device computes in it: a CPU that only emulates it takes twenty times as long."""
    capable = DEVICE.type != "cpu" or any(torch.cpu.get_capabilities().get(n) for n in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=capable)


@dataclass(frozen=True)
class Schedule:
    """`steps` of AdamW at `learning_rate`: linear warm-up, constant, linear decay over the last `decay` share."""

    steps: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.998
    clip: float = 1.0
    micro_batches: int = 1

    def rate(self, step: int) -> float:
        start = self.steps * (1 - self.decay)
        down = 1.0 if step < start else (self.steps - step) / (self.steps - start)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * down


class Unfinished(AuditError):
    """The budget ended before the schedule: there is a checkpoint to go on from, and no model yet."""


@dataclass(frozen=True)
class Budget:
    """When to stop before the schedule ends, and how often to save."""

    seconds: float = float("inf")
    checkpoint_every: int = 200
    report_every: int = 50


def _backward(loss: Loss, parameters: list[nn.Parameter], seeds: list[int]) -> dict[str, Tensor]:
    """Set gradients to the mean over micro-batches, each in a thread of its own: small networks scale no better way."""

    def one(seed: int) -> tuple[Mapping[str, Tensor], tuple[Tensor, ...]]:
        terms = loss(torch.Generator().manual_seed(seed))
        total = torch.stack(list(terms.values())).sum()
        return terms, torch.autograd.grad(total, parameters)

    with ThreadPoolExecutor(len(seeds)) as pool:
        parts = list(pool.map(one, seeds))
    for parameter, *gradients in zip(parameters, *(part[1] for part in parts), strict=True):
        parameter.grad = torch.stack(gradients).mean(0)
    return {name: torch.stack([part[0][name].detach() for part in parts]).mean() for name in parts[0][0]}


def fit(
    model: nn.Module,
    loss: Loss,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Train `model` in place from the checkpoint in `folder`, if there is one.

    `loss` maps a generator for the step's batch and noise to named terms that are summed. At the end `model` holds
    the EMA weights and is back on the CPU. Raises Unfinished where the budget ended first.
    """
    budget = budget or Budget()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    model.to(DEVICE)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    step = spent = 0
    clock = time.process_time if DEVICE.type == "cpu" else time.monotonic
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=DEVICE)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        ema, step, spent = saved["ema"], saved["step"], saved["seconds"]
    started = clock()

    def save() -> None:
        partial = checkpoint.with_suffix(".partial")
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema, "step": step}
        torch.save({**state, "seconds": spent + clock() - started, "device": DEVICE.type}, partial)
        os.replace(partial, checkpoint)

    model.train()
    begun = time.monotonic()
    totals: dict[str, float] = {}
    while step < schedule.steps and time.monotonic() - begun < budget.seconds:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        terms = _backward(loss, parameters, [(seed * 1_000_003 + step) * 64 + i for i in range(schedule.micro_batches)])
        torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimiser.step()
        step += 1
        keep = min(schedule.ema, step / (step + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    ema[name].lerp_(value, 1 - keep)
                else:
                    ema[name].copy_(value)
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach())
        if step % budget.report_every == 0:
            means = {name: round(total / budget.report_every, 5) for name, total in totals.items()}
            seconds = round(spent + clock() - started)
            report(json.dumps({"step": step, "of": schedule.steps, "seconds": seconds, **means}))
            totals = {}
        if step % budget.checkpoint_every == 0:
            save()
    save()
    if step < schedule.steps:
        raise Unfinished(f"{folder.name}: stopped at step {step} of {schedule.steps}; the same command goes on")
    model.load_state_dict(ema)
    model.cpu().eval()


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The EMA weights of the checkpoint in `folder`."""
    saved: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["ema"]
    return saved


def cost(*folders: Path) -> dict[str, int | str]:
    """What the checkpoints in `folders` have cost together: steps, and core-seconds (on a GPU: seconds)."""
    saved = [torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu") for folder in folders]
    return {
        "steps": sum(s["step"] for s in saved),
        "seconds": round(sum(s["seconds"] for s in saved)),
        "device": saved[-1]["device"],
    }
