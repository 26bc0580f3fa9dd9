"""Fixtures that several tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait do not take the cores of the other process
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job ignores Ctrl-C, and what it starts too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and threads of several processes stall one another."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights of a test are the same whatever ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def main_module_stays() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as the main module, which processes that are spawned later would run."""
    kept = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = kept


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A randomly initialised pipeline in the world's architecture, saved as a folder, for either prediction type."""
    import torch
    from diffusers import DDIMScheduler

    from audit.zoo.recipes import autoencoder, diffusion

    saved: dict[str, Path] = {}

    def make(prediction: str) -> Path:
        if prediction not in saved:
            torch.manual_seed(0)
            pipeline = diffusion.pipeline(diffusion.TextToLatent(), autoencoder.build())
            config = {**pipeline.scheduler.config, "prediction_type": prediction}
            pipeline.scheduler = DDIMScheduler.from_config(config)
            saved[prediction] = tmp_path_factory.mktemp(prediction)
            pipeline.save_pretrained(saved[prediction])
        return saved[prediction]

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real photos and weights, where AUDIT_TEST_DATA names a folder of them."""
    folder = os.environ.get("AUDIT_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AUDIT_TEST_DATA names no folder of real test data")
    return Path(folder).resolve()
