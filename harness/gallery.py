"""One picture that shows what each method does to pairs of images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import Tensor, nn

from harness.config import RunConfig
from harness.data import Splits, load_splits, make_loader
from harness.grid import Column, mix_columns, pictures, save_grid
from harness.methods import METHODS
from harness.methods.base import MethodConfig, normalised
from harness.methods.sage import own_settings
from harness.train import load_model
from sage_timm import best_translation, blend, saliency
from sage_timm.sage import Sage

_NEARLY_ALWAYS_HALF = 1e4  # the Beta distribution's parameter at which every weight is about 1/2
_PEERS_DRAWN = ("mixup", "cutmix", "saliencymix", "puzzlemix")
_TRIES = 20  # a method that mixes half of the time does so within these, but once in a million


def draw_gallery(config: RunConfig, out: Path, pairs: int, device: torch.device) -> Path:
    """Draws pairs of validation images, their saliency, SAGE's mask, and each method's mix.

    Every method mixes with a weight of about one half (SAGE: half of ``lambda_max``), so that they
    can be compared. The saliency is that of the run's network, in training mode as in training.

    Args:
        config: The run whose network and images are taken.
        out: The run's folder; the picture goes there as ``gallery.png``.
        pairs: The number of rows.
        device: Where to compute.

    Returns:
        The picture's path.

    Raises:
        ValueError: If the run has no checkpoint in ``out``, or there are too few images.
    """
    splits = load_splits(config.data, config.seed)
    model = load_model(config, out, len(splits.classes), device)
    model.train()
    data_config = resolve_data_config({}, model=model)
    images, targets = _draw_images(config, splits, data_config, 2 * pairs, device)
    columns = [
        *_sage_columns(model, images, targets, len(splits.classes), config, data_config),
        *_peer_columns(model, images, targets, len(splits.classes), config.seed, data_config),
    ]
    path = out / "gallery.png"
    save_grid(columns, path)
    return path


def _draw_images(
    config: RunConfig, splits: Splits, data_config: dict[str, Any], count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draws images of the validation split; image i is to be mixed with image count - 1 - i."""
    loader = make_loader(config.data, splits.validation, data_config, device, hflip=None)
    dataset: Any = loader.dataset
    if count > len(dataset):
        raise ValueError(f"pairs={count // 2} takes {count} images, the split has {len(dataset)}")
    chosen = np.random.default_rng(config.seed).choice(len(dataset), count, replace=False)
    samples = [dataset[int(index)] for index in chosen]
    images = torch.stack([torch.as_tensor(np.asarray(image)) for image, _ in samples]).to(device)
    targets = torch.tensor([target for _, target in samples], device=device)
    return normalised(images, data_config["mean"], data_config["std"]), targets


def _sage_columns(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    classes: int,
    config: RunConfig,
    data_config: dict[str, Any],
) -> list[Column]:
    mixing = config.mixing
    pairs = len(images) // 2
    other = torch.arange(2 * pairs - 1, pairs - 1, -1)
    maps = saliency(model, images, mixup_target(targets, classes), SoftTargetCrossEntropy())
    lam = mixing.lambda_max / 2
    saliency0, saliency1 = lam * maps[:pairs], (1 - lam) * maps[other]
    generator = torch.Generator().manual_seed(config.seed)
    sage = Sage(**own_settings(mixing), generator=generator)
    translations = sage.draw_translations(*images.shape[2:])
    translation = best_translation(saliency0, saliency1, translations)
    pair = (images[:pairs], images[other])
    mixed, mask, _ = blend(*pair, saliency0, saliency1, translation)
    return mix_columns(pair, (maps[:pairs], maps[other]), mask, mixed, data_config)


def _peer_columns(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    classes: int,
    seed: int,
    data_config: dict[str, Any],
) -> list[Column]:
    columns = []
    mixing = MethodConfig(alpha=_NEARLY_ALWAYS_HALF)
    for name in _PEERS_DRAWN:
        mix = METHODS[name](mixing, model, SoftTargetCrossEntropy(), classes)
        for attempt in range(_TRIES):
            random_seed(seed + attempt)
            mixed, _ = mix(images.clone(), targets)
            if not torch.equal(mixed, images):
                break
        columns.append(Column(name, pictures(mixed[: len(images) // 2], data_config)))
    return columns
