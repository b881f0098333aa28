"""The zeta of Eq. 2, which keeps the mixing mask finite where neither image has saliency."""

import torch
from torch import Tensor

_ZETA = 1e-6


def zeta(saliency0: Tensor, saliency1: Tensor) -> Tensor:
    """Computes zeta for each pair, relative to its mean saliency.

    Being relative, it makes the mask the same whatever the scale of the maps and the size of the
    image.

    Args:
        saliency0: Weighted maps of image 0, ``[B, 1, H, W]``.
        saliency1: Weighted maps of image 1, ``[B, 1, H, W]``.

    Returns:
        ``[B, 1, 1, 1]``, greater than zero.

    Source: Ma et al., SAGE, BMVC 2022, Eq. 2.
    """
    mean = (saliency0 + saliency1).mean(dim=(1, 2, 3), keepdim=True)
    return (_ZETA * mean).clamp_min(torch.finfo(mean.dtype).tiny)
