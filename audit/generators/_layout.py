"""Which files of a pipeline's folder are read: what the hub is asked for, what is loaded, and what has a digest.

Not read are single-file checkpoints, pickles, and parts that draw nothing: safety_checker, feature_extractor,
image_encoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from audit.errors import ModelError

# The parts with weights, and how the files of these begin.
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PARTS = (*STEMS, "tokenizer", "scheduler")

_SETTINGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    *(f"{part}/config.json" for part in STEMS),
)
_SHARD = "-" + "[0-9]" * 5 + "-of-" + "[0-9]" * 5
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def wanted(variant: str | None) -> tuple[str, ...]:
    """Patterns of the files of a repository that are fetched: plain weights, and those of the variant."""
    variants = (None,) if variant is None else (None, variant)
    return (*_SETTINGS, *(pattern for part in STEMS for form in variants for pattern in _weights(part, form)))


def files_of(folder: Path, variant: str | None) -> list[Path]:
    """The files that a pipeline is loaded from. A part without weights of the variant has its plain ones."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    patterns = list(_SETTINGS)
    for part in STEMS:
        patterns += _weights(part, variant_of(names, part, variant))
    return [folder / name for name in sorted(_matching(names, patterns))]


def variant_of(names: Iterable[str], part: str, variant: str | None) -> str | None:
    """The variant where the part has weights of it, else None."""
    return variant if variant and _matching(names, _weights(part, variant)) else None


def check_weights(ref: str, names: list[str], variant: str | None) -> None:
    """Refuse a pipeline in which a part has no safetensors of the wanted form, or none has the variant.

    `names`: paths of all its files. Raises ModelError.
    """
    for part, stem in STEMS.items():
        form = variant_of(names, part, variant)
        if not _matching(names, _weights(part, form)):
            raise ModelError(f"{ref} has no {part}/{stem}.safetensors. {_instead(names, part, stem)}")
    if variant and not any(variant_of(names, part, variant) for part in STEMS):
        raise ModelError(f"{ref} has no weights of the variant {variant!r}; leave 'variant' out to load the plain ones")


def _weights(part: str, variant: str | None) -> tuple[str, ...]:
    """Patterns of a part's weights: in one file, or in shards with an index, under either name that shards have."""
    stem = f"{part}/{STEMS[part]}"
    if variant is None:
        return f"{stem}.safetensors", f"{stem}{_SHARD}.safetensors", f"{stem}.safetensors.index.json"
    return (
        f"{stem}.{variant}.safetensors",
        f"{stem}.{variant}{_SHARD}.safetensors",
        f"{stem}{_SHARD}.{variant}.safetensors",
        f"{stem}.safetensors.index.{variant}.json",
    )


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """As the hub's client matches them: `*` matches `/` too."""
    patterns = list(patterns)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _instead(names: list[str], part: str, stem: str) -> str:
    """What a part holds instead of plain weights, and what would work."""
    there = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
    safe = [name for name in there if name.endswith(".safetensors")]
    found = safe + [name for name in there if name.endswith(_PICKLES)]
    hint = f"It holds {', '.join(found) or 'no weights at all'}."
    variants = [name.removeprefix(f"{stem}.").removesuffix(".safetensors") for name in safe if name.startswith(stem)]
    if variants:
        return f"{hint} To load them, add to the generator: variant: {variants[0]}"
    if safe:
        return f"{hint} Rename the one to use to {stem}.safetensors."
    if found:
        hint += " Pickled weights can run code and are never loaded: save it again with safe_serialization=True."
    return hint
