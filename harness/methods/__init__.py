"""The mixing methods, one file each, and the registry that finds them by name."""

from collections.abc import Callable

from torch import Tensor, nn

from harness.methods import (
    cutmix,
    manifold,
    mixup,
    mixup_cutmix,
    none,
    puzzlemix,
    sage,
    saliencymix,
)
from harness.methods.base import MethodConfig

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images ``[B, C, H, W]`` and class indices ``[B]`` to mixed images and targets ``[B, K]``."""

METHODS: dict[str, Callable[[MethodConfig, nn.Module, nn.Module, int], Mix]] = {
    "none": none.build,
    "mixup": mixup.build,
    "cutmix": cutmix.build,
    "mixup-cutmix": mixup_cutmix.build,
    "manifold": manifold.build,
    "saliencymix": saliencymix.build,
    "puzzlemix": puzzlemix.build,
    "sage": sage.build,
}
"""For each method, what makes it for a model, its loss and a number of classes."""

REQUIRES = {"saliencymix": "cv2", "puzzlemix": "gco"}
"""The module that a method needs beside the harness's own."""
