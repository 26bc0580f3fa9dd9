"""Faults injected into real runs, and what became of their rows: `python -m benchmarks.faults`."""

import os
import secrets

# Ray reads these when it is imported; every cluster of this process and of those it starts shares the token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
