"""References to models: `zoo:<name>`, a local path, or a hub id; and digests of what they hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo
from safetensors import SafetensorError

from audit.errors import ModelError, unknown

# What the libraries raise for weights and configurations that cannot be loaded.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)

_WEIGHTS = Path(__file__).parent / "zoo" / "weights"


def _absolute(value: Any, info: ValidationInfo) -> Any:
    """Make a local path absolute (relative to the job file); leave zoo references and hub ids alone."""
    if not isinstance(value, str) or value.startswith("zoo:"):
        return value
    path = ((info.context or {}).get("folder", Path()) / Path(value).expanduser()).resolve()
    return str(path) if path.exists() or value.startswith((".", "/", "~")) else value


ModelRef = Annotated[str, BeforeValidator(_absolute)]


# What a model in a folder of its own consists of.
WANTED = ("*.json", "*.txt", "*.safetensors")


def model_folder(ref: str, revision: str | None = None) -> Path:
    """`local_folder` in the layout of transformers. Raises ModelError where it is none, before anything is loaded."""
    folder = local_folder(ref, revision)
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise ModelError(f"{ref} is no model folder: it has no config.json, and holds {there or 'nothing'}")
    return folder


def local_folder(
    ref: str, revision: str | None = None, wanted: Sequence[str] = WANTED, unwanted: Sequence[str] = ()
) -> Path:
    """The folder that a reference names, fetched from the hub where it is a hub id with a pinned revision.

    `wanted`, `unwanted`: patterns of file names, for the hub; `*` matches `/` too.
    """
    if ref.startswith("zoo:"):
        path = _WEIGHTS / ref.removeprefix("zoo:")
        if not (path / "training.json").is_file():
            known = [file.parent.relative_to(_WEIGHTS).as_posix() for file in sorted(_WEIGHTS.rglob("training.json"))]
            raise ModelError(unknown("zoo model", ref.removeprefix("zoo:"), known))
        return path
    if Path(ref).is_dir():
        return Path(ref)
    if ref.startswith("/"):
        raise ModelError(f"no model folder at {ref}")
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        found = "none is given" if revision is None else f"found {revision!r}"
        raise ModelError(
            f"{ref!r} is no folder here, so it is taken for a hub id, and a hub id needs a pinned 'revision' "
            f"(a commit hash of 40 digits, {found}): what a branch or tag holds can change under a running audit"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(ref, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(unwanted))
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"cannot fetch {ref!r} at revision {revision!r} from the hub: {error}") from error


def files_at(ref: str, revision: str | None) -> list[str]:
    """Paths of all files of a hub repository at a revision; none where it is a local folder or cannot be reached."""
    if Path(ref).is_dir() or ref.startswith("zoo:"):
        return []
    import httpx2
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HFValidationError

    try:
        return sorted(list_repo_files(ref, revision=revision))
    except (httpx2.HTTPError, HFValidationError, OSError):  # the caller has an error of its own
        return []


def digest_of_folder(folder: Path) -> str:
    """sha256 over the names and bytes of what decides a model's numbers (configuration and safetensors)."""
    return digest_of_files(folder, (p for p in folder.rglob("*") if p.suffix in (".json", ".txt", ".safetensors")))


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """sha256 over the names, relative to the folder, and bytes of files below it."""
    total = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + b"\0" + digest_of_file(path).encode())
    return total.hexdigest()


def digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
