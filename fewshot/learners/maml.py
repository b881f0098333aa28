"""MAML (Finn, Abbeel and Levine, Model-Agnostic Meta-Learning, ICML 2017), learn2learn's own."""

import torch.nn.functional as F
from learn2learn.algorithms import MAML
from learn2learn.utils import clone_module
from torch import Tensor, nn

from fewshot.tasks import TaskConfig


def adapt(
    model: nn.Module, support: Tensor, labels: Tensor, tasks: TaskConfig, first_order: bool = False
) -> nn.Module:
    """Takes gradient steps on the support's cross-entropy with all of the network.

    Args:
        model: Maps images ``[B, C, H, W]`` to logits of the ways. Its buffers, such as batch norm's
            running statistics, are the adapted network's too.
        support: A task's support images.
        labels: Their ways.
        tasks: Number of steps and learning rate.
        first_order: Leave out the second derivatives, which only training needs.

    Returns:
        The adapted network, through which gradients reach ``model``'s parameters.
    """
    adapted = clone_module(model)
    learner = MAML(adapted, tasks.adaptation_lr, first_order=first_order)
    for _ in range(tasks.adaptation_steps):
        learner.adapt(F.cross_entropy(learner(support), labels))
    return adapted
