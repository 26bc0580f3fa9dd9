"""Pieces of HTML that Streamlit has no widget for. Every name in them is escaped; images come by URL, as stored."""

from __future__ import annotations

from html import escape
from typing import Any

Row = dict[str, Any]

_FRAME = "display:inline-block;vertical-align:top;margin:0 14px 14px 0;font-size:0.85rem;line-height:1.35"
_PICTURE = "width:144px;height:144px;object-fit:contain;image-rendering:pixelated;border-radius:4px;display:block"


def figure(image_id: str, alt: str, lines: list[str], title: str = "") -> str:
    """An evidence image with what is said of it below."""
    return framed(f"/evidence/{image_id}", alt, lines, title)


def framed(source: str, alt: str, lines: list[str], title: str = "") -> str:
    """A picture, by its URL, with lines of HTML below."""
    heading = f"<div style='opacity:0.65'>{escape(title)}</div>" if title else ""
    text = "".join(f"<div>{line}</div>" for line in lines)
    return (
        f"<div style='{_FRAME};width:150px'>{heading}"
        f"<img src='{escape(source, quote=True)}' alt='{escape(alt, quote=True)}' style='{_PICTURE}'>{text}</div>"
    )


def verdicts(said: list[Row]) -> list[str]:
    """'<model>: <class> 97 %' for every model."""
    return [
        f"<span style='opacity:0.65'>{escape(row['model_id'])}</span> "
        f"<b>{escape(row['predicted'])}</b> {row['confidence']:.0%}"
        for row in said
    ]


def pair(explanation: Row, said: dict[str, list[Row]], models: bool = True) -> str:
    """Start and result of one search, side by side."""
    start, end = explanation["start_image_id"], explanation["image_id"]
    before = verdicts(said.get(start, [])) if models else []
    after = verdicts(said.get(end, [])) if models else []
    name = explanation["target_class"]
    return (
        "<div style='display:inline-block;margin-right:22px;white-space:nowrap'>"
        + figure(start, f"start of a search for {name}", before, "start")
        + figure(end, f"result of a search for {name}", after, "optimised")
        + "</div>"
    )


def real(item_id: str, said: list[Row]) -> str:
    """A real image from the pool."""
    return figure(item_id, "real image on which the models disagree", verdicts(said))


def grid(cells: list[str]) -> str:
    return f"<div>{''.join(cells)}</div>"


def headline(mode: Row, level: int = 3) -> str:
    """The finding in a few words, with its verdict as a badge."""
    colour = "#1a7f4b" if mode["verdict"] == "confirmed" else "#8a6d1a"
    badge = f"<span style='background:{colour};color:white;border-radius:4px;padding:2px 8px;font-size:0.8rem'>"
    words = f"{escape(mode['model_id'])} says “{escape(mode['class_name'])}” for what is {escape(mode['name'])}"
    return f"<h{level} style='margin:0'>{words}</h{level}>{badge}{escape(mode['verdict'])}</span>"


def sentence(mode: Row) -> str:
    """What was found and what speaks for it, as plain text."""
    takes = f"that {mode['model_id']} takes for {mode['class_name']} and {mode['other_model_id']} does not"
    if mode["source"] == "screen":
        text = f"{mode['support']} images of the pool are alike {takes}. What they share: {mode['name']}."
    else:
        text = (
            f"{mode['support']} of {mode['seeds']} searches ended in images {takes}. What they gained: {mode['name']}."
        )
    if mode["verdict"] == "confirmed" and mode["source"] == "search":
        text += (
            f" Of the {mode['evidence_images']} real images nearest to them, the models disagree on "
            f"{mode['evidence_rate']:.0%}; near the starts, on {mode['control_rate']:.0%}."
        )
    return text


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


def images_of(explanations: list[Row]) -> list[str]:
    return [row[key] for row in explanations for key in ("start_image_id", "image_id")]
