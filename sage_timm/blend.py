"""Saliency-guided mixup of image pairs, pixel by pixel (SAGE, Sec. 3.2, Eq. 2)."""

import torch
from torch import Tensor

from sage_timm.translate import clear_uncovered, translated
from sage_timm.zeta import zeta


def blend(
    image0: Tensor, image1: Tensor, saliency0: Tensor, saliency1: Tensor, translation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Translates image 1 and blends it into image 0 in proportion to their saliency (Eq. 2, Eq. 3).

    ``M = s0 / (s0 + T(s1, t) + zeta)``, ``x' = M * x0 + (1 - M) * T(x1, t)``; where the translated
    image 1 does not reach, image 0 stays as it is (``M = 1``).

    Args:
        image0: ``[B, C, H, W]``, floating point.
        image1: ``[B, C, H, W]``, of the same type.
        saliency0: Weighted maps of image 0, ``[B, 1, H, W]``, not negative.
        saliency1: Weighted maps of image 1, ``[B, 1, H, W]``, not negative.
        translation: ``[B, 2]`` int64: rows down, columns to the right, in pixels.

    Returns:
        The mixed images ``[B, C, H, W]`` in ``image0``'s type and memory format; the mixing mask
        ``[B, 1, H, W]`` in [0, 1]; and image 0's label weight ``[B]`` in [0, 1], the mask's mean.

    Raises:
        ValueError: If the shapes do not fit.

    Source: Ma et al., SAGE, BMVC 2022, Eq. 2 and Eq. 3.
    """
    batch, _, height, width = image0.shape
    map_shape = (batch, 1, height, width)
    if image1.shape != image0.shape:
        raise ValueError(
            f"image0 and image1 must have one shape, got {tuple(image0.shape)} and "
            f"{tuple(image1.shape)}"
        )
    if saliency0.shape != map_shape or saliency1.shape != map_shape:
        raise ValueError(
            f"saliency0 and saliency1 must be {map_shape}, got {tuple(saliency0.shape)} and "
            f"{tuple(saliency1.shape)}"
        )
    if translation.shape != (batch, 2):
        raise ValueError(f"translation must be {(batch, 2)}, got {tuple(translation.shape)}")
    place = translation[:, None]
    moved = translated(saliency1 + zeta(saliency0, saliency1), place)
    moved = clear_uncovered(moved, place)[:, 0]
    # Where image 1 does not reach, this is 1 even if image 0 has no saliency there.
    covered = moved[:, 0] > 0
    own = saliency0.clamp_min(torch.finfo(saliency0.dtype).tiny)
    mask = own / (own + moved)
    weight = mask[:, 0].to(image0.dtype)
    mixed = translated(image1, place)[:, 0]
    # The difference of two images overflows before their mix does; float16 is computed in float32.
    half = 1.0 if image0.dtype == torch.float16 else 0.5
    for channel in range(mixed.shape[1]):  # a mask spread over channels-last pixels is slow to read
        own_pixels = image0[:, channel]
        blended = (mixed[:, channel] * half).lerp_(own_pixels * half, weight) / half
        # Not by a weight of 1: what lies there is no pixel of image 1, and may not be finite.
        mixed[:, channel] = torch.where(covered, blended, own_pixels)
    return mixed, mask, mask.mean(dim=(1, 2, 3))
