"""Agreement of cheaper saliency and cheaper searches with the full method, before any training.

The full method takes the saliency of the images as they are, in the network's own type, and moves
image 1 by the best of all translations, found by trying each. A cheaper variant decides translation
and mask from its own maps; what it has decided is then judged by the full maps.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import sem
from timm.data.mixup import mixup_target
from timm.utils import random_seed
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef
from tqdm import tqdm

from harness.config import MethodConfig
from harness.device import made_with
from harness.figures import Table, figure, half_width, is_number
from harness.measures import Measurement
from harness.measures.pairs import FixedPairs, attached_sage, mix_pairs
from harness.run_config import RunConfig
from harness.store import Line, cached
from harness.train import Progress, load_model, no_progress, train
from sage_timm.blend import translate
from sage_timm.sage import Mix, Sage

MEASURES = ("rank_correlation", "objective_reached", "same_translation")
"""Means over the pairs: Spearman's correlation between an image's cheap and full map over its
pixels (0 where one is uniform, for that has no ranks); the mix's total saliency by the full maps,
relative to the full method's; the share of the pairs that are moved as by the full method."""
SALIENCY = ("saliency_size", "saliency_dtype", "saliency_fraction")
_FULL = {
    **{"search": "all", "saliency_size": None, "saliency_dtype": None, "saliency_fraction": 1.0},
    "update_ratio": 1.0,  # of the step after the mix, and not to be had with a saliency_size
}
_EACH = {"search": "random", "search_fraction": 1.0}  # tries each translation
_LAM = (0.05, 0.95)  # nearer to 0 or 1 there is hardly a mix


class _Batch(NamedTuple):
    """Pairs with their weights, as drawn, and what the full method makes of them."""

    images: Tensor
    targets: Tensor
    lam: Tensor
    full: Mix


def variants(
    config: RunConfig, sizes: Sequence[int], dtypes: Sequence[str], fractions: Sequence[float]
) -> list[MethodConfig]:
    """Lists what to measure: each search with full maps, then cheaper maps with search=all."""
    for size in sizes:
        if size >= config.data.image_size:
            raise ValueError(f"sizes must be below image_size={config.data.image_size}, got {size}")
    changes: list[dict[str, Any]] = [{"search": search} for search in ("all", "random", "none")]
    for name, values in zip(SALIENCY, (sizes, dtypes, fractions), strict=True):
        changes += [{name: value} for value in values]
    return list(dict.fromkeys(replace(config.mixing, **_FULL | change) for change in changes))


