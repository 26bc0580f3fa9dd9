"""The bad-input corpus, case by case: tests/bad_input.py says what must become of each."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from PIL import ImageFile

from audit.config import load_job, parse_job
from audit.decode import decode, decode_mask
from audit.errors import BadItem
from audit.models import Models
from tests.bad_input import Accepted, Case, Holds, Kind, Listed, Quarantined, Refused, cases
from tests.bad_jobs import GOOD, held
from tests.sources import opened

CASES = cases()


def of(kind: str) -> pytest.MarkDecorator:
    chosen = [case for case in CASES if case.kind == kind]
    return pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[None]:
    """A pipe that is waited for would stop the suite."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@of("image")
def test_image(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    data = case.make()
    if isinstance(case.expected, Accepted):
        found = decode(data)
        assert (found.image.shape[1], found.image.shape[0]) == case.expected.size
        assert (found.image.dtype, found.image.shape[2]) == (np.uint8, 3)
        assert np.abs(found.image - np.asarray(case.expected.pixels, float)).max() <= case.expected.tolerance
        assert found.note == case.expected.note
        return
    assert isinstance(case.expected, Quarantined)
    if case.expected.reason in ("too_many_pixels", "too_many_bytes", "too_small", "too_elongated"):
        monkeypatch.setattr(ImageFile.ImageFile, "load", not_before_the_limits)
    with pytest.raises(BadItem) as caught:
        decode(data)
    assert caught.value.reason == case.expected.reason


def not_before_the_limits(self: Any) -> None:
    raise AssertionError("decoded before its size was looked at")


@of("mask")
def test_mask(case: Case) -> None:
    assert isinstance(case.expected, Quarantined)
    with pytest.raises(BadItem) as caught:
        decode_mask(case.make(), 5, 7)
    assert caught.value.reason == case.expected.reason


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of its own, removed by a program that takes any depth of folders: pytest's own clean-up does not."""
    root = Path(tempfile.mkdtemp()).resolve()
    yield root
    subprocess.run(["rm", "-rf", root], check=True)


def named(name: str, root: Path) -> str:
    """A name in which neither the place of the test nor the longest path of the system matter."""
    return re.sub(r"^(d/)+d$", "d/...", name.replace(str(root), "ROOT"))


@contextmanager
def refusal(expected: Refused) -> Iterator[None]:
    with pytest.raises(expected.error) as caught:
        yield
    assert [name for name in expected.names if name not in str(caught.value)] == [], str(caught.value)


@of("data")
def test_data(case: Case, folder: Path) -> None:
    if isinstance(case.expected, Refused):
        with refusal(case.expected):
            list(opened(case.make(folder)).entries())
        return
    assert isinstance(case.expected, Listed)
    source = opened(case.make(folder))
    entries = list(source.entries())
    rows = tuple((named(entry.display_name, folder), entry.reason) for entry in entries)
    assert rows == case.expected.rows
    for entry in entries:
        assert entry.display_name.isprintable()
        assert all((text or "").encode() is not None for text in (entry.uri, entry.label, entry.caption, entry.mask))
    usable = [entry.reason is None and entry.display_name not in case.expected.gone for entry in entries]
    read = list(source.read([entry.uri for entry in entries]))
    assert [data is not None for data in read] == usable
    assert b"secret" not in read or "allowed" in case.id


@of("model")
def test_model(case: Case, folder: Path) -> None:
    """Nothing that comes with a model is run, but the file that the job itself names."""
    entry = case.make(folder)
    raw = {**yaml.safe_load(GOOD), "models": [{"id": "m", **entry}]}
    labels = () if entry["loader"] == "hf" else ("a", "b")  # for models that name no classes of their own
    if isinstance(case.expected, Refused):
        with refusal(case.expected):
            Models(parse_job(raw, folder), labels).classifier("m")
    else:
        assert isinstance(case.expected, Holds)
        assert len(Models(parse_job(raw, folder), labels).classifier("m").class_names) == case.expected.value
    assert not (folder / "PWNED").exists()


@of("job")
def test_job(case: Case, folder: Path) -> None:
    path = case.make(folder)
    if isinstance(case.expected, Refused):
        with refusal(case.expected):
            load_job(path)
        return
    assert isinstance(case.expected, Holds)
    job = load_job(path)
    assert {name: held(job, name) for name in case.expected.value} == case.expected.value


def test_the_corpus_is_whole() -> None:
    """At least 128 cases, each of its own."""
    assert len(CASES) >= 128
    assert len({case.id for case in CASES}) == len(CASES)
    assert {case.kind for case in CASES} == set(get_args(Kind))
