"""A classifier of one's own for the `python` loader: CIFAR-10 ResNets (He et al., 2016), shortcut option A."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut that subsamples and pads channels with zeros."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.pad, self.stride = (after - before) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, self.pad, self.pad)))


class ResNet(nn.Module):
    """RGB (b, 3, 32, 32) in [0, 1] to logits (b, 10): the normalisation is part of the module."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, blocks, 1)
        self.layer2 = self._layer(16, 32, blocks, 2)
        self.layer3 = self._layer(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def _layer(self, before: int, after: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [Block(after, after, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(before, after, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((-1, -2)))


def load(depth: int, weights: str) -> nn.Module:
    """What the job file names: a module with its weights. Outputs follow the sorted class names."""
    model = ResNet(depth)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): value for name, value in state.get("state_dict", state).items()}
    model.load_state_dict(state)
    return model
