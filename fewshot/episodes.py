"""Episodes: few-shot tasks drawn from the images of new classes."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from learn2learn.data import MetaDataset, Taskset
from learn2learn.data.transforms import FusedNWaysKShots
from torch import Tensor
from torch.utils.data import TensorDataset

from fewshot.config import EpisodeConfig


@dataclass(frozen=True)
class Episodes:
    """Indices of the images of E episodes of W ways, which are in random order."""

    support: Tensor
    """Indices of the support images, ``[E, W, S]``."""
    query: Tensor
    """Indices of the query images, ``[E, W, Q]``."""


def draw_episodes(targets: Sequence[int], config: EpisodeConfig) -> Episodes:
    """Draws episodes with learn2learn's task transforms, without loading an image.

    An episode's classes are drawn uniformly without replacement, and so are the images of each.
    The draw depends on the settings and on which images share a class: not on the classes' numbers,
    and not on Python's global random state, which is left as it was.

    Raises:
        ValueError: If a number is too small, there are too few classes, or a class has too few
            images.
    """
    config.check()
    labels = [int(target) for target in targets]
    check_counts(labels, config)
    indices = MetaDataset(
        TensorDataset(torch.empty(len(labels), 0)), indices_to_labels=dict(enumerate(labels))
    )
    images = config.shots + config.queries
    tasks = Taskset(indices, [FusedNWaysKShots(indices, n=config.ways, k=images)])
    state = random.getstate()  # learn2learn draws from it
    random.seed(config.seed)
    try:
        drawn = [
            [description.index for description in tasks.sample_task_description()]
            for _ in range(config.episodes)
        ]
    finally:
        random.setstate(state)
    each = torch.tensor(drawn).view(config.episodes, config.ways, images)
    return Episodes(each[..., : config.shots], each[..., config.shots :])


def check_counts(
    targets: Sequence[int], config: EpisodeConfig, classes: Sequence[str] = (), split: str = ""
) -> None:
    """Checks that there are enough classes, and images of each; names the class and the split."""
    counts = Counter(map(int, targets))
    place = f"{split}: " if split else ""
    if len(counts) < config.ways:
        raise ValueError(
            f"{place}ways={config.ways} takes as many classes, the images have {len(counts)}"
        )
    target, least = min(counts.items(), key=lambda item: item[1])
    needed = config.shots + config.queries
    if least < needed:
        name = repr(classes[target]) if classes else target
        raise ValueError(
            f"{place}shots={config.shots} and queries={config.queries} take {needed} images of "
            f"each class, class {name} has {least}"
        )
