"""How fast searches are: against three plainer ways on a CPU, and against the device's peak at Stable Diffusion's size.

    python -m benchmarks.search                                  # the three baselines, then whole methods, small
    python -m benchmarks.search --device cuda --size sd15 --tokenizer <folder of the CLIP tokenizer>

Gradients are asserted to be equal first. All ways take the same seeds and run in turns, so that a machine that is busy
for a while slows all of them; on a CPU, the time is that of the process on one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from audit import counterfactual
from audit.classifiers import Classifier
from audit.decisions import Decision
from audit.diffusion.checkpoint import CheckpointPolicy
from audit.diffusion.noise import latent
from audit.diffusion.optimise import Settings, Variables, optimise, start_from_prompt
from audit.diffusion.sampling import denoise
from audit.memory import BATCH, choose, footprint, free_memory
from audit.methods import disagreement, uvce
from audit.methods.disagreement import Objective
from benchmarks import baselines, models

PROMPT = "a photograph of a {}"
POLICIES: tuple[CheckpointPolicy, ...] = ("none", "selective", "step")


@dataclass(frozen=True)
class Setup:
    """What is searched with. `names`: source and target class; both prompts and classifiers know them."""

    generator: Any
    f: Classifier
    g: Classifier
    names: tuple[str, str] = ("crab", "car")
    dtype: torch.dtype = torch.float32

    def starts(self, keys: Sequence[object]) -> Variables:
        z = torch.stack([latent(self.generator.latent_shape, key) for key in keys]).to(self.generator.device)
        start = start_from_prompt(self.generator, [PROMPT.format(self.names[0])] * len(keys), z)
        return Variables(*(v.to(self.dtype) for v in start.tensors()))

    def objective(self) -> Objective:
        return Objective(self.f, self.g, self.names[0], "log_probability")


def small(device: str = "cpu", steps: int = 10) -> Setup:
    f, g = (models.small_classifier(name, device) for name in ("shortcut-a", "reference"))
    return Setup(models.small(steps, device), f, g)


def exact(device: str = "cpu", steps: int = 10) -> Setup:
    """The small one in float64: in float32, rounding moves a pixel or a ReLU across its kink now and then."""
    setup = small(device, steps)
    for network in (setup.generator.unet, setup.generator.vae, setup.f.network, setup.g.network):
        network.double()
    return replace(setup, dtype=torch.float64)


def full_size(tokenizer: Path, device: str, side: int = 64, steps: int = 20) -> Setup:
    """Stable Diffusion 1.5 at 8 * `side` pixels, with two ViT-B/16."""
    from transformers import CLIPTokenizer

    generator = models.full_size(CLIPTokenizer.from_pretrained(tokenizer), side, steps, device)
    f, g = (models.vision_transformer(("crab", "car", *map(str, range(998))), device) for _ in range(2))
    return Setup(generator, f, g)


# Against the baselines.


def gradients(setup: Setup, process: baselines.Process, keys: Sequence[object], settings: Settings) -> list[Tensor]:
    """Of the first step's loss, in z_T, C_t and null_t: (b, ...) each."""
    variables = Variables(*(v.requires_grad_(True) for v in setup.starts(keys).tensors()))
    value = baselines.loss(setup.generator, process, variables, setup.objective(), settings, keys, 0)
    return list(torch.autograd.grad(value.sum(), variables.tensors()))


def ours(policy: CheckpointPolicy) -> baselines.Process:
    def process(generator: Any, variables: Variables) -> Tensor:
        levels, scale = generator.levels(), generator.guidance_scale
        return denoise(generator.eps, levels, scale, *variables.tensors(), checkpoint=policy)

    return process


BASELINES: dict[str, baselines.Process] = {
    "A literal Algorithm 1": baselines.literal,
    "B checkpoint by block": baselines.by_block,
    "C everything kept": baselines.kept,
}


