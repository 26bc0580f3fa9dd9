"""Write a commented job file for a user's model and data, after reading both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from audit.errors import ConfigError
from pipelines.init_data import Seen, Source, look, source_of
from pipelines.init_models import Model, clip_of, generator_of, input_size_in, model_of
from pipelines.validation_text import mapping

DEFAULT_SIZE = 224  # of loader python
SMALL = 128  # side up to which images of one size are assumed to be the training size of a model

Ask = Callable[[str, int], int]


@dataclass(frozen=True)
class Request:
    """The options of `audit init`. `input_size`: of the models from Python code, in pixels."""

    model: str
    data: str
    against: str | None = None
    pool: str | None = None
    embedder: str | None = None
    generator: str | None = None
    input_size: int | None = None


@dataclass(frozen=True)
class Written:
    """The text of a job file. `outputs`: the class of every output by model, if known. `notes`: choices that were made,
    and what the user has to fill in or check."""

    text: str
    seen: Seen
    outputs: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def job_file(request: Request, ask: Ask | None = None) -> Written:
    """Read model and data, and write a job for them. ask: asks the user for a number, with a default.

    Raises ConfigError, DataError or ModelError for anything that is missing or cannot be read.
    """
    _check_pair(request)
    data = source_of(request.data, "data")
    pool = None if request.pool is None else source_of(request.pool, "pool")
    models = {"new": model_of(request.model)}
    if request.against is not None:
        models["old"] = model_of(request.against)
    embedder = None if request.embedder is None else clip_of(request.embedder)
    generator = None if request.generator is None else generator_of(request.generator)
    seen = Seen(0, (), (), whole=False)
    if _is_pinned(data.options):
        data, seen = look(data, "data")
    if pool is not None and _is_pinned(pool.options):
        pool, _ = look(pool, "pool")
    given = {"new": request.model, "old": request.against or ""}
    models = {name: _sized(model, given[name], request, seen, ask) for name, model in models.items()}
    if generator is not None and "old" not in models and embedder is not None:
        models["reference"] = replace(embedder, note="the zero-shot model that the search compares with")
    outputs = {
        name: found for name, model in models.items() if (found := seen.classes if model.by_data else model.names)
    }
    parts = _Parts(data, pool, models, embedder, generator)
    text = _text(parts, outputs)
    return Written(text, seen, outputs, tuple(_notes(parts, seen, outputs)))


@dataclass(frozen=True)
class _Parts:
    data: Source
    pool: Source | None
    models: dict[str, Model]
    embedder: Model | None
    generator: Model | None


def _check_pair(request: Request) -> None:
    if request.generator is not None and request.against is None and request.embedder is None:
        raise ConfigError(
            "--generator: a search compares two models. Give a second one as --against, or a CLIP "
            "model as --embedder, which is then the second, zero-shot model"
        )


def _is_pinned(options: Sequence[tuple[str, str | int]]) -> bool:
    """Whether all revisions are known."""
    return all(value != "" for _, value in options)


def _sized(model: Model, given: str, request: Request, seen: Seen, ask: Ask | None) -> Model:
    """Add the input size to a model from Python code: given, found in its code, that of small images, or asked for.
    Where it is none of these it is left out."""
    if model.loader != "python":
        return model
    found = input_size_in(given)
    if request.input_size is not None:
        size, why = request.input_size, "as given"
    elif found is not None:
        size, why = found[0], f"from {found[1]}"
    elif seen.square is not None and seen.square <= SMALL:
        size, why = seen.square, f"the size of the images, {seen.square} x {seen.square}; check that the model takes it"
    elif ask is not None:
        size, why = ask(f"side of the images that {given} takes, in pixels", DEFAULT_SIZE), "as given"
    else:  # nobody knows it: the loader tries sizes, and warns if it has to guess
        note = "input_size is not set; set it to the size of the images that the model was trained with"
        return replace(model, options=(*model.options, ("class_names", "data")), note=note)
    options = (*model.options, ("class_names", "data"), ("input_size", size))
    return replace(model, options=options, note=f"input_size {size}: {why}")


def _notes(parts: _Parts, seen: Seen, outputs: dict[str, tuple[str, ...]]) -> list[str]:
    """Notes for the user to read before the next step."""
    notes = [f"data: {parts.data.note}"] if parts.data.note else []
    notes += [f"pool: {parts.pool.note}"] if parts.pool and parts.pool.note else []
    loaded = {**parts.models, "embedder": parts.embedder, "generator": parts.generator}
    notes += [f"{name}: {model.note}" for name, model in loaded.items() if model is not None and model.note]
    if seen.images and not seen.classes:
        notes.append("data: no image has a label, so the run can show no accuracy and no errors")
    if not seen.whole and seen.images:
        notes.append(f"data: only the labels of the first {seen.images:,} images were read")
    for name, names in outputs.items():
        if names and all(one.startswith("LABEL_") for one in names):
            notes.append(
                f"{name}: the model names its outputs LABEL_0, ...; set class_names to the names of the classes"
            )
    return notes


def _text(parts: _Parts, outputs: dict[str, tuple[str, ...]]) -> str:
    entries = [_entry(name, model, outputs.get(name, ())) for name, model in parts.models.items()]
    if len(entries) == 1:
        entries.append("  # - {id: old, loader: hf, ref: path/to/another/model}  # to compare with")
    pool = "# pool: {source: parquet, path: pool/}" if parts.pool is None else f"pool: {_source(parts.pool)}"
    clip = "{loader: clip, ref: openai/clip-vit-base-patch32, revision: <commit>}"
    embedder = f"# embedder: {clip}" if parts.embedder is None else f"embedder: {_loaded(parts.embedder)}"
    diffusers = "{loader: diffusers, ref: stable-diffusion-v1-5/stable-diffusion-v1-5, revision: <commit>}"
    generator = f"# generator: {diffusers}" if parts.generator is None else f"generator: {_loaded(parts.generator)}"
    return _TEMPLATE.format(
        data=_source(parts.data),
        pool=pool,
        models="\n".join(entries),
        embedder=embedder,
        generator=generator,
        searches=_searches(parts),
        discover=f"  {'# ' * (parts.embedder is None)}- {{kind: discover}}",
        gpus=_gpus() if parts.generator is not None else 0,
    )


def _searches(parts: _Parts) -> str:
    other = next((name for name in parts.models if name != "new"), "old")
    hidden = "# " * (parts.generator is None)
    return (
        f"  {hidden}- {{kind: adequacy}}    # can the generator show these classes at all?\n"
        f"  {hidden}- {{kind: disagreement, maximise: new, minimise: {other}, classes: auto, seeds: 16}}   # or lists; "
        "directions: both"
    )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _source(source: Source) -> str:
    options = "".join(f", {name}: {_value(value)}" for name, value in source.options)
    return f"{{source: {source.plugin}, path: {_quoted(source.path)}{options}}}{_comment(source.note)}"


def _entry(model_id: str, model: Model, names: Sequence[str]) -> str:
    lines = [f"  - {_loaded(replace(model, note=''), f'id: {model_id}, ')}"]
    if model.note:
        lines.append(f"    # {_on_one_line(model.note)}")
    if names:
        whose = "the data's classes" if model.by_data else "its own names"
        whose += ", in this order: check that the model has the same order" if model.loader == "python" else ""
        lines.append(f"    # outputs: {_on_one_line(mapping(names))} ({whose})")
    return "\n".join(lines)


def _loaded(model: Model, before: str = "") -> str:
    options = "".join(f", {name}: {_value(value)}" for name, value in model.options)
    return f"{{{before}loader: {model.loader}{options}}}{_comment(model.note)}"


def _comment(note: str) -> str:
    return f"  # {_on_one_line(note)}" if note else ""


def _on_one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _value(value: str | int) -> str:
    """A YAML value; a value that the user has to fill in stays empty."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) or value == "data" or not value else _quoted(value)


