"""A local S3 server for tests and faults: moto's, in a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config

REGION = "us-east-1"


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[str]:
    """The endpoint of a server that holds one empty bucket. Sets the environment by which stores are found, and
    restores it."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    try:
        _await(server, endpoint)
        with environment({**settings, "AWS_REGION": REGION}):
            client(endpoint).create_bucket(Bucket=bucket)
            yield endpoint
    finally:
        server.kill()
        server.wait()


def _await(server: subprocess.Popen[bytes], endpoint: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api", timeout=5).close()  # noqa: S310 - on this machine
            return
        except OSError:
            assert server.poll() is None, "moto's server ended; is moto[server] installed?"
            time.sleep(0.1)
    raise AssertionError("moto's server does not answer")


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def client(endpoint: str) -> Any:
    """A plain S3 client, to put what a test needs."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106 - the server takes any
        config=Config(retries={"max_attempts": 2}, s3={"addressing_style": "path"}),
    )
