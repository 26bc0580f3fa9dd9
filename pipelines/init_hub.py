"""Find the current commit of a name on the hub, so that the job file can pin it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from audit.errors import ConfigError

TIMEOUT = 10.0  # seconds that the hub may take to answer


@dataclass(frozen=True)
class Pinned:
    """`revision`: 40 digits; empty if the hub does not answer; then `note` explains what to fill in. `tags`: of the
    model on the hub: its library, its task, and more."""

    revision: str
    note: str
    tags: tuple[str, ...] = ()


def pinned(name: str, kind: Literal["model", "dataset"]) -> Pinned:
    """Ask the hub. Raises ConfigError if the name does not exist or may not be read."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        api = HfApi()
        found = (api.model_info if kind == "model" else api.dataset_info)(name, timeout=TIMEOUT)
    except GatedRepoError as error:
        raise ConfigError(f"{name!r} on the hub is gated: accept its terms there, then run 'hf auth login'") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"{name!r} is not a file or folder here, and the hub has no readable {kind} of this name; for a "
            "private one, run 'hf auth login'"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        return Pinned("", _to_fill_in(name, kind, error))
    tags: Sequence[str | None] = (getattr(found, "library_name", None), getattr(found, "pipeline_tag", None))
    known = tuple(str(tag) for tag in (*tags, *(found.tags or ())) if tag)
    return Pinned(str(found.sha), "newest commit on the hub when this file was written", known)


def _to_fill_in(name: str, kind: str, error: Exception) -> str:
    where = name if kind == "model" else f"datasets/{name}"
    return (
        f"the hub did not answer ({type(error).__name__}): fill in the commit, 40 digits, from "
        f"https://huggingface.co/{where}/commits/main"
    )
