"""The counterfactual stage on the world's own models: its rows against what they were made from."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from audit.artefacts import FOLDER
from audit.classifiers import Preprocess
from audit.config import parse_job
from audit.counterfactual import search
from audit.diffusion.inversion import NullText
from audit.errors import ConfigError
from audit.generators import diffusers
from audit.methods import Context, check_order, disagreement, neuron, uvce
from audit.methods.uvce import Options
from audit.models import Models
from audit.models.determinism import exact
from audit.predictions import to_tensor
from audit.results.sql import Run
from audit.subjects import Subject
from audit.worker import Worker
from audit.zoo.export import export
from audit.zoo.measure import load
from pipelines.plan import data_classes, open_or_create
from tests.in_process import done, units_of

UVCE = {"kind": "counterfactual", "method": "uvce", "model": "reference", "preset": "embedded", "classes": ["crab"]}
UVCE |= {"steps": 1, "cutouts": 1, "null_text_steps": 2, "injection": [0.4], "per_class": 1}
ATTRIBUTE = UVCE | {"model": "zero-shot", "attribute": ["red", "purple"], "classes": "auto", "steps": 0}
WRONG = {"model": "shortcut", "items": "misclassified", "target": "label", "classes": "auto"}
JOB: dict[str, Any] = {
    "version": 1,
    "name": "uvce",
    "data": {"source": "parquet", "path": "heldout"},
    "models": [
        {"id": "reference", "loader": "hf", "ref": "zoo:reference"},
        {"id": "shortcut", "loader": "hf", "ref": "zoo:shortcut-a"},
        {"id": "zero-shot", "loader": "clip", "ref": "zoo:clip"},
    ],
    "embedder": {"loader": "clip", "ref": "zoo:clip"},
    "generator": {"loader": "diffusers", "ref": "zoo:diffusion", "steps": 4, "guidance_scale": 3.0},
    "stages": [
        {"kind": "screen"},
        UVCE | {"frames": True, "per_class": 2},
        UVCE | {"target": ["boat", "ice_cream"], "mask": "own", "prompt": "keep"},
        UVCE | {"space": "pixel", "mask": "none", "target": "boat", "steps": 3, "perceptual": "reference"},
        ATTRIBUTE,
        UVCE | {"worst_reconstruction": 90.0},
        UVCE | WRONG | {"prompt": "keep", "steps": 0},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uvce")
    export("heldout", root / "heldout", "parquet", 40)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return done(parse_job(JOB, folder), folder / "run", batch=4)


def pixels(run: Run, image_id: str) -> np.ndarray[Any, Any]:
    (row,) = run.rows("select any_value(png) as png from images where image_id = ?", [image_id])
    return np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGB"), np.float64) / 255


def explained(run: Run, stage: int) -> list[dict[str, Any]]:
    return run.rows("select * from explanations where stage = ? order by explanation_id", [f"{stage}-uvce"])


def measured(run: Run, explanation_id: str) -> dict[tuple[str, str | None], Any]:
    rows = run.rows("select * from measurements where subject_id = ?", [explanation_id])
    return {(row["name"], row["key"]): row["value"] for row in rows}


def test_the_rows_are_what_the_images_say(run: Run) -> None:
    """Distances from the stored PNGs, verdicts from the model's own predictions of them."""
    rows = explained(run, 2)
    assert len(rows) == 2
    for row in rows:
        assert (row["status"], row["source_class"], row["method"]) == ("ok", "crab", "uvce")
        first, last, mask = (pixels(run, row[k]) for k in ("start_image_id", "image_id", "mask_image_id"))
        found = measured(run, row["explanation_id"])
        assert found["l2", "result"] == pytest.approx(np.sqrt(((first - last) ** 2).mean()), abs=2e-3)
        assert found["l1", "result"] == pytest.approx(np.abs(first - last).mean(), abs=2e-3)
        weight = 1 - mask
        outside = np.sqrt((weight * (first - last) ** 2).sum() / weight.sum())
        assert found["background_rmse", "result"] == pytest.approx(outside, abs=2e-3)
        assert found["mask_area", None] == pytest.approx(mask.mean(), abs=3e-3)
        assert set(np.unique(mask)) <= {0.0, 1.0}  # the preset's masks are hard
        attention = pixels(run, row["attention_image_id"])
        assert len(np.unique(attention)) > 20
        assert (
            mask[attention >= 0.4 + 1 / 255] == 1
        ).all()  # free is all that attends this much, and the target's place
        assert mask.mean() > (attention >= 0.4).mean() > 0.02
        shown = np.clip(0.5 + 2 * (last - first), 0, 1)
        assert np.abs(pixels(run, row["difference_image_id"]) - shown).max() < 0.02
        said = {
            r["item_id"]: r
            for r in run.rows("select * from predictions where model_id = 'reference' and role = 'generated'")
        }
        for image, source, target, flipped in (
            (row["start_image_id"], row["source_before"], row["score_before"], row["flipped_before"]),
            (row["image_id"], row["source_after"], row["score_after"], row["flipped"]),
        ):
            top = dict(zip(said[image]["top_classes"], said[image]["top_confidences"], strict=True))
            assert (said[image]["predicted"] == row["target_class"]) == flipped
            for name, p in ((row["source_class"], source), (row["target_class"], target)):
                if name in top:
                    assert p == pytest.approx(top[name], abs=0.02)
        assert found["psnr", "reconstruction"] == pytest.approx(
            -10 * np.log10(((pixels(run, row["reconstruction_image_id"]) - first) ** 2).mean()), abs=0.3
        )
        assert found["p_target", "result"] == row["score_after"]
        assert found["injection", None] == pytest.approx(0.4)
        assert found["blending", None] in (pytest.approx(0.3), 0.5)


