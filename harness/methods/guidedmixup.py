"""GuidedMixup (Kang and Kim, An Efficient Mixup Strategy Guided by Saliency Maps, AAAI 2023)."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.methods.base import Training, register
from sage_timm import saliency_from_gradient

_FLOOR = 1e-3  # of a spectrum's mean amplitude
_TINY = 1e-12  # far below a pixel's share of a map that sums to 1

Maps = Callable[[Training, Tensor, Tensor], Tensor]
"""A training, images ``[B, C, H, W]`` and class indices ``[B]`` to maps ``[B, 1, H, W]``."""


class GuidedMixup:
    """Pairs images whose saliency lies apart, and blends each pixel by the two maps' shares.

    Pairs are found greedily: from the first image on, each is given the farthest image that is
    still free as its partner, by the distance of their maps, and the last is given the first. The
    mask is ``s / (s + s')`` with maps that sum to 1, the label weight its mean. A batch is mixed
    with the method's probability, and is clean otherwise.

    Args:
        saliency: What computes the maps.
        probability: That of mixing a batch.
        training: The training.

    Source: Kang and Kim, AAAI 2023, Sec. 3. The maps are smoothed as SAGE's.
    """

    def __init__(self, saliency: Maps, probability: float, training: Training) -> None:
        self.saliency, self.probability, self.training = saliency, probability, training

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes each image of ``[B, C, H, W]`` with a partner of the batch, or leaves all clean."""
        if np.random.rand() >= self.probability:
            return images, self.training.soft_targets(targets)
        maps = self.saliency(self.training, images.detach(), targets)
        partners = torch.from_numpy(far_partners(maps.flatten(1))).to(images.device)
        mask = (maps + _TINY) / (maps + maps[partners] + 2 * _TINY)
        mixed = torch.lerp(images[partners], images, mask.to(images.dtype))
        own = mask.mean(dim=(1, 2, 3))
        return mixed, self.training.soft_targets(targets, own, partners)


def far_partners(maps: Tensor) -> NDArray[np.intp]:
    """Finds each map of ``[B, D]`` a partner, greedily: ``[B]``, one cycle through all of them."""
    distance = torch.cdist(maps, maps).cpu().numpy()
    partners = np.zeros(len(maps), dtype=np.intp)
    free = np.ones(len(maps), dtype=bool)
    here = 0
    free[here] = False
    while free.any():
        partners[here] = np.where(free, distance[here], -1.0).argmax()
        here = partners[here]
        free[here] = False
    return partners  # the last one's is the first, 0


def spectral_residual(images: Tensor) -> Tensor:
    """Computes saliency maps ``[B, 1, H, W]`` that need no network, each summing to 1.

    What a picture's log spectrum has beyond its own local mean is taken back into the picture, with
    the phases as they were, squared and smoothed.

    Args:
        images: ``[B, C, H, W]``, of which the mean over channels is taken.

    Source: Hou and Zhang, Saliency Detection: A Spectral Residual Approach, CVPR 2007, at the
    images' own resolution.
    """
    spectrum = torch.fft.fft2(images.detach().float().mean(dim=1, keepdim=True))
    amplitude = spectrum.abs()
    # Zeros of the spectrum, or the rounding in their place, must not raise what is beside them.
    floor = _FLOOR * amplitude.mean(dim=(2, 3), keepdim=True) + _TINY
    logs = (amplitude + floor).log()
    mean = F.avg_pool2d(F.pad(logs, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    residual = torch.sgn(spectrum) * (logs - mean).exp()
    return saliency_from_gradient(torch.fft.ifft2(residual).abs().square())


def _by_gradient(training: Training, images: Tensor, targets: Tensor) -> Tensor:
    return saliency_from_gradient(training.gradient(images, targets, evaluation=False))


def _by_spectrum(training: Training, images: Tensor, targets: Tensor) -> Tensor:
    return spectral_residual(images)


register("guidedmixup-sr")(partial(GuidedMixup, _by_spectrum, 0.5))
register("guidedmixup-ap")(partial(GuidedMixup, _by_gradient, 0.8))
