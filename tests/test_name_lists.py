"""`class_names` of a job file: what each way to write it means, and what is refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit.config import Job, load_job, parse_job, parse_yaml, restored_job
from audit.errors import ConfigError
from tests.bad_jobs import GOOD

CAFE = unicodedata.normalize("NFC", "café")


def job(text: str, folder: Path, loader: str = "loader: python, ref: m.py:f") -> Job:
    raw = {**yaml.safe_load(GOOD), **parse_yaml(f"models: [{{id: m, {loader}, class_names: {text}}}]")}
    return parse_job(raw, folder)


def names(text: str, folder: Path, loader: str = "loader: python, ref: m.py:f") -> Any:
    return job(text, folder, loader).models["m"].options.class_names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data", "data"),
        ("[cat, dog]", ("cat", "dog")),
        ("[0, 1, 10]", ("0", "1", "10")),
        ("{0: cat, 1: dog}", ("cat", "dog")),
        ("{1: dog, 0: cat}", ("cat", "dog")),
        ("{'0': cat, '1': dog}", ("cat", "dog")),
        (str([unicodedata.normalize("NFD", CAFE)]), (CAFE,)),
        ("names.txt", ("cat", "ice cream, cone", CAFE)),
        ("sub/../names.txt", ("cat", "ice cream, cone", CAFE)),
        ("names.json", ("cat", "dog")),
        ("id2label.json", ("cat", "dog")),
    ],
)
@pytest.mark.parametrize(
    "loader", ["loader: python, ref: m.py:f", "loader: hf, ref: zoo:reference", "loader: clip, ref: zoo:clip"]
)
def test_what_is_written_is_meant(text: str, expected: Any, loader: str, tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", CAFE)
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\nice cream, cone\r\n" + nfd.encode() + b"\r\n\r\n")
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    (tmp_path / "id2label.json").write_text('{"1": "dog", "0": "cat"}')
    assert names(text, tmp_path, loader) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Data", "found 'Data'; write 'data'"),
        ("DATA", "found 'DATA'; write 'data'"),
        ("cat", "'cat' is not a file .*give 'data' for the labels of the data set, a list of names"),
        ("gone.txt", "'gone.txt' is not a file"),
        ("[]", "found no names"),
        ("[cat, '']", "entry 1 is '', not a name"),
        ("[cat, true]", "entry 1 is True, not a name; put quotes around it"),
        ("[cat, 0.5]", "entry 1 is 0.5"),
        ("{0: cat, 2: dog}", "the output 1 has no name"),
        ("{1: cat, 2: dog}", "the output 0 has no name"),
        ("{cat: 0}", "'cat' is not the number of an output"),
        ("{0: cat, '0': dog}", "output 0 is named twice"),
        ("7", "class_names"),
        ("empty.txt", "holds no names"),
        ("gap.txt", "line 2 is empty"),
        ("latin.txt", "not UTF-8"),
        ("broken.json", "is not JSON"),
        ("number.json", "holds int"),
    ],
)
def test_what_is_no_list_of_names_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "gap.txt").write_text("cat\n\ndog\n")
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "number.json").write_text("7")
    with pytest.raises(ConfigError, match=says):
        names(text, tmp_path)


def test_a_run_records_the_names_and_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    job_of_file = job("names.txt", tmp_path)
    assert job_of_file.numbers() == job("[cat, dog]", tmp_path).numbers()
    (tmp_path / "names.txt").unlink()
    again = restored_job(job_of_file.numbers(), job_of_file.compute.model_dump(), "runs")
    assert again.models["m"].options.class_names == ("cat", "dog")


def test_integer_keys_are_for_names_of_classes_alone(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(GOOD.replace("version: 1", "version: 1\n1: 2"))
    with pytest.raises(ConfigError, match="keys are text, found 1"):
        load_job(tmp_path / "job.yaml")
    for wrong in ("{class_names: {x: {0: a}}}", "{class_names: {true: a}}", "{class_names: {0: a, 0: b}}"):
        with pytest.raises(ConfigError, match=r"keys are text|given twice"):
            parse_yaml(wrong)
