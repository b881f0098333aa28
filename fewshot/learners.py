"""Learners: the classifier of the harness, and those that learn from tasks of a few classes.

A run's method mixes the queries of a task with each other: of the ways of augmenting tasks that
Ni et al. (Data Augmentation for Meta-Learning, ICML 2021) compare, it is augmented queries that
help. The support stays unmixed, since prototypes and adaptation need one class an image.
"""

import copy

import torch
from learn2learn.nn import PrototypicalClassifier
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from fewshot.adaptation import adapt
from fewshot.run_config import FewShotConfig
from fewshot.tasks import split_tasks, task_loader, way_labels
from harness.data import Splits
from harness.learner import BuildLearner, Classifier
from harness.methods import METHODS, Training, loss_of, module_of
from harness.run_config import RunConfig


class _TaskLearner:
    """Holds what the learners of tasks have in common.

    A subclass's ``prepared`` makes the network that the run's method sees of the run's network.

    Raises:
        ValueError: If the tasks take more classes or images than there are.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, splits: Splits, device: torch.device
    ) -> None:
        assert isinstance(config, FewShotConfig)
        self.learner, self.tasks = config.learner, config.tasks
        self.loader = task_loader(config, model, splits, device)
        self.support_labels = way_labels(self.tasks.ways, self.tasks.shots, device)
        self.query_labels = way_labels(self.tasks.ways, self.tasks.queries, device)
        self.loss_fn = SoftTargetCrossEntropy()
        seen = self.prepared(model)
        training = Training(config.mixing, seen, self.loss_fn, self.tasks.ways)
        self.mix = METHODS[config.method](training)
        if loss_of(self.mix, self.loss_fn) is not self.loss_fn or module_of(self.mix) is not None:
            raise ValueError(
                f"learner={config.learner!r} does not go with {config.method}, which has a loss or "
                "layers of its own: use the classifier"
            )


class ProtoNet(_TaskLearner):
    """Learns embeddings in which queries are close to the mean of their class's support.

    Source: Snell, Swersky and Zemel, Prototypical Networks, NeurIPS 2017.
    """

    def prepared(self, model: nn.Module) -> nn.Module:
        self.prototypes = Prototypes(model, self.support_labels)
        return self.prototypes

    def loss(self, images: Tensor, _targets: Tensor) -> Tensor:
        # All are mixed before any is learned from: a saliency pass restores batch norm's
        # statistics, which the backward pass of one that came before would find changed.
        mixed, losses = [], []
        for support, queries in split_tasks(images, self.tasks):
            self.prototypes.support = support
            mixed.append((support, *self.mix(queries, self.query_labels)))
        for support, queries, soft_labels in mixed:
            self.prototypes.support = support
            losses.append(self.loss_fn(self.prototypes(queries), soft_labels))
        return torch.stack(losses).mean()


class Prototypes(nn.Module):
    """Maps queries to logits: minus the squared distance to each way's mean support embedding.

    Support and queries pass through the network, which has timm's face, together: as one batch to
    its batch norm. ``labels`` are the ways of the support's images.
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


class AdaptationLearner(_TaskLearner):
    """Learns weights from which a few gradient steps on a task's support lead to low query loss.

    The network's classifier is replaced by one with an output a way. The method sees a copy that
    holds the adapted weights, through which nothing reaches the network itself. Support and
    queries pass through the network one after the other, each in training mode.

    Source: Finn et al., ICML 2017, Algorithm 2.
    """

    def prepared(self, model: nn.Module) -> nn.Module:
        model.reset_classifier(self.tasks.ways)
        self.model = model.to(self.support_labels.device)
        self.adapted_copy = copy.deepcopy(model).train()
        return self.adapted_copy

    def loss(self, images: Tensor, _targets: Tensor) -> Tensor:
        losses = []
        for support, queries in split_tasks(images, self.tasks):
            adapted = adapt(self.learner, self.model, support, self.support_labels, self.tasks)
            self.adapted_copy.load_state_dict(adapted.state_dict())
            mixed, soft_labels = self.mix(queries, self.query_labels)
            losses.append(self.loss_fn(adapted(mixed), soft_labels))
        return torch.stack(losses).mean()


LEARNERS: dict[str, BuildLearner] = {
    "classifier": Classifier,
    "protonet": ProtoNet,
    "maml": AdaptationLearner,
    "anil": AdaptationLearner,
}
"""Learners, by name."""