def test_the_target_is_the_runner_up_and_the_caption_names_the_class(run: Run) -> None:
    for row in explained(run, 2):
        (said,) = run.rows(
            "select top_classes from predictions where item_id = ? and model_id = 'reference' and role = 'data'",
            [row["item_id"]],
        )
        assert row["target_class"] == said["top_classes"][1]
        (item,) = run.rows("select caption, label from items where item_id = ?", [row["item_id"]])
        assert (row["prompt"], item["label"]) == (item["caption"], "crab")


def test_every_step_is_kept_as_a_frame(run: Run) -> None:
    for row in explained(run, 2):
        steps = run.rows("select * from traces where explanation_id = ? order by step", [row["explanation_id"]])
        assert [step["step"] for step in steps] == [0, 1]
        assert steps[0]["image_id"] == row["edit_image_id"]
        assert steps[row["best_step"]]["image_id"] == row["image_id"]
        assert steps[row["best_step"]]["score"] == pytest.approx(row["score_after"], abs=1e-6)
        assert row["loss_before"] == steps[0]["loss"]
        assert row["loss_after"] == min(step["loss"] for step in steps)


def test_named_targets_own_masks_and_a_kept_prompt(run: Run, folder: Path) -> None:
    rows = explained(run, 3)
    assert sorted(row["target_class"] for row in rows) == ["boat", "ice cream"]
    assert len({row["item_id"] for row in rows}) == 1
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "heldout")
    (item,) = run.rows("select uri from items where item_id = ?", [rows[0]["item_id"]])
    mask = table["mask"][int(item["uri"].rpartition("#")[2])].as_py()
    own = np.asarray(Image.open(io.BytesIO(mask)).convert("L"), np.float64) / 255
    for row in rows:
        assert np.abs(pixels(run, row["mask_image_id"])[..., 0] - own).max() < 0.01
        assert row["attention_image_id"] is None  # the mask is made of something else
        assert measured(run, row["explanation_id"])["injection", None] == 0.0
        # nothing is edited, so the start is the reconstruction
        start, recorded = pixels(run, row["edit_image_id"]), pixels(run, row["reconstruction_image_id"])
        assert np.abs(start - recorded).max() < 0.01


