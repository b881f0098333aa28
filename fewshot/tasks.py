"""Tasks to train on: episodes of the base classes, a few of them a step of the optimiser."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fewshot.config import EpisodeConfig, TaskConfig
from fewshot.episodes import Episodes, draw_episodes
from fewshot.run_config import FewShotConfig
from harness.data import Splits, targets_of
from harness.loader import make_loader

_SEEDS = 2**31


class TaskBatches:
    """Draws each epoch's tasks: the images' indices of every step, each task by ``in_order``.

    The seed of an epoch's draw comes from torch's random state, which the training loop makes of
    the run's seed and the epoch.

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
        tasks = self.config
        config = EpisodeConfig(tasks.ways, tasks.shots, tasks.queries, episodes, seed)
        try:
            return draw_episodes(self.targets, config)
        except ValueError as error:
            raise ValueError(f"tasks of the base classes: {error}") from error


def task_loader(config: FewShotConfig, model: nn.Module, splits: Splits, device: torch.device):
    """Makes a loader of tasks, whose images are augmented as the classifier's are."""
    if config.data.on_device:
        raise ValueError("on_device=True is for learner=classifier: tasks load their own images")
    normalisation = resolve_data_config({}, model=model)
    loader = make_loader(config.data, splits.train, normalisation, device, splits.hflip)
    return in_batches(loader, TaskBatches(targets_of(splits.train), config.tasks))


def split_tasks(images: Tensor, tasks: TaskConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Splits a batch of ``task_loader`` into each task's support and query images."""
    support = tasks.ways * tasks.shots
    for task in images.split(support + tasks.ways * tasks.queries):
        yield task[:support], task[support:]


def in_order(episodes: Episodes) -> Tensor:
    """Puts the images of each episode in a row, ``[E, W * (S + Q)]``: support first, by way."""
    return torch.cat((episodes.support.flatten(1), episodes.query.flatten(1)), dim=1)


def way_labels(ways: int, images: int, device: torch.device) -> Tensor:
    """Gives the ways ``[W * N]`` of N images each in that order."""
    return torch.arange(ways, device=device).repeat_interleave(images)


def in_batches(loader: Any, batches: Iterable[list[int]]) -> Any:
    """Makes a copy of timm's loader that gives other batches, of these images' indices."""
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
