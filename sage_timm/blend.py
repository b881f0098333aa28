"""Mixing of image pairs, pixel by pixel, of which the second is moved (SAGE, Eq. 2 and Eq. 3)."""

import torch
from torch import Tensor

_ZETA = 1e-6


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
    moved = translate(saliency1 + zeta(saliency0, saliency1), translation)
    # Where image 1 does not reach, this is 1 even if image 0 has no saliency there.
    covered = moved[:, 0] > 0
    own = saliency0.clamp_min(torch.finfo(saliency0.dtype).tiny)
    mask = own / (own + moved)
    weight = mask[:, 0].to(image0.dtype)
    mixed = moved_lines(image1, translation[:, None])[:, 0]
    # The difference of two images overflows before their mix does; float16 is computed in float32.
    half = 1.0 if image0.dtype == torch.float16 else 0.5
    for channel in range(mixed.shape[1]):  # a mask spread over channels-last pixels is slow to read
        own_pixels = image0[:, channel]
        blended = (mixed[:, channel] * half).lerp_(own_pixels * half, weight) / half
        # Not by a weight of 1: what lies there is no pixel of image 1, and may not be finite.
        mixed[:, channel] = torch.where(covered, blended, own_pixels)
    return mixed, mask, mask.mean(dim=(1, 2, 3))


def zeta(saliency0: Tensor, saliency1: Tensor) -> Tensor:
    """Computes the zeta of Eq. 2 for weighted maps ``[B, 1, H, W]``: ``[B, 1, 1, 1]``, above 0.

    It keeps the mask finite where neither image has saliency, and is relative to a pair's mean
    saliency, so that neither the scale of the maps nor the size of the images matters.
    """
    mean = (saliency0 + saliency1).mean(dim=(1, 2, 3), keepdim=True)
    return (_ZETA * mean).clamp_min(torch.finfo(mean.dtype).tiny)


def translate(images: Tensor, translation: Tensor) -> Tensor:
    """Moves each image by whole pixels, and fills with zeros (Eq. 3).

    Args:
        images: ``[B, C, H, W]``, contiguous or channels-last; finite.
        translation: ``[B, 2]`` int64: rows down in ``[-H, H]``, columns to the right in
            ``[-W, W]``, in pixels.

    Returns:
        ``[B, C, H, W]``, in the images' memory format.
    """
    translations = translation[:, None]
    return clear_uncovered(moved_lines(images, translations), translations)[:, 0]


def moved_lines(images: Tensor, translations: Tensor, border: int = 0) -> Tensor:
    """Moves images ``[B, C, H, W]`` by ``[B, N, 2]``: ``[B, N, C, H + 2 border, W + 2 border]``.

    Lines of pixels are copied whole from where they lie in memory, so that no index is needed for
    each pixel. Places that an image does not reach hold arbitrary pixels of the batch or zeros, see
    ``clear_uncovered``. The border shows what lies beyond each side of the frame.
    """
    batch, channels, height, width = images.shape
    pixels_last = images.is_contiguous(memory_format=torch.channels_last)
    pixels_last = pixels_last and not images.is_contiguous()
    planes, step = (1, channels) if pixels_last else (channels, 1)
    line = width * step
    margin = line + border * step
    memory = images.permute(0, 2, 3, 1) if pixels_last else images
    ends = images.new_zeros(margin)
    memory = torch.cat((ends, memory.reshape(-1), ends))
    device = images.device
    rows = torch.arange(-border, height + border, device=device) - translations[..., :1]
    plane = torch.arange(batch * planes, device=device).view(batch, 1, planes, 1)
    start = (plane * height + rows.clamp(0, height - 1)[:, :, None]) * line + margin
    start = start - (translations[..., 1] + border)[..., None, None] * step
    lines = memory.unfold(0, line + 2 * border * step, 1).index_select(0, start.flatten())
    shape = (height + 2 * border, width + 2 * border)
    if pixels_last:
        return lines.view(batch, -1, *shape, channels).permute(0, 1, 4, 2, 3)
    return lines.view(batch, -1, channels, *shape)


def clear_uncovered(moved: Tensor, translations: Tensor, border: int = 0) -> Tensor:
    """Sets to zero, in place, where in ``moved_lines``' result no image reaches."""
    for dim in (3, 4):
        size = moved.shape[dim] - 2 * border
        shift = translations[..., dim - 3]
        place = torch.arange(-border, size + border, device=moved.device) - shift[..., None]
        # Two factors take half as long as one mask of both.
        factor = ((place >= 0) & (place < size)).to(moved.dtype)
        moved *= factor.view(*factor.shape[:2], 1, *((-1, 1) if dim == 3 else (1, -1)))
    return moved
