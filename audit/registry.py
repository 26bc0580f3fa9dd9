"""Plugins by file name: the file `audit/<family>/<name>.py` is the plugin `name` of its family.

Listing plugins imports none of them. A plugin module defines `Options` (its part of the job file) and the
entry function of its family (`load` or `open_source`, or the methods' `plan` and `run`). An exporter has no options and
defines `SUFFIX` and `write`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from audit.errors import ConfigError, unknown

Family = Literal["datasets", "classifiers", "generators", "captioners", "methods", "exporters"]


@cache
def names(family: Family) -> tuple[str, ...]:
    """All plugins of a family; files whose name starts with an underscore are not plugins."""
    folder = Path(__file__).parent / family
    return tuple(sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if not m.name.startswith("_")))


def plugin(family: Family, name: str) -> ModuleType:
    """Import one plugin. Raises ConfigError with the known names, or with the extra that its import lacks."""
    if name not in names(family):
        raise ConfigError(unknown(f"{family} plugin", name, names(family)))
    try:
        return importlib.import_module(f"audit.{family}.{name}")
    except ImportError as error:
        missing = error.name or str(error)
        raise ConfigError(
            f"{family} plugin {name!r} needs the package {missing!r}, which does not import here. "
            f"Install it with: pip install {missing.replace('_', '-')}, or, where audit has an extra for the plugin, "
            f"pip install 'audit[{name.replace('_', '-')}]'"
        ) from error
