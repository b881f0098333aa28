"""R-Mix (Luu et al., Saliency-guided Mix-up through Random Gradient Thresholding, 2022)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.methods.base import Training, register
from harness.methods.puzzlemix import over_channels

_ALPHA = 1.0
_BLOCKS = (2, 4)  # along a side, drawn for each batch
_QUANTILES = np.linspace(0, 0.99, 10)  # one is drawn for each image


@register("rmix")
class RMix:
    """Copies a block that is salient in one image alone; mixes all others by the drawn weight.

    The saliency is the gradient of the clean loss in training mode, averaged over blocks. A block
    is salient at or above a quantile of its image's blocks that is drawn for each image; nothing is
    where the gradient is zero everywhere.

    Source: Luu et al., 2022, Sec. 3; values of the authors' implementation for CIFAR-100.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.alpha = training.config.alpha_or(_ALPHA)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes each image of ``[B, C, H, W]`` with the one in its place in the reversed batch."""
        blocks = int(np.random.choice(_BLOCKS))
        lam = float(np.random.beta(self.alpha, self.alpha))
        drawn = torch.from_numpy(np.random.choice(_QUANTILES, len(images)))
        saliency = over_channels(self.training.gradient(images, targets, evaluation=False))
        shares = own_shares(F.adaptive_avg_pool2d(saliency, blocks), drawn.to(saliency), lam)
        mask = F.interpolate(shares[:, None], size=images.shape[-2:])
        mixed = torch.lerp(images.flip(0), images, mask.to(images.dtype))
        return mixed, self.training.soft_targets(targets, mask.mean(dim=(1, 2, 3)))


def own_shares(saliency: Tensor, drawn: Tensor, lam: float) -> Tensor:
    """Gives the share of the image itself in each block of its mix.

    Args:
        saliency: Block saliency ``[B, n, n]``; the partner is the one in the reversed batch.
        drawn: The quantile of each image ``[B]``, in [0, 1].
        lam: The share where a block is salient in both images or in neither.

    Returns:
        ``[B, n, n]``, of 0, ``lam`` and 1.
    """
    each = torch.stack([row.quantile(q) for row, q in zip(saliency.flatten(1), drawn, strict=True)])
    salient = saliency >= each[:, None, None]
    salient &= saliency.amax(dim=(1, 2), keepdim=True) > 0
    partner = salient.flip(0)
    return torch.where(salient == partner, lam, salient.to(saliency))
