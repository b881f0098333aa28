"""How well cheaper saliency and cheaper searches agree with the full method, before any training.

The full method takes the saliency of the images as they are, in the network's own type, and moves
image 1 by the best of all translations, found by trying each. A cheaper variant decides translation
and mask from its own maps; what it has decided is then judged by the full maps.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from scipy.stats import sem
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef
from tqdm import tqdm

from harness.config import RunConfig
from harness.data import Splits, load_splits
from harness.device import device_name
from harness.figures import figure, half_width, is_number
from harness.fixed_images import draw_indices, load_images
from harness.methods.base import MethodConfig
from harness.methods.sage import decide, mixing_alone
from harness.store import Line, append_result, read_results
from harness.train import Progress, load_model, no_progress, train
from sage_timm import blend, random_translations, saliency
from sage_timm.sage import Sage

MEASURES = ("rank_correlation", "objective_reached", "same_translation")
SALIENCY = ("saliency_size", "saliency_dtype", "saliency_fraction")
_FULL = {"search": "all", "saliency_size": None, "saliency_dtype": None, "saliency_fraction": 1.0}
_LAM = (0.05, 0.95)  # nearer to 0 or 1 there is hardly a mix


class _Batch(NamedTuple):
    """Pairs of image i and image B - 1 - i, and what the full method makes of them."""

    images: Tensor
    targets: Tensor
    lam: Tensor
    maps: Tensor
    translation: Tensor
    objective: Tensor


def variants(
    config: RunConfig, sizes: Sequence[int], dtypes: Sequence[str], fractions: Sequence[float]
) -> list[MethodConfig]:
    """Lists what to measure: each search with full maps, then cheaper maps with search=all.

    Raises:
        ValueError: If a setting is out of its range, or no image would be shrunk.
    """
    for size in sizes:
        if size >= config.data.image_size:
            raise ValueError(f"sizes must be below image_size={config.data.image_size}, got {size}")
    changes: list[dict[str, Any]] = [{"search": search} for search in ("all", "random", "none")]
    for name, values in zip(SALIENCY, (sizes, dtypes, fractions), strict=True):
        changes += [{name: value} for value in values]
    listed = [replace(config.mixing, **{**_FULL, **change}) for change in changes]
    for variant in listed:
        mixing_alone(variant)
    return list(dict.fromkeys(listed))


def measure_agreement(
    config: RunConfig,
    listed: Sequence[MethodConfig],
    out: Path,
    pairs: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Measures how well each variant agrees with the full method, and appends what is not there.

    Each image of a batch of validation images is paired with its reverse in the batch, with a
    weight of ``lambda_max`` times a uniform draw from [0.05, 0.95], and the saliency of the run's
    network in training mode. All variants see the same batches and weights.

    Args:
        config: The run; its network is trained first where ``out`` does not hold it.
        listed: What to measure, see :func:`variants`.
        out: The run's folder; the lines go to its ``agreement.jsonl``.
        pairs: The number of pairs, a multiple of the batch size.
        device: Where to compute.
        progress: Is told how many epochs of the run are done.

    Returns:
        The variants' lines, with means over the pairs: ``rank_correlation``, Spearman's between an
        image's cheap and full map over its pixels (0 where one is uniform, for that has no ranks);
        ``objective_reached``, the mix's total saliency by the full maps, relative to the full
        method's; ``same_translation``, the share of pairs that are moved as by the full method.
        ``standard_error`` holds theirs, over the batches, ``worst`` the least over the pairs.

    Raises:
        ValueError: If a setting does not fit, or there are too few images.
    """
    _check_pairs(pairs, config.data.batch_size)
    splits = load_splits(config.data, config.seed)
    random = np.random.default_rng(config.seed)
    chosen = draw_indices(config.data, splits.validation, pairs, f"pairs={pairs}", random)
    weights = config.mixing.lambda_max * torch.from_numpy(random.uniform(*_LAM, pairs))
    train(config, out, device, progress=progress)
    model = load_model(config, out, len(splits.classes), device).train()
    path = out / "agreement.jsonl"
    there, identity = read_results(path), config.identity()
    batches: list[_Batch] = []
    lines = []
    for variant in tqdm(listed, desc="variants", disable=None):
        key = {name: getattr(variant, name) for name in ("search", "search_fraction", *SALIENCY)}
        key |= {"seed": config.seed, "pairs": pairs, "config": identity}
        line = next((line for line in there if key.items() <= line.items()), None)
        if line is None:
            batches = batches or _batches(config, model, splits, chosen, weights, device)
            sage = mixing_alone(variant, config.seed)
            sage.attach(model, SoftTargetCrossEntropy())
            line = {**key, **_measure(sage, batches, config.seed), "device": device_name(device)}
            line |= {"torch": torch.__version__, "timm": timm.__version__}
            append_result(path, line)
        lines.append(line)
    return lines


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Makes the header and rows of a table: means, their 95 % intervals, and the worst pair."""
    header = ["saliency", "search", "rank correlation", "worst", "objective reached", "worst"]
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
    return [*header, "same translation"], rows


def objective(maps: Tensor, lam: Tensor, decision: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Sums the saliency by ``maps`` of each mix, ``[B]``, as other maps may have decided it."""
    mixed, _, _ = blend(*_weighted(maps, lam), *decision)
    return mixed.sum(dim=(1, 2, 3))


