"""Findings in words, for whoever shows them: plain text, to be escaped where it is shown."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def claim(mode: Row) -> str:
    """A failure mode in a few words, of the model at fault."""
    if misses(mode):
        return f"{mode['other_model_id']} misses “{mode['class_name']}” in what is {mode['name']}"
    return f"{mode['model_id']} says “{mode['class_name']}” for what is {mode['name']}"


def misses(mode: Row) -> bool:
    """Whether the model at fault is the one that does not say the class."""
    return mode.get("at_fault") not in (None, mode["model_id"])


def sentence(mode: Row) -> str:
    """What was found and what speaks for it, as plain text."""
    text = _found(mode)
    known = mode["evidence_rate"] is not None and mode["control_rate"] is not None
    if mode["verdict"] == "confirmed" and known:
        happens = "the models disagree" if mode["kind"] == "disagreement" else "it happens"
        asked = f"real images that are {mode['name']}"
        text += (
            f" Of {mode['evidence_images']} {asked} {happens} on {mode['evidence_rate']:.0%}, "
            f"of {control(mode)} on {mode['control_rate']:.0%}."
        )
    return text


def certainty(mode: Row) -> str:
    """How large and how sure it is, as far as that is known: 95 % intervals, and p corrected for all of the run."""
    parts = []
    if mode["effect"] is not None:
        within = _within(_interval(mode, "effect", ".1f"))
        parts.append(f"The shift is {mode['effect']:.1f} standard deviations of the controls{within}.")
    if mode["evidence_rate"] is not None and mode["control_rate"] is not None:
        told = [_interval(mode, "excess", ".1%", "difference, ")]
        told += (
            []
            if mode["p_corrected"] is None
            else [f"p {p_value(mode['p_corrected'])}, corrected for all that were asked"]
        )
        inside = "; ".join(filter(None, told))
        parts.append(
            f"It happens to {mode['evidence_rate']:.1%} of {mode['evidence_images']:,} real images that show it and to "
            f"{mode['control_rate']:.1%} of {mode['control_images']:,} {control(mode)}{_within(inside)}."
        )
    if mode["impact"] is not None:
        parts.append(f"Impact on all: {mode['impact']:.2%}{_within(_interval(mode, 'impact', '.2%'))}.")
    return " ".join(parts)


def p_value(p: float) -> str:
    """'= 0.003', or that it is less than what a number can hold."""
    return "< 1e-300" if p < 1e-300 else f"= {p:.1g}"


def _interval(mode: Row, name: str, form: str, of: str = "") -> str:
    low, high = mode[f"{name}_low"], mode[f"{name}_high"]
    return "" if low is None or high is None else f"{of}95 %: {low:{form}} to {high:{form}}"


def _within(text: str) -> str:
    return f" ({text})" if text else ""


def support(mode: Row) -> str:
    """What `support` counts."""
    return "searches that show it" if mode["source"] == "search" else "images that show it"


def control(mode: Row) -> str:
    """Which images `control_rate` is of."""
    return "those with other labels" if _of_a_label(mode) else "others of the same classes"


def evidence(mode: Row) -> str:
    """What a real image of its evidence is."""
    return "real image on which the models disagree" if mode["kind"] == "disagreement" else "real image that it befalls"


def _of_a_label(mode: Row) -> bool:
    """Whether it is about a label, and not about what images of any label show."""
    return mode["source"] == "labels" and "{}" not in (mode["concept"] or "{}")


def _found(mode: Row) -> str:
    model, says, name = mode["model_id"], mode["class_name"], mode["name"]
    count = "Some" if mode["support"] is None else str(mode["support"])
    searches = f"{count} searches" if mode["seeds"] is None else f"{count} of {mode['seeds']} searches"
    if mode["kind"] == "flip":
        return f"{model} decides for {says} on {count} images of which only this was changed: {name}."
    if mode["kind"] == "neuron":
        return f"A neuron of {model} that speaks for {says} answers to something else: {name}. {searches} show it."
    takes = f"that {model} takes for {says} and {mode['other_model_id']} does not"
    if mode["other_model_id"] is None:
        takes = f"that {model} wrongly takes for {says}"
    if _of_a_label(mode):
        return f"{model} says {says} on {count} images {name}."
    if mode["source"] == "labels":
        return f"{count} labelled images are alike {takes}. What they share: {name}."
    if mode["source"] == "screen":
        return f"{count} images of the pool are alike {takes}. What they share: {name}."
    return f"{searches} ended in images {takes}. What they gained: {name}."


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


def neuron_name(row: Row) -> str:
    """'neuron 42', or what it would have been where its unit of work was given up before that was known."""
    return f"suspect number {row['rank']}" if row["neuron"] is None else f"neuron {row['neuron']}"
