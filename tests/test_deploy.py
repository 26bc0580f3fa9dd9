"""The files in deploy/ and cluster.yaml: keys and values that their readers know, and nothing left open.

That their start commands work is shown by tests/test_submit.py, which runs them.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.model
import botocore.validate
import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_provider import NodeProvider

from audit.config import parse_job, parse_yaml
from pipelines.submit import read_job
from tests.ray_cluster import ROOT, code_blocks, start_commands

LAUNCHED = [ROOT / "cluster.yaml", ROOT / "deploy" / "cluster-on-premises.yaml"]
RAYJOB = ROOT / "deploy" / "rayjob.yaml"
CONTAINERFILE = ROOT / "deploy" / "Containerfile"


def launched(path: Path) -> dict[str, Any]:
    """A file for `ray up`, checked as `ray up` does."""
    config = yaml.safe_load(path.read_text("utf-8"))
    validate_config(prepare_config(config))
    return config


def options_of(line: str) -> dict[str, str]:
    """Those of the `ray start` in a shell line; a flag has the value ''."""
    words = line.rpartition("ray start")[2].split()
    return {name.removeprefix("--"): value for name, _, value in (word.partition("=") for word in words)}


@cache
def known_to_ray_start() -> set[str]:
    """The options that its help shows."""
    asked = [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"]
    return set(re.findall(r"--([a-z-]+)", subprocess.run(asked, capture_output=True, text=True, check=True).stdout))


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.stem)
def test_ray_up_takes_the_file(path: Path) -> None:
    config = launched(path)
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config(prepare_config({**config, "max_wokers": 3}))
    with pytest.raises(jsonschema.ValidationError, match="ssh_usr"):
        validate_config(prepare_config({**config, "auth": {**config["auth"], "ssh_usr": "audit"}}))
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text("utf-8"))
    assert config["provider"].keys() <= schema["properties"]["provider"]["properties"].keys()  # others would pass


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.stem)
def test_the_start_commands_leave_nothing_open(path: Path) -> None:
    config = launched(path)
    (head,), (worker,) = start_commands(config, "head"), start_commands(config, "worker")
    for line in (head, worker):
        assert "RAY_AUTH_MODE=token" in line.partition("ray start")[0]
        assert "RAY_worker_niceness=0" in line.partition("ray start")[0]
        assert options_of(line).keys() <= known_to_ray_start()
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0
    options = options_of(head)
    assert options["dashboard-host"] == "127.0.0.1"
    assert not 10002 <= int(options["port"]) <= 19999  # Ray's ports for workers
    assert options_of(worker)["address"] == f"$RAY_HEAD_IP:{options['port']}"
    assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])


def test_both_files_start_ray_in_the_same_way() -> None:
    """So that what is seen with one of them holds for both."""
    one, other = map(launched, LAUNCHED)
    for role in ("head", "worker"):
        assert one[f"{role}_start_ray_commands"] == other[f"{role}_start_ray_commands"]


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.stem)
def test_the_setup_commands_install_what_is_there(path: Path) -> None:
    config = launched(path)
    (home,) = {target.removesuffix("/.ray/auth_token") for target in config["file_mounts"] if target.endswith("token")}
    sent = {local: target for target, local in config["file_mounts"].items() if not local.startswith("~")}
    assert sent == {source: f"{home}/audit/{source}" for source in copied()}
    for line in config["setup_commands"]:
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0
        if "pip install" in line:
            assert "-c ~/audit/constraints.txt" in line


def shape_of_run_instances() -> Any:
    """What EC2 calls for, as botocore's service model has it."""
    model = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    return botocore.model.ServiceModel(model).operation_model("RunInstances").input_shape


def unknown_values(value: Any, shape: Any) -> Iterator[str]:
    """Texts that are none of an enumeration; botocore leaves these to the service."""
    if shape.type_name == "structure":
        for key in value:
            yield from unknown_values(value[key], shape.members[key])
    elif shape.type_name == "list":
        for item in value:
            yield from unknown_values(item, shape.member)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{shape.name}: {value}"


