"""Saliency-guided mixup of image pairs, pixel by pixel (SAGE, Sec. 3.2, Eq. 2)."""

import torch
from torch import Tensor

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
    source, covered = _source_pixels(translation, height, width)
    moved = _gather(saliency1, source)
    total = saliency0 + moved + zeta(saliency0, saliency1)
    mask = torch.where(covered, saliency0 / total, 1)
    mixed = torch.lerp(_gather(image1, source), image0, mask.to(image0.dtype))
    return mixed, mask, mask.mean(dim=(1, 2, 3))


def _source_pixels(translation: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """For each target pixel, where Eq. 3 reads it (flat ``[B, HW]``), and whether that exists."""
    device = translation.device
    rows = torch.arange(height, device=device) - translation[:, :1]
    columns = torch.arange(width, device=device) - translation[:, 1:]
    covered = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    return source.flatten(1), covered[:, None]


def _gather(images: Tensor, source: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        flat = images.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        index = source[:, :, None].expand(-1, -1, channels)
        return flat.gather(1, index).view(batch, height, width, channels).permute(0, 3, 1, 2)
    index = source[:, None].expand(-1, channels, -1)
    return images.reshape(batch, channels, height * width).gather(2, index).view(images.shape)