def _check_pairs(pairs: int, size: int) -> None:
    if pairs % size or pairs < 2 * size:
        raise ValueError(
            f"pairs must be a multiple of batch_size={size}, at least {2 * size}, got {pairs}"
        )


def _weighted(maps: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    lam = lam.to(maps).view(-1, 1, 1, 1)
    return lam * maps, (1 - lam) * maps.flip(0)


def _batches(
    config: RunConfig,
    model: nn.Module,
    splits: Splits,
    chosen: Sequence[int],
    weights: Tensor,
    device: torch.device,
) -> list[_Batch]:
    data_config = resolve_data_config({}, model=model)
    images, classes = load_images(config.data, splits.validation, chosen, data_config, device)
    targets = mixup_target(classes, len(splits.classes), smoothing=config.mixing.label_smoothing)
    every = random_translations(*images.shape[2:], fraction=1.0)
    size = config.data.batch_size
    parts = zip(images.split(size), targets.split(size), weights.split(size), strict=True)
    random_seed(config.seed)
    batches = []
    for x, y, lam in tqdm(list(parts), desc="trying all translations", leave=False, disable=None):
        maps = saliency(model, x, y, SoftTargetCrossEntropy())
        best = decide(maps, lam, every)
        batches.append(_Batch(x, y, lam, maps, best[2], objective(maps, lam, best)))
    return batches


def _measure(sage: Sage, batches: list[_Batch], seed: int) -> dict[str, Any]:
    random_seed(seed)  # of dropout: the same for all variants
    figures = []
    for batch in batches:
        maps = sage.saliency(batch.images, batch.targets)
        decision = decide(maps, batch.lam, sage.draw_translations(*maps.shape[2:]))
        ranks = spearman_corrcoef(maps.flatten(1).T, batch.maps.flatten(1).T)
        reached = objective(batch.maps, batch.lam, decision) / batch.objective
        same = (decision[2] == batch.translation).all(dim=1)
        figures.append(torch.stack([ranks.double(), reached.double(), same.double()]))
    each = torch.stack(figures).cpu().numpy()  # [batches, measures, pairs of a batch]
    means, worst = each.mean(axis=2), each.min(axis=(0, 2))
    return {
        **dict(zip(MEASURES, means.mean(axis=0).tolist(), strict=True)),
        "standard_error": dict(zip(MEASURES, sem(means, axis=0).tolist(), strict=True)),
        "worst": dict(zip(MEASURES[:2], worst.tolist()[:2], strict=True)),
    }