def test_other_masks_make_other_units(bench) -> None:
    """The plan holds the hashes of the masks that it will use, and none where the maps make them."""
    one = work(bench, mask="own", per_class=3)
    (unit,) = uvce.plan(one.options, one.context)
    masks = list(bench[0].models.source("data").read_masks([item[0] for item in unit["items"]]))
    assert len(set(masks)) == len(masks) > 1
    assert unit["masks"] == [hashlib.sha256(mask).hexdigest() for mask in masks]
    assert "masks" not in uvce.plan(work(bench).options, one.context)[0]


def test_pixel_space_changes_pixels_and_makes_no_edit(run: Run) -> None:
    (row,) = explained(run, 4)
    assert row["edit_image_id"] is None
    assert row["score_after"] > row["score_before"]
    assert pixels(run, row["mask_image_id"]).max() == 0.0
    assert measured(run, row["explanation_id"])["l2", "result"] < 0.02


def test_attributes_are_changed_in_the_captions_that_name_them(run: Run) -> None:
    rows = explained(run, 5)
    assert rows
    for row in rows:
        assert (row["source_class"], row["target_class"], row["model_id"]) == ("red", "purple", "zero-shot")
        assert " red " in row["prompt"]
        assert row["source_before"] + row["score_before"] == pytest.approx(1.0, abs=1e-5)
        assert row["source_before"] > 0.5  # what is red looks red


def test_a_poor_reconstruction_is_marked_and_not_searched(run: Run) -> None:
    (row,) = explained(run, 6)
    assert row["status"] == "failed"
    assert row["reason"].startswith("poor_reconstruction: ")
    assert row["image_id"] is None
    found = measured(run, row["explanation_id"])
    assert list(found) == [("psnr", "reconstruction")]
    assert f"{found['psnr', 'reconstruction']:.1f} dB" in row["reason"]


def test_what_misled_a_model_is_sought_with_the_true_name_in_the_prompt(run: Run) -> None:
    """The decision leads from the wrong class to the label; the caption, which names the label, stays as it is."""
    rows = explained(run, 7)
    assert rows
    for row in rows:
        (item,) = run.rows(
            "select i.caption, i.label, p.predicted from items i join predictions p using (item_id) "
            "where item_id = ? and p.model_id = 'shortcut' and p.role = 'data'",
            [row["item_id"]],
        )
        assert item["label"] != item["predicted"]
        assert (row["source_class"], row["target_class"]) == (item["predicted"], item["label"])
        assert row["prompt"] == item["caption"]


def test_perceptual_distances_are_those_of_the_chosen_network(run: Run) -> None:
    """Cosines of what goes into the last linear layer, of the stored PNGs."""
    (row,) = explained(run, 4)
    network, seen = load("reference"), []
    head = [module for module in network.network.modules() if isinstance(module, torch.nn.Linear)][-1]
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    pair = [to_tensor((pixels(run, row[k]) * 255).round().astype(np.uint8)) for k in ("start_image_id", "image_id")]
    with torch.no_grad():
        network.logits(torch.stack(pair))
    hook.remove()
    a, b = seen[0]
    expected = 1 - float(a @ b / (a.norm() * b.norm()))
    found = measured(run, row["explanation_id"])["perceptual_distance", "result"]
    assert found == pytest.approx(expected, rel=0.05)
    assert found > 1e-4


def test_without_a_network_there_is_a_reason_in_place_of_the_distance(folder: Path) -> None:
    stages = [JOB["stages"][0], UVCE | {"space": "pixel", "mask": "none", "target": "boat"}]
    job = {key: value for key, value in JOB.items() if key != "embedder"} | {"name": "bare", "stages": stages}
    bare = done(parse_job(job, folder), folder / "bare", batch=1)
    rows = bare.rows("select value, reason from measurements where name = 'perceptual_distance'")
    assert rows
    assert all(row["value"] is None and "name one with 'perceptual'" in row["reason"] for row in rows)


