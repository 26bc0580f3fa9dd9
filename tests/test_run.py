"""Whole jobs on an embedded Ray cluster: equal to a serial run, resumable after SIGKILL, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from audit import reference
from audit.config import load_job
from audit.errors import ConfigError
from audit.methods import stage_names
from audit.models import digests
from audit.results.schema import TABLES
from audit.results.sql import Run
from audit.results.store import Store
from audit.zoo.export import export
from pipelines import doctor
from pipelines.plan import free_place, newest_of, open_or_create
from pipelines.workers import Workers
from tests.in_process import done as done_serially

JOB = """
version: 1
name: {name}
seed: 1
data: {{source: folder, path: labelled}}
pool: {{source: parquet, path: pool}}
models:
  - {{id: reference, loader: hf, ref: "zoo:reference"}}
  - {{id: shortcut-a, loader: hf, ref: "zoo:shortcut-a"}}
embedder: {{loader: clip, ref: "zoo:clip"}}
generator: {{loader: diffusers, ref: "zoo:diffusion", steps: 3, guidance_scale: 4.0}}
stages:
  - {{kind: screen, unit_items: 20}}
  - {{kind: adequacy, samples: 2, threshold: 0.0, classes: [crab, car]}}
  - {{kind: disagreement, maximise: shortcut-a, minimise: reference, classes: [crab, car], seeds: 4, unit_seeds: 2,
     preset: embedded, steps: 2, cutouts: 2, start: others}}
  - {{kind: discover, smallest_group: 2, vocabulary: ["{{}} on sand", "{{}} on grass", "red {{}}"]}}
