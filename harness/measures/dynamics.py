"""SAGE's mixes over the course of a training: saliency, shifts, masks and label weights.

After some of a run's epochs, its network mixes a fixed set of its own training images with fixed
weights, as SAGE would in the next step. Networks of any method can be followed: those trained
otherwise show what SAGE would do with their saliency.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from timm.data.mixup import mixup_target
from timm.utils import random_seed
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef

from harness.figures import Table, figure, is_number
from harness.measures import Measurement
from harness.measures.pairs import FixedPairs, attached_sage, mix_pairs
from harness.methods.base import evaluation_mode
from harness.pictures import mix_columns, save_grid
from harness.run_config import RunConfig
from harness.store import RUN, Line, cached, find
from harness.train import Progress, no_progress, train

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
"""The figures of a line.

- ``clean_loss``, ``mixed_loss``: cross-entropy of the images and of their mixes in nats, in
  evaluation mode; ``label_entropy``: that of the mixes' targets, which is the least that
  ``mixed_loss`` can be.
- ``label_weight``: gamma, that of image 0 (Eq. 2); ``lesser_weight``: the lesser of both images';
  ``nearly_clean``: the share of the mixes where that is below 0.1.
- ``shift``: length of the translation, in sides of the image; ``uncovered``: the share of the
  pixels that image 1 does not reach.
- ``effective_area``: exp(entropy) of a saliency map, as a share of its pixels: 1 if it is uniform.
- ``mirrored``: Spearman's rank correlation, over the pixels, of an image's map and that of its
  mirror image, mirrored back: 1 if the map follows the image, 0 if it is noise.
- ``on_object``: the saliency per pixel on the object, relative to the whole image's; only of the
  glyphs, whose objects are known.
"""
_NEARLY_CLEAN = 0.1  # the lesser label weight of a mix that is next to one of its images
_PAIRS_SHOWN = 5


def follow(
    config: RunConfig,
    epochs: Sequence[int],
    out: Path,
    images: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> list[Line]:
    """Trains a run, and measures what SAGE makes of its images after some of its epochs.

    The network trains by the run's method, and mixes as SAGE would with the run's settings. The
    lines go to ``dynamics.jsonl``, one an epoch with ``MEASURES``, means over the images; some
    of the mixes are saved as a picture, ``mixes-METHOD-seedN-epochE.png``.

    Raises:
        ValueError: If a setting does not fit, or ``out`` holds the run already without its lines.
    """
    last, size = config.schedule.epochs, config.data.batch_size
    if not epochs or not all(1 <= epoch <= last for epoch in epochs):
        raise ValueError(f"measured must be epochs in [1, {last}], got {tuple(epochs)}")
    if images < size or images % size:
        raise ValueError(f"images must be a multiple of batch_size={size}, got {images}")
    key = {"method": config.method, "seed": config.seed, "images": images}
    key["config"] = config.identity()
    path = out / "dynamics.jsonl"
    asked = sorted(set(epochs))

    def found() -> dict[int, Line | None]:
        return {epoch: find(path, {**key, "epoch": epoch}) for epoch in asked}

    lines = found()
    if all(lines.values()):
        return [*lines.values()]
    fixed = FixedPairs(config, "train", images, f"images={images}")
    load = cache(fixed.load)  # once, not after each epoch
    alpha = config.mixing.alpha_or(1.0)
    lam = torch.from_numpy(fixed.random.beta(alpha, alpha, images))

    def after_epoch(epoch: int, model: nn.Module) -> None:
        if epoch in epochs:
            picture = out / f"mixes-{config.method}-seed{config.seed}-epoch{epoch}.png"

            def measure() -> Line:
                return _measure_mixes(config, model, fixed, load(model, device), lam, picture)

            cached(path, {**key, "epoch": epoch}, measure)

    train(config, out, device, after_epoch=after_epoch, progress=progress)
    lines = found()
    for epoch, line in lines.items():
        if line is None:
            raise ValueError(
                f"out={str(out)!r} holds {config.method}, seed {config.seed}, trained past epoch "
                f"{epoch} without a line in {path.name}: name another folder"
            )
    return [*lines.values()]


def _measure_mixes(
    config: RunConfig,
    model: nn.Module,
    fixed: FixedPairs,
    loaded: tuple[Tensor, Tensor, dict[str, Any]],
    lam: Tensor,
    picture: Path,
) -> Line:
    """Measures the mixes of all batches, and saves some of the first one's as a picture."""
    images, classes, data_config = loaded
    smoothing = config.mixing.label_smoothing
    tensors = [images, mixup_target(classes, fixed.classes, smoothing=smoothing), lam]
    if hasattr(fixed.dataset, "masks"):  # each image's object in [0, 1]
        tensors.append(torch.from_numpy(fixed.dataset.masks[fixed.indices]).to(images.device) / 255)
    random_seed(config.seed)  # of dropout
    sage = attached_sage(config, model)
    model.train()
    figures: dict[str, list[Tensor]] = {}
    batches = zip(*(tensor.split(config.data.batch_size) for tensor in tensors), strict=True)
    for number, (x, y, weights, *objects) in enumerate(batches):
        mix = mix_pairs(sage, x, y, weights)
        mirrored = sage.saliency(x.flip(3), y).flip(3)
        own = mix.label_weight[:, None]
        measured = {
            **_of_losses(model, x, y, mix.images, own * y + (1 - own) * y.flip(0)),
            **_of_masks(mix.label_weight, mix.translation, x.shape[2:]),
            **_of_maps(mix.maps, mirrored, *objects),
        }
        for name, values in measured.items():
            figures.setdefault(name, []).append(values.double().cpu())
        if number == 0:
            save_grid(mix_columns(x, mix, data_config, _PAIRS_SHOWN), picture)
    return {name: float(torch.cat(values).mean()) for name, values in figures.items()}


@torch.no_grad()
def _of_losses(
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


def _of_maps(maps: Tensor, mirrored: Tensor, objects: Tensor | None = None) -> dict[str, Tensor]:
    flat = maps.flatten(1).double()
    measures = {
        "effective_area": torch.special.entr(flat).sum(dim=1).exp() / flat.shape[1],
        "mirrored": spearman_corrcoef(flat.T, mirrored.flatten(1).double().T),
    }
    if objects is not None:
        inside = objects.flatten(1)
        measures["on_object"] = (flat * inside).sum(dim=1) / inside.mean(dim=1)
    return measures


def table(lines: Sequence[Line]) -> Table:
    """Makes a table with a row for each method and epoch: means over the seeds.

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
    settings = lines[0].get("label", "sage").removeprefix("sage")
    header = ["method", "seeds", "epoch", *(name.replace("_", " ") for name in measures)]
    note = (
        f"Means over seeds and {lines[0]['images']} of the run's training images each, mixed as "
        "SAGE would after the epoch. Losses and label entropy in nats; the mixed loss cannot fall "
        "below the label entropy. Label weight: image 0's; lesser weight: the lesser of both "
        "images'; nearly clean: share of the mixes where it is below 0.1. Shift in sides of the "
        "image; uncovered: share of the pixels that image 1 does not reach. Effective area: 1 for "
        "a uniform map; mirrored: 1 if the map follows the image, 0 if it is noise; on object: 1 "
        "by chance."
    )
    return Table(f"Dynamics{settings}", header, rows, note)


MEASUREMENT = Measurement(
    "dynamics.jsonl",
    table,
    of="sage",
    key=("method", "seed", "epoch"),
    by=("label", "images"),
    place=3,
    holds={**RUN, "epoch": int, "images": int},
)