def test_inversions_are_shared_by_stages_models_and_runs(run: Run, folder: Path) -> None:
    files = {path.stem for path in (folder / FOLDER).rglob("*.safetensors")}
    rows = run.rows(
        "select stage, a.artefact_id, a.uri, a.item_id from artefacts a join explanations e using (item_id)"
    )
    assert {row["artefact_id"] for row in rows} == files
    assert all((folder / row["uri"]).is_file() for row in rows)
    shared = [row["artefact_id"] for row in rows if row["item_id"] == explained(run, 3)[0]["item_id"]]
    assert len(set(shared)) == 1  # stages 2 to 6 explain the same first crab
    before = {path: path.stat().st_mtime_ns for path in (folder / FOLDER).rglob("*.safetensors")}
    stages = [JOB["stages"][0], UVCE | {"target": "car", "steps": 0}]
    other = done(parse_job({**JOB, "name": "other", "stages": stages}, folder), folder / "other", batch=1)
    (row,) = explained(other, 2)
    assert row["target_class"] == "car"
    assert {path: path.stat().st_mtime_ns for path in (folder / FOLDER).rglob("*.safetensors")} == before


def test_what_changed_since_the_inventory_is_a_failed_row(folder: Path) -> None:
    """Of two items in a unit the one whose bytes are not those of its id fails, the other does not."""
    job = parse_job(
        {**JOB, "name": "changed", "stages": [JOB["stages"][0], UVCE | {"per_class": 2, "steps": 0}]}, folder
    )
    root = folder / "changed"
    found = open_or_create(job, root)
    worker = Worker(job, root, (), 4)
    for unit in units_of(job, "0-inventory", root, found, ()):
        worker.run(unit)
    classes = data_classes(root)
    worker = Worker(job, root, classes, 4)
    for unit in units_of(job, "1-screen", root, found, classes):
        worker.run(unit)
    (unit,) = units_of(job, "2-uvce", root, found, classes)
    unit.payload["items"][0][1] = "0" * 64
    assert worker.run(unit).error is None
    rows = Run(root).rows("select item_id, status, reason from explanations order by status")
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert (rows[0]["item_id"], rows[0]["reason"]) == ("0" * 64, "changed_since_inventory")


@pytest.fixture(scope="module")
def bench(folder: Path) -> tuple[Worker, list[list[Any]]]:
    """A worker, and two items of a plan, on which units are run in this process without being committed."""
    job = parse_job({**JOB, "name": "bench", "stages": [JOB["stages"][0], UVCE | {"per_class": 2}]}, folder)
    root = folder / "bench"
    found = open_or_create(job, root)
    for stage in ("0-inventory", "1-screen"):
        worker = Worker(job, root, data_classes(root) if stage == "1-screen" else (), 4)
        for unit in units_of(job, stage, root, found, worker.models.data_classes):
            worker.run(unit)
    (unit,) = units_of(job, "2-uvce", root, found, worker.models.data_classes)
    assert len(unit.payload["items"]) == 2
    return worker, [[*item[:5], ["boat"]] for item in unit.payload["items"]]


def work(bench: tuple[Worker, list[list[Any]]], **changed: Any) -> uvce._Work:
    """A unit of work with some options, and perhaps another `seed` or `generator`, without items as yet."""
    generator, seed = changed.pop("generator", {}), changed.pop("seed", 0)
    values = {**JOB, "name": "bench", "seed": seed, "generator": JOB["generator"] | generator}
    values["stages"] = [JOB["stages"][0], UVCE | {"steps": 0} | changed]
    parsed = parse_job(values, bench[0].root.parent)
    models = Models(parsed, bench[0].models.data_classes)
    if not generator:  # loaded once
        models.__dict__["generator"] = bench[0].models.generator
    return uvce._Work(parsed.stages[1].options, Context(parsed, "2-uvce", bench[0].root, models, 4))