compute: {{workers: {workers}, batch_size: {batch}}}
"""

MAY_BE_EMPTY = ("reviews", "answers", "neurons", "artefacts", "classes", "warnings", "compared_images")
# What two runs do not share: times, places, memory.
VOLATILE = {"units": {"seconds", "worker", "peak_memory", "batch_size", "threads"}, "explanations": {"seconds"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("jobs")
    export("labelled", root / "labelled", "folder", 60)
    export("pool", root / "pool", "parquet", 60)
    (root / "labelled" / "car" / "broken.png").write_bytes(b"not an image")
    return root


def job_file(folder: Path, name: str, workers: int = 2, batch: int = 2, edit: Callable[[str], str] = str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(edit(JOB.format(name=name, workers=workers, batch=batch)))
    return path


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *arguments]


def audit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, as a user would."""
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "HOME": str(folder)}
    return subprocess.run(
        command(folder, *arguments), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def serial(path: Path, root: Path, batch: int = 2) -> Run:
    """The same job without Ray: every unit of every stage in this process."""
    return done_serially(load_job(path), root, batch)


def contents(run: Run, table: str) -> list[dict[str, Any]]:
    columns = [name for name in TABLES[table].names if name not in VOLATILE.get(table, ())]
    return run.rows(f"select {', '.join(columns)} from {table} order by all")


@pytest.fixture(scope="module")
def clean(folder: Path) -> Run:
    done = audit(folder, "run", str(job_file(folder, "clean")))
    assert done.returncode == 3, done.stderr  # one image is broken on purpose
    return Run(folder / "runs" / "clean")


GENERATED = ("images", "arrays", "predictions")  # hold ids of generated images, hashes of their last bits


def assert_equal(one: Run, other: Run, *, bitwise: bool = True) -> None:
    """Equal in all declared columns, numbers within 1e-2; without `bitwise`, images may differ in last bits."""
    for table in TABLES:
        if table == "runs" or (table in GENERATED and not bitwise):
            continue
        left, right = contents(one, table), contents(other, table)
        assert len(left) == len(right), table
        assert left or table in MAY_BE_EMPTY, f"{table} is empty: nothing was compared"
        names = (
            "unit_id",
            "failure_mode_id",
            "explanation_id",
            "item_id",
            "subject_id",
            "image_id",
            "model_id",
            "name",
        )
        keys = [k for k in (*names, "step", "role", "position") if left and k in left[0]]

        def key(row: dict[str, Any], keys: list[str] = keys) -> str:
            return json.dumps([row[k] for k in keys], default=str)

        for a, b in zip(sorted(left, key=key), sorted(right, key=key), strict=True):
            for column, value in a.items():
                if column in ("image_id", "start_image_id") and not bitwise:
                    continue
                if isinstance(value, float) or (isinstance(value, list) and value and isinstance(value[0], float)):
                    assert value == pytest.approx(b[column], abs=1e-2), (table, column)
                else:
                    assert value == b[column], (table, column)


def test_every_stage_leaves_its_rows(clean: Run) -> None:
    counts = {table: len(contents(clean, table)) for table in TABLES}
    assert counts["items"] == 121
    assert counts["explanations"] == 8
    assert counts["traces"] == 8 * 3
    assert clean.rows("select status, reason from items where status <> 'ok'") == [
        {"status": "quarantined", "reason": "unidentified"}
    ]
    told = "select role, has_mask, count(*) as n, count(caption) as captions from items group by all order by all"
    assert clean.rows(told) == [  # the broken image is not in the metadata, the pool has none
        {"role": "data", "has_mask": False, "n": 1, "captions": 0},
        {"role": "data", "has_mask": True, "n": 60, "captions": 60},
        {"role": "pool", "has_mask": False, "n": 60, "captions": 0},
    ]
    # every model on every usable item, on 4 samples, and on start and result of 8 searches (one image where
    # a search gained nothing)
    still = clean.rows("select count(*) as n from explanations where start_image_id = image_id")[0]["n"]
    assert still < 8
    generated = 4 + 16 - still
    assert clean.rows("select count(*) as n, count(distinct image_id) as d from images where kind <> 'original'") == [
        {"n": generated, "d": generated}
    ]
    said = clean.rows("select role, model_id, count(*) as n from predictions group by all order by all")
    assert {(r["role"], r["model_id"]): r["n"] for r in said} == {
        ("data", "reference"): 60,
        ("data", "shortcut-a"): 60,
        ("generated", "reference"): generated,
        ("generated", "shortcut-a"): generated,
        ("pool", "reference"): 60,
        ("pool", "shortcut-a"): 60,
    }
    assert clean.rows("select count(*) as n from units where status <> 'ok'") == [{"n": 0}]
    missing = clean.rows(
        "select image_id from explanations where image_id not in (select image_id from images) "
        "or start_image_id not in (select image_id from images)"
    )
    assert missing == []


def test_the_recorded_scores_are_what_the_models_say_of_the_stored_images(clean: Run) -> None:
    rows = clean.rows(
        "select x.score_after, x.target_class, p.predicted, p.confidence from explanations x "
        "join predictions p on p.item_id = x.image_id and p.model_id = x.model_id"
    )
    assert len(rows) == 8
    for row in rows:
        if row["predicted"] == row["target_class"]:
            assert row["confidence"] == pytest.approx(row["score_after"], abs=0.02)
        else:
            assert row["score_after"] <= 0.52


def test_ray_and_serial_runs_are_equal(clean: Run, folder: Path) -> None:
    path = folder / "clean.yaml"
    assert_equal(clean, serial(path, folder / "serial"))


def test_batch_size_and_workers_do_not_change_results(clean: Run, folder: Path) -> None:
    """Same unit ids, same results, from 1 worker with batch 1."""
    path = job_file(folder, "clean", workers=1, batch=1)
    assert_equal(clean, serial(path, folder / "single", batch=1), bitwise=False)


def test_sigkill_half_way_then_the_same_command_gives_the_rows_of_a_clean_run(clean: Run, folder: Path) -> None:
    for run in ("killed",):
        shutil.rmtree(folder / run, ignore_errors=True)
    inside = folder / "killed"
    inside.mkdir()
    for name in ("labelled", "pool"):
        (inside / name).symlink_to(folder / name)
    path = inside / "clean.yaml"
    path.write_text(
        JOB.format(name="clean", workers=2, batch=2)
        .replace("path: labelled", f"path: {folder}/labelled")
        .replace("path: pool", f"path: {folder}/pool")
    )
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "HOME": str(folder)}
    store = Store(inside / "runs" / "clean")
    driver = subprocess.Popen(
        command(inside, "run", str(path)),
        cwd=inside,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while len(store.names("commits")) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = set(store.commits())
    assert 8 <= len(before) < len(clean.commits)
    files = {name: (store.root / "commits" / f"{name}.json").stat().st_mtime_ns for name in before}
    again = audit(inside, "run", str(path))
    assert again.returncode == 3, again.stderr
    resumed = Run(store.root)
    assert_equal(clean, resumed)
    for name, changed in files.items():  # finished units were not done again
        assert (store.root / "commits" / f"{name}.json").stat().st_mtime_ns == changed
    assert set(resumed.commits) == set(clean.commits)


def test_two_minimised_models_say_whether_a_finding_depends_on_them(folder: Path) -> None:
    """What discovery measures of each mode, against what is stored of its searches."""

    def edited(text: str) -> str:
        second = '  - {id: shortcut-b, loader: hf, ref: "zoo:shortcut-b"}\nembedder:'
        text = text.replace("minimise: reference", "minimise: [reference, shortcut-b]").replace(
            "steps: 2,", "steps: 4,"
        )
        return text.replace("embedder:", second)

    run = serial(job_file(folder, "second", edit=edited), folder / "second")
    starts = run.rows(
        "select seed, target_class, count(*) as n, count(distinct start_image_id) as starts, "
        "count(distinct other_model_id) as models from explanations group by all"
    )
    assert len(starts) == 8
    assert all((row["n"], row["starts"], row["models"]) == (2, 1, 2) for row in starts)
    modes = [mode for mode in run.failure_modes() if mode["kind"] == "disagreement"]
    assert modes
    for mode in modes:
        (other,) = {"reference", "shortcut-b"} - {mode["other_model_id"]}
        measured = run.rows("select * from measurements where subject_id = ?", [mode["failure_mode_id"]])
        assert {(row["name"], row["key"]) for row in measured} == {
            ("holds_against", other),
            ("alike", other),
            ("both_confirmed", other),
        }
        said = run.rows(
            "select distinct x.explanation_id, p.predicted from explanations x join predictions p "
            "on p.item_id = x.image_id and p.model_id = ? where x.explanation_id in (select unnest(?))",
            [other, mode["exemplars"]],
        )
        assert len(said) == mode["support"]
        share = sum(row["predicted"] != mode["class_name"] for row in said) / len(said)
        assert {row["value"] for row in measured if row["name"] == "holds_against"} == {share}


def test_a_changed_job_is_refused_with_what_changed(clean: Run, folder: Path) -> None:
    path = job_file(
        folder, "clean", edit=lambda text: text.replace("seeds: 4", "seeds: 5").replace("seed: 1", "seed: 2")
    )
    done = audit(folder, "run", str(path))
    assert done.returncode == 2
    assert "job.seed: 1 -> 2" in done.stderr
    assert "options" not in done.stderr.split("job.stages")[0]
    assert "seeds: 4 -> 5" in done.stderr
    assert "--new-run" in done.stderr
    job_file(folder, "clean")
    assert audit(folder, "run", str(folder / "clean.yaml")).returncode == 3  # nothing left to do


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: screen", "kind: scren", "Did you mean 'screen'"),
        ("zoo:reference", "zoo:referense", "Did you mean 'reference'"),
        ("path: labelled", "path: nothing-here", "no folder of images"),
        ("maximise: shortcut-a", "maximise: shortcut-b", "unknown model 'shortcut-b'"),
    ],
)
def test_what_cannot_run_exits_with_2_and_says_why(folder: Path, old: str, new: str, message: str) -> None:
    path = job_file(folder, "bad", edit=lambda text: text.replace(old, new))
    shutil.rmtree(folder / "runs" / "bad", ignore_errors=True)
    verb = "run" if "maximise" in old else "validate"
    done = audit(folder, verb, str(path))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_status_sql_and_json(clean: Run, folder: Path) -> None:
    told = json.loads(audit(folder, "status", "runs/clean", "--json").stdout)
    stages, driver = told["stages"], told["driver"]
    assert driver["ended"] == "finished"
    assert "ended at" in audit(folder, "status", "runs/clean").stdout
    assert [s["stage"] for s in stages] == ["0-inventory", "1-screen", "2-adequacy", "3-disagreement", "4-discover"]
    assert all(s["units"] == s["done"] for s in stages)
    query = "select model_id, count(*) as n from predictions where role = 'data' group by all order by all"
    assert json.loads(audit(folder, "sql", "runs/clean", query, "--format", "json").stdout) == [
        {"model_id": "reference", "n": 60},
        {"model_id": "shortcut-a", "n": 60},
    ]
    assert audit(folder, "sql", "runs/clean", query, "--format", "csv").stdout.split() == [
        "model_id,n",
        "reference,60",
        "shortcut-a,60",
    ]
    exact = "select 1234567.89 :: double as a, 0.1 + 0.2 :: double as b"
    assert audit(folder, "sql", "runs/clean", exact, "--format", "csv").stdout.split() == [
        "a,b",
        "1234567.89," + str(0.1 + 0.2),
    ]
    right = json.loads(audit(folder, "sql", "runs/clean", "select * from accuracy", "--format", "json").stdout)
    assert sum(row["images"] for row in right) == 2 * 60
    assert audit(folder, "sql", "runs/clean", "select nonsense").returncode == 2
    assert audit(folder, "sql", "runs/clean", query, "--output", "none/x.csv").returncode == 2
    assert audit(folder, "status", "runs/none").returncode == 2


