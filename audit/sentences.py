"""Findings in words, for whoever shows them: plain text, to be escaped where it is shown."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def claim(mode: Row) -> str:
    """A failure mode in a few words."""
    return f"{mode['model_id']} says “{mode['class_name']}” for what is {mode['name']}"


def sentence(mode: Row) -> str:
    """What was found and what speaks for it, as plain text."""
    takes = f"that {mode['model_id']} takes for {mode['class_name']}"
    if mode["other_model_id"] is not None:
        takes += f" and {mode['other_model_id']} does not"
    if mode["source"] == "screen":
        text = f"{mode['support']} images of the pool are alike {takes}. What they share: {mode['name']}."
    else:
        text = (
            f"{_of(mode['support'], mode['seeds'])} searches ended in images {takes}. What they gained: {mode['name']}."
        )
    known = mode["evidence_rate"] is not None and mode["control_rate"] is not None
    if mode["verdict"] == "confirmed" and mode["source"] == "search" and known:
        text += (
            f" Of the {mode['evidence_images']} real images nearest to them, the models disagree on "
            f"{mode['evidence_rate']:.0%}; near the starts, on {mode['control_rate']:.0%}."
        )
    return text


def _of(part: int | None, whole: int | None) -> str:
    return "Some" if part is None else str(part) if whole is None else f"{part} of {whole}"


def others(mode: Row, measured: list[Row]) -> str:
    """Whether a mode depends on the model that it was found against, in one line of plain text; empty where unknown."""
    return " ".join(line for row in measured if (line := _other(mode, row)))


def _other(mode: Row, row: Row) -> str:
    parts = []
    if row["holds_against"] is not None:
        parts.append(
            f"{row['model_id']} does not say {mode['class_name']} on {row['holds_against']:.0%} of them either"
        )
    if row["alike"] is not None:
        verdict = "both are confirmed" if row["both_confirmed"] else "not both are confirmed"
        parts.append(f"searching against {row['model_id']} found the same (cosine {row['alike']:.2f}; {verdict})")
    elif row["searched"]:
        parts.append(f"searching against {row['model_id']} did not find it")
    return f"{', and '.join(parts)}." if parts else ""
