"""The decision that a counterfactual turns round: log p(target|x) for items with targets of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audit.classifiers import Classifier, Embedder
from audit.objectives import log_probability


class Decision:
    """Between the classes of a classifier (DiG-IN Eq. 6). `sources`, `targets`: class names, one an item."""

    def __init__(self, model: Classifier, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.model = model
        self.sources = torch.tensor([model.index_of(name) for name in sources])
        self.targets = torch.tensor([model.index_of(name) for name in targets])

    def __call__(self, images: Tensor) -> Tensor:
        """log p(target) of images (b, ..., 3, h, w): (b, ...), differentiable."""
        logits = self.logits(images)
        targets = self.targets.to(logits.device).view(-1, *[1] * (logits.ndim - 2))
        return log_probability(logits, targets.expand(logits.shape[:-1]))

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """p(source), p(target), and whether the target is predicted, of images (b, 3, h, w): (b, 3), on the CPU."""
        logits = self.logits(images).cpu()
        each, p = torch.arange(len(images)), logits.softmax(-1)
        flipped = (logits.argmax(-1) == self.targets).to(p)
        return torch.stack([p[each, self.sources], p[each, self.targets], flipped], 1)

    def logits(self, images: Tensor) -> Tensor:
        """(b, ..., 3, h, w) to (b, ..., classes)."""
        logits = self.model.logits(images.flatten(0, -4))
        return logits.view(*images.shape[:-3], logits.shape[-1])


class AttributeDecision(Decision):
    """Between two prompts of each item that differ in an attribute, by a zero-shot model (DiG-IN Eqs. 19, 20).

    Differs from the paper: the model's own logit scale multiplies the cosines; unscaled, as the equations have them,
    two prompts of unit vectors could hardly differ in probability.
    """

    def __init__(self, model: Embedder, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.embedder = model
        self.texts = torch.stack([model.embed_texts(list(prompts)) for prompts in (sources, targets)], 1)
        self.sources = torch.zeros(len(sources), dtype=torch.long)
        self.targets = torch.ones(len(targets), dtype=torch.long)

    def logits(self, images: Tensor) -> Tensor:
        embedded = self.embedder.embed_images(images.flatten(0, -4)).view(*images.shape[:-3], -1)
        texts = self.texts.to(embedded.device).view(len(images), *[1] * (images.ndim - 4), 2, -1)
        return self.embedder.scale * (texts @ embedded[..., None])[..., 0]
