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
from scipy.stats import t as student
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import Tensor
from torch.utils.data import IterableDataset
from torchmetrics.functional import spearman_corrcoef
from tqdm import tqdm

from harness.config import RunConfig
from harness.data import Splits, Subset, load_splits, make_loader
from harness.methods.base import MethodConfig
from harness.results import append_result, read_results
from harness.train import device_name, load_model, train
from sage_timm import best_translation, blend, random_translations
from sage_timm.sage import Sage

MEASURES = ("rank_correlation", "objective_reached", "same_translation")
_SETTINGS = (
    "search",
    "search_fraction",
    "saliency_size",
    "saliency_dtype",
    "saliency_fraction",
)
_LAM = (0.05, 0.95)  # nearer to 0 or 1 there is hardly a mix
_MOST_BATCHES = 100_000
_CONFIDENCE = 0.95


class Decision(NamedTuple):
    """What decides a mix: both images' weighted maps ``[B, 1, H, W]``, translations ``[B, 2]``."""

    saliency0: Tensor
    saliency1: Tensor
    translation: Tensor


class _Batch(NamedTuple):
    """Pairs of image i and image B - 1 - i, and what the full method makes of them."""

    seed: int
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

    Args:
        config: The run, whose saliency settings and search are replaced.
        sizes: Pixels of the shorter side to which images are shrunk for their saliency.
        dtypes: Types in which autocast computes the saliency.
        fractions: Shares of the batch whose saliency is computed.

    Raises:
        ValueError: If a setting is out of its range, or no image would be shrunk.
    """
    for size in sizes:
        if size >= config.data.image_size:
            raise ValueError(f"sizes must be below image_size={config.data.image_size}, got {size}")
    full = replace(
        config.mixing,
        update_ratio=1.0,  # concerns the step after the mix
        search="all",
        saliency_size=None,
        saliency_dtype=None,
        saliency_fraction=1.0,
    )
    listed = [full, replace(full, search="random"), replace(full, search="none")]
    listed += [replace(full, saliency_size=size) for size in sizes]
    listed += [replace(full, saliency_dtype=dtype) for dtype in dtypes]
    listed += [replace(full, saliency_fraction=fraction) for fraction in fractions]
    for variant in listed:
        _sage(variant)
    return list(dict.fromkeys(listed))


def measure_agreement(
    config: RunConfig, listed: Sequence[MethodConfig], out: Path, pairs: int, device: torch.device
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

    Returns:
        The variants' lines, with means over the pairs: ``rank_correlation``, Spearman's between an
        image's cheap and full map over its pixels (0 where one is uniform, for that has no ranks);
        ``objective_reached``, the mix's total saliency by the full maps, relative to the full
        method's; ``same_translation``, the share of pairs that are moved as by the full method.
        ``standard_error`` holds theirs, over the batches, ``worst`` the least over the pairs.

    Raises:
        ValueError: If a setting does not fit, or there are too few images.
    """
    splits = _checked_splits(config, pairs)
    train(config, out, device)
    path = out / "agreement.jsonl"
    there, identity = read_results(path), config.identity()
    batches: list[_Batch] = []
    lines = []
    for variant in tqdm(listed, desc="variants", disable=None):
        key = {name: getattr(variant, name) for name in _SETTINGS}
        key |= {"seed": config.seed, "pairs": pairs, "config": identity}
        line = next((line for line in there if key.items() <= line.items()), None)
        if line is None:
            model = load_model(config, out, len(splits.classes), device).train()
            if not batches:
                full = _sage(variants(config, (), (), ())[0])
                full.attach(model, SoftTargetCrossEntropy())
                batches = _batches(config, full, splits, pairs, device)
            sage = _sage(variant, config.seed)
            sage.attach(model, SoftTargetCrossEntropy())
            line = {**key, **_measure(sage, batches), "device": device_name(device)}
            line |= {"torch": torch.__version__, "timm": timm.__version__}
            append_result(path, line)
        lines.append(line)
    return lines


def decide(maps: Tensor, lam: Tensor, translations: Tensor | None) -> Decision:
    """Decides, as SAGE does, how to mix each image of a batch with its reverse.

    Args:
        maps: Saliency maps ``[B, 1, H, W]``, each summing to 1.
        lam: The weight of each pair's image 0, ``[B]`` in (0, 1).
        translations: Candidates ``[N, 2]``; all, by FFT, if None.
    """
    # As Sage.mix: a pair of which one has a uniform map gets plain mixup.
    uniform = maps.amax(dim=(1, 2, 3)) == maps.amin(dim=(1, 2, 3))
    plain = uniform | uniform.flip(0)
    level = torch.where(plain.view(-1, 1, 1, 1), maps.mean(dim=(2, 3), keepdim=True), maps)
    saliency0, saliency1 = _weighted(level, lam)
    translation = best_translation(saliency0, saliency1, translations)
    return Decision(saliency0, saliency1, translation.masked_fill(plain[:, None], 0))


def objective(maps: Tensor, lam: Tensor, decision: Decision) -> Tensor:
    """Sums the saliency ``maps`` of each mix, ``[B]``: ``sum(M * s0 + (1 - M) * T(s1, t))``.

    The mask ``M`` and the translation t are those of the decision, which other maps may have made.
    """
    mixed, _, _ = blend(*_weighted(maps, lam), *decision)
    return mixed.sum(dim=(1, 2, 3))


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Computes Spearman's correlation over the pixels of each map ``[B, 1, H, W]``: ``[B]``."""
    return spearman_corrcoef(maps.flatten(1).T, others.flatten(1).T)


