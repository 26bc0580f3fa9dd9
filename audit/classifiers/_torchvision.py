"""Import torchvision when a loader needs it, with advice on what to install if the import fails."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

import torch

from audit.errors import ModelError

# What a build of torchvision for another torch raises when it is imported.
IMPORT_ERRORS = (ImportError, RuntimeError, OSError, AttributeError)


def imported(name: str) -> ModuleType:
    """Import torchvision, or timm, which imports it. Raises ModelError that says what to install."""
    try:
        return importlib.import_module(name)
    except IMPORT_ERRORS as error:
        package = name.partition(".")[0]
        if getattr(error, "name", None) == package:
            raise ModelError(f"this loader needs {package}: pip install 'audit[{package}]'. {advice()}") from error
        raise ModelError(f"{name} cannot be imported: {str(error)[:200]}. {advice()}") from error


def advice() -> str:
    """What to install so that torchvision fits the installed torch."""
    build = torch.__version__.partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return (
        f"It needs the torchvision that was built for torch {torch.__version__}: pip install torchvision{index} "
        "(a build for another torch imports with errors, or not at all)"
    )
