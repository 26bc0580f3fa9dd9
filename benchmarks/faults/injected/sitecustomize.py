"""Put on PYTHONPATH, this kills or disturbs a process at one of its steps, as the environment says.

    AUDIT_CRASH_AT=<n>        SIGKILL before the n-th step of writing that this process makes, from 1
    AUDIT_STOP_AT_COMMIT=<n>  SIGSTOP before the n-th commit record that this process would create, from 1
    AUDIT_STEPS=<file>        append how many steps there were, at the end

A step is an fsync, a link, a replacement, or a removal: what the commit protocol consists of.
"""

import atexit
import os
import signal
from typing import Any

_at = int(os.environ.get("AUDIT_CRASH_AT", "0"))
_stop = int(os.environ.get("AUDIT_STOP_AT_COMMIT", "0"))
_count = _commits = 0


def _wrapped(name: str) -> None:
    original = getattr(os, name)

    def step(*arguments: Any, **named: Any) -> Any:
        global _count, _commits
        _count += 1
        if name == "link" and "/commits/" in str(arguments[1]):
            _commits += 1
            if _commits == _stop:
                os.kill(os.getpid(), signal.SIGSTOP)
        if _count == _at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(os, name, step)


if "AUDIT_STEPS" in os.environ or _at or _stop:
    for _name in ("fsync", "link", "replace", "unlink"):
        _wrapped(_name)

if "AUDIT_STEPS" in os.environ:

    @atexit.register
    def _told() -> None:
        with open(os.environ["AUDIT_STEPS"], "a") as file:
            file.write(f"{_count}\n")
