"""The layers: who may import what, in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    return [str(f.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__") for f in files]


def imported_by(packages: list[str]) -> set[str]:
    """Top-level packages in sys.modules after importing these modules in a fresh interpreter."""
    script = "import importlib, sys\n"
    script += "".join(f"importlib.import_module({name!r})\n" for name in packages)
    script += "print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_audit_imports_neither_ray_nor_streamlit() -> None:
    found = imported_by([m for m in modules("audit") if m != "audit.classifiers.efficientnet_lite"])
    assert not found & {"ray", "streamlit", "pipelines", "dashboard"}


def test_the_dashboard_imports_neither_torch_nor_ray() -> None:
    found = imported_by(["dashboard.components", "dashboard.pages"])
    assert not found & {"torch", "ray", "pipelines", "diffusers", "transformers"}


def test_opening_a_run_needs_no_torch() -> None:
    assert not imported_by(["audit"]) & {"torch", "ray", "streamlit"}


@pytest.mark.parametrize("package", ["audit", "dashboard"])
def test_no_import_statement_crosses_the_layers(package: str) -> None:
    """Also those inside functions, which a fresh interpreter does not run."""
    forbidden = {"audit": {"ray", "streamlit", "pipelines", "dashboard"}, "dashboard": {"torch", "ray", "pipelines"}}
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in forbidden[package], f"{file}:{node.lineno} imports {name}"


def test_two_broad_excepts_outside_the_doctor() -> None:
    """Whatever a unit does, the job goes on; whatever keeps Ray from starting is said in a line."""
    found = []
    for package in ("audit", "pipelines", "dashboard"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                broad = (
                    node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
                    if isinstance(node, ast.ExceptHandler)
                    else False
                )
                if broad and file.name != "doctor.py":
                    found.append(f"{file.relative_to(ROOT)}")
    assert sorted(found) == ["audit/worker.py", "pipelines/workers.py"]


def test_files_stay_short() -> None:
    for package in ("audit", "pipelines", "dashboard"):
        for file in (ROOT / package).rglob("*.py"):
            assert len(file.read_text("utf-8").splitlines()) < 500, file
