"""The outputs of a model that is in memory: computed in batches, or given as predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from audit.classifiers import Classifier
from audit.classifiers._heads import unstable
from audit.classifiers._one_output import of_two_classes
from audit.classifiers._scores import Scale
from audit.decode import decode
from audit.errors import BadItem, ConfigError, DataError, ModelError
from audit.predictions import to_tensor
from audit.results.warnings import RunWarning

Array = NDArray[Any]
Transform = Callable[[Image.Image], Tensor]

_USER_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
_TRIED = 8  # images that are shown one by one too
_GREY = (
    "the model takes images of one channel, but images are given as RGB, with 3 channels. Convert them with "
    'transform=, such as lambda image: torch.from_numpy(np.asarray(image.convert("L")) / 255).float()[None]'
)


class Answers:
    """The outputs of a model: computed in batches, or given as predictions."""

    def __init__(self, model: Any, transform: Transform | None, batch_size: int) -> None:
        self._transform, self._batch_size = transform, batch_size
        self._asked: list[Array] = []
        self._known = None if callable(model) or isinstance(model, Classifier) else _known(model)
        self._numbers = self._known is not None and np.asarray(model).dtype.kind in "iu"
        self._loaded = isinstance(model, Classifier)
        self._model = model.logits if isinstance(model, Classifier) else model
        self._network = model.network if isinstance(model, Classifier) else getattr(model, "__self__", model)
        self._seen = 0
        self.warnings: tuple[RunWarning, ...] = ()
        if self._known is not None and transform is not None:
            raise ConfigError("transform= needs a model, but predictions are given")

    def named(self, said: Array, names: Sequence[str]) -> Array:
        """Classes that are given as whole numbers by their names; other outputs are unchanged."""
        if said.ndim == 2 or not names or not self._numbers:
            return said
        for i, text in enumerate(said.tolist()):
            if not 0 <= int(text) < len(names):
                raise ModelError(f"prediction {i} is {text}, but there are {len(names)} class names")
        return np.array([names[int(text)] for text in said.tolist()], object)

    def predict_minus_one(self) -> bool:
        """Whether -1 is one of the classes that are given as predictions."""
        return self._known is not None and self._known.ndim == 1 and bool((self._known == "-1").any())

    def look(self, images: list[bytes]) -> None:
        """Compute the outputs for the next images."""
        if self._known is not None:
            return
        batch: list[Tensor] = []
        with _evaluating(self._network) as device:
            for data in images:
                tensor = self._tensor(data)
                self._seen += 1
                if batch and (tensor is None or batch[0].shape != tensor.shape or len(batch) == self._batch_size):
                    self._asked.append(self._answer(torch.stack(batch).to(device)))
                    batch = []
                if tensor is not None:
                    batch.append(tensor)
                else:  # the inventory says why this image cannot be used
                    self._asked.append(np.full((1, 0), np.nan))
            if batch:
                self._asked.append(self._answer(torch.stack(batch).to(device)))

    def _answer(self, batch: Tensor) -> Array:
        """Outputs for a batch. Some images of the first one are shown alone too: what differs then is a warning."""
        said = self._ask(batch)
        if not any(part.shape[1] for part in self._asked):
            alone = np.concatenate([self._ask(one[None]) for one in batch[:_TRIED]])
            if alone.shape[1] == said.shape[1]:
                self.warnings = unstable(torch.from_numpy(alone), torch.from_numpy(said[:_TRIED]), "the model")
        return said

    def _ask(self, batch: Tensor) -> Array:
        try:
            return _ask(self._model, batch)
        except _USER_ERRORS as error:
            if self._transform is None and _takes_grey(self._model, batch, error):
                raise ModelError(_GREY) from error
            raise ModelError(
                f"the model fails on images of shape {tuple(batch.shape)}: {type(error).__name__}: {error}. If it "
                "takes images of another size, or normalised images, set transform="
            ) from error

    def _tensor(self, data: bytes) -> Tensor | None:
        try:
            pixels = decode(data).image
        except BadItem:
            return None
        if self._transform is None:
            return to_tensor(pixels)
        try:
            made = self._transform(Image.fromarray(pixels))
        except _USER_ERRORS as error:
            raise ConfigError(f"transform= fails on image {self._seen}: {type(error).__name__}: {error}") from error
        if not isinstance(made, Tensor) or made.ndim != 3:
            raise ConfigError(f"transform= gives {type(made).__name__}, expected a tensor (c, h, w)")
        return made

    def of_all(self, count: int) -> Array:
        """Scores (count, classes), or classes (count,)."""
        if self._known is not None:
            if len(self._known) != count:
                raise DataError(f"there are {len(self._known)} predictions, but {count} images")
            return self._known
        widths = {part.shape[1] for part in self._asked} - {0}
        if len(widths) != 1:
            raise ModelError(
                f"the model gives {sorted(widths) or 'no'} outputs; expected the same number, one per class, for all "
                "images"
            )
        (width,) = widths
        return np.concatenate([p if p.shape[1] else np.full((len(p), width), np.nan) for p in self._asked])

    def scaled(self, said: Array, asked: Scale) -> tuple[Array, Scale]:
        """Classes, or scores of at least two classes, with their scale."""
        if said.ndim == 2 and said.shape[1] == 1:
            return of_two_classes(said, asked, stored=self._known is not None)
        return said, self._scale(asked)

    def _scale(self, asked: Scale) -> Scale:
        """A model gives logits, unless all of its finite outputs are probabilities. Raises ModelError if they lie in
        [0, 1] and are not, since they may be a sigmoid of each class."""
        if asked != "auto" or self._known is not None:
            return asked
        parts = [part[np.isfinite(part).all(1)] for part in self._asked if part.shape[1]]
        parts = [part for part in parts if len(part)]
        if self._loaded or not parts or any(part.min() < 0 or part.max() > 1 + 1e-6 for part in parts):
            return "logits"
        if all(np.abs(part.sum(1) - 1).max() < 1e-3 for part in parts):
            return "probabilities"
        raise ModelError(
            "all outputs of the model lie in [0, 1] and do not sum to 1, so they may be logits or a sigmoid of each "
            "class. If they are logits, set scores='logits'. If they are sigmoids of classes that exclude each other, "
            "return the inputs of the sigmoids"
        )


def _known(model: Any) -> Array:
    array = model.detach().cpu().double().numpy() if isinstance(model, Tensor) and model.is_floating_point() else model
    array = np.asarray(array)
    if array.ndim == 1 and (array.dtype.kind in "iuU" or all(isinstance(one, str) for one in array)):
        return array.astype(str)
    if array.ndim == 2 and array.shape[1] and array.dtype.kind in ("fiu" if array.shape[1] > 1 else "f"):
        return array.astype(np.float64)
    raise ModelError(
        f"model is {type(model).__name__} of shape {array.shape} and {array.dtype}; expected a function of images, "
        "scores (n, classes), float scores (n, 1) of one output, or one class per image (n,)"
    )


@contextmanager
def _evaluating(network: Any) -> Iterator[torch.device]:
    """Set a module to evaluation mode, and yield its device; its mode is restored afterwards."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    training = [module for module in modules if module.training]
    if isinstance(network, nn.Module):
        network.eval()
    try:
        with torch.no_grad():
            first = next(network.parameters(), None) if isinstance(network, nn.Module) else None
            yield torch.device("cpu") if first is None else first.device
    finally:
        for module in training:
            module.training = True


def _takes_grey(model: Any, batch: Tensor, error: Exception) -> bool:
    """Whether a model that fails on a batch takes images of one channel."""
    if "to have 1 channels" in str(error):  # of a convolution, also where the size is wrong too
        return True
    try:
        _ask(model, batch[:, :1])
    except (*_USER_ERRORS, ModelError):
        return False
    return True


def _ask(model: Any, batch: Tensor) -> Array:
    said = model(batch)
    said = getattr(said, "logits", said)
    if not isinstance(said, Tensor) or said.ndim != 2 or len(said) != len(batch) or said.shape[1] < 1:
        found = tuple(said.shape) if isinstance(said, Tensor) else type(said).__name__
        column = "; output[:, None] gives (b, 1)" if isinstance(said, Tensor) and said.shape == (len(batch),) else ""
        raise ModelError(
            f"the model returns {found} for {len(batch)} images; expected one number per class, (b, classes), or one "
            f"output for two classes, (b, 1){column}"
        )
    return said.detach().cpu().double().numpy()
