"""How many searches run side by side, and what they keep for their backward pass, from the memory that is free.

One DDIM step, the decoder and the classifiers of a stage run once at batch 1, and what autograd keeps of them is
counted in bytes, for each checkpoint policy. Of the batch sizes and policies with which all that fits into `SHARE` of
the free memory, the fastest is taken. Neither is part of any id: the policy changes no result, the batch size changes
what is rounded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from audit.augment import cutouts
from audit.classifiers import Classifier
from audit.diffusion.checkpoint import EXPENSIVE, CheckpointPolicy
from audit.diffusion.noise import generator_for, latent
from audit.diffusion.optimise import Settings, Variables, start_from_prompt
from audit.diffusion.sampling import denoise
from audit.generators import Attention, Generator, Site
from audit.models import Models

BATCH = 8  # the most that 'auto' takes: more gains little and makes units uneven
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")  # CPU, driver, cuBLAS, cuDNN
SHARE = 0.8  # of the free memory; the rest is for gradients, workspaces and fragmentation

# Time of a search relative to a forward pass of its U-Net, from counts of operations at Stable Diffusion's size, and
# what a batch of one pays on top for being alone, measured on a CPU (benchmarks/search.py).
_TIME: Mapping[CheckpointPolicy, float] = {"none": 2.24, "selective": 2.53, "step": 3.24}
_ALONE = 0.44

# A variable, its gradient, Adam's two moments, its value before the step, and the best one so far.
_COPIES = 6


@dataclass(frozen=True)
class Footprint:
    """Bytes that one item of a batch needs.

    `kept`: what a DDIM step holds until its backward pass, under each policy; `rest`: decoder, cutouts and classifiers;
    `variables`: what is optimised, and its copies.
    """

    steps: int
    kept: Mapping[CheckpointPolicy, int]
    rest: int
    variables: int

    def peak(self, policy: CheckpointPolicy) -> int:
        """At the end of the forward pass, or when the last step has been computed again, whichever is more."""
        again = 0 if policy == "none" else self.kept["none"]
        return self.steps * self.kept[policy] + max(self.rest, again) + self.variables


def footprint(
    generator: Generator, classifiers: Sequence[Classifier], settings: Settings, injects: bool = False
) -> Footprint:
    """Measure on the generator's own device. `injects`: cross-attention maps are recorded and replaced at every step.

    Of several classifiers the two largest count: no objective shows an image to more of them.
    """
    z = latent(generator.latent_shape, "footprint")[None].to(generator.device)
    start = start_from_prompt(generator, [""], z)
    variables = Variables(*(v.requires_grad_(True) for v in start.tensors()))
    first = Variables(variables.latent, variables.cond[:, :1], variables.null[:, :1])
    steering = _OwnMaps() if injects else None
    with _kept() as step, _Expensive() as expensive:  # type: ignore[no-untyped-call]
        z_0 = denoise(
            generator.eps, generator.levels()[:1], generator.guidance_scale, *first.tensors(), steering=steering
        )
    recorded = 2 * steering.nbytes if steering else 0  # those of the images, and a copy for the images' targets
    kept = {"none": sum(step.values()), "selective": expensive.nbytes + z.nbytes, "step": z.nbytes}
    return Footprint(
        len(generator.levels()),
        {policy: kept[policy] + recorded for policy in get_args(CheckpointPolicy)},
        _after(generator, classifiers, settings, z_0),
        _COPIES * sum(v.nbytes for v in variables.tensors()),
    )


def _after(generator: Generator, classifiers: Sequence[Classifier], settings: Settings, z_0: Tensor) -> int:
    """Bytes that autograd keeps of decoding, cutting out, and looking, once for each prediction in the loss."""
    with _kept() as drawn:
        x = generator.decode(z_0).clamp(0, 1)
        draws = [generator_for("footprint", "cutouts")]
        crops = cutouts(x, settings.cutout_size, settings.cutouts, settings.cutout_noise, draws)[0]
    looks = []
    for classifier in classifiers:
        with _kept() as look:
            logits = classifier.logits(crops)
        looks.append(sum(look.values()) + logits.nbytes)
    return len(settings.prediction_weights) * (sum(drawn.values()) + sum(sorted(looks)[-2:]))


@contextmanager
def _kept() -> Iterator[dict[int, int]]:
    """Address and bytes of each storage that autograd saves inside the block, weights left out."""
    seen: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        whole = saved if saved._base is None else saved._base
        if not isinstance(whole, nn.Parameter):
            storage = saved.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved):
        yield seen


class _Expensive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the outputs that the policy `selective` keeps."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in EXPENSIVE:
            self.nbytes += sum(x.nbytes for x in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(x))
        return made


class _OwnMaps:
    """Steering that replaces all maps by copies of themselves, as the injection of a counterfactual does at most."""

    nbytes = 0

    def attention(self, step: int) -> Attention:  # noqa: ARG002
        def inject(site: Site, own: Callable[[int], Tensor]) -> Tensor:  # noqa: ARG001
            with torch.no_grad():
                maps = own(1)
            self.nbytes += maps.nbytes
            return maps

        return inject

    def latent(self, step: int, z: Tensor) -> Tensor:  # noqa: ARG002
        return z


def free_memory(device: torch.device, sharing: int = 1) -> int:
    """Bytes that one of `sharing` processes may take: of the GPU, or of the machine or the container's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] // sharing + unused
    limits = [_available(Path("/proc/meminfo")), _left_of(Path("/sys/fs/cgroup"))]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=8 * 2**30) // min(sharing, os.cpu_count() or 1)


