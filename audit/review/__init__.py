"""Decisions about a run: its warnings, the status of its failure modes, and how findings are named."""
