"""What all models of a job say of a set of images, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.classifiers import Classifier, Embedder
from audit.memory import is_out_of_memory
from audit.models import Models
from audit.neurons import Layer, activations, count_units, layer_of, stored_as
from audit.results.schema import Rows

TOP = 5
BATCH = 64  # the most images that a network is shown at once
PIXELS = BATCH * 224 * 224  # of all its inputs then


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """uint8 RGB (h, w, 3) to float32 (3, h, w) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """(3, h, w) in [0, 1] to uint8 RGB (h, w, 3)."""
    return np.asarray((image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu())


@dataclass(frozen=True)
class Looks:
    """What the models of a job give for images, in the images' order.

    `outputs`: by model id one vector an image, the logits and after them the units of each layer in `layers`, where
    `widths` says how long each part is. `embeddings`: one vector an image; None in a job without an embedder.
    """

    outputs: Mapping[str, Sequence[Tensor]]
    layers: Mapping[str, Sequence[str | None]]
    widths: Mapping[str, Sequence[int]]
    embeddings: Sequence[Tensor] | None


@torch.no_grad()
def look(models: Models, images: Iterable[NDArray[np.uint8]], read: Sequence[tuple[str, str | None]] = ()) -> Looks:
    """Show images uint8 RGB (h, w, 3) of any sizes to all models and to the embedder.

    One image at a time is taken from `images` and preprocessed by itself, once for all models with equal preprocessing;
    only what the networks take is held for a batch, of images of any sizes. A batch has as many items as have the
    pixels of 64 inputs of 224 x 224, and 64 at most; in torch's deterministic mode it has one.
    `read`: of which models (by id) the activations of which layers too; None is the input of the last linear layer.
    """
    lines: dict[str, _Line] = {}
    layers: dict[str, list[str | None]] = {}
    widths: dict[str, list[int]] = {}
    for model_id, classifier in models.classifiers():
        layers[model_id] = [layer for of, layer in read if of == model_id]
        found = [layer_of(classifier, layer) for layer in layers[model_id]]
        widths[model_id] = [len(classifier.class_names), *(count_units(classifier, layer) for layer in found)]
        forward = _with_activations(classifier, found) if found else lambda x, of=classifier: of.forward(x).float()
        lines[model_id] = _Line(classifier.preprocess, forward)
    embedder = None if models.embedder is None else _line_of(models.embedder)
    _pass_through([*lines.values(), *([embedder] if embedder else [])], images, models.device)
    outputs = {model_id: line.found for model_id, line in lines.items()}
    return Looks(outputs, layers, widths, embedder.found if embedder else None)


def rows_for(
    models: Models,
    images: Iterable[NDArray[np.uint8]],
    ids: Sequence[str],
    role: str,
    labels: Sequence[str | None] | None = None,
    read: Sequence[tuple[str, str | None]] = (),
) -> Rows:
    """`rows_of` what `look` gives for the images."""
    return rows_of(models, look(models, images, read), ids, role, labels)


def rows_of(
    models: Models, looks: Looks, ids: Sequence[str], role: str, labels: Sequence[str | None] | None = None
) -> Rows:
    """Predictions of all models, and arrays: the activations that were read, and embeddings where there are any."""
    labels = [None if label is None else models.classes.label_of(label) for label in labels or [None] * len(ids)]
    predictions, arrays = [], []
    for model_id, classifier in models.classifiers():
        right = {label: models.matching(model_id).class_of(label) for label in set(labels) if label is not None}
        names, stored, sizes = classifier.class_names, looks.layers[model_id], looks.widths[model_id]
        for item_id, label, found in zip(ids, labels, looks.outputs[model_id], strict=True):
            logits, *units = torch.split(found, list(sizes))
            row = {"item_id": item_id, "role": role, "model_id": model_id, "label": label, **_verdict(logits, names)}
            if label is not None and row["status"] == "ok" and right[label] is not None:
                row["correct"] = row["predicted"] == right[label]
            predictions.append(row)
            for layer, values in zip(stored, units, strict=True):
                arrays.append(_array(item_id, role, stored_as(layer), model_id, values))
    if looks.embeddings is not None:
        for item_id, values in zip(ids, looks.embeddings, strict=True):
            arrays.append(_array(item_id, role, "embedding", "embedder", values))
    return {"predictions": predictions, "arrays": arrays}


def _with_activations(classifier: Classifier, layers: Sequence[Layer]) -> Callable[[Tensor], Tensor]:
    """Of preprocessed images the logits, and after them the activations of each layer: (b, classes + units + ...)."""

    def forward(x: Tensor) -> Tensor:
        found = [activations(classifier, layer, x, prepared=True) for layer in layers]
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


@dataclass
class _Line:
    """Images on their way through a network. `prepare`: what is done to each by itself, (1, 3, h, w) to (1, ...).

    `function` maps a batch of these to results (b, d); `found`: one result an image, on the CPU.
    """

    prepare: Callable[[Tensor], Tensor]
    function: Callable[[Tensor], Tensor]
    waiting: list[Tensor] = field(default_factory=list)
    found: list[Tensor] = field(default_factory=list)

    def add(self, prepared: Tensor) -> None:
        self.waiting.append(prepared)
        if len(self.waiting) >= _batch_of(prepared):
            self.finish()

    def finish(self) -> None:
        if self.waiting:
            self.found += _fitting(self.function, torch.cat(self.waiting)).unbind()
            self.waiting = []


def _line_of(embedder: Embedder) -> _Line:
    """An embedder that takes no preprocessed images does all its work on each image by itself."""
    if embedder.embed_preprocessed is None:
        return _Line(embedder.embed_images, lambda embeddings: embeddings)
    return _Line(embedder.preprocess, embedder.embed_preprocessed)


def _pass_through(lines: Sequence[_Line], images: Iterable[NDArray[np.uint8]], device: str) -> None:
    for image in images:
        x = to_tensor(image)[None].to(device)
        del image  # the next one is made while this name would still hold it
        made: list[tuple[Callable[[Tensor], Tensor], Tensor]] = []
        for line in lines:
            known = [prepared for prepare, prepared in made if prepare == line.prepare]
            # a crop may be a view, which would keep the whole photo in memory
            prepared = known[0] if known else line.prepare(x).clone()
            made.append((line.prepare, prepared))
            line.add(prepared)
        del x
    for line in lines:
        line.finish()


def _batch_of(prepared: Tensor) -> int:
    """How many items like this one a batch has."""
    if torch.are_deterministic_algorithms_enabled():
        return 1
    pixels = prepared.shape[-2] * prepared.shape[-1] if prepared.ndim == 4 else 1
    return max(1, min(BATCH, PIXELS // pixels))


def _fitting(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """The function of a batch, in halves where the device's memory is too small for the whole."""
    try:
        return function(batch).cpu()
    except RuntimeError as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    return torch.cat([_fitting(function, half) for half in batch.chunk(2)])
