"""What an image shows, in words that name its class: the prompt that it is inverted with (DiG-IN C.1.1)."""

from __future__ import annotations

from audit.class_names import spaced
from audit.diffusion.prompt_to_prompt import edited, name_in


def names(caption: str, phrase: str) -> bool:
    """Whether a caption contains a phrase, as whole words."""
    return name_in(caption, phrase) is not None


def captioned(source: str, template: str, caption: str | None, label: str | None) -> str:
    """A caption that contains `source`, the class whose name will be replaced.

    `caption` is what the data set says, and is used as it is where it names the source. Where it names the `label`
    instead (the image was misclassified, and the source is what the model saw), that name gives way; where it names
    neither, the template with the source comes before it.
    """
    if caption is None:
        return template.format(source)
    for name in (source, spaced(label) if label else None):
        if name and names(caption, name):
            return edited(caption, name, source)
    return f"{template.format(source)}, {caption}"
