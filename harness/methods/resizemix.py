"""ResizeMix (Qin et al., Mixing Data with Preserved Object Information and True Labels, 2020)."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from harness.methods.base import Training, register

_SCALE = (0.1, 0.8)  # of a side, the paper's


@register("resizemix")
class ResizeMix:
    """Shrinks the partner and pastes it whole; the label weight is the area that is left.

    One scale of the sides is drawn for the batch, and a place for each image.

    Source: Qin et al., 2020, Sec. 3.
    """

    def __init__(self, training: Training) -> None:
        self.training = training

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pastes onto each image of ``[B, C, H, W]`` the one in its place in the reversed batch."""
        count, _, height, width = images.shape
        scale = np.random.uniform(*_SCALE)
        size = max(1, int(scale * height)), max(1, int(scale * width))
        small = F.interpolate(images.flip(0), size=size)
        tops, lefts = (
            np.clip(np.random.randint(side, size=count) - own // 2, 0, side - own)
            for side, own in zip((height, width), size, strict=True)
        )
        mixed = images.clone()
        for image, patch, top, left in zip(mixed, small, tops, lefts, strict=True):
            image[:, top : top + size[0], left : left + size[1]] = patch
        own = 1 - size[0] * size[1] / (height * width)
        return mixed, self.training.soft_targets(targets, own)
