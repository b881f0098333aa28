"""What SAGE's mixes are over the course of a training: saliency, shifts, masks and label weights.

After some of a run's epochs, its network mixes a fixed set of its own training images with fixed
weights, as SAGE would in the next step. Networks of any method can be followed: those trained
otherwise show what SAGE would do with their saliency.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torchmetrics.functional import spearman_corrcoef

from harness.agreement import decide
from harness.config import RunConfig
from harness.data import Subset, load_splits, make_loader
from harness.grid import mix_columns, save_grid
from harness.methods.base import evaluation_mode
from harness.methods.sage import mixing_alone
from harness.results import append_result, read_results
from harness.train import train
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


class _Images(NamedTuple):
    """Training images in batches; each is mixed with its reverse in its batch."""

    images: list[Tensor]
    targets: list[Tensor]
    lam: list[Tensor]
    masks: list[Tensor | None]
    """Each image's object ``[B, 1, H, W]`` in [0, 1], where the data set knows it."""
    data_config: dict[str, Any]


def follow(
    config: RunConfig, epochs: Sequence[int], out: Path, images: int, device: torch.device
) -> list[dict[str, Any]]:
    """Trains a run, and measures what SAGE makes of its images after some of its epochs.

    Some of the mixes are drawn, too, as ``OUT/mixes-METHOD-seedN-epochE.png``.

    Args:
        config: The run; SAGE has its mixing settings, whatever method it is trained with.
        epochs: Epochs after which to measure, from 1 on.
        out: The run's folder; the lines go to its ``dynamics.jsonl``, one an epoch.
        images: The number of training images, a multiple of the batch size.
        device: Where to compute.

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
    fixed: list[_Images] = []

    def after_epoch(epoch: int, model: nn.Module) -> None:
        if epoch not in epochs or epoch in found:
            return
        if not fixed:
            fixed.append(_fixed_images(config, model, images, device))
        picture = out / f"mixes-{config.method}-seed{config.seed}-epoch{epoch}.png"
        found[epoch] = {**key, "epoch": epoch, **_measure(config, model, fixed[0], picture)}
        append_result(path, found[epoch])

    if not set(epochs) <= found.keys():
        train(config, out, device, after_epoch=after_epoch)
    missing = set(epochs) - found.keys()
    if missing:
        raise ValueError(
            f"out={str(out)!r} holds {config.method}, seed {config.seed}, trained past epoch "
            f"{min(missing)} without a line in {path.name}: name another folder"
        )
    return [found[epoch] for epoch in sorted(set(epochs))]


def _check(config: RunConfig, epochs: Sequence[int], images: int) -> None:
    last = config.schedule.epochs
    if not epochs or not all(1 <= epoch <= last for epoch in epochs):
        raise ValueError(f"measured must be epochs in [1, {last}], got {tuple(epochs)}")
    size = config.data.batch_size
    if images < size or images % size:
        raise ValueError(f"images must be a multiple of batch_size={size}, got {images}")


def _fixed_images(config: RunConfig, model: nn.Module, count: int, device: torch.device) -> _Images:
    splits = load_splits(config.data, config.seed)
    dataset: Any = splits.train
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"dataset={config.data.dataset!r} is a stream: no images can be picked")
    if count > len(dataset):
        raise ValueError(f"images={count} is more than the {len(dataset)} training images")
    random = np.random.default_rng(config.seed)
    chosen = random.choice(len(dataset), count, replace=False)
    data_config = resolve_data_config({}, model=model)
    subset = Subset(dataset, chosen.tolist())
    loader = make_loader(config.data, subset, data_config, device, hflip=None)
    images, classes = (torch.cat(parts) for parts in zip(*loader, strict=True))
    smoothing = config.mixing.label_smoothing
    targets = mixup_target(classes, len(splits.classes), smoothing=smoothing)
    size, alpha = config.data.batch_size, config.mixing.alpha_or(1.0)
    batches = count // size
    lam = torch.from_numpy(random.beta(alpha, alpha, count)).to(device)
    masks: list[Tensor | None] = [None] * batches
    if hasattr(dataset, "masks"):
        masks = [*(torch.from_numpy(dataset.masks[chosen]).to(device)[:, None] / 255).split(size)]
    return _Images(
        list(images.split(size)), list(targets.split(size)), list(lam.split(size)), masks,
        data_config,
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
        maps = sage.maps(x, y)
        translations = sage.draw_translations(*x.shape[2:])
        own, other, translation = decide(maps, lam * mixing.lambda_max, translations)
        mixed, mask, weight = blend(x, x.flip(0), own, other, translation)
        targets = weight[:, None] * y + (1 - weight[:, None]) * y.flip(0)
        mirrored = sage.maps(x.flip(3), y).flip(3)
        measured = {
            **_losses(model, x, y, mixed, targets),
            **_of_masks(weight, translation, x.shape[2:]),
            **_of_maps(maps, mirrored, mask_of_object),
        }
        for name, values in measured.items():
            figures.setdefault(name, []).append(values.double().cpu())
        if number == 0:
            rows = slice(_PAIRS_DRAWN)
            pair, both_maps = ((v[rows], v.flip(0)[rows]) for v in (x, maps))
            columns = mix_columns(pair, both_maps, mask[rows], mixed[rows], fixed.data_config)
            save_grid(columns, picture)
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
