"""Accuracy on episodes of a network that adapts to each one's support, as MAML and ANIL do."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from fewshot.episodes import EpisodeConfig, Episodes, draw_episodes
from fewshot.evaluate import accuracy
from fewshot.learners.adaptation import ADAPT
from fewshot.tasks import TaskConfig, in_batches, in_order, way_labels


def correct_after_adaptation(
    model: nn.Module,
    loader: Any,
    episodes: Episodes,
    learner: str,
    tasks: TaskConfig,
    title: str = "episodes",
) -> Tensor:
    """Counts the queries of each episode that the adapted network puts into their own way.

    Batch norm uses the statistics of the batch that it sees, as in training and in learn2learn's
    examples: first the support's, then those of all queries of the episode, so that queries see
    each other, but the adaptation sees none of them. Dropout and DropBlock are off. The network
    itself is left as it is, running statistics included.

    Args:
        model: Maps images to logits ``[B, W]``.
        loader: One of timm's, of the images that the episodes are drawn from.
        episodes: E episodes of W ways and Q queries each.
        learner: ``maml`` or ``anil``.
        tasks: Number of steps and learning rate.
        title: What the progress bar says.

    Returns:
        The counts ``[E]``, integers from 0 to W·Q, on the CPU.

    Raises:
        ValueError: If logits are not finite.
    """
    network = _in_batch_mode(model)
    ways, shots = episodes.support.shape[1:]
    support = ways * shots
    batches = in_batches(loader, in_order(episodes).tolist())
    counts = []
    for images, _ in tqdm(
        batches, desc=title, total=len(episodes.query), leave=False, disable=None
    ):
        labels = way_labels(ways, shots, images.device)
        adapted = ADAPT[learner](network, images[:support], labels, tasks, first_order=True)
        with torch.no_grad():
            logits = adapted(images[support:])
        if not logits.isfinite().all():
            raise ValueError(
                f"the adapted network's logits are not finite: {learner} has diverged, train with "
                "a smaller lr or tasks.adaptation_lr"
            )
        own = way_labels(ways, episodes.query.shape[2], images.device)
        counts.append((logits.argmax(dim=1) == own).sum().cpu())
    return torch.stack(counts)


class AdaptationEpisodes:
    """Measures adaptation to episodes, as the training loop measures an epoch.

    Called with a model and a loader, it gives ``top1``: the mean accuracy over the episodes, in
    percent.

    Args:
        targets: The class of each of the loader's images.
        config: The episodes.
        learner: ``maml`` or ``anil``.
        tasks: Number of steps and learning rate.

    Raises:
        ValueError: If there are too few classes or images for the episodes.
    """

    def __init__(
        self, targets: list[int], config: EpisodeConfig, learner: str, tasks: TaskConfig
    ) -> None:
        self.episodes = draw_episodes(targets, config)
        self.total = config.ways * config.queries
        self.learner = learner
        self.tasks = tasks

    def __call__(self, model: nn.Module, loader: Any) -> dict[str, float]:
        """Adapts to each episode and measures its queries."""
        correct = correct_after_adaptation(
            model, loader, self.episodes, self.learner, self.tasks, "validation episodes"
        )
        return {"top1": accuracy(correct, self.total)[0]}


def _in_batch_mode(model: nn.Module) -> nn.Module:
    """Copies a model, in evaluation mode but for batch norm."""
    network = copy.deepcopy(model).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return network
