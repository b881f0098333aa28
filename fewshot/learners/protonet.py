"""Prototypical Networks (Snell, Swersky and Zemel, NeurIPS 2017)."""

import torch
from learn2learn.nn import PrototypicalClassifier
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from fewshot.config import FewShotConfig
from fewshot.learners.base import query_labels, split_tasks, support_labels, task_loader
from harness.config import RunConfig
from harness.data import Splits
from harness.methods import METHODS


class Prototypes(nn.Module):
    """Logits of query images: minus the squared distance to each way's mean support embedding.

    Support and queries pass through the network together, as one batch to its batch norm.

    Args:
        model: A timm network, or one of :mod:`fewshot.backbones`.
        labels: The ways of the support images, ``[N]``.

    Source: Snell et al., NeurIPS 2017, Eq. 1 and 2, by learn2learn's ``PrototypicalClassifier``.
    """

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model = model
        self.labels = labels
        self.support: Tensor | None = None
        self.pretrained_cfg = getattr(model, "pretrained_cfg", None)  # as methods ask timm's for it

    def forward(self, queries: Tensor) -> Tensor:
        """Maps queries ``[B, C, H, W]`` to logits ``[B, W]``, given ``support``, its images."""
        assert self.support is not None
        features = self.model.forward_features(torch.cat((self.support, queries)))
        embeddings = self.model.forward_head(features, pre_logits=True)
        support, others = embeddings.split((len(self.support), len(queries)))
        logits: Tensor = PrototypicalClassifier(support, self.labels)(others)
        return logits


class ProtoNet:
    """Learns embeddings in which queries are close to the mean of their class's support.

    The run's method mixes the queries of a task with each other, and not the support, whose
    prototypes need one class an image; of the ways of augmenting tasks that Ni et al. compare,
    it is augmented queries that help.

    Args:
        config: The run's settings, of which ``tasks`` are the tasks.
        model: The network; its classifier is not used.
        splits: The data.
        device: Where.

    Raises:
        ValueError: If the tasks take more classes or images than there are.

    Source: Snell et al., NeurIPS 2017; Ni et al., Data Augmentation for Meta-Learning, ICML 2021.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, splits: Splits, device: torch.device
    ) -> None:
        assert isinstance(config, FewShotConfig)
        self.tasks = config.tasks
        self.loader = task_loader(config, self.tasks, model, splits, device)
        self.prototypes = Prototypes(model, support_labels(self.tasks, device))
        self.labels = query_labels(self.tasks, device)
        self.loss_fn = SoftTargetCrossEntropy()
        build = METHODS[config.method]
        self.mix = build(config.mixing, self.prototypes, self.loss_fn, self.tasks.ways)

    def loss(self, images: Tensor, _targets: Tensor) -> Tensor:
        """Computes the mean loss of a step's tasks."""
        # All are mixed before any is learned from: a saliency pass restores batch norm's
        # statistics, which the backward pass of one that came before would find changed.
        mixed = [
            (support, *self._mix(support, queries))
            for support, queries in split_tasks(images, self.tasks)
        ]
        losses = [self._loss(*task) for task in mixed]
        return torch.stack(losses).mean()

    def _mix(self, support: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        self.prototypes.support = support
        return self.mix(queries, self.labels)

    def _loss(self, support: Tensor, queries: Tensor, soft_labels: Tensor) -> Tensor:
        self.prototypes.support = support
        loss: Tensor = self.loss_fn(self.prototypes(queries), soft_labels)
        return loss
