"""Job files of the bad-input corpus: what YAML turns into something else, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit.errors import ConfigError
from tests.bad_input import Case, Holds, Refused

GOOD = """version: 1
name: x
data: {source: folder, path: images}
models: [{id: m, loader: hf, ref: "zoo:reference"}]
stages: [{kind: screen}]
"""


def job(text: str | bytes) -> Callable[[Path], Path]:
    """A job file that holds this; `+` at its start: after a good job."""

    def make(root: Path) -> Path:
        content = GOOD + text[1:] if isinstance(text, str) and text.startswith("+") else text
        (root / "job.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return root / "job.yaml"

    return make


def instead(old: str, new: str) -> Callable[[Path], Path]:
    assert old in GOOD
    return job(GOOD.replace(old, new))


def refused(*names: str) -> Refused:
    return Refused(ConfigError, names)


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, levels)]
    return "\n".join(lines)


JOBS: dict[str, tuple[Callable[[Path], Path], Refused | Holds]] = {
    "a good job": (job("+"), Holds({})),
    "a number with an exponent": (
        instead("{kind: screen}", "{kind: screen, unit_items: 1e3}"),
        refused("unit_items"),  # a float, where a whole number is asked for; not the text '1e3'
    ),
    "a float with an exponent": (
        job("+generator: {loader: diffusers, ref: x, guidance_scale: 1e-3}"),
        Holds({"generator.options.guidance_scale": 0.001}),
    ),
    "no is a word": (instead("name: x", "name: no"), Holds({"name": "no"})),
    "on is a word": (instead("name: x", "name: on"), Holds({"name": "on"})),
    "a time is a word": (instead("name: x", "name: 1:30"), refused("name")),
    "a date is a word": (instead("name: x", "name: 2001-01-01"), Holds({"name": "2001-01-01"})),
    "an octal number is a word": (job("+seed: 012"), refused("seed")),
    "a hexadecimal number is a word": (job("+seed: 0x10"), refused("seed")),
    "a number with underscores is a word": (job("+seed: 1_000"), refused("seed")),
    "infinity is a word": (
        job("+generator: {loader: diffusers, ref: x, guidance_scale: .inf}"),
        refused("guidance_scale"),
    ),
    "a number beyond all floats": (
        job("+generator: {loader: diffusers, ref: x, guidance_scale: 1e999}"),
        refused("guidance_scale"),
    ),
    "a boolean for a number": (job("+seed: true"), refused("seed")),
    "text for a number": (job("+seed: '3'"), refused("seed")),
    "a fraction for a number": (job("+seed: 1.5"), refused("seed")),
    "nothing for a number": (job("+seed:"), refused("seed")),
    "a key given twice": (job("+name: y"), refused("line 6", "the key 'name' is given twice")),
    "a key given twice below": (instead("path: images", "path: a, path: b"), refused("'path' is given twice")),
    "an alias": (job("a: &x [1]\nb: *x"), refused("line 2", "aliases")),
    "a merged key": (job("a: &x {b: 1}\nc: {<<: *x}"), refused("aliases")),
    "a bomb of aliases": (job(bomb(12)), refused("aliases")),
    "more than 1 MB": (job("+# " + "x" * 1_000_001), refused("larger than 1000000 bytes")),
    "21 levels": (job("a: " + "[" * 21 + "]" * 21), refused("deeper than 20")),
    "a hundred thousand levels": (job("[" * 100_000), refused("deeper than 20")),
    "a bracket without an end": (job("a: [1"), refused("not valid YAML")),
    "a tab for spaces": (job("a:\n\tb: 1"), refused("not valid YAML")),
    "a control character": (job("a: \x07"), refused("not valid YAML")),
    "a Python object": (job("a: !!python/object/apply:os.system [ls]"), refused("not valid YAML", "python/object")),
    "binary data by a tag": (job("+seed: !!binary aGk="), refused("line 6", "tags such as")),
    "a number by a tag": (job("+seed: !!int x"), refused("line 6", "tags such as")),
    "two documents": (job("+---\na: 1"), refused("not valid YAML")),
    "an empty file": (job(""), refused("mapping", "found NoneType")),
    "a list": (job("- a"), refused("mapping", "found list")),
    "a number as a key": (job("1: a"), refused("keys are text")),
    "a list as a key": (job("[a]: b"), refused("keys are text")),
    "no UTF-8": (job(b"\xff\xfe\x00"), refused("not UTF-8")),
    "no file": (lambda root: root / "none.yaml", refused("cannot read the job file", "none.yaml")),
    "a folder": (lambda root: root, refused("cannot read the job file")),
    "an unknown key": (job("+sede: 3"), refused("unknown key 'sede'", "Did you mean 'seed'")),
    "an unknown key below": (instead("path: images", "pth: images"), refused("'pth'", "Did you mean 'path'")),
    "an unknown source": (instead("source: folder", "source: foldr"), refused("'foldr'", "Did you mean 'folder'")),
    "an unknown stage": (instead("kind: screen", "kind: sreen"), refused("'sreen'", "Did you mean 'screen'")),
    "a name that leads out": (instead("name: x", "name: ../x"), refused("name")),
    "a name with ANSI codes": (instead("name: x", 'name: "x\\e[31m"'), refused("name")),
    "a place of an unknown scheme": (
        instead("path: images", "path: ftp://host/images"),
        refused("'ftp://host/images' is no place", "s3://bucket/prefix"),
    ),
    "a bucket without a name": (instead("path: images", "path: 's3://'"), refused("'s3://' is no place")),
    "a limit of zero": (instead("path: images", "path: images, limit: 0"), refused("limit")),
    "a limit of text": (instead("path: images", "path: images, limit: ten"), refused("limit")),
    "stages that are none": (instead("stages: [{kind: screen}]", "stages: {}"), refused("'stages' is a list")),
    "a model without an id": (instead("id: m, ", ""), refused("models[0]", "'id'")),
    "data that are a word": (instead("{source: folder, path: images}", "images"), refused("data", "'source'")),
}

CASES = [Case(f"job: {name}", "job", make, expected) for name, (make, expected) in JOBS.items()]


def held(value: Any, path: str) -> Any:
    """What a job has at a place such as 'generator.options.steps'."""
    for name in path.split("."):
        value = getattr(value, name)
    return value
