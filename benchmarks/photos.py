"""What a worker needs to screen a camera's photos: its peak of memory, and seconds an image.

    python -m benchmarks.photos --photos 200

Photos of 12 million pixels, upright and across, and some of other sizes, are drawn into a folder of JPEG files. One
worker, in a process of its own, does the inventory and the screening of them with two models of the size of ResNet-50
at 224 x 224 and an embedder of the size of CLIP ViT-B/32, all with random weights: what they say counts for nothing
here. What is printed is `units.peak_memory`, the largest resident set of the worker's process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from audit.config import parse_job
from audit.diffusion.noise import generator_for
from audit.errors import ConfigError
from audit.methods import stage_names
from audit.models import digests
from audit.reference import model_folder
from audit.results.sql import Run
from audit.worker import Worker
from pipelines.plan import data_classes, open_or_create
from pipelines.units import planned, units_in

SIZES = ((4000, 3000), (3000, 4000), (4032, 3024), (4608, 2592), (4000, 3000), (1600, 1200), (640, 480), (500, 375))


def draw(folder: Path, count: int) -> None:
    """`count` photos in the sizes of `SIZES`, by turns, in two classes."""
    for i in range(count):
        width, height = SIZES[i % len(SIZES)]
        rough = torch.rand((30, 40, 3), generator=generator_for("photo", i)).numpy() * 255
        image = Image.fromarray(rough.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        path = folder / ("cat" if i % 2 else "dog") / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "JPEG", quality=92)


def write_models(folder: Path) -> None:
    """Two classifiers and an embedder with random weights, as folders that `from_pretrained` reads."""
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        config = ResNetConfig(num_labels=2, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
        ResNetForImageClassification(config).save_pretrained(folder / name)
        ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(folder / name)
    CLIPModel(CLIPConfig()).save_pretrained(folder / "clip")
    CLIPImageProcessor().save_pretrained(folder / "clip")
    CLIPTokenizer.from_pretrained(model_folder("zoo:clip", None)).save_pretrained(folder / "clip")


def screened(folder: Path, embedder: bool) -> dict[str, Any]:
    """Inventory and screening by one worker in this process."""
    job = {"version": 1, "name": "photos", "data": {"source": "folder", "path": "photos"}}
    job |= {"models": [{"id": name, "loader": "hf", "ref": f"models/{name}"} for name in ("one", "other")]}
    job |= {"embedder": {"loader": "clip", "ref": "models/clip"}} if embedder else {}
    checked = parse_job({**job, "stages": [{"kind": "screen"}], "compute": {"workers": 1}}, folder)
    root = folder / "run"
    found = open_or_create(checked, root)
    worker = Worker(checked, root, (), "auto")
    took = {}
    for stage in stage_names(checked):
        if stage != stage_names(checked)[0]:
            worker.use_classes(data_classes(root))
        plan = planned(checked, stage, root, digests(checked), worker.models.data_classes)
        began = time.monotonic()
        for unit in units_in(worker.store, plan):
            summary = worker.run(unit)
            if summary.error:
                raise ConfigError(summary.error)
        took[stage] = time.monotonic() - began
    peaks = Run(root).rows("select stage, max(peak_memory) / 2**30 as gib from units group by stage order by stage")
    return {"photos": sum(1 for _ in (folder / "photos").rglob("*.jpg")), "seconds": took, "peaks": peaks} | {
        "models": sorted(found)
    }


def _in_a_process(folder: Path, embedder: bool, threads: int, answers: Any) -> None:
    torch.set_num_threads(threads)
    answers.put(screened(folder, embedder))


def measure(folder: Path, embedder: bool, threads: int) -> dict[str, Any]:
    """`screened` in a fresh process, whose peak is its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_in_a_process, args=(folder, embedder, threads, answers))
    process.start()
    while process.is_alive() and answers.empty():
        process.join(1)
    if answers.empty():
        raise SystemExit(f"the worker's process ended with exit code {process.exitcode}")
    found: dict[str, Any] = answers.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of the worker's process")
    parser.add_argument("--without-embedder", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "photos", given.photos)
        write_models(Path(folder) / "models")
        print(json.dumps(measure(Path(folder), not given.without_embedder, given.threads), indent=1))


if __name__ == "__main__":
    main()