def test_init_writes_a_job_that_validates(folder: Path) -> None:
    done = audit(folder, "init", "--model", "zoo:reference", "--data", "labelled", "--job", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert audit(folder, "validate", "mine.yaml").returncode == 0
    assert audit(folder, "init", "--model", "x", "--data", "labelled", "--job", "mine.yaml").returncode == 2


def test_init_with_an_embedder_writes_a_job_that_discovers(folder: Path) -> None:
    given = ("--model", "zoo:shortcut-a", "--against", "zoo:reference", "--data", "labelled", "--pool", "pool")
    done = audit(folder, "init", *given, "--embedder", "zoo:clip", "--job", "named.yaml")
    assert done.returncode == 0, done.stderr
    job = load_job(folder / "named.yaml")
    assert stage_names(job) == ["0-inventory", "1-screen", "2-discover"]
    assert job.pool is not None
    assert job.pool.options.path == (folder / "pool").resolve()
    assert job.embedder is not None
    assert (job.embedder.name, job.embedder.options.ref) == ("clip", "zoo:clip")
    assert audit(folder, "validate", "named.yaml").returncode == 0
    none = audit(folder, "init", *given[:-1], "none", "--job", "x.yaml")
    assert (none.returncode, none.stderr.split()[:5]) == (2, ["error:", "no", "pool", "at", "none;"])


DEADLY = """
import os, pathlib, torch
MARK = pathlib.Path({mark!r})
class Deadly(torch.nn.Module):
    def forward(self, x):
        magenta = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
        if bool(((x - magenta).abs() < 1e-3).all(dim=(1, 2, 3)).any()) and not MARK.exists():
            {before}
            os._exit(9)
        return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)
def load(): return Deadly()
"""


@pytest.fixture(scope="module")
def magenta(folder: Path) -> Path:
    """40 scenes and, last, an image of one colour that no scene and no trial image has."""
    (folder / "magenta").mkdir()
    scenes = pq.read_table(next(folder.glob("pool/*.parquet"))).slice(0, 40).to_pylist()
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 255)).save(buffer, "png")
    images = [row["image"] for row in scenes] + [buffer.getvalue()]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), folder / "magenta" / "images.parquet")
    return folder


