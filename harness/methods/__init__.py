"""The mixing methods, one file each, and the registry that finds them by name."""

from collections.abc import Callable

from torch import Tensor, nn

from harness.methods import (
    comixup,
    cutmix,
    manifold,
    mixup,
    mixup_cutmix,
    none,
    puzzlemix,
    sage,
    sage_ablations,
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
    "comixup": comixup.build,
    "sage": sage.build,
    "sage-no-rearrangement": sage_ablations.build_no_rearrangement,
    "sage-random-translation": sage_ablations.build_random_translation,
    "sage-eval-saliency": sage_ablations.build_eval_saliency,
}
"""For each method, what makes it for a model, its loss and a number of classes."""

REQUIRES = {"saliencymix": "cv2", "puzzlemix": "gco", "comixup": "gco"}
"""The module that a method needs beside the harness's own."""
