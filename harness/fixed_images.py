"""Images of a split that are drawn once and loaded without augmentation, to be measured on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from harness.data import DataConfig, Subset, make_loader


def draw_indices(
    config: DataConfig, dataset: Any, count: int, argument: str, random: np.random.Generator
) -> list[int]:
    """Draws images of a data set, each at most once.

    Args:
        config: Which data set it is.
        dataset: One of its splits.
        count: The number of images.
        argument: What asked for them, as ``name=value``, for the error.
        random: What they are drawn with.

    Raises:
        ValueError: If the images cannot be picked, or there are too few.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"dataset={config.dataset!r} is a stream: no images can be picked")
    if count > len(dataset):
        raise ValueError(f"{argument} takes {count} images, the split has {len(dataset)}")
    return random.choice(len(dataset), count, replace=False).tolist()


def load_images(
    config: DataConfig,
    dataset: Any,
    indices: Sequence[int],
    data_config: dict[str, Any],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Loads images as evaluation does.

    Returns:
        The images, normalised ``[N, C, H, W]``, and their class indices ``[N]``.
    """
    loader = make_loader(config, Subset(dataset, indices), data_config, device, hflip=None)
    images, classes = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return images, classes
