"""Where data and results are: a local path, or a URI of an object store such as s3://bucket/prefix.

Credentials, region and endpoint of an S3-compatible store come from the usual variables of the environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL), or from the machine's own role.
"""

from __future__ import annotations

import datetime
import os
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from audit.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Location = Path | str

SCHEMES = ("s3",)
RETRIES = {
    "max_retries": 8,
    "retry_timeout": datetime.timedelta(minutes=2),
    "backoff": {
        "init_backoff": datetime.timedelta(milliseconds=100),
        "max_backoff": datetime.timedelta(seconds=10),
        "base": 2,
    },
}


def is_uri(location: Location) -> bool:
    """Whether this is a URI of an object store."""
    return isinstance(location, str) and "://" in location


def located(text: str) -> Location:
    """A URI as it is, without a slash at its end; anything else as a local path."""
    return text.rstrip("/") if is_uri(text) else Path(text)


def child(location: Location, name: str) -> Location:
    return location / name if isinstance(location, Path) else f"{location}/{name}"


def parent(location: Location) -> Location:
    return location.parent if isinstance(location, Path) else location.rpartition("/")[0]


def name_of(location: Location) -> str:
    """Its last part."""
    return location.name if isinstance(location, Path) else PurePosixPath(location).name


def absolute(location: Location) -> str:
    """As text that means the same in another folder."""
    return str(location.resolve()) if isinstance(location, Path) else location


def object_store(uri: str) -> ObjectStore:
    """The object store at a URI; keys are relative to it. A store that fails for a moment is asked again, with pauses
    that grow. Raises ValueError for a scheme that is none of `SCHEMES`, obstore's BaseError for a URI without bucket.
    """
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{uri!r}: unknown scheme {scheme!r}; known: {', '.join(SCHEMES)}, or a local path")
    return _opened(uri, os.environ.get("AWS_ENDPOINT_URL", ""), os.environ.get("AWS_ACCESS_KEY_ID", ""))


@lru_cache(maxsize=64)
def _opened(uri: str, endpoint: str, key_id: str) -> ObjectStore:  # noqa: ARG001 - another key, another store
    from obstore.store import S3Store

    return S3Store.from_url(uri, **client_settings(endpoint))


def client_settings(endpoint: str) -> Any:
    """A request may take half a minute; unencrypted only where the endpoint itself says so."""
    options = {"timeout": "30s", "allow_http": endpoint.startswith("http://")}
    return {"client_options": options, "retry_config": RETRIES}


def folders(location: Location) -> list[str]:
    """Names of what lies right below, as folders do; none where nothing is there."""
    if isinstance(location, Path):
        return [path.name for path in location.iterdir() if path.is_dir()] if location.is_dir() else []
    import obstore
    from obstore.exceptions import BaseError

    try:
        found = obstore.list_with_delimiter(object_store(location))
    except (BaseError, OSError) as error:
        raise StoreError(f"cannot list {location}: {str(error).splitlines()[0][:300]}") from error
    return [PurePosixPath(prefix).name for prefix in found["common_prefixes"]]


def key_of(uri: str) -> str:
    """Bucket and key of a URI, as file systems of Arrow and fsspec want them."""
    return uri.partition("://")[2]