def test_inversions_are_shared_by_all_that_they_do_not_depend_on_and_by_nothing_else(bench) -> None:
    """One key for other targets, decisions and searches; another for whatever changes the numbers of an inversion."""
    subject = Subject("ab12", "crab", "crab", "a photograph of a red crab", ["boat"])
    key = work(bench)._artefact_key(subject)
    same = [{"steps": 3, "weight_pixel": 1.0}, {"injection": [0.9], "mask": "none"}, {"model": "shortcut"}]
    assert {work(bench, **options)._artefact_key(subject) for options in same} == {key}
    assert work(bench)._artefact_key(replace(subject, source="car", targets=["car"])) == key
    with exact(True):
        alone = work(bench)._artefact_key(subject)
    assert alone != key  # a deterministic run takes none that was made in a batch
    others = [{"refinements": 7}, {"null_text_steps": 3}, {"null_text_step_size": 0.5}, {"inversion": "ddim"}]
    others += [{"generator": {"guidance_scale": 2.0}}, {"generator": {"steps": 3}}, {"generator": {"dtype": "bf16"}}]
    keys = [work(bench, **options)._artefact_key(subject) for options in others]
    keys += [work(bench)._artefact_key(replace(subject, prompt="a red crab"))]
    keys += [work(bench)._artefact_key(replace(subject, item_id="cd34"))]
    assert len({key, *keys}) == 1 + len(keys)


def test_inversions_do_not_depend_on_the_schedule_alone(bench) -> None:
    """Where the job leaves steps and guidance to the preset, the preset's are in the key."""
    subject = Subject("ab12", "crab", "crab", "a photograph of a red crab", ["boat"])
    bare = {"steps": None, "guidance_scale": None}
    a, b = (work(bench, generator=bare) for _ in range(2))
    b.generator = b.models.generator.scheduled(7, 3.0)
    assert a._artefact_key(subject) != b._artefact_key(subject)


def test_explanations_of_other_tasks_have_other_ids(bench) -> None:
    """What changes no number of a counterfactual changes no id either."""
    subject = Subject("ab12", "crab", "crab", "a photograph of a red crab", ["boat"])

    def id_of(target: str = "boat", **options: Any) -> str:
        made = work(bench, **options)
        return str(uvce._base(made.options, made.context, subject, target)["explanation_id"])

    assert id_of(frames=True, per_class=2, unit_items=1) == id_of()
    other = [id_of("car"), id_of(seed=1), id_of(steps=2), id_of(weight_pixel=1.0), id_of(mask="none")]
    made = work(bench)
    elsewhere = uvce._base(made.options, made.context, replace(subject, source="car"), "boat")
    other.append(str(elsewhere["explanation_id"]))
    assert len({id_of(), *other}) == 7


