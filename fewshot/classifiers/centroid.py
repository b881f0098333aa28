"""Nearest centroid, learn2learn's own (Snell et al., Prototypical Networks, NeurIPS 2017)."""

import torch
from learn2learn.nn import PrototypicalClassifier
from torch import Tensor

from fewshot.classifiers.base import register


@register("centroid")
def centroid(support: Tensor, query: Tensor) -> Tensor:
    """Scores a way by the squared Euclidean distance to its mean support embedding, negated."""
    return _scores(support, query, "euclidean")


@register("cosine")
def cosine(support: Tensor, query: Tensor) -> Tensor:
    """Scores a way by the cosine similarity with its mean support embedding."""
    return _scores(support, query, "cosine")


def _scores(support: Tensor, query: Tensor, distance: str) -> Tensor:
    ways, shots = support.shape[1:3]
    labels = torch.arange(ways, device=support.device).repeat_interleave(shots)
    # One episode at a time is quick enough: under a millisecond each.
    scores = [
        PrototypicalClassifier(own.flatten(0, 1), labels, distance=distance)(other.flatten(0, 1))
        for own, other in zip(support, query, strict=True)
    ]
    return torch.stack(scores).view(*query.shape[:3], ways)
