"""Inject faults into real runs and print what became of them, one line a fault."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

# Ray reads these when it is imported; every cluster of this process and of those it starts shares the token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from benchmarks.faults import changes, cluster, damage, drivers, items, protocol, stores
from benchmarks.faults.table import markdown, table
from benchmarks.faults.workload import Found

MODULES = (protocol, damage, drivers, changes, items, stores, cluster)
FAULTS: dict[str, Callable[[Path, int, bool], Found]] = {k: v for module in MODULES for k, v in module.FAULTS.items()}


def main() -> int:
    # Where a shell runs this in the background it ignores Ctrl-C, and so would the drivers that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--only", nargs="*", default=sorted(FAULTS), choices=sorted(FAULTS), metavar="ID")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long", action="store_true", help="every crash point, more kills")
    parser.add_argument("--output", type=Path, help="write the table as JSON too")
    parser.add_argument("--markdown", action="store_true", help="print the table of the documentation too")
    arguments = parser.parse_args()
    found = [run(name, arguments.seed, arguments.long) for name in arguments.only]
    Console(width=220).print(table(found))
    if arguments.markdown:
        print(markdown(found))
    if arguments.output:
        arguments.output.write_text(json.dumps([one.as_dict() for one in found], indent=1))
    return 0 if all(one.ok for one in found) else 1


def run(name: str, seed: int, long: bool) -> Found:
    """One fault in a folder of its own; what the scenario itself does not expect is its finding."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"audit-{name}-") as folder:
        try:
            found = FAULTS[name](Path(folder), seed, long)
        except Exception:  # noqa: BLE001 - a scenario that breaks is a failure, not the end of the table
            traceback.print_exc()
            found = Found(name, "", "", seen=f"the scenario broke: {sys.exc_info()[1]}"[:200])
    verdict = "ok" if found.ok else f"FAILED, {found.seen},"
    print(f"{found.id} {verdict} in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
