"""Names of classes: data sets and models write the same ones in different ways."""

from __future__ import annotations


def canonical(name: str) -> str:
    """A class name for comparison: 'Water_Bottle' and 'water bottle' are one."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
