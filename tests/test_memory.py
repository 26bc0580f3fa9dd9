"""Checkpoint policies change no bit of a gradient; what they keep is measured; batch and policy fit the memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from audit import memory
from audit.classifiers import hf
from audit.config import Job, parse_job
from audit.diffusion.checkpoint import CheckpointPolicy
from audit.diffusion.noise import latent
from audit.diffusion.optimise import Settings, Variables, start_from_prompt
from audit.diffusion.sampling import denoise
from audit.generators import diffusers
from audit.memory import Footprint, choose, footprint, free_memory, settled
from audit.methods import Context, Unit, disagreement, neuron, uvce
from audit.methods.adequacy import Options as Adequacy
from audit.models import Models
from audit.worker import Worker

POLICIES: tuple[CheckpointPolicy, ...] = ("none", "selective", "step")


@pytest.fixture(scope="module")
def generator() -> diffusers.DiffusersGenerator:
    return diffusers.load(diffusers.Options(ref="zoo:diffusion", steps=2, guidance_scale=4.0))


def variables(generator: diffusers.DiffusersGenerator, items: int = 1) -> Variables:
    z = torch.stack([latent(generator.latent_shape, i) for i in range(items)])
    start = start_from_prompt(generator, ["a photograph of a crab"] * items, z)
    return Variables(*(v.requires_grad_(True) for v in start.tensors()))


def process(generator: diffusers.DiffusersGenerator, start: Variables, policy: CheckpointPolicy, steering: Any = None):
    levels, scale = generator.levels(), generator.guidance_scale
    return denoise(generator.eps, levels, scale, *start.tensors(), steering=steering, checkpoint=policy)


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("steering", [None, memory._OwnMaps()])
def test_gradients_are_bitwise_equal_and_only_what_is_cheap_runs_again(generator, steering) -> None:
    """Also where cross-attention maps are replaced. A kept convolution or attention runs once, a linear layer twice."""
    gradients, calls = {}, {}
    for policy in POLICIES:
        start = variables(generator)
        with Calls() as counted:
            z_0 = process(generator, start, policy, steering)
            gradients[policy] = torch.autograd.grad(z_0.square().sum(), start.tensors())
        calls[policy] = counted.seen
    for policy in ("selective", "step"):
        for mine, plain in zip(gradients[policy], gradients["none"], strict=True):
            assert torch.equal(mine, plain)
    assert all(gradient.abs().max() > 0 for gradient in gradients["none"])
    once = calls["none"]
    for name in ("convolution", "_scaled_dot_product_flash_attention_for_cpu"):
        assert once[name] > 0
        assert calls["selective"][name] == once[name]
        assert calls["step"][name] >= 1.9 * once[name]  # the recomputation stops where nothing more is needed
    assert calls["selective"]["native_group_norm"] == 2 * once["native_group_norm"]


def saved(make: Any) -> int:
    """Bytes of all storages that autograd saves, weights among them."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = make()
    assert kept is not None
    return sum(seen.values())


def test_the_footprint_is_what_one_more_item_costs(generator) -> None:
    """Of a batch of two, less that of one: the weights drop out, without being told apart."""
    classifier = hf.load(hf.Options(ref="zoo:reference"), ())
    settings = Settings(cutouts=3, cutout_size=64)
    found = footprint(generator, [classifier], settings)
    one_step = replace_levels(generator, 1)
    more = [saved(lambda n=n: process(one_step, variables(generator, n), "none")) for n in (1, 2)]
    assert found.kept["none"] == pytest.approx(more[1] - more[0], rel=0.02)

    def looked(items: int) -> Tensor:
        z = torch.zeros(items, *generator.latent_shape, requires_grad=True)
        x = generator.decode(z).clamp(0, 1)
        return classifier.logits(torch.cat([x + 0, x + 1, x + 2])).sum()

    more = [saved(lambda n=n: looked(n)) for n in (1, 2)]
    assert found.rest == pytest.approx(more[1] - more[0], rel=0.1)
    assert found.steps == 2
    assert found.kept["step"] < found.kept["selective"] / 10 < found.kept["none"] / 30
    tokens = 2 * 2 * generator.embed([""]).nbytes  # both texts, two steps
    assert found.variables == 6 * (tokens + torch.zeros(generator.latent_shape).nbytes)
    assert (
        footprint(generator, [classifier] * 3, settings).rest == footprint(generator, [classifier] * 2, settings).rest
    )
    assert footprint(generator, [classifier] * 2, settings).rest > found.rest


def replace_levels(generator: diffusers.DiffusersGenerator, count: int) -> Any:
    class Shorter:
        guidance_scale, eps = generator.guidance_scale, staticmethod(generator.eps)

        def levels(self) -> Any:
            return generator.levels()[:count]

    return Shorter()


def test_recorded_maps_count_for_every_policy(generator) -> None:
    """8 sites of 16, 8 and 4 positions a side have 2, 3 and 5 heads; maps are held in float32, of image and target."""
    plain, injected = (footprint(generator, [], Settings(cutout_size=64), injects) for injects in (False, True))
    recorded = injected.kept["step"] - plain.kept["step"]
    sites: list[tuple[int, int]] = []
    generator.eps(
        *(latent(generator.latent_shape, 0)[None], 500, generator.embed([""])),
        attention=lambda site, own: sites.append((own(1).shape[1], site.height * site.width)),
    )
    tokens = generator.embed([""]).shape[1]
    assert recorded == 2 * sum(heads * positions for heads, positions in sites) * tokens * 4
    assert injected.kept["selective"] - recorded < plain.kept["selective"]  # where maps are given, none is computed


