"""Adaptation to a task by gradient steps on its support, as MAML and ANIL do."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from learn2learn.algorithms import MAML
from learn2learn.utils import clone_module
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from fewshot.config import TaskConfig
from fewshot.episodes import Episodes
from fewshot.tasks import in_batches, in_order, way_labels


def adapt(
    learner: str,
    model: nn.Module,
    support: Tensor,
    labels: Tensor,
    tasks: TaskConfig,
    first_order: bool = False,
) -> nn.Module:
    """Takes gradient steps on the support's cross-entropy, by learn2learn's MAML.

    ``maml`` adapts the whole network (Finn et al., Model-Agnostic Meta-Learning, ICML 2017),
    ``anil`` its last layer (Raghu et al., Rapid Learning or Feature Reuse?, ICLR 2020).
    ``first_order`` leaves out the second derivatives, which only training needs. Gradients reach
    the model's parameters through the adapted network, which shares its buffers, such as batch
    norm's running statistics.
    """
    adapted = clone_module(model)
    part, inputs = adapted, support
    if learner == "anil":
        part = adapted.get_classifier()
        inputs = adapted.forward_head(adapted.forward_features(support), pre_logits=True)
    adapting = MAML(part, tasks.adaptation_lr, first_order=first_order)
    for _ in range(tasks.adaptation_steps):
        adapting.adapt(F.cross_entropy(adapting(inputs), labels))
    return adapted


def correct_after_adaptation(
    model: nn.Module,
    loader: Any,
    episodes: Episodes,
    learner: str,
    tasks: TaskConfig,
    title: str = "episodes",
) -> Tensor:
    """Counts the queries of each episode that the adapted network puts into their own way, ``[E]``.

    Batch norm uses the statistics of the batch that it sees, as in training and in learn2learn's
    examples: first the support's, then those of all queries of the episode, so that queries see
    each other, but the adaptation sees none of them. Dropout and DropBlock are off. The network
    itself is left as it is, running statistics included.

    Raises:
        ValueError: If logits are not finite.
    """
    network = copy.deepcopy(model).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    ways, shots = episodes.support.shape[1:]
    support = ways * shots
    batches = in_batches(loader, in_order(episodes).tolist())
    counts = []
    for images, _ in tqdm(
        batches, desc=title, total=len(episodes.query), leave=False, disable=None
    ):
        labels = way_labels(ways, shots, images.device)
        adapted = adapt(learner, network, images[:support], labels, tasks, first_order=True)
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