def deadly_run(folder: Path, name: str, before: str) -> tuple[subprocess.CompletedProcess[str], Run]:
    """41 images in units of 20, 20 and 1, and a model that kills its process on the last image."""
    (folder / f"{name}.py").write_text(DEADLY.format(mark=str(folder / f"{name}.mark"), before=before))
    (folder / f"{name}.yaml").write_text(
        f"version: 1\nname: {name}\ndata: {{source: parquet, path: magenta}}\n"
        f"models: [{{id: d, loader: python, ref: '{name}.py:load', class_names: [a, b], input_size: 8}}]\n"
        "stages: [{kind: screen, unit_items: 20}]\ncompute: {workers: 2, retries: 1}\n"
    )
    return audit(folder, "run", f"{name}.yaml"), Run(folder / "runs" / name)


def test_one_bad_unit_does_not_stop_the_job(magenta: Path) -> None:
    """A model that kills its process on one image: the unit is quarantined, all others are done."""
    done, run = deadly_run(magenta, "deadly", before="pass")
    assert done.returncode == 3, done.stderr
    assert run.rows("select count(*) as n from predictions where status = 'ok'") == [{"n": 40}]
    (row,) = run.rows("select reason from predictions where status = 'failed'")
    assert row["reason"].startswith("gave_up: the worker died")
    (row,) = run.rows("select items, attempt, error from units where status = 'quarantined'")
    assert (row["items"], row["attempt"]) == (1, 2)
    assert "the worker died" in row["error"]


