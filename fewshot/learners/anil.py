"""ANIL (Raghu et al., Rapid Learning or Feature Reuse?, ICLR 2020), by learn2learn's MAML."""

import torch.nn.functional as F
from learn2learn.algorithms import MAML
from learn2learn.utils import clone_module
from torch import Tensor, nn

from fewshot.tasks import TaskConfig


def adapt(
    model: nn.Module, support: Tensor, labels: Tensor, tasks: TaskConfig, first_order: bool = False
) -> nn.Module:
    """Takes gradient steps on the support's cross-entropy with the last layer alone.

    Arguments and result are those of :func:`fewshot.learners.maml.adapt`; ``model`` must be a timm
    network, or one of :mod:`fewshot.backbones`, whose classifier is a module.
    """
    adapted = clone_module(model)
    embeddings = adapted.forward_head(adapted.forward_features(support), pre_logits=True)
    learner = MAML(adapted.get_classifier(), tasks.adaptation_lr, first_order=first_order)
    for _ in range(tasks.adaptation_steps):
        learner.adapt(F.cross_entropy(learner(embeddings), labels))
    return adapted
