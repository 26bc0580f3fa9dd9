"""What all models of a job say of a set of images, as rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.classifiers import Classifier
from audit.memory import is_out_of_memory
from audit.models import Models
from audit.neurons import Layer, activations, count_units, layer_of, stored_as
from audit.results.schema import Rows

TOP = 5
BATCH = 64


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """uint8 RGB (h, w, 3) to float32 (3, h, w) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """(3, h, w) in [0, 1] to uint8 RGB (h, w, 3)."""
    return np.asarray((image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu())


@torch.no_grad()
def rows_for(
    models: Models,
    images: Sequence[NDArray[np.uint8]],
    ids: Sequence[str],
    role: str,
    labels: Sequence[str | None] | None = None,
    read: Sequence[tuple[str, str | None]] = (),
) -> Rows:
    """Predictions of all models, and embeddings where the job has an embedder. Images may differ in size.

    `read`: of which models (by id) the activations of which layers too; None is the input of the last linear layer.
    """
    labels = [None if label is None else models.classes.label_of(label) for label in labels or [None] * len(ids)]
    predictions, arrays = [], []
    for model_id, classifier in models.classifiers():
        right = {label: models.matching(model_id).class_of(label) for label in set(labels) if label is not None}
        names, stored = classifier.class_names, [layer for of, layer in read if of == model_id]
        layers = [layer_of(classifier, layer) for layer in stored]
        sizes = [len(names), *(count_units(classifier, layer) for layer in layers)]
        forward = _with_activations(classifier, layers) if layers else classifier.logits
        for item_id, label, found in zip(ids, labels, _by_size(forward, images, models.device), strict=True):
            logits, *units = torch.split(found, sizes)
            row = {"item_id": item_id, "role": role, "model_id": model_id, "label": label, **_verdict(logits, names)}
            if label is not None and row["status"] == "ok" and right[label] is not None:
                row["correct"] = row["predicted"] == right[label]
            predictions.append(row)
            for layer, values in zip(stored, units, strict=True):
                arrays.append(_array(item_id, role, stored_as(layer), model_id, values))
    if models.embedder is not None:
        for item_id, values in zip(ids, _by_size(models.embedder.embed_images, images, models.device), strict=True):
            arrays.append(_array(item_id, role, "embedding", "embedder", values))
    return {"predictions": predictions, "arrays": arrays}


def _with_activations(classifier: Classifier, layers: Sequence[Layer]) -> Callable[[Tensor], Tensor]:
    """Logits, and after them the activations of each layer: (b, classes + units + ...)."""

    def forward(x: Tensor) -> Tensor:
        found = [activations(classifier, layer, x) for layer in layers]
        return torch.cat([found[0][1], *(units for units, _ in found)], 1)

    return forward


def _array(subject_id: str, role: str, name: str, model_id: str, values: Tensor) -> dict[str, Any]:
    row = {"subject_id": subject_id, "role": role, "name": name, "model_id": model_id}
    if not values.isfinite().all():
        return {**row, "reason": "not_finite"}
    return {**row, "values": values.tolist(), "shape": list(values.shape)}


def _verdict(logits: Tensor, names: Sequence[str]) -> dict[str, Any]:
    if not logits.isfinite().all():
        return {"status": "failed", "reason": "not_finite"}
    top = logits.double().softmax(-1).topk(min(TOP, len(names)))
    classes = [names[i] for i in top.indices.tolist()]
    confidences = top.values.tolist()
    return {
        "predicted": classes[0],
        "confidence": confidences[0],
        "top_classes": classes,
        "top_confidences": confidences,
        "status": "ok",
    }


def _by_size(function: Callable[[Tensor], Tensor], images: Sequence[NDArray[np.uint8]], device: str) -> list[Tensor]:
    """Apply a function of batches (b, 3, h, w) to images of any sizes, in batches of equal size."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[image.shape].append(i)
    results: dict[int, Tensor] = {}
    for members in groups.values():
        for start in range(0, len(members), BATCH):
            chunk = members[start : start + BATCH]
            found = _fitting(function, torch.stack([to_tensor(images[i]) for i in chunk]), device)
            results.update(zip(chunk, found, strict=True))
    return [results[i] for i in range(len(images))]


def _fitting(function: Callable[[Tensor], Tensor], batch: Tensor, device: str) -> Tensor:
    """The function of a batch, in halves where the device's memory is too small for the whole."""
    try:
        return function(batch.to(device)).cpu()
    except RuntimeError as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    return torch.cat([_fitting(function, half, device) for half in batch.chunk(2)])
