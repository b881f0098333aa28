"""Tasks to train on: episodes of the base classes, a few of them a step of the optimiser."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewshot.config import EpisodeConfig, TaskConfig
from fewshot.episodes import Episodes, draw_episodes

_SEEDS = 2**31


class TaskBatches:
    """Draws each epoch's tasks: the images' indices of every step.

    The seed of an epoch's draw comes from torch's random state, which the training loop makes of
    the run's seed and the epoch.

    Args:
        targets: The class of each image.
        config: The tasks.

    Raises:
        ValueError: If there are too few classes, or a class has too few images.
    """

    def __init__(self, targets: Sequence[int], config: TaskConfig) -> None:
        self.targets = targets
        self.config = config
        self._draw(seed=0, episodes=2)

    def __len__(self) -> int:
        return self.config.steps

    def __iter__(self) -> Iterator[list[int]]:
        count = self.config.tasks * self.config.steps
        seed = int(torch.randint(_SEEDS, ()))
        drawn = self._draw(seed, max(2, count))
        yield from in_order(drawn)[:count].view(self.config.steps, -1).tolist()

    def _draw(self, seed: int, episodes: int) -> Episodes:
        config = self.config
        try:
            return draw_episodes(
                self.targets,
                EpisodeConfig(config.ways, config.shots, config.queries, episodes, seed),
            )
        except ValueError as error:
            raise ValueError(f"tasks of the base classes: {error}") from error


def in_order(episodes: Episodes) -> Tensor:
    """Puts the images of each episode in a row, ``[E, W * (S + Q)]``: support first, by way."""
    return torch.cat((episodes.support.flatten(1), episodes.query.flatten(1)), dim=1)


def way_labels(ways: int, images: int, device: torch.device) -> Tensor:
    """The ways ``[W * N]`` of N images each in that order."""
    return torch.arange(ways, device=device).repeat_interleave(images)


def in_batches(loader: Any, batches: Iterable[list[int]]) -> Any:
    """Makes a loader that gives the images of another one, prepared as there, in other batches.

    Args:
        loader: One of timm's, as of :func:`harness.data.make_loader`.
        batches: The images' indices of each batch.
    """
    other = copy.copy(loader)
    images = loader.loader
    other.loader = DataLoader(
        images.dataset,
        batch_sampler=batches,
        num_workers=images.num_workers,
        collate_fn=images.collate_fn,
        pin_memory=images.pin_memory,
        worker_init_fn=images.worker_init_fn,
    )
    return other
