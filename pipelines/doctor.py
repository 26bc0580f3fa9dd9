"""What works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audit.errors import AuditError

_WHOLE = "Install the package whole, or train them: audit zoo train all"


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    advice: str = ""


def checks() -> Iterator[Check]:
    """All checks, cheap ones first. What a check meets that it does not expect is its finding."""
    yield Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("torch", "diffusers", "transformers", "ray", "duckdb", "pyarrow", "streamlit"):
        yield _imports(package)
    parts = {"torchvision": _torchvision, "devices": _devices, "zoo weights": _weights, "write access": _writes}
    for name, check in {**parts, "ray cluster": _ray}.items():
        try:
            yield check()
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything
            yield Check(name, False, f"cannot be checked: {str(error)[:120]}", "Mend the packages above first.")


def _imports(package: str) -> Check:
    try:
        importlib.import_module(package)
        return Check(package, True, importlib.metadata.version(package))
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return Check(package, False, f"does not import: {error}", "Install again: pip install -c constraints.txt -e .")


def _torchvision() -> Check:
    """torchvision is not needed, but a broken one breaks transformers and diffusers by being there."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        needed = "not installed; only the loaders timm and torchvision need it"
        return Check("torchvision", True, needed)
    try:
        importlib.import_module("torchvision")
        return Check("torchvision", True, version)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return Check(
            "torchvision",
            False,
            f"{version} does not import: {str(error)[:120]}",
            "A broken torchvision breaks other libraries: pip uninstall torchvision. Only the loaders timm and "
            f"torchvision need it. {_fitting_torchvision()}",
        )


def _fitting_torchvision() -> str:
    from audit.classifiers._torchvision import advice

    return advice()


def _devices() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("devices", True, ", ".join(names))
    return Check(
        "devices", True, f"no GPU; {os.cpu_count()} cores", "Stable Diffusion needs a GPU; the embedded world does not."
    )


def _weights() -> Check:
    """Opening a safetensors file checks that its length is what its header says."""
    from safetensors import SafetensorError, safe_open

    from audit.reference import local_folder

    files: list[Path] = []
    try:
        for name in ("diffusion", "clip", "zero-shot", "reference", "shortcut-a", "shortcut-b"):
            found = sorted(local_folder(f"zoo:{name}").rglob("*.safetensors"))
            if not found:
                return Check("zoo weights", False, f"zoo:{name} holds no weights", _WHOLE)
            files += found
    except AuditError as error:
        return Check("zoo weights", False, str(error), _WHOLE)
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return Check("zoo weights", False, f"{file} is damaged: {error}", _WHOLE)
    return Check("zoo weights", True, f"{len(files)} files, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB")


def _writes() -> Check:
    try:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            from audit.results.store import Store

            Store(Path(folder)).probe()
    except (OSError, AuditError) as error:
        return Check("write access", False, f"{Path.cwd()}: {error}", "Run in a folder that you may write to.")
    return Check("write access", True, f"{Path.cwd()}, {shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free")


def _ray() -> Check:
    from pipelines.workers import Cluster

    try:
        with Cluster(None):
            import ray

            value = ray.get(ray.remote(lambda: os.getpid()).remote())
        return Check("ray cluster", value != os.getpid(), "a local cluster starts and runs a task")
    except Exception as error:  # noqa: BLE001 - whatever stops Ray is what we report
        advice = "See https://docs.ray.io/en/latest/ray-core/starting-ray.html"
        return Check("ray cluster", False, str(error)[:200], advice)
