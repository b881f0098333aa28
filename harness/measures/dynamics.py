"""What SAGE's mixes are over the course of a training: saliency, shifts, masks and label weights.

After some of a run's epochs, its network mixes a fixed set of its own training images with fixed
weights, as SAGE would in the next step. Networks of any method can be followed: those trained
otherwise show what SAGE would do with their saliency.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef

from harness.config import RunConfig
from harness.data import Splits, load_splits
from harness.figures import figure, is_number
from harness.fixed_images import draw_indices, load_images
from harness.methods.base import evaluation_mode
from harness.methods.sage import decide, mixing_alone
from harness.pictures import mix_columns, save_grid
from harness.store import Line, append_result, read_results
from harness.train import Progress, no_progress, train
from sage_timm import blend

MEASURES = (
    "clean_loss",
    "mixed_loss",
    "label_entropy",
    "label_weight",
    "lesser_weight",
    "nearly_clean",
    "shift",
    "uncovered",
    "effective_area",
    "mirrored",
    "on_object",
)
_NEARLY_CLEAN = 0.1  # the lesser label weight of a mix that is next to one of its images
_PAIRS_DRAWN = 5


class _Draw(NamedTuple):
    """Which training images are mixed, and with which weights ``[N]``."""

    splits: Splits
    indices: list[int]
    lam: Tensor


class _Images(NamedTuple):
    """Training images in batches; each is mixed with its reverse in its batch."""

    images: list[Tensor]
    targets: list[Tensor]
    lam: list[Tensor]
    masks: list[Tensor | None]
    """Each image's object ``[B, 1, H, W]`` in [0, 1], where the data set knows it."""
    data_config: dict[str, Any]


