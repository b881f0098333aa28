"""The best of all translations: approximate scores of all by FFT, exact ones of the best."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_timm.exponential_sum import exponential_sum
from sage_timm.translate import clear_uncovered, translated
from sage_timm.zeta import zeta

_TERMS = 5
_SPAN = 100.0  # smoothed saliency is rarely further below its largest value, where it matters
_RECIPROCAL = exponential_sum(_TERMS, _SPAN)
_COARSE = 32  # maps are pooled until their shorter side is below
_TRIED = 6  # local maxima of the coarse scores that are scored exactly
_KEPT = 4  # of them, to be followed to the next finer level
_UNMOVED = [(0, 0)]
_NEIGHBOURS = [(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0)]


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
        levels.append((_pooled(levels[-1][0]), _pooled(levels[-1][1])))
    translations = _local_maxima(_approximate_gains(*levels[-1]))
    if len(levels) > 1:
        translations = 2 * _best(*levels.pop(), translations, _UNMOVED, keep=_KEPT)
    while levels:
        first, second = levels.pop()
        unmoved = torch.zeros_like(translations[:, :1])
        candidates = torch.cat((unmoved, translations), dim=1)
        best = _best(first, second, candidates, _UNMOVED, keep=1)
        best = _best(first, second, best, _NEIGHBOURS, keep=1)
        translations = 2 * best
    return best[:, 0]


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
    exponents, weights = (
        values.to(a.device, a.dtype, non_blocking=True).view(-1, 1, 1) / largest
        for values in (_RECIPROCAL.exponents, _RECIPROCAL.weights)
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
    saliency0: Tensor,
    saliency1: Tensor,
    translations: Tensor,
    offsets: list[tuple[int, int]],
    keep: int,
) -> Tensor:
    """The best of translations ``[B, N, 2]``, each with some offsets: ``[B, keep, 2]``."""
    steps = torch.tensor(offsets).to(translations.device, non_blocking=True)
    candidates = (translations[:, :, None] + steps).flatten(1, 2)
    within = [candidates[..., dim].abs() < size for dim, size in enumerate(saliency0.shape[2:])]
    gains = _gains(saliency0, saliency1, translations, offsets).flatten(1)
    gains = torch.where(within[0] & within[1], gains, -math.inf)
    order = gains.topk(min(keep, gains.shape[1])).indices
    return candidates.gather(1, order[:, :, None].expand(-1, -1, 2))


def _gains(
    saliency0: Tensor, saliency1: Tensor, translations: Tensor, offsets: list[tuple[int, int]]
) -> Tensor:
    """The exact objective less ``sum(a)`` at translations ``[B, N, 2]`` plus each of the offsets.

    With ``p = b + zeta``, a pixel's gain ``(1 - M)(b - a)`` is
    ``a (2 a + zeta) / (a + p) + p - (2 a + zeta)``, whose middle and last term need no division.
    Where image 1 does not reach, p is 0, and so is the gain.

    Returns:
        ``[B, N, len(offsets)]``.
    """
    height, width = saliency0.shape[2:]
    border = max(abs(step) for offset in offsets for step in offset)
    offset = zeta(saliency0, saliency1)
    a = saliency0.clamp_min(torch.finfo(saliency0.dtype).tiny)
    p = translated(saliency1 + offset, translations, border)
    p = clear_uncovered(p, translations, border)[:, :, 0]
    last = 2 * a + offset
    dividend = a * last
    sums = p.unfold(3, width, 1).sum(dim=4).unfold(2, height, 1).sum(dim=4)
    terms = p.new_empty(*p.shape[:2], height, width)
    gains = []
    for rows, columns in offsets:  # moving down by one is looking one row further up
        down, right = border - rows, border - columns
        torch.add(a, p[..., down : down + height, right : right + width], out=terms)
        torch.div(dividend, terms, out=terms)
        gains.append(terms.sum(dim=(2, 3)) + sums[..., down, right])
    return torch.stack(gains, dim=2) - last.sum(dim=(2, 3))[..., None]


def _pooled(maps: Tensor) -> Tensor:
    """Sums squares of two by two pixels, a last odd one twice: ``[B, 1, ceil(H/2), ceil(W/2)]``."""
    height, width = maps.shape[2:]
    if height % 2 or width % 2:
        maps = F.pad(maps, (0, width % 2, 0, height % 2), mode="replicate")
    maps = maps[:, :, ::2] + maps[:, :, 1::2]
    return maps[..., ::2] + maps[..., 1::2]
