"""One picture that shows what each method does to pairs of images."""

from collections.abc import Sequence
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
from harness.data import load_splits
from harness.fixed_images import draw_indices, load_images
from harness.methods import METHODS
from harness.methods.base import MethodConfig, no_steps
from harness.methods.sage import decide, mixing_alone
from harness.pictures import Column, mix_columns, pictures, save_grid
from harness.train import Progress, load_model, no_progress, train
from sage_timm import blend

_NEARLY_ALWAYS_HALF = 1e4  # the Beta distribution's parameter at which every weight is about 1/2
_TRIES = 20  # a method that mixes half of the time does so within these, but once in a million


def draw_gallery(
    config: RunConfig,
    out: Path,
    pairs: int,
    device: torch.device,
    methods: Sequence[str],
    progress: Progress = no_progress,
) -> Path:
    """Draws pairs of validation images, their saliency, SAGE's mask, and each method's mix.

    Every method mixes with a weight of about one half (SAGE: half of ``lambda_max``), so that they
    can be compared. The saliency is that of the run's network, in training mode as in training.

    Args:
        config: The run whose network and images are taken; it is trained first where ``out`` does
            not hold it.
        out: The run's folder; the picture goes there as ``gallery.png``.
        pairs: The number of rows.
        device: Where to compute.
        methods: The methods to draw beside SAGE.
        progress: Is told how many epochs of the run are done.

    Returns:
        The picture's path.

    Raises:
        ValueError: If a method is unknown, or there are too few images.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, got {name!r}")
    splits = load_splits(config.data, config.seed)
    random = np.random.default_rng(config.seed)
    chosen = draw_indices(config.data, splits.validation, 2 * pairs, f"pairs={pairs}", random)
    train(config, out, device, progress=progress)
    model = load_model(config, out, len(splits.classes), device)
    model.train()
    data_config = resolve_data_config({}, model=model)
    images, targets = load_images(config.data, splits.validation, chosen, data_config, device)
    columns = [
        *_sage_columns(model, images, targets, len(splits.classes), config, data_config),
        *_peer_columns(
            [name for name in methods if name != "sage"],
            *(model, images, targets, len(splits.classes), config.seed, data_config),
        ),
    ]
    path = out / "gallery.png"
    save_grid(columns, path)
    return path


def _sage_columns(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    classes: int,
    config: RunConfig,
    data_config: dict[str, Any],
) -> list[Column]:
    mixing = config.mixing
    sage = mixing_alone(mixing, config.seed)
    sage.attach(model, SoftTargetCrossEntropy())
    maps = sage.saliency(images, mixup_target(targets, classes))
    lam = maps.new_full((len(maps),), mixing.lambda_max / 2)
    own, other, translation = decide(maps, lam, sage.draw_translations(*images.shape[2:]))
    mixed, mask, _ = blend(images, images.flip(0), own, other, translation)
    return mix_columns(images, maps, mask, mixed, data_config, len(images) // 2)


def _peer_columns(
    methods: Sequence[str],
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    classes: int,
    seed: int,
    data_config: dict[str, Any],
) -> list[Column]:
    columns = []
    mixing = MethodConfig(alpha=_NEARLY_ALWAYS_HALF)
    for name in methods:
        mix = METHODS[name](mixing, model, SoftTargetCrossEntropy(), classes)
        for attempt in range(_TRIES):
            random_seed(seed + attempt)
            with no_steps():
                mixed, _ = mix(images.clone(), targets)
            if not torch.equal(mixed, images):
                break
        columns.append(Column(name, pictures(mixed[: len(images) // 2], data_config)))
    return columns
