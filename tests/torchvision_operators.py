"""Declares the operators of torchvision, without a body, where its build is for another torch: a plugin of pytest.

A torchvision from the package index is built for CUDA; beside a torch without it, its operators are missing, and its
import fails. Classifiers and their transforms need none of them.
"""

from __future__ import annotations

import importlib
import sys

import torch

DECLARED: list[torch.library.Library] = []  # operators go with the library that declares them

try:
    importlib.import_module("torchvision")
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    DECLARED.append(torch.library.Library("torchvision", "DEF"))
    for operator in ("nms", "qnms"):
        DECLARED[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
