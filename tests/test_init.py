"""`audit init`: it looks at model and data, writes a job that validates, or says what would work."""

from __future__ import annotations

import csv
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from audit.config import Job, load_job, parse_job
from audit.errors import AuditError, ConfigError, DataError
from pipelines.cli import app
from pipelines.init import Request, Written, job_file
from pipelines.validation import validate
from tests.s3_server import s3_endpoint as s3_endpoint
from tests.sources import on_s3

MODEL = """
import torch
raise_if_imported = {bad}
class Net(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)
def load(): return Net()
def _hidden(): pass
def plot(): pass
"""


def pixels(number: int, side: int = 24) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of cats and dogs of 24 x 24 pixels in a folder, and a model of two outputs."""
    for number in range(6):
        label = ("cat", "dog")[number % 2]
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(tmp_path / "photos" / label / f"{number}.png")
    (tmp_path / "model.py").write_text(MODEL.format(bad=False))
    return tmp_path


def images(folder: Path) -> list[tuple[str, Path]]:
    return [(path.parent.name, path) for path in sorted(folder.glob("photos/*/*.png"))]


def written(folder: Path, data: str = "photos", model: str = "model.py:load", **given: Any) -> tuple[Written, Job]:
    place = data if "://" in data else str(folder / data)
    known = ("zoo:", "user/", "torchvision:", "timm")
    found = job_file(Request(model if model.startswith(known) else str(folder / model), place, **given))
    (folder / "job.yaml").write_text(found.text)
    return found, load_job(folder / "job.yaml")


def as_manifest(folder: Path) -> str:
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *((str(path), label) for label, path in images(folder))])
    return "list.csv"


def as_lines(folder: Path) -> str:
    rows = [json.dumps({"image": str(path), "label": label}) for label, path in images(folder)]
    (folder / "list.jsonl").write_text("\n".join(rows))
    return "list.jsonl"


def table(folder: Path) -> dict[str, list[Any]]:
    found = images(folder)
    return {"image": [path.read_bytes() for _, path in found], "label": [label for label, _ in found]}


def as_parquet(folder: Path) -> str:
    (folder / "tables").mkdir()
    pq.write_table(pa.table(table(folder)), folder / "tables" / "part.parquet")
    return "tables"


def as_parquet_file(folder: Path) -> str:
    pq.write_table(pa.table(table(folder)), folder / "part.parquet")
    return "part.parquet"


def as_shards(folder: Path) -> str:
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for number, (label, path) in enumerate(images(folder)):
            (folder / "label").write_text(label)
            tar.add(path, f"{number}.png")
            tar.add(folder / "label", f"{number}.cls")
    return "train-*.tar"


def as_metadata(folder: Path) -> str:
    flat = folder / "flat"
    flat.mkdir()
    for _, path in images(folder):
        path.rename(flat / path.name)
    rows = [("file_name", "label"), *((f"{n}.png", ("cat", "dog")[n % 2]) for n in range(6))]
    with (flat / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return "flat"


def as_saved(folder: Path) -> str:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(table(folder)).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": rows.select([0]), "test": rows}).save_to_disk(str(folder / "saved"))
    return "saved"


def as_hub_layout(folder: Path) -> str:
    pytest.importorskip("datasets")
    (folder / "hub" / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        pq.write_table(pa.table(table(folder)), folder / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    return "hub"


@pytest.mark.parametrize(
    ("make", "source", "options"),
    [
        (lambda _: "photos", "folder", {}),
        (as_metadata, "folder", {}),
        (as_manifest, "csv", {}),
        (as_lines, "csv", {}),
        (as_parquet, "parquet", {}),
        (as_parquet_file, "parquet", {}),
        (as_shards, "webdataset", {}),
        (as_saved, "hf", {"split": "test"}),
        (as_hub_layout, "hf", {"split": "validation"}),
    ],
)
def test_every_source_is_known_by_what_it_holds(folder: Path, make: Any, source: str, options: dict[str, str]) -> None:
    found, job = written(folder, make(folder))
    assert job.data.name == source
    assert {name: getattr(job.data.options, name) for name in options} == options
    assert (found.seen.images, found.seen.classes, found.seen.square) == (6, ("cat", "dog"), 24)
    assert found.outputs == {"new": ("cat", "dog")}
    assert validate(folder / "job.yaml").sources[0].classes == {"cat": 3, "dog": 3}


@pytest.mark.usefixtures("s3_endpoint")
def test_what_lies_in_an_object_store_is_known_by_its_objects(folder: Path, s3_endpoint: str) -> None:
    as_parquet(folder)
    for name in ("photos", "tables"):
        on_s3(s3_endpoint, {"path": str(folder)}, folder / name, f"init/{name}")
    places = {"photos": "folder", "tables": "parquet", "tables/part.parquet": "parquet", "tables/*.parquet": "parquet"}
    for place, source in places.items():
        found, job = written(folder, f"s3://bucket/init/{place}")
        assert (job.data.name, job.data.options.path) == (source, f"s3://bucket/init/{place}")
        assert (found.seen.images, found.seen.classes) == (6, ("cat", "dog"))
    with pytest.raises(DataError, match="nothing lies below"):
        written(folder, "s3://bucket/init/none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no data at .*a folder with a sub-folder a class"),
        ("photos.zip", "is packed"),
        ("shards.tar.gz", "is packed"),
        ("list.json", r"a JSON object a line, and name the file \*.jsonl"),
        ("notes.txt", "not a file that a source can read"),
    ],
)
def test_data_that_are_none_are_refused_with_what_works(folder: Path, name: str, message: str) -> None:
    if name != "nothing":
        (folder / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        written(folder, name)


def test_images_that_cannot_be_read_are_no_data(folder: Path) -> None:
    for _, path in images(folder):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the first 6 images can be read"):
        written(folder)


def as_links(folder: Path) -> None:
    """The class folders become links to folders elsewhere."""
    (folder / "photos").rename(folder / "elsewhere")
    (folder / "photos").mkdir()
    for label in ("cat", "dog"):
        (folder / "photos" / label).symlink_to(folder / "elsewhere" / label)


def as_deep_links(folder: Path) -> None:
    as_links(folder)
    (folder / "photos").rename(folder / "test")
    (folder / "photos").mkdir()
    (folder / "test").rename(folder / "photos" / "test")


def as_image_links(folder: Path) -> None:
    """Links to images elsewhere, in class folders that are none."""
    for label, path in images(folder):
        (folder / "elsewhere" / label).mkdir(parents=True, exist_ok=True)
        moved = path.rename(folder / "elsewhere" / label / path.name)
        path.symlink_to(moved)


@pytest.mark.parametrize("make", [as_links, as_deep_links, as_image_links])
def test_links_are_followed_if_all_images_are_behind_them(folder: Path, make: Any) -> None:
    make(folder)
    found, job = written(folder, pool=str(folder / "photos"))
    assert (found.seen.images, found.seen.classes, found.seen.square) == (6, ("cat", "dog"), 24)
    assert job.data.options.follow_links is True
    assert job.pool.options.follow_links is True
    (line,) = [line for line in found.text.splitlines() if line.startswith("data: ")]
    assert "follow_links: true}  # " in line
    assert "links that lead out of the folder are read too" in line
    assert any(note.startswith("data: ") and "follow_links: true" in note for note in found.notes)
    assert validate(folder / "job.yaml").sources[0].classes == {"cat": 3, "dog": 3}


def test_links_beside_images_are_not_followed(folder: Path) -> None:
    (folder / "photos" / "latest").symlink_to(folder / "photos" / "dog")
    found, job = written(folder)
    assert found.seen.classes == ("cat", "dog")
    assert job.data.options.follow_links is False


def test_links_to_folders_without_images_are_no_data(folder: Path) -> None:
    (folder / "none").mkdir()
    (folder / "links").mkdir()
    (folder / "links" / "cat").symlink_to(folder / "none")
    with pytest.raises(DataError, match=r"no images in .*/links; looked for"):
        written(folder, "links")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_manifest_of_images_that_are_elsewhere_names_one_and_what_helps(folder: Path, suffix: str) -> None:
    (folder / "lists").mkdir()
    lines = {
        "csv": ["image,label", "photos/cat/0.png,cat", "photos/dog/1.png,dog"],
        "jsonl": ['{"image": "photos/cat/0.png", "label": "cat"}', '{"image": "photos/dog/1.png", "label": "dog"}'],
    }
    (folder / "lists" / f"names.{suffix}").write_text("\n".join(lines[suffix]))
    with pytest.raises(DataError, match="none of the 2 images") as caught:
        written(folder, f"lists/names.{suffix}")
    assert f"{folder}/lists/photos/cat/0.png does not exist" in str(caught.value)
    assert "root: to that folder" in str(caught.value)
    (folder / "lists" / f"names.{suffix}").rename(folder / f"names.{suffix}")  # as the message says
    assert written(folder, f"names.{suffix}")[0].seen.images == 2


def test_a_manifest_of_images_out_of_its_folder_says_what_helps(folder: Path) -> None:
    as_manifest(folder)
    (folder / "lists").mkdir()
    (folder / "list.csv").rename(folder / "lists" / "list.csv")
    with pytest.raises(DataError, match=r"cat/0.png is not in the folder of the manifest.*allow_outside: true"):
        written(folder, "lists/list.csv")


def test_labels_beside_the_images_are_pointed_at(folder: Path) -> None:
    (folder / "photos" / "truth.csv").write_text("file,label\n")
    found, _ = written(folder)
    assert any("truth.csv" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.py", None, r"which function builds the model\? Give one of: .*model.py:load, .*model.py:plot"),
        ("model.py:", None, "which function"),
        ("model.py:nope", None, "has no function 'nope'"),
        ("none.py:load", None, "no Python file at"),
        ("broken.py", "def", "is not valid Python"),
        ("classes.py", "class Net: pass", "no function; it has the class Net: write one"),
        ("weights.pt", "x", r"holds weights but no architecture.*torch.load\(weights, weights_only=True\)"),
        ("weights.safetensors", "x", r"safetensors.torch.load_file\(weights\)"),
        ("model.onnx", "x", "not a model of PyTorch"),
        ("picture.png", "x", "is not a model. What works"),
        ("nothing", None, "no model at"),
        ("torchvision:resnet50", None, "torchvision"),
    ],
)
def test_a_model_that_is_none_is_refused_with_what_is_needed(
    folder: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(AuditError, match=f"(?s){message}"):
        written(folder, model=name)


def test_weights_beside_a_configuration_name_their_folder(folder: Path) -> None:
    (folder / "net").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "net" / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"give its folder .*/net, which has a config.json"):
        written(folder, model="net/model.safetensors")
    (folder / "net" / "config.json").unlink()
    with pytest.raises(ConfigError, match="holds weights but no architecture"):
        written(folder, model="net")


def test_no_code_is_imported(folder: Path) -> None:
    (folder / "model.py").write_text(MODEL.format(bad="1 / 0"))
    assert written(folder)[1].models["new"].options.ref == f"{folder}/model.py:load"


@pytest.mark.parametrize(
    ("code", "side", "given", "size", "why"),
    [
        ("", 24, None, 24, "the size of the images"),
        ("", 24, 48, 48, "as given"),
        ("IMAGE_SIZE = 96", 24, None, 96, "line 10: IMAGE_SIZE = 96"),
        ("def build(img_size=160): pass", 24, None, 160, "img_size = 160"),
        ("A = dict(input_size=96); B = dict(input_size=64)", 24, None, 24, "the size of the images"),
        ("", 200, None, None, "input_size is not set"),
    ],
)
def test_the_input_size_is_found_and_told(
    folder: Path, code: str, side: int, given: int | None, size: int | None, why: str
) -> None:
    (folder / "model.py").write_text(MODEL.format(bad=False) + code)
    for number, (_, path) in enumerate(images(folder)):
        Image.fromarray(pixels(number, side)).save(path)
    found, job = written(folder, input_size=given)
    assert job.models["new"].options.input_size == size
    assert any((size is None or f"input_size {size}: " in note) and why in note for note in found.notes)
    assert ("input_size:" in found.text) == (size is not None)  # a size that nobody knows is not written as if chosen
    asked = []
    answered = job_file(
        Request(str(folder / "model.py:load"), str(folder / "photos"), input_size=given),
        lambda question, default: asked.append((question, default)) or 99,
    )
    assert len(asked) == (size is None)
    assert ("input_size: 99" in answered.text) == (size is None)


def test_a_models_own_names_are_shown(folder: Path) -> None:
    found, job = written(folder, model="zoo:reference")
    assert job.models["new"].name == "hf"
    assert found.outputs["new"][:2] == ("crab", "bird")
    assert "# outputs: 0 crab, 1 bird" in found.text


def test_names_that_say_nothing_are_told_of(folder: Path) -> None:
    (folder / "net").mkdir()
    (folder / "net" / "config.json").write_text('{"id2label": {"1": "LABEL_1", "0": "LABEL_0", "10": "LABEL_10"}}')
    with pytest.raises(AuditError, match="preprocessor_config"):
        written(folder, model="net")
    (folder / "net" / "preprocessor_config.json").write_text("{}")
    found, _ = written(folder, model="net")
    assert found.outputs["new"] == ("LABEL_0", "LABEL_1", "LABEL_10")
    assert any("set class_names" in note for note in found.notes)


def test_a_generator_brings_the_stages_that_search(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--against"):
        written(folder, generator="zoo:diffusion")
    with pytest.raises(AuditError, match="model_index"):
        written(folder, generator="zoo:reference", against=str(folder / "model.py:load"))
    with pytest.raises(ConfigError, match="give it as --generator"):
        written(folder, model="zoo:diffusion")
    _, job = written(folder, generator="zoo:diffusion", embedder="zoo:clip")
    assert job.generator is not None
    assert [stage.name for stage in job.stages] == ["screen", "adequacy", "disagreement", "discover"]
    assert (job.stages[2].options.maximise, job.stages[2].options.minimise) == ("new", "reference")
    assert job.models["reference"].name == "clip"
    _, job = written(folder, generator="zoo:diffusion", against=str(folder / "model.py:load"))
    assert job.stages[2].options.minimise == "old"
    with pytest.raises(ConfigError, match="not a CLIP model"):
        written(folder, embedder="zoo:reference")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that knows the model user/net, of timm's, the model user/clip, and the data set user/photos."""
    known = {
        "/api/models/user/net": {"id": "user/net", "sha": COMMIT, "tags": [], "pipeline_tag": "image-classification"},
        "/api/models/user/clip": {"id": "user/clip", "sha": COMMIT, "tags": ["clip"]},
        "/api/datasets/user/photos": {"id": "user/photos", "sha": COMMIT, "tags": []},
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = known.get(self.path.partition("?")[0])
            self.send_response(200 if found else 404)
            if not found:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(json.dumps(found or {"error": "Repository not found"}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", at)
    monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", at)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_hub_ids_commit_is_written_down(folder: Path) -> None:
    _, job = written(folder, model="user/net", embedder="user/clip")
    assert (job.models["new"].name, job.models["new"].options.ref) == ("hf", "user/net")
    assert job.models["new"].options.revision == COMMIT
    assert job.embedder is not None
    assert (job.embedder.name, job.embedder.options.revision) == ("clip", COMMIT)
    with pytest.raises(ConfigError, match="the hub has no readable model of this name"):
        written(folder, model="user/none")


@pytest.mark.usefixtures("hub")
def test_without_the_hub_the_place_to_fill_in_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found, job = written(folder, model="user/net")
    assert job.models["new"].options.revision is None
    assert any("https://huggingface.co/user/net/commits/main" in note for note in found.notes)


def test_what_yaml_would_misread_is_quoted(folder: Path) -> None:
    odd = folder / 'my {data}, "new": 50% #1 \N{CRAB}\t'
    odd.mkdir()
    (folder / "photos").rename(odd / "photos")
    (odd / "model: a.py").write_text(MODEL.format(bad=False))
    found = job_file(Request(f"{odd}/model: a.py:load", str(odd / "photos")))
    job = parse_job(yaml.safe_load(found.text), folder)
    assert job.data.options.path == odd / "photos"
    assert job.models["new"].options.ref == f"{odd}/model: a.py:load"


def test_the_command_says_what_it_wrote_and_overwrites_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    given = ["init", "--model", "model.py:load", "--data", "photos"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.stderr
    assert "data: 6 images of 2 classes" in done.stdout
    assert "new: outputs 0 cat, 1 dog" in done.stdout
    assert "input_size 24" in done.stderr
    assert CliRunner().invoke(app, given).exit_code == 2
    assert CliRunner().invoke(app, ["validate", "job.yaml"]).exit_code == 0
    told = json.loads(CliRunner().invoke(app, [*given, "--job", "b.yaml", "--json"]).stdout)
    assert (told["job"], told["outputs"]) == ("b.yaml", {"new": ["cat", "dog"]})
