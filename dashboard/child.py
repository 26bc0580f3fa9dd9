"""Work that the report's server does not do itself, in a process of its own that ends with its answer.

What a person or a run says is one argument of that process, or its standard input: never read by a shell.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_CODE = Path(__file__).resolve().parent.parent


class Refused(Exception):
    """The command gave no answer; the message says why, as the command said it."""


def answer(command: list[str], seconds: float, given: Any = None) -> Any:
    """The JSON that a command prints; `given`: JSON for its standard input.

    Raises Refused where it fails, and where it takes longer than `seconds`.
    """
    try:
        done = subprocess.run(
            command, cwd=_CODE, input=json.dumps(given).encode(), capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"no answer within {seconds} seconds; ask for fewer images") from error
    except (ValueError, OSError) as error:
        raise Refused(f"the query cannot be passed on: {error}; leave out what is no text, or shorten it") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        _, known, why = said.rpartition("error: ")
        told = " ".join(why.split()) if known else said.rpartition("\n")[2]
        raise Refused(told[:1000] or f"the command ended with {done.returncode}")
    return json.loads(done.stdout)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in a new interpreter."""
    return [sys.executable, "-m", module, *arguments]
