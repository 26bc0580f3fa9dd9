"""One driver a run: a second one is refused while the first is at work.

This only saves money. Were two drivers to run one job, each unit would still be committed once.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit.errors import ConfigError
from audit.results.progress import live
from audit.results.store import Store

BEAT = 5.0  # seconds between two states of a driver
_NAME = ".driver"


@contextmanager
def only_driver(store: Store) -> Iterator[None]:
    """Hold the run. Raises ConfigError where another driver holds it; a dead one's hold ends with its process."""
    if not isinstance(store.location, Path):
        _wait_for_silence(store)
        yield
        return
    store.location.mkdir(parents=True, exist_ok=True)
    with open(store.location / _NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refused(store, file.read().strip() or "another process") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _wait_for_silence(store: Store) -> None:
    """An object store has no lock: a driver that is at work shows in its state, which changes with each beat."""
    before = live(store)
    if before is None or before.get("ended"):
        return
    for _ in range(3):
        time.sleep(BEAT)
        now = live(store)
        if now is not None and now != before:
            raise _refused(store, f"process {now.get('pid')} on {now.get('host')}")


def _refused(store: Store, holder: str) -> ConfigError:
    return ConfigError(
        f"{store.location} is being worked on by {holder}. Watch it with 'audit status', or stop that process first."
    )
