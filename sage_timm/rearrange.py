"""Optimal rearrangement: the translation of image 1 that keeps most saliency (SAGE, Sec. 3.3)."""

import torch
from torch import Tensor

from sage_timm.search import best_of_all_translations
from sage_timm.zeta import zeta


def random_translations(
    height: int, width: int, fraction: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draws a random share of all translations in ``(-H, H) x (-W, W)``, without repetition.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        fraction: Share of the ``(2H - 1)(2W - 1)`` translations, in (0, 1]; at least one is drawn.
        generator: A CPU generator; torch's own if None.

    Returns:
        ``[N, 2]`` int64 on the CPU: rows down, columns to the right, in pixels.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1].

    Source: the authors' public implementation takes 1 % of them, the same for the whole batch.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    columns = 2 * width - 1
    total = (2 * height - 1) * columns
    drawn = torch.randperm(total, generator=generator)[: max(1, int(total * fraction))]
    rows = torch.div(drawn, columns, rounding_mode="floor") - (height - 1)
    return torch.stack((rows, drawn % columns - (width - 1)), dim=1)


def best_translation(
    saliency0: Tensor, saliency1: Tensor, translations: Tensor | None = None
) -> Tensor:
    """Finds, for each pair, the translation of map 1 with the largest total saliency of the mix.

    The objective is ``v(t) = sum(M * s0 + (1 - M) * T(s1, t))``, with the mask ``M`` of
    :func:`sage_timm.blend` and the zero-filling translation ``T`` of Eq. 3. The memory used is that
    of a few maps, however many translations there are. Without candidates, all translations are
    searched, see :func:`sage_timm.search.best_of_all_translations`.

    Args:
        saliency0: Weighted maps of image 0, ``[B, 1, H, W]``, not negative.
        saliency1: Weighted maps of image 1, ``[B, 1, H, W]``, not negative.
        translations: Candidates ``[N, 2]``, int64 on the CPU: rows down in ``(-H, H)``, columns to
            the right in ``(-W, W)``, in pixels. All if None.

    Returns:
        ``[B, 2]`` int64 on the maps' device. Of equally good candidates, the first.

    Raises:
        ValueError: If the shapes do not fit.

    Source: Ma et al., SAGE, BMVC 2022, Sec. 3.3, Eq. 3.
    """
    if saliency0.shape != saliency1.shape or saliency0.dim() != 4 or saliency0.shape[1] != 1:
        raise ValueError(
            "saliency0 and saliency1 must both be [B, 1, H, W], got "
            f"{tuple(saliency0.shape)} and {tuple(saliency1.shape)}"
        )
    if translations is None:
        return best_of_all_translations(saliency0, saliency1)
    if translations.dim() != 2 or translations.shape[1] != 2 or len(translations) == 0:
        raise ValueError(
            f"translations must be [N, 2] with N >= 1, got {tuple(translations.shape)}"
        )
    height, width = saliency0.shape[2:]
    if (translations.abs() >= torch.tensor([height, width])).any():
        raise ValueError(
            f"translations must lie in (-{height}, {height}) x (-{width}, {width}) for maps "
            f"{tuple(saliency0.shape)}"
        )
    offset = zeta(saliency0, saliency1).squeeze(1)
    map0, map1 = saliency0.squeeze(1), saliency1.squeeze(1)
    best = map0.new_full((len(map0),), -torch.inf)
    best_index = torch.zeros(len(map0), dtype=torch.int64, device=map0.device)
    for index, (rows, columns) in enumerate(translations.tolist()):
        a = _window(map0, rows, columns)
        b = _window(map1, -rows, -columns)
        # v(t) less the constant sum(s0): (1 - M)(b - a), where image 1 covers image 0.
        gain = ((b - a) * (b + offset) / (a + b + offset)).sum(dim=(1, 2))
        better = gain > best
        best = torch.where(better, gain, best)
        best_index = torch.where(better, index, best_index)
    return translations.to(map0.device, non_blocking=True)[best_index]


def _window(maps: Tensor, rows: int, columns: int) -> Tensor:
    height, width = maps.shape[1:]
    return maps[:, max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)]
