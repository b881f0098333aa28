"""Translations of images by whole pixels (SAGE, Eq. 3), each image by its own."""

import torch
from torch import Tensor


def translated(images: Tensor, translations: Tensor, border: int = 0) -> Tensor:
    """Moves each image by each of its translations; what is left free is not filled.

    Lines of pixels are copied whole from where they lie in memory, so that no index is needed for
    each pixel. Places that an image does not reach hold arbitrary pixels of the batch or zeros; see
    :func:`clear_uncovered`.

    Args:
        images: ``[B, C, H, W]``, contiguous or channels-last.
        translations: ``[B, N, 2]`` int64: rows down in ``[-H, H]``, columns to the right in
            ``[-W, W]``, in pixels.
        border: How far to look beyond each side of the frame, in pixels.

    Returns:
        ``[B, N, C, H + 2 border, W + 2 border]``, in the images' memory format.
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
    """Sets to zero, in place, the places of :func:`translated`'s result that no image reaches."""
    for dim in (3, 4):
        size = moved.shape[dim] - 2 * border
        shift = translations[..., dim - 3]
        place = torch.arange(-border, size + border, device=moved.device) - shift[..., None]
        # Two factors take half as long as one mask of both.
        factor = ((place >= 0) & (place < size)).to(moved.dtype)
        moved *= factor.view(*factor.shape[:2], 1, *((-1, 1) if dim == 3 else (1, -1)))
    return moved
