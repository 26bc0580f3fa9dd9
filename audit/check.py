"""An independent check: whether the object of a class is on an image, asked of a model that is not explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.class_names import spaced
from audit.classifiers import Embedder
from audit.models import Models


@dataclass(frozen=True)
class Check:
    """`check_id`: a model id, or embedder.

    of_images: class names for images (b, 3, h, w). of_real: class names (n,) from stored embeddings (n, d), or, where
    the check is a model of the job, its id: its predictions are stored.
    """

    check_id: str
    of_images: Callable[[Tensor], list[str]]
    of_real: str | Callable[[NDArray[np.float32]], NDArray[np.object_]]

    @torch.no_grad()
    def sees(self, images: Tensor, class_name: str) -> list[bool]:
        """Whether it sees the class on each of images (b, 3, h, w)."""
        return [name == class_name for name in self.of_images(images)]


def check_of(models: Models, model_id: str | None, prompt: str) -> Check:
    """A model of the job, or the job's embedder as a zero-shot classifier over the data set's classes."""
    if model_id is not None:
        return _of_model(models, model_id)
    assert models.embedder is not None  # check_order refuses such a job
    return zero_shot(models.embedder, models.data_classes, prompt)


def zero_shot(embedder: Embedder, classes: Sequence[str], prompt: str) -> Check:
    """The class whose prompt, with its name for '{}', is nearest to the image."""
    names = list(classes)
    texts = embedder.embed_texts([prompt.format(spaced(name)) for name in classes])

    def nearest(embeddings: Tensor) -> list[str]:
        return [names[i] for i in (embeddings.cpu() @ texts.T).argmax(-1).tolist()]

    def of_real(embeddings: NDArray[Any]) -> NDArray[np.object_]:
        return np.array(nearest(torch.tensor(embeddings)), object)

    return Check("embedder", lambda images: nearest(embedder.embed_images(images)), of_real)


def _of_model(models: Models, model_id: str) -> Check:
    model = models.classifier(model_id)
    names = model.class_names
    return Check(model_id, lambda images: [names[i] for i in model.logits(images).argmax(-1).tolist()], model_id)
