"""Image captioners: one file each. A caption continues a text that names the image's class (DiG-IN C.1.1).

A plugin defines `Options`, `load(options, device)` and `digest(options)`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# An image (3, h, w) in [0, 1], and the beginning of its caption; returns the whole caption.
Captioner = Callable[[Tensor, str], str]