NEED = Footprint(steps=10, kept={"none": 100, "selective": 20, "step": 1}, rest=50, variables=4)


def test_peaks_are_counted_at_the_end_and_at_the_recomputed_step() -> None:
    assert NEED.peak("none") == 10 * 100 + 50 + 4
    assert NEED.peak("selective") == 10 * 20 + 100 + 4
    assert NEED.peak("step") == 10 * 1 + 100 + 4


def test_the_fastest_choice_that_fits_is_taken() -> None:
    """80 % of the free memory counts. By time: 2.24, 2.53 and 3.24, times 1 + 0.44 / batch."""
    every = range(1, 9)
    assert choose(NEED, 100_000, every, POLICIES) == (8, "none")
    assert choose(NEED, 4000, every, POLICIES) == (3, "none")  # 3162 of 3200; 2.24 * 1.15 is less than 2.53 * 1.06
    assert choose(NEED, 2000, every, POLICIES) == (5, "selective")  # 1520 of 1600; 'none' alone: 2.24 * 1.44
    assert choose(NEED, 300, every, POLICIES) == (2, "step")
    assert choose(NEED, 1400, [1], POLICIES) == (1, "none")
    assert choose(NEED, 1200, [1], POLICIES) == (1, "selective")
    assert choose(NEED, 100_000, every, ["step"]) == (8, "step")
    assert choose(NEED, 10, every, POLICIES) == (1, "step")  # nothing fits: the least


def test_free_memory_is_what_linux_and_the_container_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4096 kB\nMemAvailable:     1000 kB\nHugePages_Total:       0\n")
    assert memory._available(meminfo) == 1_024_000
    assert memory._available(tmp_path / "none") is None
    for name, text in (("max", "5000\n"), ("current", "3000\n"), ("stat", "anon 2500\ninactive_file 400\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory._left_of(tmp_path) == 5000 - 3000 + 400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_of(tmp_path) is None
    whole, half = free_memory(torch.device("cpu")), free_memory(torch.device("cpu"), 2)
    assert half == pytest.approx(whole / 2, rel=0.1)


def job(tmp_path: Path) -> Job:
    raw: dict[str, Any] = {"version": 1, "name": "small", "data": {"source": "folder", "path": str(tmp_path)}}
    raw["models"] = [{"id": n, "loader": "hf", "ref": f"zoo:{n}"} for n in ("reference", "shortcut-a")]
    raw["generator"] = {"loader": "diffusers", "ref": "zoo:diffusion", "steps": 2, "guidance_scale": 4.0}
    raw["stages"] = [{"kind": "disagreement", "maximise": "shortcut-a", "minimise": "reference"}]
    return parse_job(raw, tmp_path)


def test_auto_becomes_a_number_and_a_policy_and_the_rest_stays(tmp_path: Path, monkeypatch) -> None:
    models = Models(job(tmp_path), ())
    asked = disagreement.Options(maximise="shortcut-a", minimise="reference")
    assert settled(asked, models, "auto", 1) == (asked.model_copy(update={"checkpoint": "none"}), 8)
    assert settled(asked, models, 3, 1)[1] == 3
    fixed = asked.model_copy(update={"checkpoint": "step"})
    assert settled(fixed, models, 5, 1) == (fixed, 5)
    monkeypatch.setattr(memory, "free_memory", lambda device, sharing: 10**7)
    tight, batch = settled(asked, models, "auto", 1)
    assert (tight.checkpoint, batch) == ("step", 1)
    assert settled(fixed, models, "auto", 1) == (fixed, 1)
    assert settled(Adequacy(), models, "auto", 1) == (Adequacy(), 8)
    assert settled(Adequacy(), models, 2, 1) == (Adequacy(), 2)
    for options in (neuron.Options(model="reference"), uvce.Options(model="reference")):
        assert settled(options, models, "auto", 1)[0].checkpoint == "step"
        assert options.settings(64).checkpoint == "step"  # 'auto' that nobody settled is the preset's


def test_a_worker_settles_a_stage_once_and_runs_it_so(tmp_path: Path, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(memory, "free_memory", lambda device, sharing: seen.append(sharing) or 10**7)

    def run(options: Any, payload: Any, context: Context) -> dict[str, Any]:
        seen.append((options.checkpoint, context.batch_size))
        return {}

    monkeypatch.setattr(disagreement, "run", run)
    worker = Worker(job(tmp_path), tmp_path, (), "auto", sharing=3)
    for name in "ab":
        assert worker.run(Unit(name * 32, "1-disagreement", "{}")).error is None
    assert seen == [3, ("step", 1), ("step", 1)]


def test_the_results_do_not_depend_on_the_choice(tmp_path: Path) -> None:
    """Of one stage at one batch size: equal rows, the ids among them, but for the seconds."""
    here = job(tmp_path)
    models = Models(here, ())
    options = disagreement.Options(maximise="shortcut-a", minimise="reference", preset="embedded", steps=2, cutouts=2)
    payload = {"pair": ["shortcut-a", "reference"], "class": "crab", "seeds": [[0, "crab"], [1, "crab"]]}
    found = {}
    for policy in POLICIES:
        chosen = options.model_copy(update={"checkpoint": policy})
        rows = disagreement.run(chosen, payload, Context(here, "1-disagreement", tmp_path, models, 2))
        rows["explanations"] = [{**row, "seconds": None} for row in rows["explanations"]]
        found[policy] = rows
    assert len(found["none"]["explanations"]) == 2
    for policy in ("selective", "step"):
        assert repr(found[policy]) == repr(found["none"])