def follow(
    config: RunConfig,
    epochs: Sequence[int],
    out: Path,
    images: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Trains a run, and measures what SAGE makes of its images after some of its epochs.

    Some of the mixes are drawn, too, as ``OUT/mixes-METHOD-seedN-epochE.png``.

    Args:
        config: The run; SAGE has its mixing settings, whatever method it is trained with.
        epochs: Epochs after which to measure, from 1 on.
        out: The run's folder; the lines go to its ``dynamics.jsonl``, one an epoch.
        images: The number of training images, a multiple of the batch size.
        device: Where to compute.
        progress: Is told how many epochs of the run are done.

    Returns:
        The lines, with means over the images:

        - ``clean_loss``, ``mixed_loss``: cross-entropy of the images and of their mixes in nats, in
          evaluation mode; ``label_entropy``, that of the mixes' targets, which is the least that
          ``mixed_loss`` can be.
        - ``label_weight``: gamma, that of image 0 (Eq. 2); ``lesser_weight``, the lesser of both
          images'; ``nearly_clean``, the share of the mixes where that is below 0.1.
        - ``shift``: length of the translation, in sides of the image; ``uncovered``, the share of
          the pixels that image 1 does not reach.
        - ``effective_area``: exp(entropy) of a saliency map, as a share of its pixels: 1 if it is
          uniform.
        - ``mirrored``: Spearman's rank correlation, over the pixels, of an image's map and that of
          its mirror image, mirrored back: 1 if the map follows the image, 0 if it is noise.
        - ``on_object``: the saliency per pixel on the object, relative to the whole image's; only
          of the glyphs, whose objects are known.

    Raises:
        ValueError: If a setting does not fit, or ``out`` holds the run already without its lines.
    """
    _check(config, epochs, images)
    path = out / "dynamics.jsonl"
    key = {"method": config.method, "seed": config.seed, "images": images}
    key["config"] = config.identity()
    found = {line["epoch"]: line for line in read_results(path) if key.items() <= line.items()}
    if not set(epochs) <= found.keys():
        draw = _draw(config, images)
        fixed: list[_Images] = []

        def after_epoch(epoch: int, model: nn.Module) -> None:
            if epoch not in epochs or epoch in found:
                return
            if not fixed:
                fixed.append(_load(config, model, draw, device))
            picture = out / f"mixes-{config.method}-seed{config.seed}-epoch{epoch}.png"
            found[epoch] = {**key, "epoch": epoch, **_measure(config, model, fixed[0], picture)}
            append_result(path, found[epoch])

        train(config, out, device, after_epoch=after_epoch, progress=progress)
    missing = set(epochs) - found.keys()
    if missing:
        raise ValueError(
            f"out={str(out)!r} holds {config.method}, seed {config.seed}, trained past epoch "
            f"{min(missing)} without a line in {path.name}: name another folder"
        )
    return [found[epoch] for epoch in sorted(set(epochs))]


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Makes the header and rows of a table: a row for each method and epoch, means over seeds.

    Networks that have diverged are named, and are in no mean.
    """
    measures = [name for name in MEASURES if name in lines[0]]
    by_row: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        by_row.setdefault((line["method"], line["epoch"]), []).append(line)
    rows = []
    for (method, epoch), of_row in by_row.items():
        sound = [line for line in of_row if all(is_number(line[name]) for name in measures)]
        seeds = [str(line["seed"]) for line in sound]
        seeds += [f"diverged {line['seed']}" for line in of_row if line not in sound]
        means = (mean(line[name] for line in sound) if sound else None for name in measures)
        rows.append([method, " ".join(seeds), str(epoch), *(figure(value, 3) for value in means)])
    return ["method", "seeds", "epoch", *(name.replace("_", " ") for name in measures)], rows


def _check(config: RunConfig, epochs: Sequence[int], images: int) -> None:
    last = config.schedule.epochs
    if not epochs or not all(1 <= epoch <= last for epoch in epochs):
        raise ValueError(f"measured must be epochs in [1, {last}], got {tuple(epochs)}")
    size = config.data.batch_size
    if images < size or images % size:
        raise ValueError(f"images must be a multiple of batch_size={size}, got {images}")


def _draw(config: RunConfig, count: int) -> _Draw:
    splits = load_splits(config.data, config.seed)
    random = np.random.default_rng(config.seed)
    indices = draw_indices(config.data, splits.train, count, f"images={count}", random)
    alpha = config.mixing.alpha_or(1.0)
    return _Draw(splits, indices, torch.from_numpy(random.beta(alpha, alpha, count)))


def _load(config: RunConfig, model: nn.Module, draw: _Draw, device: torch.device) -> _Images:
    splits, indices, lam = draw
    dataset: Any = splits.train
    data_config = resolve_data_config({}, model=model)
    images, classes = load_images(config.data, dataset, indices, data_config, device)
    smoothing = config.mixing.label_smoothing
    targets = mixup_target(classes, len(splits.classes), smoothing=smoothing)
    size = config.data.batch_size
    masks: list[Tensor | None] = [None] * (len(indices) // size)
    if hasattr(dataset, "masks"):
        masks = [*(torch.from_numpy(dataset.masks[indices]).to(device)[:, None] / 255).split(size)]
    return _Images(
        list(images.split(size)), list(targets.split(size)), list(lam.to(device).split(size)),
        masks, data_config,
    )  # fmt: skip


def _measure(
    config: RunConfig, model: nn.Module, fixed: _Images, picture: Path
) -> dict[str, float]:
    """Measures the mixes of all batches, and draws some of the first one's."""
    random_seed(config.seed)  # of dropout and of the random translations
    mixing = config.mixing
    sage = mixing_alone(mixing, config.seed)
    sage.attach(model, SoftTargetCrossEntropy())
    model.train()
    figures: dict[str, list[Tensor]] = {}
    for number, (x, y, lam, mask_of_object) in enumerate(zip(*fixed[:4], strict=True)):
        maps = sage.saliency(x, y)
        translations = sage.draw_translations(*x.shape[2:])
        own, other, translation = decide(maps, lam * mixing.lambda_max, translations)
        mixed, mask, weight = blend(x, x.flip(0), own, other, translation)
        targets = weight[:, None] * y + (1 - weight[:, None]) * y.flip(0)
        mirrored = sage.saliency(x.flip(3), y).flip(3)
        measured = {
            **_losses(model, x, y, mixed, targets),
            **_of_masks(weight, translation, x.shape[2:]),
            **_of_maps(maps, mirrored, mask_of_object),
        }
        for name, values in measured.items():
            figures.setdefault(name, []).append(values.double().cpu())
        if number == 0:
            save_grid(mix_columns(x, maps, mask, mixed, fixed.data_config, _PAIRS_DRAWN), picture)
    return {name: float(torch.cat(values).mean()) for name, values in figures.items()}


@torch.no_grad()
def _losses(
    model: nn.Module, images: Tensor, targets: Tensor, mixed: Tensor, mixed_targets: Tensor
) -> dict[str, Tensor]:
    with evaluation_mode(model):
        clean, mixture = (model(x).float().log_softmax(dim=1) for x in (images, mixed))
    return {
        "clean_loss": -(targets * clean).sum(dim=1),
        "mixed_loss": -(mixed_targets * mixture).sum(dim=1),
        "label_entropy": torch.special.entr(mixed_targets).sum(dim=1),
    }


def _of_masks(weight: Tensor, translation: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    lesser = torch.minimum(weight, 1 - weight)
    sides = translation.abs() / torch.tensor(size, device=translation.device)
    return {
        "label_weight": weight,
        "lesser_weight": lesser,
        "nearly_clean": (lesser < _NEARLY_CLEAN),
        "shift": torch.linalg.vector_norm(sides, dim=1),
        "uncovered": 1 - (1 - sides).prod(dim=1),
    }


def _of_maps(maps: Tensor, mirrored: Tensor, mask_of_object: Tensor | None) -> dict[str, Tensor]:
    flat = maps.flatten(1).double()
    measures = {
        "effective_area": torch.special.entr(flat).sum(dim=1).exp() / flat.shape[1],
        "mirrored": spearman_corrcoef(flat.T, mirrored.flatten(1).double().T),
    }
    if mask_of_object is not None:
        inside = mask_of_object.flatten(1)
        measures["on_object"] = (flat * inside).sum(dim=1) / inside.mean(dim=1)
    return measures