def test_a_worker_that_dies_once_costs_nothing_but_a_second_attempt(magenta: Path) -> None:
    done, run = deadly_run(magenta, "flaky", before="MARK.touch()")
    assert done.returncode == 0, done.stderr
    assert run.rows("select count(*) as n, count(distinct item_id) as items from predictions") == [
        {"n": 41, "items": 41}
    ]
    tried = run.rows("select items, attempt from units where stage = '1-screen' order by items")
    assert [(row["items"], row["attempt"]) for row in tried] == [(1, 2), (20, 1), (20, 1)]


def test_a_unit_that_raises_is_quarantined_with_its_traceback(magenta: Path) -> None:
    done, run = deadly_run(magenta, "raising", before="raise RuntimeError('no such luck')")
    assert done.returncode == 3, done.stderr
    (row,) = run.rows("select attempt, error from units where status = 'quarantined'")
    assert row["attempt"] == 2
    assert "RuntimeError: no such luck" in row["error"]


def test_what_would_befall_every_unit_ends_the_job_and_is_not_recorded(folder: Path) -> None:
    """A model with two outputs for three names."""
    job = (folder / "raising.yaml").read_text().replace("raising\n", "misnamed\n").replace("[a, b]", "[a, b, c]")
    (folder / "misnamed.yaml").write_text(job)
    done = audit(folder, "run", "misnamed.yaml")
    assert done.returncode == 2, done.stderr
    assert "2" in done.stderr
    assert "3" in done.stderr
    run = Run(folder / "runs" / "misnamed")
    assert run.rows("select count(*) as n from units where stage = '1-screen'") == [{"n": 0}]


@pytest.mark.parametrize(("gpus", "workers", "fits"), [(2, 3, False), (3, 2, False), (2, 4, True), (4, 2, True)])
def test_gpus_are_shared_out_evenly_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int, fits: bool
) -> None:
    """Shares such as 2/3 of a GPU would leave workers waiting for ever."""
    text = f"compute: {{gpus: {gpus}, workers: {workers}}}\n"
    job = load_job(job_file(folder, "shares", edit=lambda body: body.split("compute:")[0] + text))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    with nullcontext() if fits else pytest.raises(ConfigError, match="cannot be shared out"):
        assert Workers(job, folder, grows=False).wanted == workers


