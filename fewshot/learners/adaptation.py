"""Learners whose network adapts to each task by gradient steps on its support."""

import copy
from collections.abc import Callable

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from fewshot.config import FewShotConfig
from fewshot.learners import anil, maml
from fewshot.learners.base import query_labels, split_tasks, support_labels, task_loader
from harness.config import RunConfig
from harness.data import Splits
from harness.methods import METHODS

Adapt = Callable[..., nn.Module]
"""A network and a task's support to an adapted network: see :func:`fewshot.learners.maml.adapt`."""

ADAPT: dict[str, Adapt] = {"maml": maml.adapt, "anil": anil.adapt}
"""How each learner adapts, by its name."""


class AdaptationLearner:
    """Learns weights from which a few gradient steps on a task's support lead to low query loss.

    The run's method mixes the queries of a task with each other; the support, which is adapted to,
    stays as it is (Ni et al.). What the method sees as the model is a copy that holds the adapted
    weights, through which nothing reaches the network itself. Support and queries pass through the
    network one after the other, each in training mode.

    Args:
        config: The run's settings, of which ``tasks`` are the tasks.
        model: The network; its classifier is replaced by one with an output a way.
        splits: The data.
        device: Where.

    Raises:
        ValueError: If the tasks take more classes or images than there are.

    Source: Finn et al., ICML 2017, Algorithm 2; Ni et al., Data Augmentation for Meta-Learning,
    ICML 2021.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, splits: Splits, device: torch.device
    ) -> None:
        assert isinstance(config, FewShotConfig)
        self.tasks = config.tasks
        self.adapt = ADAPT[config.learner]
        self.loader = task_loader(config, self.tasks, model, splits, device)
        model.reset_classifier(self.tasks.ways)
        self.model = model.to(device)
        self.support_labels = support_labels(self.tasks, device)
        self.query_labels = query_labels(self.tasks, device)
        self.loss_fn = SoftTargetCrossEntropy()
        self.adapted_copy = copy.deepcopy(model).train()
        build = METHODS[config.method]
        self.mix = build(config.mixing, self.adapted_copy, self.loss_fn, self.tasks.ways)

    def loss(self, images: Tensor, _targets: Tensor) -> Tensor:
        """Computes the mean query loss of a step's tasks, each after adaptation."""
        losses = [self._loss(*task) for task in split_tasks(images, self.tasks)]
        return torch.stack(losses).mean()

    def _loss(self, support: Tensor, queries: Tensor) -> Tensor:
        adapted = self.adapt(self.model, support, self.support_labels, self.tasks)
        self.adapted_copy.load_state_dict(adapted.state_dict())
        mixed, soft_labels = self.mix(queries, self.query_labels)
        loss: Tensor = self.loss_fn(adapted(mixed), soft_labels)
        return loss
