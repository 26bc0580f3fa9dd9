"""torchvision and what needs it, in processes of their own, from a folder that `make test` fills."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from audit.classifiers import timm, torchvision
from audit.errors import ModelError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def beside() -> dict[str, str]:
    """An environment in which torchvision and timm are found; both are installed without their dependencies."""
    folder = Path(os.environ.get("AUDIT_TORCHVISION", ROOT / "work" / "torchvision")).resolve()
    if not (folder / "torchvision").is_dir() or not (folder / "timm").is_dir():
        pytest.skip(f"no torchvision and timm in {folder}; 'make work/torchvision/installed' installs them there")
    path = os.pathsep.join(filter(None, (str(ROOT), str(folder), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def ran(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, *arguments]
    return subprocess.run(done, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_models_of_timm_and_torchvision_beside_these_libraries(beside: dict[str, str]) -> None:
    plugins = ("-p", "tests.torchvision_operators", "-p", "no:cacheprovider")
    done = ran(beside, "-m", "pytest", "-q", *plugins, "tests/with_torchvision.py")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted is not None
    assert int(counted.group(1)) > 80
    assert "skipped" not in done.stdout


BROKEN = """
from audit.classifiers import {loader}
from audit.errors import ModelError
from pipelines import doctor
try:
    {loader}.load({loader}.Options(ref="resnet18"{more}), ())
except ModelError as error:
    print(error)
check = doctor._torchvision()
print(check.ok, check.found, check.advice)
"""


@pytest.mark.parametrize(("loader", "more"), [("timm", ""), ("torchvision", ", entry='ResNet18_Weights.DEFAULT'")])
def test_a_torchvision_for_another_torch_is_said_with_what_to_install(
    beside: dict[str, str], loader: str, more: str
) -> None:
    found = ran(beside, "-c", "import torchvision")
    if found.returncode == 0:
        pytest.skip("this torchvision fits this torch")
    done = ran(beside, "-c", BROKEN.format(loader=loader, more=more))
    refused, doctor = done.stdout.strip().split("\n")
    assert "cannot be imported: operator torchvision::nms does not exist" in refused
    for said in (refused, doctor):
        assert re.search(r"pip install torchvision --index-url \S+/cpu", said)
    assert doctor.startswith("False 0.")
    assert "pip uninstall torchvision" in doctor


def test_without_torchvision_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=r"timm cannot be imported|needs timm: pip install 'audit\[timm\]'"):
        timm.load(timm.Options(ref="x"), ())
    with pytest.raises(ModelError, match=r"torchvision.*pip install torchvision"):
        torchvision.load(torchvision.Options(ref="resnet18", entry="ResNet18_Weights.DEFAULT"), ())