def complaints(node_config: dict[str, Any]) -> str:
    """What EC2 would not take, as text."""
    shape = shape_of_run_instances()
    found = botocore.validate.ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return found.generate_report() or "\n".join(unknown_values(node_config, shape))


def test_ec2_knows_the_node_configs_and_workers_are_spot() -> None:
    types = launched(ROOT / "cluster.yaml")["available_node_types"]
    for node in types.values():
        assert complaints(node["node_config"]) == ""
        assert node["node_config"]["ImageId"]  # Ray's own choice has Python 3.6
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda node: node.update(InstanceTyp="m5.large"), "InstanceTyp"),
        (lambda node: node["InstanceMarketOptions"].update(MarketTyp="spot"), "MarketTyp"),
        (lambda node: node["InstanceMarketOptions"].update(MarketType="spoot"), "MarketType: spoot"),
        (lambda node: node["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="200"), "VolumeSize"),
        (lambda node: node["BlockDeviceMappings"][0]["Ebs"].update(VolumeType="gp33"), "VolumeType: gp33"),
    ],
)
def test_a_slip_in_a_node_config_is_found(edit: Callable[[dict[str, Any]], None], message: str) -> None:
    """Ray's own validation lets all of these pass."""
    config = launched(ROOT / "cluster.yaml")
    node = config["available_node_types"]["gpu_worker"]["node_config"]
    edit(node)
    validate_config(prepare_config(config))
    assert message in complaints(node)


@pytest.mark.parametrize(
    ("gpus", "launching", "more"), [(0, 0, 0), (1, 0, 1), (3, 0, 3), (3, 2, 1), (20, 0, 5), (20, 5, 0)]
)
def test_workers_come_when_asked_for_and_not_before(gpus: int, launching: int, more: int) -> None:
    """Ray's scheduler with the node types of cluster.yaml: from none, a worker a GPU, five at a time."""
    config = prepare_config(launched(ROOT / "cluster.yaml"))
    types = copy.deepcopy(config["available_node_types"])
    types["gpu_worker"]["resources"] = {"CPU": 8, "GPU": 1}  # of the instance type; `ray up` asks EC2 for them
    provider = NodeProvider({"type": "aws"}, "audit")
    provider.non_terminated_nodes = lambda filters: []  # type: ignore[method-assign]
    scheduler = ResourceDemandScheduler(
        provider, types, config["max_workers"], config["head_node_type"], config["upscaling_speed"]
    )
    launch, _ = scheduler.get_nodes_to_launch(
        nodes=[],
        launching_nodes={"gpu_worker": launching},
        resource_demands=[{"GPU": 1.0}] * gpus,
        unused_resources_by_ip={},
        pending_placement_groups=[],
        max_resources_by_ip={},
        ensure_min_cluster_size=[],
        node_availability_summary=NodeAvailabilitySummary({}),
    )
    assert launch.get("gpu_worker", 0) == more


def documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(RAYJOB.read_text("utf-8"))}


def schema() -> Any:
    return yaml.safe_load((ROOT / "tests" / "rayjob_schema.yaml").read_text("utf-8"))