def _available(meminfo: Path) -> int | None:
    """What Linux says can be had without swapping."""
    if not meminfo.is_file():
        return None
    found = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines() if ":" in line)
    return int(found["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in found else None


def _left_of(cgroup: Path) -> int | None:
    """What a container's limit leaves, where it has one; files in the page cache count as free."""
    limit, used, parts = (cgroup / f"memory.{name}" for name in ("max", "current", "stat"))
    if not all(path.is_file() for path in (limit, used, parts)) or not limit.read_text("ascii").strip().isdigit():
        return None
    stat = dict(line.split() for line in parts.read_text("ascii").splitlines())
    return int(limit.read_text("ascii")) - int(used.read_text("ascii")) + int(stat.get("inactive_file", 0))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had too little memory; the CPU, and what lies under torch's allocator, say so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def choose(
    need: Footprint, free: int, batches: Sequence[int], policies: Sequence[CheckpointPolicy]
) -> tuple[int, CheckpointPolicy]:
    """The fastest batch size and policy that fit into `free` bytes, or where none does, those that need least."""
    pairs = [(batch, policy) for batch in batches for policy in policies]
    fitting = [(batch, policy) for batch, policy in pairs if batch * need.peak(policy) <= SHARE * free]
    if not fitting:
        return min(pairs, key=lambda pair: pair[0] * need.peak(pair[1]))
    return min(fitting, key=lambda pair: _TIME[pair[1]] * (1 + _ALONE / pair[0]))


def settled(options: Any, models: Models, batch_size: int | Literal["auto"], sharing: int) -> tuple[Any, int]:
    """A stage's options and batch size, with a number and a policy wherever they say 'auto'."""
    policy = getattr(options, "checkpoint", None)
    if policy is None or (policy != "auto" and batch_size != "auto"):
        return options, BATCH if batch_size == "auto" else batch_size
    classifiers = [models.classifier(name) for name in sorted(_texts(options.model_dump()) & set(models.job.models))]
    settings = options.settings(max((c.preprocess.side for c in classifiers), default=224))
    generator = models.generator.scheduled(settings.ddim_steps, settings.guidance_scale)
    need = footprint(generator, classifiers, settings, hasattr(options, "injection"))
    batches = range(1, BATCH + 1) if batch_size == "auto" else [batch_size]
    policies = get_args(CheckpointPolicy) if policy == "auto" else [policy]
    batch, policy = choose(need, free_memory(models.generator.device, sharing), batches, policies)
    return options.model_copy(update={"checkpoint": policy}), batch


def _texts(value: Any) -> set[str]:
    """All texts in plain values, among them the ids of the models that options name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return set().union(*map(_texts, value))
    return {value} if isinstance(value, str) else set()