def as_baseline(setup: Setup, process: baselines.Process) -> Any:
    return baselines.checkpointed_blocks(setup.generator) if process is baselines.by_block else nullcontext()


def disagreements(setup: Setup, keys: Sequence[object], settings: Settings) -> dict[str, float]:
    """By how much gradients of A, B and C, item by item, differ from a batch of ours, relative to the largest entry."""
    batch = gradients(setup, ours(settings.checkpoint), keys, settings)
    found = {}
    for name, process in BASELINES.items():
        with as_baseline(setup, process):
            alone = [gradients(setup, process, [key], settings) for key in keys]
        pairs = [(own[i], single[0]) for i, item in enumerate(alone) for own, single in zip(batch, item, strict=True)]
        found[name] = max(float((own - one).abs().max() / one.abs().max()) for own, one in pairs)
    return found


def compare(setup: Setup, keys: Sequence[object], settings: Settings, repeats: int) -> dict[str, list[float]]:
    """CPU seconds a search, one number a repeat, of every way."""

    def alone(process: baselines.Process) -> None:
        with as_baseline(setup, process):
            for key in keys:
                baselines.search(setup.generator, process, setup.starts([key]), setup.objective(), settings, [key])

    def batched() -> None:
        optimise(setup.generator, setup.starts(keys), setup.objective(), settings, keys)

    ways: dict[str, Callable[[], None]] = {name: lambda p=p: alone(p) for name, p in BASELINES.items()}  # type: ignore[misc]
    ways[f"ours, batch {len(keys)}"] = batched
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        order = list(ways)[repeat % len(ways) :] + list(ways)[: repeat % len(ways)]
        for name in order:
            began = time.process_time()
            ways[name]()
            seconds[name].append((time.process_time() - began) / len(keys))
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median seconds of every way; how many times faster ours is, within a repeat: median, least and most."""
    own = next(values for name, values in seconds.items() if name.startswith("ours"))
    found = {}
    for name, values in seconds.items():
        ratios = [value / mine for value, mine in zip(values, own, strict=True)]
        found[name] = {
            "seconds": statistics.median(values),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return found


# Whole methods.


@dataclass(frozen=True)
class Whole:
    """Of one method. `share`: of what a large matrix product reaches on the device in the U-Net's number format."""

    batch: int
    policy: str
    seconds_per_item: float
    tflop_per_item: float
    share: float
    peak_gib: float


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations of products, convolutions and attention, 2 for a multiplication and addition.

    torch's own counter does the same by module, with hooks that cannot follow gradients of the inputs alone.
    """

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flop += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=made)
        return made


def whole(setup: Setup, run: Callable[[int, CheckpointPolicy], None], settings: Settings, injects: bool) -> Whole:
    """Time a method on a batch as large as memory takes; its operations are counted in a first run that warms up."""
    device = setup.generator.device
    need = footprint(setup.generator, [setup.f, setup.g], settings, injects)
    batch, policy = choose(need, free_memory(device), range(1, BATCH + 1), POLICIES)
    with Operations() as counted:  # type: ignore[no-untyped-call]
        run(batch, policy)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run(batch, policy)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, flop = time.perf_counter() - began, counted.flop
    share = flop / seconds / peak(device, setup.generator.unet.dtype)
    return Whole(batch, policy, seconds / batch, flop / batch / 1e12, share, peak_memory(device) / 2**30)


def whole_disagreement(setup: Setup, settings: Settings) -> Whole:
    """`settings.steps` steps of the disagreement search."""

    def run(batch: int, policy: CheckpointPolicy) -> None:
        chosen = replace(settings, checkpoint=policy)
        optimise(setup.generator, setup.starts(range(batch)), setup.objective(), chosen, range(batch))

    return whole(setup, run, settings, injects=False)


def whole_uvce(setup: Setup, numbers: counterfactual.Numbers) -> Whole:
    """Inversion, recording, prompt edit and optimisation of counterfactuals of noise images."""
    size, (source, target) = setup.generator.image_size, setup.names

    def run(batch: int, policy: CheckpointPolicy) -> None:
        chosen = replace(numbers, optimisation=replace(numbers.optimisation, checkpoint=policy))
        images = torch.stack([latent((3, *size), i).sigmoid() for i in range(batch)]).to(setup.generator.device)
        prompts = [PROMPT.format(source)] * batch
        inversion = counterfactual.invert(setup.generator, images, prompts, chosen)
        original = counterfactual.prepare(setup.generator, images, prompts, [source] * batch, inversion, chosen)
        objective = Decision(setup.f, [source] * batch, [target] * batch)
        counterfactual.search(setup.generator, original, [target] * batch, objective, chosen, range(batch))

    return whole(setup, run, numbers.optimisation, injects=True)


def peak(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Operations a second that a large matrix product reaches, the best of five."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a = torch.randn((side, side), device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU since it was last reset, on a CPU since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="small", choices=["small", "sd15"])
    parser.add_argument("--tokenizer", type=Path, help="folder of the CLIP tokenizer; needed for sd15")
    parser.add_argument("--seeds", type=int, default=8, help="searches of each way, and the batch of ours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="optimisation steps of a search against the baselines")
    parser.add_argument("--output", type=Path, help="file for all numbers as JSON")
    asked = parser.parse_args()
    if asked.size == "sd15" and asked.tokenizer is None:
        parser.error("--size sd15 needs --tokenizer")
    torch.set_num_threads(1 if asked.device == "cpu" else torch.get_num_threads())
    numbers = {"device": device_name(asked.device), "torch": torch.__version__}
    numbers |= of_full_size(asked) if asked.size == "sd15" else of_small(asked)
    if asked.output:
        asked.output.write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")


def of_small(asked: argparse.Namespace) -> dict[str, Any]:
    setup, keys = small(asked.device), range(asked.seeds)
    settings = replace(disagreement.PRESETS["embedded"], steps=asked.steps, cutout_size=64)
    differences = disagreements(exact(asked.device), keys, settings)
    for name, difference in differences.items():
        if difference > 1e-5:
            raise SystemExit(f"{name}: gradients differ by {difference:.1e}, more than 1e-5; no times are comparable")
    print("gradients agree to", ", ".join(f"{d:.1e} ({name[0]})" for name, d in differences.items()))
    seconds = compare(setup, keys, settings, asked.repeats)
    found = summary(seconds)
    print(f"{'way':24}{'CPU s a search':>16}{'ours is faster by':>20}{'least':>8}{'most':>8}")
    for name, row in found.items():
        print(f"{name:24}{row['seconds']:16.2f}{row['ratio']:20.2f}{row['least']:8.2f}{row['most']:8.2f}")
    methods = of_methods(setup, settings, replace(uvce.PRESETS["embedded"], optimisation=settings))
    return {"gradients": differences, "seconds": seconds, "summary": found, "methods": methods}


def of_full_size(asked: argparse.Namespace) -> dict[str, Any]:
    """With the paper's settings: 15 steps for disagreement, 20 for counterfactuals, 20 DDIM steps for both."""
    setup = full_size(asked.tokenizer, asked.device)
    return {"methods": of_methods(setup, disagreement.PRESETS["digin"], uvce.PRESETS["digin"])}


def of_methods(setup: Setup, settings: Settings, numbers: counterfactual.Numbers) -> dict[str, Any]:
    found = {"disagreement": whole_disagreement(setup, settings), "uvce": whole_uvce(setup, numbers)}
    for name, row in found.items():
        print(
            f"{name}: {row.seconds_per_item:.2f} s and {row.tflop_per_item:.3f} TFLOP an item, {row.share:.1%} of "
            f"peak, {row.peak_gib:.1f} GiB, batch {row.batch}, checkpoint {row.policy}"
        )
    return {name: asdict(row) for name, row in found.items()}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