def test_the_rayjob_has_known_keys_only() -> None:
    jsonschema.validate(documents()["RayJob"], schema())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of a mapping whose names are fixed."""
    if isinstance(value, dict):
        for key in value:
            if path and path[-1] not in ("rayStartParams", "nodeSelector"):
                yield (*path, key)
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, (*path, i))


def test_a_slip_in_any_key_of_the_rayjob_is_found() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    tried = 0
    for path in places(documents()["RayJob"]):
        broken = copy.deepcopy(documents()["RayJob"])
        parent = broken
        for key in path[:-1]:
            parent = parent[key]
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        assert not validator.is_valid(broken), path
        tried += 1
    assert tried > 80


def test_the_rayjob_is_closed_to_the_outside_and_scales_from_none() -> None:
    spec = documents()["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    assert cluster["enableInTreeAutoscaling"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group in (head, workers):
        assert group["rayStartParams"].keys() <= known_to_ray_start()
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert cluster["rayVersion"] == pinned["ray"]
    selectors = [group["template"]["spec"]["nodeSelector"].values() for group in (head, workers)]
    assert [list(values) for values in selectors] == [["on-demand"], ["spot"]]
    assert any(each.get("value") == "spot" for each in workers["template"]["spec"]["tolerations"])
    assert "tolerations" not in head["template"]["spec"]


def test_the_job_of_the_rayjob_can_run_on_a_cluster(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(documents()["ConfigMap"]["data"]["job.yaml"])
    read_job(job)


@pytest.mark.parametrize(
    ("code", "ends", "stops"),
    [(0, 0, False), (3, 0, False), (2, 2, True), (5, 5, True), (4, 4, False), (143, 143, False)],
)
def test_the_rayjob_tries_again_what_another_attempt_may_mend(
    tmp_path: Path, code: int, ends: int, stops: bool
) -> None:
    """Its entrypoint, with programs that note how they were called, and a `ray` that cannot stop the job.

    That Ray does stop it is shown by tests/test_submit.py.
    """
    for name, status in (("audit", code), ("ray", 1)):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/{name}.called\nexit {status}\n')
        fake.chmod(0o755)
    script = documents()["ConfigMap"]["data"]["run.sh"]
    told = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "audit-x7k2p"}})
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_JOB_CONFIG_JSON_ENV_VAR": told}
    done = subprocess.run(["bash", "-c", script], env=environment, check=False)
    assert done.returncode == ends
    assert (tmp_path / "audit.called").read_text() == "run /etc/audit/job.yaml --address auto --json\n"
    asked = tmp_path / "ray.called"
    assert (asked.read_text() if asked.exists() else None) == ("job stop --no-wait audit-x7k2p\n" if stops else None)


def instructions() -> list[tuple[str, str]]:
    """Of the container file: its instructions and what follows them, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", CONTAINERFILE.read_text("utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def copied() -> set[str]:
    """What of the repository is in the image."""
    return {word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]}


def test_the_container_file_is_pinned_and_runs_as_no_root() -> None:
    found = instructions()
    assert {name for name, _ in found} <= {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ARG", "LABEL"}  # no ADD
    images = [rest for name, rest in found if name == "FROM"]
    assert images
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", image) for image in images)
    users = [rest for name, rest in found if name == "USER"]
    assert users
    assert users[-1] not in ("0", "root")
    runs = [rest for name, rest in found if name == "RUN"]
    for run in runs:
        for part in re.findall(r"pip install[^&|;]*", run):
            assert "-c constraints.txt" in part
            assert "--no-cache-dir" in part
        assert "apt-get install" not in run or "rm -rf /var/lib/apt/lists" in run
        assert not re.search(r"https?://|\bcurl\b.*\|", run)


def test_what_the_container_file_copies_is_sent_and_is_there() -> None:
    """Each source exists, and .dockerignore lets it through; no more is let through than is copied."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert copied() == allowed
    assert all((ROOT / source).exists() for source in copied())
    assert not any(fnmatch.fnmatch(".env", pattern) or pattern == "." for pattern in allowed)


def test_the_image_holds_what_the_package_is_built_from() -> None:
    """The packages and files that pyproject.toml names."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {project["project"]["readme"], *project["project"]["license-files"]} <= copied()


def test_every_command_of_the_docs_runs_in_a_test_or_says_why_not() -> None:
    """test_submit.py runs all blocks but those that give a reason on their first line."""
    text = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    blocks = code_blocks(text, "sh")
    untested = [block for block in blocks if "not run by the tests" in block]
    assert all(re.match(r"# not run by the tests: \w+", block) for block in untested)
    assert len(blocks) - len(untested) >= 4
    assert text.count("```") == 2 * (len(blocks) + len(code_blocks(text, "yaml")))
    for path in re.findall(r"`((?:deploy/)?[\w-]+\.yaml|deploy/\w+)`", text):
        assert path == "job.yaml" or (ROOT / path).exists(), path
    (job,) = code_blocks(text, "yaml")
    parse_job(parse_yaml(job), Path("/"))
