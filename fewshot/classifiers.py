"""Classifiers of embeddings, by name, and nearest centroids (Snell et al., NeurIPS 2017)."""

from collections.abc import Callable

import torch
from learn2learn.nn import PrototypicalClassifier
from torch import Tensor
from tqdm import tqdm

from fewshot.episodes import Episodes
from fewshot.linear_classifiers import logistic, svm

_CHUNK_BYTES = 16 * 2**20  # of embeddings gathered at a time: more goes through memory, not cache

Classifier = Callable[[Tensor, Tensor], Tensor]
"""Maps embeddings of support images ``[E, W, S, D]`` and of query images ``[E, W, Q, D]`` of E
episodes to each query's scores of the ways, ``[E, W, Q, W]``; the highest tells the predicted way.
"""


def centroid(support: Tensor, query: Tensor, distance: str = "euclidean") -> Tensor:
    """Scores a way by the squared Euclidean distance to its mean support embedding, negated."""
    ways, shots = support.shape[1:3]
    labels = torch.arange(ways, device=support.device).repeat_interleave(shots)
    # One episode at a time is quick enough: under a millisecond each.
    scores = [
        PrototypicalClassifier(own.flatten(0, 1), labels, distance=distance)(other.flatten(0, 1))
        for own, other in zip(support, query, strict=True)
    ]
    return torch.stack(scores).view(*query.shape[:3], ways)


def cosine(support: Tensor, query: Tensor) -> Tensor:
    """Scores a way by the cosine similarity with its mean support embedding."""
    return centroid(support, query, "cosine")


CLASSIFIERS: dict[str, Classifier] = {
    "centroid": centroid,
    "cosine": cosine,
    "logistic": logistic,
    "svm": svm,
}
"""Classifiers, by name, in the order of tables."""


@torch.inference_mode()
def correct_queries(
    embeddings: Tensor, episodes: Episodes, classifier: str, title: str = "episodes"
) -> Tensor:
    """Counts the queries of each episode that a classifier puts into their own way, ``[E]``.

    ``embeddings`` are those of all images that the episodes are drawn from, ``[N, D]``.

    Raises:
        ValueError: If there is no such classifier, or an embedding is not finite.
    """
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier must be one of {', '.join(CLASSIFIERS)}, got {classifier!r}")
    broken = int((~embeddings.isfinite()).any(dim=1).sum())
    if broken:
        raise ValueError(
            f"embeddings must be finite, {broken} of {len(embeddings)} are not: the network has "
            "diverged"
        )
    ways = episodes.query.shape[1]
    images = ways * (episodes.support.shape[2] + episodes.query.shape[2])
    size = max(1, _CHUNK_BYTES // (images * embeddings[0].nbytes))
    own = torch.arange(ways, device=embeddings.device).view(-1, 1)
    counts = []
    with tqdm(total=len(episodes.query), desc=title, leave=False, disable=None) as progress:
        for support, query in zip(
            episodes.support.split(size), episodes.query.split(size), strict=True
        ):
            gathered = (embeddings[part.to(embeddings.device)] for part in (support, query))
            scores = CLASSIFIERS[classifier](*gathered)
            counts.append((scores.argmax(dim=3) == own).sum(dim=(1, 2)).cpu())
            progress.update(len(query))
    return torch.cat(counts)