def _quoted(value: str | Path) -> str:
    """A YAML string on one line, whatever the path holds."""
    return str(yaml.safe_dump(str(value), default_style='"', allow_unicode=True, width=10**6)).strip()


_TEMPLATE = """\
# An audit job. Check it: audit validate <this file>. Run or resume it: audit run <this file>.
version: 1
name: my-audit            # the run's folder below output.uri
seed: 0                   # every random number of the run follows from it

# The labelled images under audit. Sources: folder (a sub-folder a class, or metadata.csv with file_name and
# label, or label_pattern), parquet (columns image, label), csv (a manifest of paths or s3:// URIs), webdataset (tar
# shards), hf (Hugging Face datasets). Captions and masks are read where there are any. docs/data_sources.md has more.
data: {data}

# Many images, wider than the data, labelled or not: what two models disagree about is confirmed on them, and what a
# model confuses on labelled images of the data.
{pool}

# The models. Loaders: hf (folder or pinned hub id), python (file.py:function), clip (zero-shot); docs/your_model.md
# lists all. class_names: data means that the outputs of a model have the order of the data's classes.
models:
{models}

# For embeddings and names of findings: a CLIP model that is not under audit.
{embedder}

# Draws the images of the search; any Stable Diffusion 1.x or 2.x folder or pinned hub id.
{generator}

stages:
  - {{kind: screen}}        # every model over every image
  # Searches for images on which the models disagree, with the generator and the embedder:
{searches}
  # Failure modes, with the embedder: of what was screened, and of what searches found:
{discover}

compute: {{workers: auto, gpus: {gpus}, retries: 3}}
output: {{uri: runs}}
"""
