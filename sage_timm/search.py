"""The best of all translations: approximate scores of all by FFT, exact ones of the best."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_timm.exponential_sum import exponential_sum
from sage_timm.zeta import zeta

_TERMS = 5
_SPAN = 100.0  # smoothed saliency is rarely further below its largest value, where it matters
_COARSE = 32  # maps are pooled until their shorter side is below
_TRIED = 6  # local maxima of the coarse scores that are scored exactly
_KEPT = 3  # of them, to be followed to the next finer level ...
_KEPT_AFTER = 1  # ... and from there on


def best_of_all_translations(saliency0: Tensor, saliency1: Tensor) -> Tensor:
    """Finds, for each pair, the best of all ``(2H - 1)(2W - 1)`` translations of map 1.

    The objective is that of :func:`sage_timm.best_translation`. With ``a`` and ``b`` the two maps
    where they meet, it is ``sum(a) + sum(b) - 2 sum(a b / (a + b))``, but for zeta. A sum of
    exponentials for ``1 / (a + b)`` makes of the last a sum of products of a function of a and one
    of b, so that cross-correlations by FFT give it for all translations at once. That is done on
    maps pooled to fewer than 32 pixels; the best local maxima are then scored exactly, and
    followed through their neighbours up to full size. The result is never worse than not moving.

    Args:
        saliency0: Weighted maps of image 0, ``[B, 1, H, W]``, not negative.
        saliency1: Weighted maps of image 1, ``[B, 1, H, W]``, not negative.

    Returns:
        ``[B, 2]`` int64 on the maps' device: rows down in ``(-H, H)``, columns to the right in
        ``(-W, W)``, in pixels.
    """
    levels = [(saliency0, saliency1)]
    while min(levels[-1][0].shape[2:]) >= _COARSE:
        first, second = (F.avg_pool2d(maps, 2, ceil_mode=True) for maps in levels[-1])
        levels.append((first, second))
    translations = _local_maxima(_approximate_gains(*levels[-1]))
    if len(levels) > 1:
        translations, _ = _best(*levels[-1], translations, reach=0, keep=_KEPT)
        for first, second in reversed(levels[1:-1]):
            translations, _ = _best(first, second, 2 * translations, reach=1, keep=_KEPT_AFTER)
        translations = 2 * translations
    translations, gains = _best(saliency0, saliency1, translations, reach=1, keep=1)
    unmoved = torch.zeros_like(translations)
    _, gain_unmoved = _best(saliency0, saliency1, unmoved, reach=0, keep=1)
    return torch.where(gain_unmoved >= gains, 0, translations[:, 0])


def _approximate_gains(saliency0: Tensor, saliency1: Tensor) -> Tensor:
    """The objective less ``sum(a)``, for all translations at once: ``[B, 2H, 2W]``.

    The entry for a translation by t stands at t modulo ``(2H, 2W)``. Its error is at most the
    exponential sum's relative error times half the maps' total, plus what comes of pixels whose
    ``a + b`` is below the span.
    """
    a, b = saliency0, saliency1
    height, width = a.shape[2:]
    largest = (a.amax(dim=(2, 3), keepdim=True) + b.amax(dim=(2, 3), keepdim=True)).clamp_min(
        torch.finfo(a.dtype).tiny
    )
    approximation = exponential_sum(_TERMS, _SPAN)
    exponents, weights = (
        values.to(a).view(-1, 1, 1) / largest
        for values in (approximation.exponents, approximation.weights)
    )
    of_a = torch.cat((torch.ones_like(a), -2 * weights * a * torch.exp(-exponents * a)), dim=1)
    of_b = torch.cat((b, b * torch.exp(-exponents * b)), dim=1)
    shape = (2 * height, 2 * width)  # room for every translation without wrapping around
    spectrum = (torch.fft.rfft2(of_a, s=shape) * torch.fft.rfft2(of_b, s=shape).conj()).sum(dim=1)
    gains: Tensor = torch.fft.irfft2(spectrum, s=shape)
    return gains


def _local_maxima(gains: Tensor) -> Tensor:
    """The translations of the largest local maxima, ``[B, N, 2]``."""
    height, width = (size // 2 for size in gains.shape[1:])
    gains = gains.clone()
    gains[:, height] = gains[:, :, width] = -math.inf  # these push image 1 out
    around = gains
    for dim in (1, 2):
        around = torch.maximum(around, torch.maximum(around.roll(1, dim), around.roll(-1, dim)))
    peaks = torch.where(gains >= around, gains, -math.inf).flatten(1)
    index = peaks.topk(min(_TRIED, peaks.shape[1])).indices
    rows, columns = index // (2 * width), index % (2 * width)
    rows = torch.where(rows < height, rows, rows - 2 * height)
    columns = torch.where(columns < width, columns, columns - 2 * width)
    return torch.stack((rows, columns), dim=2)


def _best(
    saliency0: Tensor, saliency1: Tensor, translations: Tensor, reach: int, keep: int
) -> tuple[Tensor, Tensor]:
    """Scores translations ``[B, N, 2]`` and their neighbours exactly, and keeps the best.

    Returns:
        The translations ``[B, keep, 2]`` and their objective less ``sum(a)``, best first.
    """
    steps = torch.arange(-reach, reach + 1, device=translations.device)
    candidates = translations[:, :, None] + torch.cartesian_prod(steps, steps).view(-1, 2)
    within = [candidates[..., dim].abs() < size for dim, size in enumerate(saliency0.shape[2:])]
    gains = _gains_around(saliency0, saliency1, translations, reach)
    gains = torch.where(within[0] & within[1], gains, -math.inf).flatten(1)
    gains, order = gains.topk(min(keep, gains.shape[1]))
    return candidates.flatten(1, 2).gather(1, order[:, :, None].expand(-1, -1, 2)), gains


def _gains_around(saliency0: Tensor, saliency1: Tensor, translations: Tensor, reach: int) -> Tensor:
    """The exact objective less ``sum(a)`` at translations ``[B, N, 2]`` and their neighbours.

    With ``p = b + zeta``, a pixel's gain ``(1 - M)(b - a)`` is ``p (2 p - zeta) / (a + p) - p``.
    Where image 1 does not reach, p is 0, and so is the gain.

    Returns:
        ``[B, N, (2 reach + 1)^2]``, the neighbours in the order of their rows, then columns.
    """
    height, width = saliency0.shape[2:]
    offset = zeta(saliency0, saliency1)
    a = saliency0.clamp_min(torch.finfo(saliency0.dtype).tiny)
    rows, columns = (
        torch.arange(-reach, size + reach, device=a.device) - translations[:, :, dim, None]
        for dim, size in enumerate((height, width))
    )
    there = ((rows >= 0) & (rows < height))[..., None] & ((columns >= 0) & (columns < width))[
        :, :, None
    ]
    pairs = torch.arange(len(a), device=a.device).view(-1, 1, 1, 1)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = saliency1[:, 0][pairs, rows[..., None], columns[:, :, None]]
    p = torch.where(there, moved + offset, 0)
    numerator = p * (2 * p - offset)
    gains = []
    for down in range(2 * reach, -1, -1):  # moving down by one is looking one row further up
        for right in range(2 * reach, -1, -1):
            window = (..., slice(down, down + height), slice(right, right + width))
            part = p[window]
            gains.append((numerator[window] / (a + part)).sub_(part).sum(dim=(2, 3)))
    return torch.stack(gains, dim=2)
