"""The job file: what is refused, and how the refusal helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit import registry
from audit.config import load_job, parse_job, parse_yaml, restored_job
from audit.errors import ConfigError
from audit.methods import check_classes, check_order, stage_names, stages, unit_of
from audit.models import digests
from audit.targets import check_target

ROOT = Path(__file__).resolve().parent.parent
GOOD = """
version: 1
name: demo
seed: 3
data: {source: folder, path: images}
models:
  - {id: new, loader: hf, ref: ./weights}
  - {id: old, loader: python, ref: "model.py:load", arguments: {weights: w.pt}, input_size: 32}
generator: {loader: diffusers, ref: ./sd, guidance_scale: 4}
embedder: {loader: clip, ref: ./clip}
stages:
  - {kind: screen}
  - {kind: disagreement, maximise: new, minimise: old, classes: [crab, car], step_size_text: 1e-1}
compute: {workers: 2}
"""


def raw() -> dict[str, Any]:
    value = parse_yaml(GOOD)
    assert isinstance(value, dict)
    return value


def test_a_good_job_becomes_typed_values(tmp_path: Path) -> None:
    job = parse_job(raw(), tmp_path)
    assert job.data.options.path == tmp_path / "images"
    assert job.models["old"].options.ref == f"{tmp_path}/model.py:load"
    assert job.models["new"].options.ref == str(tmp_path / "weights")
    assert job.stages[1].options.step_size_text == 0.1
    assert job.stages[1].options.classes == ("crab", "car")
    assert job.compute.workers == 2
    assert stage_names(job) == ["0-inventory", "1-screen", "2-disagreement"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sede",), 3, "Did you mean 'seed'"),
        (("data", "pth"), "x", "Did you mean 'path'"),
        (("data", "source"), "foldr", "Did you mean 'folder'"),
        (("stages", 1, "maximize"), "new", "Did you mean 'maximise'"),
        (("stages", 1, "kind"), "disagrement", "Did you mean 'disagreement'"),
        (("models", 0, "loader"), "HF", "Known: "),
        (("compute", "workers"), "two", "workers"),
        (("compute", "workers"), 0, "workers"),
        (("seed",), "3", "seed"),
        (("name",), "../evil", "name"),
        (("stages",), [], "at least one stage"),
        (("models", 1, "id"), "new", "repeats the id 'new'"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_work(
    path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    job = raw()
    target = job
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        parse_job(job, tmp_path)


@pytest.mark.parametrize("key", ["version", "name", "data", "models", "stages"])
def test_missing_keys_are_named(key: str, tmp_path: Path) -> None:
    job = raw()
    del job[key]
    with pytest.raises(ConfigError, match=key):
        parse_job(job, tmp_path)


def test_yaml_scalars_mean_what_they_look_like() -> None:
    text = "a: 1e-3\nb: no\nc: 1:30\nd: true\ne: 012\nf: ~\ng: 1.5\nh: on\ni: -7\nj: 2001-01-01"
    expected = {"a": 0.001, "b": "no", "c": "1:30", "d": True, "e": "012", "f": None, "g": 1.5, "h": "on", "i": -7}
    assert parse_yaml(text) == {**expected, "j": "2001-01-01"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: " + "[" * 30 + "]" * 30, "deeper than 20"),
        ("a: '" + "x" * 1_000_001 + "'", "larger than"),
        ("a: [1", "not valid YAML"),
        ("1: a", "keys are text"),
        ("a: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_yaml_traps_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text)


def test_a_missing_or_binary_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the job file"):
        load_job(tmp_path / "none.yaml")
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_job(tmp_path / "bin.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="found list"):
        load_job(tmp_path / "list.yaml")


def test_listing_plugins_imports_none(tmp_path: Path) -> None:
    assert {"folder", "parquet"} <= set(registry.names("datasets"))
    assert {"hf", "clip", "efficientnet_lite", "python"} <= set(registry.names("classifiers"))
    assert registry.names("generators") == ("diffusers",)
    stages = {"adequacy", "disagreement", "discover", "inventory", "neuron", "screen", "uvce"}
    assert stages == set(registry.names("methods"))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"kind": "screen"}, {"kind": "screen"}], "given 2 times"),
        ([{"kind": "discover"}, {"kind": "screen"}], "'discover' reads what 'screen' writes: put 'screen' before it"),
        ([{"kind": "adequacy"}], "put 'screen' before it"),
        (
            [{"kind": "screen"}, {"kind": "disagreement", "maximise": "new", "minimise": "old"}, {"kind": "adequacy"}],
            "put 'adequacy' before it",
        ),
        (
            [{"kind": "screen"}, {"kind": "adequacy"}, {"kind": "disagreement", "maximise": "nwe", "minimise": "old"}],
            "maximise: unknown model 'nwe'. Did you mean 'new'",
        ),
        (
            [{"kind": "screen"}, {"kind": "adequacy"}, {"kind": "disagreement", "maximise": "new", "minimise": "new"}],
            "no model disagrees with itself",
        ),
        (
            [
                {"kind": "screen"},
                {"kind": "adequacy"},
                {"kind": "disagreement", "maximise": ["new", "old"], "minimise": ["old", "odl"]},
            ],
            "minimise: unknown model 'odl'. Did you mean 'old'",
        ),
        (
            [{"kind": "screen"}, {"kind": "adequacy"}, {"kind": "disagreement", "maximise": "new", "minimise": []}],
            "no pair of models",
        ),
    ],
)
def test_stages_in_an_order_that_makes_no_sense(stages: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_order(parse_job({**raw(), "stages": stages}, tmp_path))


def test_unit_ids_follow_numbers_and_nothing_else(tmp_path: Path) -> None:
    """Worker count and output do not change an id; seed, options, items, weights and code version do."""
    base = raw()

    def unit_id(job: dict[str, Any], payload: dict[str, Any], version: int = 1, digest: str = "d") -> str:
        parsed = parse_job(job, tmp_path)
        return unit_of("1-screen", stages(parsed)[1], version, payload, parsed, {"model new": digest}).unit_id

    payload = {"items": ["a", "b"]}
    expected = unit_id(base, payload)
    assert unit_id({**base, "compute": {"workers": 7, "batch_size": 3}, "output": {"uri": "x"}}, payload) == expected
    others = {
        unit_id({**base, "seed": 4}, payload),
        unit_id({**base, "stages": [{"kind": "screen", "unit_items": 7}]}, payload),
        unit_id(base, {"items": ["a"]}),
        unit_id(base, payload, version=2),
        unit_id(base, payload, digest="e"),
        unit_id({**base, "models": [{**base["models"][0], "class_names": ["a", "b"]}, *base["models"][1:]]}, payload),
        unit_id({**base, "generator": {**base["generator"], "steps": 7}}, payload),
        unit_id({**base, "generator": {**base["generator"], "guidance_scale": 7.0}}, payload),
        unit_id({**base, "embedder": {**base["embedder"], "template": "a {}"}}, payload),
    }
    assert len(others | {expected}) == 10


def test_a_place_is_no_part_of_a_unit_id(tmp_path: Path) -> None:
    """The same model file and argument file in another folder."""
    ids = []
    for place in (tmp_path / "here", tmp_path / "there"):
        place.mkdir()
        (place / "model.py").write_text("def load(weights): ...")
        (place / "weights.bin").write_bytes(b"1")
        model = {"id": "m", "loader": "python", "ref": "model.py:load", "arguments": {"weights": "weights.bin"}}
        parts = {"models": [model], "embedder": None, "generator": None, "stages": [{"kind": "screen"}]}
        job = parse_job({**raw(), **parts}, place)
        ids.append(unit_of("1-screen", stages(job)[1], 1, {}, job, digests(job)).unit_id)
    assert ids[0] == ids[1]
    (tmp_path / "there" / "weights.bin").write_bytes(b"2")
    assert unit_of("1-screen", stages(job)[1], 1, {}, job, digests(job)).unit_id != ids[0]


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "discover", "vocabulary": ["on sand"]},
        {"kind": "discover", "vocabulary": []},
        {"kind": "adequacy", "prompt": "a photo"},
        {"kind": "adequacy", "prompt": "a {x}"},
        {"kind": "disagreement", "maximise": "new", "minimise": "old", "prompt": "{} and {}"},
    ],
)
def test_a_prompt_has_one_place_for_the_class(tmp_path: Path, stage: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"vocabulary|once"):
        parse_job({**raw(), "stages": [stage]}, tmp_path)


def test_a_class_that_the_data_lacks_is_refused_before_the_work(tmp_path: Path) -> None:
    job = parse_job({**raw(), "stages": [{"kind": "adequacy", "classes": ["Ice_Cream", "zebra"]}]}, tmp_path)
    with pytest.raises(ConfigError, match="'zebra'"):
        check_classes(job, ("crab", "ice cream"))
    check_classes(job, ("Zebra", "ice cream"))


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_run_records_its_job_so_that_it_can_be_read_again(file: Path) -> None:
    """As `audit status` and `audit repair` do."""
    job = load_job(file)
    record = json.loads(json.dumps(job.numbers()))
    again = restored_job(record, json.loads(job.compute.model_dump_json()), Path("runs"))
    assert again.numbers() == job.numbers()
    assert again.compute == job.compute


@pytest.mark.parametrize(
    "data",
    [
        {"source": "folder", "path": "s3://bucket/data"},
        {"source": "parquet", "path": "data", "limit": 3},
        {"source": "csv", "path": "s3://bucket/data.csv"},
        {"source": "webdataset", "path": "data.tar"},
        {"source": "hf", "path": "owner/name", "revision": "main"},
    ],
)
def test_every_source_and_loader_can_be_read_again(data: dict[str, Any]) -> None:
    assert data["source"] in registry.names("datasets")
    loaders: list[dict[str, Any]] = [
        {"id": "a", "loader": "hf", "ref": "zoo:reference"},
        {"id": "b", "loader": "clip", "ref": "zoo:clip"},
        {"id": "c", "loader": "efficientnet_lite", "variant": 0},
        {"id": "d", "loader": "python", "ref": "m.py:load", "class_names": ["x", "y"], "input_size": 8},
        {"id": "e", "loader": "predictions", "path": "p.csv", "scores": "logits"},
        {"id": "f", "loader": "timm", "ref": "timm/resnet18.a1_in1k", "revision": "0" * 40},
        {"id": "g", "loader": "torchvision", "ref": "resnet18", "entry": "ResNet18_Weights.IMAGENET1K_V1"},
    ]
    assert {loader["loader"] for loader in loaders} == set(registry.names("classifiers"))
    raw = {
        "version": 1,
        "name": "small",
        "data": data,
        "pool": data,
        "models": loaders,
        "embedder": {"loader": "clip", "ref": "zoo:clip"},
        "captioner": {"loader": "blip", "ref": "blip"},
        "generator": {"loader": "diffusers", "ref": "zoo:diffusion", "lora": "lora"},
        "stages": [{"kind": "screen", "activations": [{"model": "a", "layer": "x"}]}],
    }
    job = parse_job(raw, Path("/jobs"))
    record = json.loads(json.dumps(job.numbers()))
    assert restored_job(record, json.loads(job.compute.model_dump_json()), Path("runs")).numbers() == job.numbers()


@pytest.mark.parametrize(
    "target",
    [
        "runner_up",
        "label",
        ["car", "bird"],
        {"rule": "group", "groups": [["car", "boat"]]},
        {"rule": "wordnet", "wordnet": "wn", "count": 2, "wordnet_ids": {"car": "n02958343"}},
    ],
)
def test_every_rule_for_targets_can_be_read_again(target: Any) -> None:
    raw = {
        "version": 1,
        "name": "small",
        "data": {"source": "folder", "path": "data"},
        "models": [{"id": "m", "loader": "hf", "ref": "zoo:reference"}],
        "generator": {"loader": "diffusers", "ref": "zoo:diffusion"},
        "stages": [{"kind": "screen"}, {"kind": "counterfactual", "method": "uvce", "model": "m", "target": target}],
    }
    job = parse_job(raw, Path("/jobs"))
    record = json.loads(json.dumps(job.numbers()))
    again = restored_job(record, json.loads(job.compute.model_dump_json()), Path("runs"))
    assert again.numbers() == job.numbers()
    if "wordnet" in target:
        with pytest.raises(ConfigError, match="a run does not record where WordNet is; 'audit run' with its job file"):
            check_target(again.stages[1].options.target, ("car",))


def test_a_budget_of_gpu_hours_without_gpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_gpu_hours is a budget of GPUs, and 'gpus' is 0"):
        parse_job({**raw(), "compute": {"max_gpu_hours": 2}}, tmp_path)
    assert parse_job({**raw(), "compute": {"max_gpu_hours": 2, "gpus": 1}}, tmp_path).compute.max_gpu_hours == 2
