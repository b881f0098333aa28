"""What a network learns from: batches, and the loss of each."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from timm.data import resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from harness.config import RunConfig
from harness.data import Splits
from harness.loader import make_loader
from harness.methods import METHODS


class Learner(Protocol):
    """Gives the batches of an epoch, and the loss of each."""

    loader: Iterable[tuple[Tensor, Tensor]]
    """Normalised images ``[B, C, H, W]`` and class indices ``[B]``."""

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes a batch's loss, a scalar."""
        ...


BuildLearner = Callable[[RunConfig, nn.Module, Splits, torch.device], Learner]
"""Makes a learner for a run's settings, its network and its data."""


class Classifier:
    """Learns to tell the training classes apart, from batches that the run's method mixes.

    Args:
        config: The run's settings.
        model: Maps images ``[B, C, H, W]`` to logits ``[B, num_classes]``.
        splits: The data.
        device: Where.

    Raises:
        ValueError: If a batch is larger than the data set, or the method does not fit the model.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, splits: Splits, device: torch.device
    ) -> None:
        self.loader = make_loader(
            config.data,
            splits.train,
            resolve_data_config({}, model=model),
            device,
            splits.hflip,
            config.devices,
        )
        if not len(self.loader):
            raise ValueError(
                f"batch_size={config.data.batch_size} is more than the "
                f"{len(splits.train)} training images"
            )
        self.model = model
        self.loss_fn = SoftTargetCrossEntropy()
        self.mix = METHODS[config.method](config.mixing, model, self.loss_fn, len(splits.classes))

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss of the mixed images and their targets."""
        mixed, soft_targets = self.mix(images, targets)
        return self.loss_fn(self.model(mixed), soft_targets)
