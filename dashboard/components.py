"""Pieces of HTML that Streamlit has no widget for. Every name in them is escaped; images come by URL, as stored."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import islice
from typing import Any

from audit import sentences
from audit.results.warnings import RunWarning

Row = dict[str, Any]

_FRAME = (
    "display:inline-block;vertical-align:top;margin:0 14px 14px 0;font-size:0.85rem;line-height:1.35;"
    "white-space:normal;overflow-wrap:anywhere"
)
_PICTURE = (
    "width:144px;height:144px;object-fit:contain;image-rendering:pixelated;border-radius:4px;display:block;"
    "outline:1px solid #8884"
)
_MISSING = (
    "width:144px;height:144px;border:1px dashed;border-radius:4px;opacity:0.5;display:flex;align-items:center;"
    "justify-content:center;box-sizing:border-box"
)


def figure(image_id: str, alt: str, lines: list[str], title: str = "") -> str:
    """An evidence image with what is said of it below."""
    return framed(f"/evidence/{image_id}", alt, lines, title)


def framed(source: str | None, alt: str, lines: list[str], title: str = "") -> str:
    """A picture, by its URL, with lines of HTML below; None: an empty frame that says so."""
    heading = f"<div style='opacity:0.65'>{escape(title)}</div>" if title else ""
    text = "".join(f"<div>{line}</div>" for line in lines)
    picture = f"<div role='img' aria-label='{escape(alt, quote=True)}' style='{_MISSING}'>cannot be read</div>"
    if source is not None:
        picture = f"<img src='{escape(source, quote=True)}' alt='{escape(alt, quote=True)}' style='{_PICTURE}'>"
    return f"<div style='{_FRAME};width:150px'>{heading}{picture}{text}</div>"


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


def scored(explanation: Row) -> str:
    """Start and result of one search, and under each what is known of it: p(target) of its models, the activation."""
    places = (("start_image_id", "before", "start"), ("image_id", "after", "result"))
    cells = [
        figure(
            explanation[image], f"{word} of a search for {explanation['target_class']}", _known(explanation, when), word
        )
        for image, when, word in places
    ]
    return f"<div style='white-space:nowrap'>{''.join(cells)}</div>"


def _known(explanation: Row, when: str) -> list[str]:
    lines = [
        f"<span style='opacity:0.65'>{escape(explanation[model])}</span> <b>{explanation[f'{score}_{when}']:.0%}</b>"
        for model, score in (("model_id", "score"), ("other_model_id", "other"))
        if explanation[model] and explanation[f"{score}_{when}"] is not None
    ]
    activation = explanation[f"activation_{when}"]
    return lines if activation is None else [*lines, f"activation {activation:.3g}"]


def real(mode: Row, item_id: str, said: list[Row]) -> str:
    """A real image that is evidence of a failure mode."""
    return figure(item_id, sentences.evidence(mode), verdicts(said))


def heading(text: str, level: int = 2) -> str:
    """A heading whose text may be a name: Streamlit's own would read it as markdown."""
    return f"<h{level} style='margin:0;overflow-wrap:anywhere'>{escape(text)}</h{level}>"


def paragraph(text: str, opacity: float = 1.0) -> str:
    """Plain text in a card; nothing where there is none."""
    style = f"margin:0.6rem 0 0 0;opacity:{opacity};overflow-wrap:anywhere"
    return f"<p style='{style}'>{escape(text)}</p>" if text else ""


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A small table; a browser that was never here shows it sooner than Streamlit's, whose scripts are 1.5 MB."""
    style = "padding:4px 18px 4px 0;text-align:left;border-bottom:1px solid #8884;overflow-wrap"
    first = "".join(f"<th scope='col' style='{style}:normal'>{escape(head)}</th>" for head in heads)
    cells = (f"<td style='{style}:anywhere;min-width:5rem'>{escape(text)}</td>" for row in rows for text in row)
    others = "".join(f"<tr>{''.join(islice(cells, len(row)))}</tr>" for row in rows)
    return f"<table style='border-collapse:collapse'><thead><tr>{first}</tr></thead><tbody>{others}</tbody></table>"


def beside(left: str, right: str) -> str:
    """Pictures and the words on them, below each other where the page is narrow. One element is drawn sooner than the
    columns that Streamlit would make of it."""
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:0 1rem'>"
        f"<div style='flex:2 1 320px;min-width:0'>{left}</div>"
        f"<div style='flex:3 1 320px;min-width:0'>{right}</div></div>"
    )


def grid(cells: list[str]) -> str:
    return f"<div>{''.join(cells)}</div>"


def headline(mode: Row, said: str | None = None, level: int = 3) -> str:
    """The finding in a few words, with the audit's verdict and a person's, who said so, as badges."""
    badges = badge(mode["verdict"], "#1a7f4b" if mode["verdict"] == "confirmed" else "#8a6d1a")
    if said:
        badges += " " + reviewed(said)
    return heading(sentences.claim(mode), level) + badges


def reviewed(verdict: str) -> str:
    """A person's verdict."""
    return badge(verdict, "#34568b")


def warned(found: Sequence[RunWarning]) -> str:
    """Warnings of a run, one box each; those that a gate does not pass on say so and come first."""
    boxes = []
    for warning in sorted(found, key=lambda one: not one.blocks_gate):
        colour, word = ("#b3261e", "Blocking warning") if warning.blocks_gate else ("#a15c00", "Warning")
        style = (
            f"border-left:4px solid {colour};background:{colour}18;padding:8px 12px;margin:0 0 8px 0;border-radius:4px"
        )
        text = f"<b>{word}:</b> {escape(warning.text)} <span style='opacity:0.65'>({escape(warning.code)})</span>"
        boxes.append(f"<div role='alert' style='{style};overflow-wrap:anywhere'>{text}</div>")
    return "".join(boxes)


def metric(name: str, value: str, note: str) -> str:
    """A number as st.metric shows it, whose label would be markdown; `note` appears under the pointer."""
    return (
        f"<div title='{escape(note, quote=True)}' style='display:inline-block;vertical-align:top;margin:0 36px 12px 0;"
        f"max-width:100%;overflow-wrap:anywhere'><div style='font-size:0.875rem'>{escape(name)}</div>"
        f"<div style='font-size:2.25rem;line-height:1.3'>{escape(value)}</div></div>"
    )


def badge(text: str, colour: str) -> str:
    """A word on a coloured ground."""
    style = f"background:{colour};color:white;border-radius:4px;padding:2px 8px;font-size:0.8rem"
    return f"<span style='{style}'>{escape(text)}</span>"


def images_of(explanations: list[Row]) -> list[str]:
    return [row[key] for row in explanations for key in ("start_image_id", "image_id")]
