"""Ways to take a run's results out of it: one file each, named by what it writes.

An exporter defines `SUFFIX`, the end of a file's name, '' for a folder, and `write(run, target)`, which writes to a
place where nothing is.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from audit import registry
from audit.errors import ConfigError
from audit.results.sql import Run


def export(run: Run, kind: str, target: Path) -> None:
    """Write a run in one of the forms that `registry.names("exporters")` lists, whole or not at all.

    Raises ConfigError where something is at the target already, or nothing can be written there.
    """
    module = registry.plugin("exporters", kind)
    target = target.absolute()
    if target.exists():
        raise ConfigError(f"{target} exists; name another place with --output")
    if not target.parent.is_dir():
        raise ConfigError(f"no folder {target.parent} to write {target.name} to")
    made = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        module.write(run, made)
        made.rename(target)
    finally:
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink(missing_ok=True)
