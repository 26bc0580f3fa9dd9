"""A classifier as a user writes one: a file with a function that loads trained weights."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class Network(nn.Module):
    """Three convolutions and a linear layer: RGB (b, 3, 32, 32) in [0, 1] to logits (b, 2)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.features = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features((x - 0.5) / 0.25).mean((2, 3)))
        return logits


def network(weights: str) -> nn.Module:
    """The network with what `train` wrote: what a job names."""
    module = Network()
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module