def test_searches_have_seeds_of_their_own(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items, targets and the job's seed decide the noise of the cutouts; the search itself runs as always."""
    seen: list[object] = []

    def watched(*args: Any) -> Any:
        seen.extend(args[5])
        return search(*args)

    monkeypatch.setattr(uvce, "search", watched)
    items = [[*item[:5], ["boat", "car"]] for item in bench[1]]
    for seed in (0, 1):
        work(bench, seed=seed, mask="none", prompt="keep").explain(items)
    assert len(seen) == len(set(seen)) == 8


def test_an_item_without_numbers_is_marked_and_harms_no_other(bench) -> None:
    """A broken inversion among two, a model that says NaN of one image, a label that it lacks, targets that captions
    have no room for: rows with the reason, and the other item as it is alone."""
    first, second = bench[1]
    (alone,) = done_with(bench, [second])
    broken = work(bench, null_text_steps=5)
    subject = Subject(first[1], "crab", "crab", first[3], ["boat"])
    key = broken._artefact_key(subject)
    shape, tokens = broken.generator.latent_shape, broken.generator.embed([""]).shape[1:]
    steps = len(broken.generator.levels())
    nan = {"latent": torch.full(shape, math.nan), "null": torch.zeros(steps, *tokens)}
    broken.artefacts.put("inversion", key, nan | {"null_losses": torch.zeros(steps, 2)})
    broken.explain([first, second])
    rows = {row["item_id"]: row for row in broken.rows()["explanations"]}
    assert rows[first[1]]["reason"].startswith("poor_reconstruction")
    assert rows[second[1]]["status"] == "ok"
    (value,) = [row for row in broken.rows()["measurements"] if row["subject_id"] == rows[first[1]]["explanation_id"]]
    assert (value["name"], value["value"], value["reason"]) == ("psnr", None, "not_finite")

    for space in ("latent", "pixel"):
        sick = work(bench, space=space, steps=1)
        bright = [work_image(sick, item).mean().item() for item in (first, second)]
        border, above = sum(bright) / 2, bright[0] > bright[1]
        logits = sick.model.forward

        def broken_logits(x: torch.Tensor, logits: Any = logits, border: float = border, above: bool = above) -> Any:
            mean = x.mean((1, 2, 3), keepdim=True)[:, 0, 0]
            return torch.where((mean > border) == above, math.nan, logits(x))

        sick.model = replace(sick.model, forward=broken_logits, preprocess=Preprocess(sick.model.preprocess.size))
        sick.explain([first, second])
        rows = {row["item_id"]: row for row in sick.rows()["explanations"]}
        assert (rows[first[1]]["status"], rows[first[1]]["reason"]) == ("failed", "not_finite")
        assert rows[second[1]]["status"] == "ok"

    assert done_with(bench, [[*first[:2], "unicorn", *first[3:]]])[0]["reason"] == "source_unknown_to_model"
    long = [" ".join([word] * 20) for word in ("boat", "car")]
    rows = done_with(bench, [[*second[:5], [*long, "boat"]]])
    assert [row["reason"] for row in rows[:2]] == ["phrase_not_in_prompt"] * 2
    assert rows[2]["score_after"] == pytest.approx(alone["score_after"], abs=1e-3)


def done_with(bench: tuple[Worker, list[list[Any]]], items: list[list[Any]]) -> list[dict[str, Any]]:
    one = work(bench)
    one.explain(items)
    return one.rows()["explanations"]


def work_image(one: uvce._Work, item: list[Any]) -> torch.Tensor:
    """An item's image at the generator's size."""
    subject = Subject(item[1], "crab", "crab", item[3], [])
    subject.read(next(iter(one.models.source("data").read([item[0]]))), None, False, one.generator.image_size)
    return subject.image


def test_captions_of_the_template_name_the_class_alone(bench) -> None:
    (row,) = done_with_options(bench, caption="template", template="a drawing of a {}")
    assert row["prompt"] == "a drawing of a crab"


def done_with_options(bench: tuple[Worker, list[list[Any]]], **options: Any) -> list[dict[str, Any]]:
    one = work(bench, **options)
    one.explain(bench[1][:1])
    return one.rows()["explanations"]


def test_a_heavy_weight_holds_pixels_where_they_are(bench) -> None:
    """In pixel space w_PX 0 goes furthest; 10,000 of it leaves no change that is longer than a step."""
    moved = []
    for weight in (0.0, 1e4):
        one = work(bench, space="pixel", mask="none", steps=9, weight_pixel=weight, weight_latent=0.0)
        one.explain(bench[1][:1])
        rows = one.rows()
        (change,) = [r["value"] for r in rows["measurements"] if (r["name"], r["key"]) == ("l2", "result")]
        moved.append(change)
    assert moved[1] < 0.0041 < moved[0]


def test_every_number_of_the_method_can_be_given() -> None:
    """Each option goes into the number of its name, and into no other."""
    base = Options(model="m", preset="embedded").numbers(56)
    given = {"weight_latent": 3.0, "weight_pixel": 4.0, "injection": (0.9,), "blending": (0.8,), "refinements": 5}
    given |= {"map_side": 16, "map_share": 0.25, "sharpen": 0.2, "threshold": 0.9, "both_masks": False}
    for name, value in given.items():
        assert Options(model="m", preset="embedded", **{name: value}).numbers(56) == replace(base, **{name: value})
    text = Options(model="m", preset="embedded", null_text_steps=3, null_text_step_size=0.5).numbers(56).null_text
    assert text == NullText(3, 0.5)
    assert Options(model="m", preset="embedded", null_text_steps=3).numbers(56).null_text == NullText(3, 0.03)
    assert Options(model="m", preset="embedded", inversion="ddim").numbers(56) == replace(base, null_text=None)


def test_without_a_mask_nothing_is_blended_or_freed(bench) -> None:
    """An empty mask with blending would leave nothing but the original; so there is none."""
    assert (work(bench, mask="none").numbers.blending, work(bench, mask="none").numbers.both_masks) == ((0.0,), False)
    assert (work(bench, mask="own").numbers.blending, work(bench, mask="own").numbers.both_masks) == ((0.3, 0.5), False)
    kept = work(bench, prompt="keep").numbers
    assert (kept.injection, kept.blending, kept.both_masks) == ((0.0,), (0.0,), True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "referense"}, "Did you mean 'reference'"),
        ({"attribute": ["red", "purple"]}, "name a model of loader clip"),
        ({"caption": "captioner"}, "captioner: {loader: blip"),
        ({"model": "zero-shot", "attribute": ["red", "purple"], "caption": "template"}, "captions that name it"),
        ({"perceptual": "referense"}, "counterfactual: perceptual"),
        ({"attribute": ["red"]}, "attribute"),
        ({"target": {"rule": "group"}}, "groups"),
        ({"method": None}, "names its method"),
        ({"method": "uvec"}, "Did you mean 'uvce'"),
    ],
)
def test_jobs_that_cannot_be_explained_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    stages = [JOB["stages"][0], {**UVCE, **options}]
    with pytest.raises(ConfigError, match=message):
        check_order(parse_job({**JOB, "stages": stages}, tmp_path))


