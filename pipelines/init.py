"""A commented job file for a user's own model and data."""

from __future__ import annotations

from pathlib import Path

import yaml

from audit.errors import DataError


def job_text(model: str, data: Path, against: str | None, pool: Path | None = None, embedder: str | None = None) -> str:
    """The text of a job file; what is not given is commented out. Raises DataError where there is no data."""
    source = _source(data, "data", "a folder of images with a sub-folder a class, or Parquet files")
    wide = "parquet, path: pool/" if pool is None else _source(pool, "pool", "a folder of images, or Parquet files")
    clip = "{loader: clip, " + _pinned(embedder or "openai/clip-vit-base-patch32")
    second = (
        _entry("old", against) if against else "{id: old, loader: hf, ref: path/to/another/model}  # to compare with"
    )
    return f"""# An audit job. Check it: audit validate <this file>. Run or resume it: audit run <this file>.
version: 1
name: my-audit            # the run's folder below output.uri
seed: 0                   # every random number of the run follows from it

# The labelled images under audit. Sources: folder (a sub-folder a class, or metadata.csv with file_name and
# label, or label_pattern), parquet (columns image, label), csv (a manifest of paths or s3:// URIs), webdataset (tar
# shards), hf (Hugging Face datasets). Captions and masks are read where there are any. docs/data_sources.md has more.
data: {{source: {source}}}

# Many images, wider than the data, labelled or not: what two models disagree about is confirmed on them, and what a
# model confuses on labelled images of the data.
{"# " * (pool is None)}pool: {{source: {wide}}}

# The models. Loaders: hf (folder or pinned hub id), python (file.py:function), clip (zero-shot),
# efficientnet_lite. Outputs of a model that names no classes follow the data's sorted labels: class_names: data
models:
  - {_entry("new", model)}
  {"# " * (against is None)}- {second}

# For embeddings and names of findings: a CLIP model that is not under audit.
{"# " * (embedder is None)}embedder: {clip}

# Draws the images of the search; any Stable Diffusion 1.x or 2.x folder or pinned hub id.
# generator: {{loader: diffusers, ref: stable-diffusion-v1-5/stable-diffusion-v1-5, revision: <commit>,
#             dtype: bf16, steps: 25, guidance_scale: 3.0}}

stages:
  - {{kind: screen}}        # every model over every image
  # Searches for images on which the models disagree, with the generator and the embedder:
  # - {{kind: adequacy}}    # can the generator show these classes at all?
  # - {{kind: disagreement, maximise: new, minimise: old, classes: auto, seeds: 16}}   # or lists; directions: both
  # Failure modes, with the embedder: of what was screened, and of what searches found:
  {"# " * (embedder is None)}- {{kind: discover}}

compute: {{workers: auto, gpus: 0, retries: 3}}
output: {{uri: runs}}
"""


def _source(path: Path, role: str, wanted: str) -> str:
    if not path.exists():
        raise DataError(f"no {role} at {path}; give {wanted}")
    parquet = path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))
    return f"{'parquet' if parquet else 'folder'}, path: {_quoted(path.resolve())}"


def _entry(model_id: str, ref: str) -> str:
    if ".py:" in ref:
        return f"{{id: {model_id}, loader: python, ref: {_quoted(Path(ref).resolve())}, class_names: data}}"
    return f"{{id: {model_id}, loader: hf, {_pinned(ref)}"


def _pinned(ref: str) -> str:
    """The end of a model's entry: its place, or its name on the hub, whose commit is to be filled in."""
    if Path(ref).exists() or ref.startswith("zoo:"):
        return f"ref: {_quoted(ref if ref.startswith('zoo:') else Path(ref).resolve())}}}"
    return f"ref: {_quoted(ref)}, revision: }}  # revision: the commit to pin"


def _quoted(value: str | Path) -> str:
    """A YAML string on one line, whatever the path holds."""
    return str(yaml.safe_dump(str(value), default_style='"', allow_unicode=True, width=10**6)).strip()