def measure_agreement(
    config: RunConfig,
    listed: Sequence[MethodConfig],
    out: Path,
    pairs: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> list[Line]:
    """Measures how well each variant agrees with the full method, and appends what is not there.

    Validation images are paired with a weight of ``lambda_max`` times a uniform draw from
    [0.05, 0.95], by the saliency of the run's network in training mode; it is trained first where
    ``out`` does not hold it. All variants see the same batches and weights.

    Returns:
        The variants' lines of ``agreement.jsonl``: ``MEASURES``, their ``standard_error`` over
        the batches, and the ``worst``, the least over the pairs.

    Raises:
        ValueError: If a setting does not fit, or there are too few images.
    """
    size = config.data.batch_size
    if pairs % size or pairs < 2 * size:
        raise ValueError(
            f"pairs must be a multiple of batch_size={size}, at least {2 * size}, got {pairs}"
        )
    fixed = FixedPairs(config, "validation", pairs, f"pairs={pairs}")
    lam = torch.from_numpy(fixed.random.uniform(*_LAM, pairs))
    train(config, out, device, progress=progress)
    model = load_model(config, out, fixed.classes, device).train()
    batches = cache(lambda: _batches(config, model, fixed, lam, device))
    identity = config.identity()

    def measure(variant: MethodConfig) -> Line:
        figures = _compare(attached_sage(config, model, variant), batches(), config.seed)
        return figures | made_with(device)

    lines = []
    for variant in tqdm(listed, desc="variants", disable=None):
        key = {name: getattr(variant, name) for name in ("search", "search_fraction", *SALIENCY)}
        key |= {"seed": config.seed, "pairs": pairs, "config": identity}
        lines.append(cached(out / "agreement.jsonl", key, partial(measure, variant)))
    return lines


def objective(maps: Tensor, lam: Tensor, mix: Mix) -> Tensor:
    """Sums the saliency ``[B]`` of mixes that other maps may have decided.

    It is that by ``maps [B, 1, H, W]``, each image's with a weight ``lam [B]`` in [0, 1].
    """
    lam = lam.to(maps).view(-1, 1, 1, 1)
    own, other = lam * maps, translate((1 - lam) * maps.flip(0), mix.translation)
    return torch.lerp(other, own, mix.mask).sum(dim=(1, 2, 3))


def _batches(
    config: RunConfig, model: nn.Module, fixed: FixedPairs, lam: Tensor, device: torch.device
) -> list[_Batch]:
    images, classes, _ = fixed.load(model, device)
    targets = mixup_target(classes, fixed.classes, smoothing=config.mixing.label_smoothing)
    sage = attached_sage(config, model, replace(config.mixing, **_FULL | _EACH))
    random_seed(config.seed)
    size = config.data.batch_size
    parts = list(zip(images.split(size), targets.split(size), lam.split(size), strict=True))
    return [
        _Batch(*part, mix_pairs(sage, *part))
        for part in tqdm(parts, desc="trying all translations", leave=False, disable=None)
    ]


def _compare(sage: Sage, batches: Sequence[_Batch], seed: int) -> Line:
    """Compares SAGE's mixes with those of the full method."""
    random_seed(seed)  # of dropout: the same for all variants
    figures = []
    for images, targets, lam, full in batches:
        mix = mix_pairs(sage, images, targets, lam)
        ranks = spearman_corrcoef(mix.maps.flatten(1).T, full.maps.flatten(1).T)
        own, best = (objective(full.maps, lam * sage.settings.lambda_max, m) for m in (mix, full))
        same = (mix.translation == full.translation).all(dim=1)
        figures.append(torch.stack([ranks.double(), (own / best).double(), same.double()]))
    each = torch.stack(figures).cpu().numpy()  # [batches, measures, pairs of a batch]
    means, worst = each.mean(axis=2), each.min(axis=(0, 2))
    return {
        **dict(zip(MEASURES, means.mean(axis=0).tolist(), strict=True)),
        "standard_error": dict(zip(MEASURES, sem(means, axis=0).tolist(), strict=True)),
        "worst": dict(zip(MEASURES[:2], worst.tolist()[:2], strict=True)),
    }


def table(lines: Sequence[Line]) -> Table:
    """Makes a table of one network's variants: means, their 95 % intervals, and the worst pair."""
    rows = []
    for line in lines:
        size, dtype, fraction = (line[name] for name in SALIENCY)
        maps = dtype or ("full" if fraction == 1 else f"{100 * fraction:g} % of the batch")
        share = f", {100 * line['search_fraction']:g} %" if line["search"] == "random" else ""
        row = [f"{size} pixels" if size else maps, line["search"] + share]
        batches = line["pairs"] // line["config"]["data"]["batch_size"]
        for name in MEASURES:
            error = line["standard_error"].get(name)
            half = half_width(error, batches) if is_number(error) else None
            row.append(f"{figure(line[name], 4)} ± {figure(half, 4)}")
            if name in line["worst"]:
                row.append(figure(line["worst"][name], 4))
        rows.append(row)
    header = ["saliency", "search", "rank correlation", "worst", "objective reached", "worst"]
    note = (
        "Cheaper saliency and cheaper searches beside the full method, on "
        f"{lines[0]['pairs']} pairs of validation images, by the saliency of a network trained "
        f"with {lines[0]['config'].get('method')}, seed {lines[0]['seed']}: mean ± 95 % interval "
        "of Student's t over the batches, and the worst pair. Rank correlation of the maps; total "
        "saliency of the mix by the full maps, relative to the full method's; share of the pairs "
        "that are moved alike."
    )
    return Table("Agreement with the full method", [*header, "same translation"], rows, note)


MEASUREMENT = Measurement(
    "agreement.jsonl",
    table,
    of="networks",
    key=("search", "search_fraction", *SALIENCY),
    by=("config", "seed", "pairs"),
    place=4,
    holds={
        **{"seed": int, "config": dict, "pairs": int, "search": str},
        **{"search_fraction": (int, float), "standard_error": dict, "worst": dict},
        **dict.fromkeys((*SALIENCY, *MEASURES), object),
    },
)
