"""SmoothMix (Lee et al., Data Augmentation to Train Robust Classifiers, CVPR Workshops 2020)."""

import numpy as np
import torch
from torch import Tensor

from harness.methods.base import Training, register

_SPREAD = (0.25, 0.5)  # of a side, the paper's of the circle


@register("smoothmix")
class SmoothMix:
    """Blends the partner in around a point, less and less away from it.

    The mask is a Gaussian of peak 1 (the paper's circle): its centre is any pixel, and each side
    has a standard deviation of its own, drawn for the batch. The partner's label weight is the
    mask's mean.

    Source: Lee et al., CVPR Workshops 2020, Sec. 3.
    """

    def __init__(self, training: Training) -> None:
        self.training = training

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes each image of ``[B, C, H, W]`` with the one in its place in the reversed batch."""
        profiles = []
        for side in images.shape[-2:]:
            centre = np.random.randint(side)
            spread = np.random.uniform(*_SPREAD) * side
            away = (torch.arange(side, device=images.device) - centre) / spread
            profiles.append(torch.exp(-away.square() / 2))
        mask = profiles[0][:, None] * profiles[1]
        mixed = torch.lerp(images, images.flip(0), mask.to(images.dtype))
        return mixed, self.training.soft_targets(targets, 1 - mask.mean().item())