def test_the_numbers_of_the_generator_are_the_jobs_else_the_presets() -> None:
    """Table C.1.5 asks for 20 DDIM steps and Table D.1 for 25, both for guidance 3.0."""
    load = diffusers.load
    own = load(diffusers.Options(ref="zoo:diffusion", steps=7, guidance_scale=1.5)).scheduled(20, 3.0)
    assert (len(own.levels()), own.guidance_scale) == (7, 1.5)
    bare = load(diffusers.Options(ref="zoo:diffusion"))
    for preset, steps in ((uvce.PRESETS["digin"].optimisation, 20), (disagreement.PRESETS["digin"], 25)):
        chosen = bare.scheduled(preset.ddim_steps, preset.guidance_scale)
        assert (len(chosen.levels()), chosen.guidance_scale) == (steps, 3.0)
    assert neuron.PRESETS["digin"].ddim_steps == 20
    assert (len(bare.levels()), bare.guidance_scale) == (25, 3.0)


def test_an_unknown_target_is_refused_before_the_search(folder: Path) -> None:
    job = parse_job({**JOB, "name": "typo", "stages": [JOB["stages"][0], UVCE | {"target": "boot"}]}, folder)
    with pytest.raises(ConfigError, match="Did you mean 'boat'"):
        done(job, folder / "typo", batch=4)


def test_the_job_is_plain_values(folder: Path) -> None:
    """What decides the numbers can be written as JSON, and read as the same job again."""
    job = parse_job(JOB, folder)
    assert json.loads(json.dumps(job.numbers())) == job.numbers()
    assert load("reference").class_names[0] == "crab"


def test_ray_other_workers_and_batches_change_nothing(folder: Path, tmp_path: Path) -> None:
    """Through the command line in units of one item, against this process in one unit of two: scores within 1e-2."""
    stages = [JOB["stages"][0], UVCE | {"per_class": 2, "target": "boat", "unit_items": 1}]
    job = {**JOB, "name": "ray", "stages": stages, "compute": {"workers": 2, "batch_size": 1}}
    job["data"] = {"source": "parquet", "path": str(folder / "heldout")}
    (tmp_path / "ray.yaml").write_text(yaml.safe_dump(job, sort_keys=False), "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pipelines.cli", "run", "ray.yaml"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    alone = parse_job({**job, "stages": [stages[0], stages[1] | {"unit_items": 8}]}, tmp_path)
    runs = Run(tmp_path / "runs" / "ray"), done(alone, tmp_path / "elsewhere" / "run", batch=8)
    columns = "item_id, target_class, score_before, score_after, source_after, flipped, loss_before, best_step, status"
    one, other = (run.rows(f"select {columns} from explanations order by item_id") for run in runs)
    assert len(one) == 2
    for a, b in zip(one, other, strict=True):
        for name, value in a.items():
            assert b[name] == (pytest.approx(value, abs=1e-2) if isinstance(value, float) else value), name
    units = [run.rows("select count(*) as n from units where stage = '2-uvce'")[0]["n"] for run in runs]
    assert units == [2, 1]
