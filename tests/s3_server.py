"""A fixture of an S3 server; import the name into a test module to use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.s3_server import s3_server


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Endpoint of a server with the bucket `bucket`."""
    with s3_server() as endpoint:
        yield endpoint
