"""Stage: can the generator show these classes at all? Classes it cannot draw get no findings from it.

For each class, unoptimised images are drawn from the prompt. `agreement` is the share of them on which at least
half of the job's models see the class, of those that can be shown an image; `kid` is their distance to the data set's
images of that class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field

from audit.class_names import spaced
from audit.config import Frozen, Job, Names, Template
from audit.diffusion.noise import latent
from audit.diffusion.sampling import sample
from audit.errors import ConfigError
from audit.methods import Context, Counts, Payload, check_generator, chosen_classes
from audit.metrics.realism import kid
from audit.models import ONLY_STORED, can_predict
from audit.pictures import image_row
from audit.predictions import rows_for, to_uint8
from audit.results.schema import Rows
from audit.results.warnings import warning_rows

NEEDS, ONCE = ("screen",), True
VERSION = 2


class Options(Frozen):
    classes: Names | str = Field("auto", description="'auto': every label of the data set")
    prompt: Template = Field("a photograph of a {}", description="{} is the class name")
    samples: int = Field(16, ge=2, description="images drawn for a class")
    threshold: float = Field(0.5, ge=0, le=1, description="agreement under which a class is not auditable")


def check(options: Options, job: Job) -> None:
    check_generator(job)
    if not any(map(can_predict, job.models.values())):
        raise ConfigError(f"adequacy: every model of the job {ONLY_STORED}")


def plan(options: Options, context: Context) -> list[Payload]:
    """One unit a class."""
    return [{"class": name} for name in chosen_classes(options.classes, context.models.data_classes)]


def expected(options: Options, counts: Counts) -> int:
    return counts.classes_of(options.classes)


def run(options: Options, payload: Payload, context: Context) -> Rows:
    """Rows: images, predictions, arrays, and measurements `agreement`, `kid` and `auditable` of the class."""
    name, models = payload["class"], context.models
    prompt = options.prompt.format(spaced(name))
    generator = models.generator
    z = torch.stack(
        [latent(generator.latent_shape, context.job.seed, "adequacy", name, i) for i in range(options.samples)]
    ).to(generator.device)
    parts = [sample(generator, [prompt] * len(chunk), chunk) for chunk in torch.split(z, context.batch_size)]
    images = [to_uint8(image) for image in torch.cat(parts)]
    pictures = [image_row(image, "sample") for image in images]
    rows = rows_for(models, images, [picture["image_id"] for picture in pictures], "generated", [name] * len(images))
    agreement = _agreement(rows, name, options.samples)
    measured = [("agreement", agreement, "share", None), ("kid", *_distance(rows, name, context))]
    reason = None
    if agreement < options.threshold:
        reason = (
            f"not auditable with this generator: of {options.samples} images drawn for {prompt!r}, at least half of "
            f"the models see the class in {agreement:.0%}, under the threshold of {options.threshold:.0%}"
        )
    measured.append(("auditable", float(reason is None), "0 or 1", reason))
    measurements = [
        {"subject_id": name, "stage": context.stage, "name": key, "value": value, "unit": unit, "reason": why}
        for key, value, unit, why in measured
    ]
    return {
        **rows,
        "images": pictures,
        "measurements": measurements,
        "warnings": warning_rows(generator.warnings),
    }


def lost(options: Options, payload: Payload, reason: str, context: Context) -> Rows:
    """A class that could not be drawn is not auditable."""
    row = {"subject_id": payload["class"], "stage": context.stage, "name": "auditable", "value": 0.0}
    return {"measurements": [{**row, "unit": "0 or 1", "reason": f"not auditable: {reason}"}]}


def _agreement(rows: Rows, name: str, samples: int) -> float:
    """`predictions` hold every model's rows for the samples, model after model, in the order of the samples."""
    said = [row.get("predicted") == name for row in rows["predictions"]]
    return float((np.reshape(said, (-1, samples)).mean(0) >= 0.5).mean())


def _distance(rows: Rows, name: str, context: Context) -> tuple[float | None, str, str | None]:
    """KID to the class's real images, its unit, or None and why."""
    if context.models.embedder is None:
        return None, "squared MMD", "the job has no embedder"
    real = context.run.rows(
        "select values from arrays where role = 'data' and name = 'embedding' and values is not null and subject_id in "
        "(select item_id from items where role = 'data' and label = ?) order by subject_id",
        [name],
    )
    if len(real) < 2:
        return None, "squared MMD", f"fewer than 2 screened images with the label {name!r}"
    drawn = _matrix([row["values"] for row in rows["arrays"] if "values" in row])
    if len(drawn) < 2:
        return None, "squared MMD", "fewer than 2 drawn images with a finite embedding"
    return kid(drawn, _matrix([row["values"] for row in real])), "squared MMD", None


def _matrix(values: list[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(values, np.float64)


def not_auditable(context: Context) -> dict[str, str]:
    """Classes that the job's adequacy stage found not auditable, and why."""
    stage = context.stage_of("adequacy")
    rows = context.run.rows(
        "select subject_id, reason from measurements where stage = ? and name = 'auditable' and value = 0", [stage]
    )
    return {row["subject_id"]: row["reason"] for row in rows}