def test_the_newest_run_of_this_very_job_is_resumed(folder: Path, tmp_path: Path) -> None:
    """Beside it, others with the same name: one of another seed, one of something else."""
    job = load_job(job_file(folder, "again"))
    other = load_job(job_file(folder, "again", edit=lambda text: text.replace("seed: 1", "seed: 5")))
    root = tmp_path / "again"
    assert newest_of(job, root, digests(job)) == root
    open_or_create(job, root)
    assert newest_of(job, root, digests(job)) == root
    open_or_create(job, tmp_path / "again-1")
    open_or_create(job, tmp_path / "again-2")
    open_or_create(other, tmp_path / "again-10")
    (tmp_path / "again-11").mkdir()
    (tmp_path / "again-old").mkdir()
    assert newest_of(job, root, digests(job)) == tmp_path / "again-2"
    assert free_place(root) == tmp_path / "again-12"
    shutil.rmtree(tmp_path / "again-1")
    assert free_place(root) == tmp_path / "again-12"  # not where one was removed: it would not be the newest
    assert free_place(tmp_path / "new") == tmp_path / "new"
    assert newest_of(other, root, digests(other)) == tmp_path / "again-10"


def test_a_place_that_cannot_be_written_is_infrastructure_and_an_unknown_scheme_is_refused(folder: Path) -> None:
    blocked = job_file(folder, "blocked", edit=lambda text: f"{text}output: {{uri: deadly.yaml}}\n")
    (folder / "deadly.yaml").touch()
    done = audit(folder, "run", str(blocked))
    assert (done.returncode, "Traceback" in done.stderr) == (4, False), done.stderr
    with pytest.raises(ConfigError, match="uri"):
        load_job(job_file(folder, "bucket", edit=lambda text: f"{text}output: {{uri: 'gs://bucket/x'}}\n"))


def test_doctor_survives_what_it_reports(folder: Path) -> None:
    """torch, ray and duckdb are there and do not import."""
    for package in ("torch", "ray", "duckdb"):
        (folder / "broken" / package).mkdir(parents=True)
        (folder / "broken" / package / "__init__.py").write_text("raise ImportError('libnothing.so is missing')")
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'broken'}:{root}", "HOME": str(folder)}
    done = subprocess.run(
        command(folder, "doctor"), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (4, False), done.stderr
    for name in ("torch", "ray", "duckdb", "devices", "ray cluster"):
        assert re.search(rf"broken +{name} ", done.stdout), name
    assert "pip install -c constraints.txt" in done.stdout


def test_doctor_reports_and_names_a_broken_torchvision(folder: Path) -> None:
    done = audit(folder, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("torch", "ray", "zoo weights", "write access", "the loaders timm and torchvision need it"):
        assert word in done.stdout
    fake = folder / "fake"
    (fake / "torchvision").mkdir(parents=True)
    (fake / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (fake / "torchvision-0.1.dist-info").mkdir()
    (fake / "torchvision-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"
    )
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}:{fake}", "HOME": str(folder)}
    broken = subprocess.run(
        command(folder, "doctor"), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert broken.returncode == 4
    assert "pip uninstall torchvision" in broken.stdout


def test_doctor_names_damaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file cut short, as a broken copy leaves it; and a folder without weights."""
    shutil.copytree(reference._WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(reference, "_WEIGHTS", tmp_path / "weights")
    assert doctor._weights().ok
    file = tmp_path / "weights" / "clip" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    found = doctor._weights()
    assert (found.ok, str(file) in found.found, "zoo train" in found.advice) == (False, True, True)
    file.unlink()
    assert "zoo:clip holds no weights" in doctor._weights().found
