"""Faults injected into real runs, and what became of their rows: `python -m benchmarks.faults`."""
