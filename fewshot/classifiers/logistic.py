"""Logistic regression, as scikit-learn's LogisticRegression computes it."""

import warnings

import torch
from torch import Tensor

from fewshot.classifiers.base import register
from fewshot.classifiers.kernel import factor, linear_scores

# A constant beside the embeddings stands for the intercept: the larger, the less its weight is
# shrunk, which scikit-learn does not do at all.
_CONSTANT = 1000.0**2
_MOST_STEPS = 60
_TOLERANCE = 1e-10  # of what a step can gain, relative to the loss
_SMALLEST = 1e-12  # probability to divide by
_SUFFICIENT = 1e-4  # of the gain that the slope foretells


@register("logistic")
def logistic(support: Tensor, query: Tensor) -> Tensor:
    """Scores the ways by logits of a regularised softmax regression with an intercept.

    What scikit-learn's ``LogisticRegression(C=1)`` computes, which Tian et al. (Rethinking Few-Shot
    Image Classification: a Good Embedding Is All You Need?, ECCV 2020) use. An episode at a time,
    scikit-learn took two to three minutes for 10,000 episodes on a core. Hence this one.
    """
    return linear_scores(support, query, solve, _CONSTANT)


def solve(kernel: Tensor, own: Tensor) -> Tensor:
    """Minimises ``sum_w a_w' K a_w / 2`` plus the cross-entropy of the logits ``K a_w``, over a.

    By Newton's method with step halving.

    Args:
        kernel: Inner products of the support's embeddings, ``[E, n, n]``, float64.
        own: 1 where a way is an image's own, else 0, ``[W, n]``.

    Returns:
        The weights ``[E, W, n]``.
    """
    weights = torch.zeros(len(kernel), *own.shape, dtype=kernel.dtype, device=kernel.device)
    solved, episodes = torch.empty_like(weights), torch.arange(len(kernel), device=kernel.device)
    for _ in range(_MOST_STEPS):
        logits = weights @ kernel
        excess = logits.softmax(dim=1) - own
        scale = 1 / (excess + own).clamp(min=_SMALLEST)
        direction = factor(kernel, scale)(logits - scale * excess) - weights
        change = direction @ kernel
        gain = -((weights + excess) * change).sum(dim=(1, 2))
        length = _length(weights, logits, direction, change, own, gain)
        weights = weights + length.view(-1, 1, 1) * direction
        left = gain > _TOLERANCE * _loss(weights, weights @ kernel, own)
        solved[episodes[~left]] = weights[~left]
        if not left.any():
            return solved
        episodes, kernel, weights = (values[left] for values in (episodes, kernel, weights))
    solved[episodes] = weights
    warnings.warn(
        f"the regression of {len(episodes)} episodes has not converged in {_MOST_STEPS} steps",
        RuntimeWarning,
        stacklevel=2,
    )
    return solved


def _loss(weights: Tensor, logits: Tensor, own: Tensor) -> Tensor:
    """The regularised loss of each episode, ``[E]``."""
    likelihood = (own * logits.log_softmax(dim=1)).sum(dim=(1, 2))
    return (weights * logits).sum(dim=(1, 2)) / 2 - likelihood


def _length(
    weights: Tensor, logits: Tensor, direction: Tensor, change: Tensor, own: Tensor, gain: Tensor
) -> Tensor:
    """Halves Newton's step until it lowers the loss enough, ``[E]``."""
    before = _loss(weights, logits, own)
    length = torch.ones_like(gain)
    for _ in range(30):
        step = length.view(-1, 1, 1)
        after = _loss(weights + step * direction, logits + step * change, own)
        short = after > before - _SUFFICIENT * length * gain + 1e-12 * before
        if not short.any():
            break
        length = length.where(~short, length / 2)
    return length
