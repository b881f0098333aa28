"""One picture that shows what each method does to pairs of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.mixup import mixup_target
from timm.utils import random_seed
from torch import Tensor

from harness.config import MethodConfig
from harness.learner import make_loss
from harness.measures.pairs import FixedPairs, attached_sage, mix_pairs
from harness.methods import METHODS, Mix, Training, no_steps
from harness.pictures import Column, mix_columns, pictures, save_grid
from harness.run_config import RunConfig
from harness.train import Progress, load_model, no_progress, train

_NEARLY_ALWAYS_HALF = 1e4  # the Beta distribution's parameter at which every weight is about 1/2
_TRIES = 20  # a method that mixes half of the time does so within these, but once in a million


def save_gallery(
    config: RunConfig,
    methods: Sequence[str],
    out: Path,
    pairs: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> Path:
    """Saves ``gallery.png``: pairs of validation images, their saliency, and each method's mix.

    Every method mixes with a weight of about one half (SAGE: half of ``lambda_max``), so that they
    can be compared; SAGE always does, with its masks. The saliency is that of the run's network in
    training mode; it is trained first where ``out`` does not hold it.

    Raises:
        ValueError: If a method is unknown, or there are too few images.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, got {name!r}")
    fixed = FixedPairs(config, "validation", 2 * pairs, f"pairs={pairs}")
    train(config, out, device, progress=progress)
    model = load_model(config, out, fixed.classes, device).train()
    images, targets, data_config = fixed.load(model, device)
    sage = attached_sage(config, model)
    half = torch.full((len(images),), 0.5)
    mix = mix_pairs(sage, images, mixup_target(targets, fixed.classes), half)
    columns = mix_columns(images, mix, data_config, pairs)
    mixing = MethodConfig(alpha=_NEARLY_ALWAYS_HALF)
    for name in methods:
        if name != "sage":
            training = Training(mixing, model, make_loss(config.schedule), fixed.classes)
            peer = METHODS[name](training)
            mixed = _mixed(peer, images, targets, config.seed)[:pairs]
            columns.append(Column(name, pictures(mixed, data_config)))
    path = out / "gallery.png"
    save_grid(columns, path)
    return path


def _mixed(mix: Mix, images: Tensor, targets: Tensor, seed: int) -> Tensor:
    """Mixes images with one seed after the other, until the method draws that it mixes at all."""
    mixed: Any = images
    for attempt in range(_TRIES):
        random_seed(seed + attempt)
        with no_steps():
            mixed, _ = mix(images.clone(), targets)
        if not torch.equal(mixed, images):
            break
    return mixed
