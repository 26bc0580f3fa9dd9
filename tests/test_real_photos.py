"""Real photos and real weights, where AUDIT_TEST_DATA names them."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from audit.results.sql import Run
from tests.in_process import done

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def screened(text: str, root: Path) -> Run:
    """Inventory and screening of a job, in this process."""
    from audit.config import parse_job, parse_yaml

    job = parse_job(parse_yaml(text), root)
    return done(job, root / "run", 8)


def accuracies(run: Run) -> dict[str, float]:
    rows = run.rows(
        "select model_id, avg(correct::int) as accuracy from predictions where status = 'ok' group by model_id"
    )
    return {row["model_id"]: row["accuracy"] for row in rows}


def example(name: str, folder: Path) -> str:
    """An example job, with its data at `folder`."""
    text = (EXAMPLES / name).read_text("utf-8")
    return re.sub(r"path: \.\./work/[^,}]+", f"path: {folder}", text)


def test_efficientnet_lite_on_imagenet_photos(real_data: Path, tmp_path: Path) -> None:
    """Every eighth of the 1000 photos; on all of them Lite0 is right on 87 % and Lite2 on 88 %."""
    pytest.importorskip("efficientnet_lite_pytorch")
    photos = tmp_path / "photos"
    photos.mkdir()
    names = sorted(p.name for p in (real_data / "imagenet_samples").glob("*.jpg"))
    assert len(names) == 1000
    for i, name in enumerate(names):  # an empty file keeps its class in place, and is refused
        (photos / name).write_bytes(b"" if i % 8 else (real_data / "imagenet_samples" / name).read_bytes())
    run = screened(example("imagenet.yaml", photos), tmp_path)
    assert run.rows("select status, count(*) as n from items group by all order by all") == [
        {"status": "ok", "n": 125},
        {"status": "quarantined", "n": 875},
    ]
    found = accuracies(run)
    assert 0.79 <= found["lite0"] <= 0.95
    assert 0.81 <= found["lite2"] <= 0.97
    differ = run.rows(
        "select avg((a.predicted <> b.predicted)::int) as share from predictions a join predictions b using (item_id) "
        "where a.model_id = 'lite0' and b.model_id = 'lite2'"
    )
    assert 0.02 <= differ[0]["share"] <= 0.2


def test_cifar_resnets_through_the_python_loader(real_data: Path, tmp_path: Path) -> None:
    """Fifty test images a class; on 1000 images ResNet-20 is right on 79.5 %, ResNet-56 on 83.8 %."""
    images = tmp_path / "images"
    kept: Counter[str] = Counter()
    with tarfile.open(real_data / "cifar10_jpeg" / "cifar10_60k_jpeg.tar.gz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if member.isfile() and parts[0] == "test" and kept[parts[1]] < 50:
                kept[parts[1]] += 1
                file = archive.extractfile(member)
                assert file is not None
                (images / parts[1]).mkdir(parents=True, exist_ok=True)
                (images / parts[1] / parts[2]).write_bytes(file.read())
            if sum(kept.values()) == 500:
                break
    text = example("cifar.yaml", images).replace("../work/cifar_resnets", str(real_data / "cifar_resnets"))
    run = screened(text.replace("cifar_resnet.py:", f"{EXAMPLES}/cifar_resnet.py:"), tmp_path)
    found = accuracies(run)
    assert 0.72 <= found["resnet20"] <= 0.88
    assert 0.76 <= found["resnet56"] <= 0.92