def table(lines: list[dict[str, Any]]) -> str:
    """Makes a Markdown table of the lines: means, their 95 % intervals, and the worst pair."""
    header = ["saliency", "search", "rank correlation", "worst", "objective reached", "worst"]
    rows = [[*header, "same translation"], ["---"] * 7]
    for line in lines:
        batches = line["pairs"] // line["config"]["data"]["batch_size"]
        quantile = student.ppf((1 + _CONFIDENCE) / 2, batches - 1)
        cells = []
        for name in MEASURES:
            half = quantile * line["standard_error"][name]
            cells += [f"{line[name]:.4f} ± {half:.4f}", f"{line['worst'][name]:.4f}"]
        rows.append([_saliency_name(line), _search_name(line), *cells[:-1]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _saliency_name(line: dict[str, Any]) -> str:
    if line["saliency_size"] is not None:
        return f"{line['saliency_size']} pixels"
    if line["saliency_dtype"] is not None:
        return str(line["saliency_dtype"])
    share = line["saliency_fraction"]
    return "full" if share == 1 else f"of {100 * share:g} % of the batch"


def _search_name(line: dict[str, Any]) -> str:
    share = f" {100 * line['search_fraction']:g} %" if line["search"] == "random" else ""
    return line["search"] + share


def _checked_splits(config: RunConfig, pairs: int) -> Splits:
    size = config.data.batch_size
    if pairs % size or not 2 * size <= pairs <= _MOST_BATCHES * size:
        raise ValueError(
            f"pairs must be a multiple of batch_size={size}, at least {2 * size}, got {pairs}"
        )
    splits = load_splits(config.data, config.seed)
    if isinstance(splits.validation, IterableDataset):
        raise ValueError(f"dataset={config.data.dataset!r} is a stream: no images can be picked")
    if pairs > len(splits.validation):
        raise ValueError(
            f"pairs={pairs} takes {pairs} images, the split has {len(splits.validation)}"
        )
    return splits


def _sage(mixing: MethodConfig, seed: int = 0) -> Sage:
    dtype = mixing.saliency_dtype
    return Sage(
        lambda_max=mixing.lambda_max,
        update_ratio=mixing.update_ratio,
        saliency_size=mixing.saliency_size,
        saliency_dtype=None if dtype is None else getattr(torch, dtype, dtype),
        saliency_fraction=mixing.saliency_fraction,
        search=mixing.search,
        search_fraction=mixing.search_fraction,
        generator=torch.Generator().manual_seed(seed),
    )


def _weighted(maps: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    lam = lam.to(maps).view(-1, 1, 1, 1)
    return lam * maps, (1 - lam) * maps.flip(0)


def _batches(
    config: RunConfig, full: Sage, splits: Splits, pairs: int, device: torch.device
) -> list[_Batch]:
    random = np.random.default_rng(config.seed)
    chosen = random.choice(len(splits.validation), pairs, replace=False)
    weights = config.mixing.lambda_max * torch.from_numpy(random.uniform(*_LAM, pairs))
    data_config = resolve_data_config({}, model=full.model)
    subset = Subset(splits.validation, chosen.tolist())
    loader = make_loader(config.data, subset, data_config, device, hflip=None)
    images, classes = (torch.cat(parts) for parts in zip(*loader, strict=True))
    targets = mixup_target(classes, len(splits.classes), smoothing=config.mixing.label_smoothing)
    size = config.data.batch_size
    every = random_translations(*images.shape[2:], fraction=1.0)
    split = zip(
        images.split(size), targets.split(size), weights.to(device).split(size), strict=True
    )
    batches = []
    for x, y, lam in tqdm(list(split), desc="trying all translations", leave=False, disable=None):
        seed = config.seed * _MOST_BATCHES + len(batches)
        random_seed(seed)
        maps = full.maps(x, y)
        best = decide(maps, lam, every)
        batches.append(_Batch(seed, x, y, lam, maps, best.translation, objective(maps, lam, best)))
    return batches


def _measure(sage: Sage, batches: list[_Batch]) -> dict[str, Any]:
    figures = []
    for batch in batches:
        random_seed(batch.seed)  # of dropout, the same for all variants
        maps = sage.maps(batch.images, batch.targets)
        candidates = sage.draw_translations(*maps.shape[2:])
        decision = decide(maps, batch.lam, candidates)
        reached = objective(batch.maps, batch.lam, decision) / batch.objective
        same = (decision.translation == batch.translation).all(dim=1)
        values = (rank_correlation(maps, batch.maps), reached, same)
        figures.append(torch.stack([value.double() for value in values]))
    each = torch.stack(figures).cpu().numpy()  # [batches, measures, pairs in a batch]
    worst, means = each.min(axis=(0, 2)), each.mean(axis=2)
    return {
        **dict(zip(MEASURES, means.mean(axis=0).tolist(), strict=True)),
        "standard_error": dict(zip(MEASURES, sem(means, axis=0).tolist(), strict=True)),
        "worst": dict(zip(MEASURES, worst.tolist(), strict=True)),
    }
