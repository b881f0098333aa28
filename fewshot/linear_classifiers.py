"""Linear classifiers of embeddings: a support vector machine and logistic regression.

Regularised by their lengths, the best vectors are weighted sums of the support's embeddings (the
representer theorem): there are n = W·S unknowns a way, whatever the embeddings' size D. Many
episodes are solved at once; an episode at a time, learn2learn's SVM took 120 s for 10,000 episodes
of five shots on a core, scikit-learn's logistic regression two to three minutes.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_STEPS = 60
_SVM_BOUND = 0.1  # C_reg, at learn2learn's default
_SVM_TOLERANCE = 1e-12  # of the duality gap, relative to the objective; scores agree to its root
_TO_THE_EDGE = 0.999
# A constant beside the embeddings stands for the intercept: the larger, the less its weight is
# shrunk, which scikit-learn does not do at all.
_CONSTANT = 1000.0**2
_LOGISTIC_TOLERANCE = 1e-10  # of what a step can gain, relative to the loss
_SMALLEST = 1e-12  # probability to divide by
_SUFFICIENT = 1e-4  # of the gain that the slope foretells


def svm(support: Tensor, query: Tensor) -> Tensor:
    """Scores the ways with a multi-class SVM (Crammer and Singer, JMLR 2001).

    Solves the quadratic programme of learn2learn's SVClassifier (Lee et al., Meta-Learning with
    Differentiable Convex Optimization, CVPR 2019).
    """
    return _linear_scores(support, query, partial(solve_svm, bound=_SVM_BOUND))


def logistic(support: Tensor, query: Tensor) -> Tensor:
    """Scores the ways by logits of a regularised softmax regression with an intercept.

    Computes what scikit-learn's ``LogisticRegression(C=1)`` does, which Tian et al. (Rethinking
    Few-Shot Image Classification: a Good Embedding Is All You Need?, ECCV 2020) use.
    """
    return _linear_scores(support, query, solve_logistic, _CONSTANT)


def _linear_scores(
    support: Tensor, query: Tensor, solve: Callable[..., Tensor], constant: float = 0.0
) -> Tensor:
    """Scores the ways of queries ``[E, W, Q, D]``, given the support ``[E, W, S, D]``.

    ``solve`` gives the weights ``[E, W, n]`` for the inner products of the support's embeddings,
    ``[E, n, n]``, and a tensor ``[W, n]`` that is 1 where a way is an image's own, else 0.
    ``constant`` is added to the inner products, for an intercept.
    """
    ways, shots = support.shape[1:3]
    images = support.flatten(1, 2).double()
    own = F.one_hot(torch.arange(ways, device=support.device).repeat_interleave(shots)).T
    weights = solve(images @ images.mT + constant, own.double())
    vectors = (weights @ images).to(query.dtype)
    intercepts = constant * weights.sum(dim=2)
    scores = query.flatten(1, 2) @ vectors.mT + intercepts.unsqueeze(1)
    return scores.view(*query.shape[:3], ways)


def solve_svm(kernel: Tensor, own: Tensor, bound: float) -> Tensor:
    """Minimises ``sum_w a_w' (K + I) a_w / 2 - sum(own * a)`` over the support's weights a.

    Each image's weights sum to 0 over the ways, and are at most ``bound`` for its own way and at
    most 0 for the others. By a primal-dual interior-point method with Mehrotra's predictor and
    corrector (Nocedal and Wright, Numerical Optimization, 2006, algorithm 16.4).
    """
    ways, images = own.shape
    matrix = kernel + torch.eye(images, dtype=kernel.dtype, device=kernel.device)
    weights = (bound * (own - 1 / ways)).expand(len(kernel), -1, -1)
    weights = weights * (_mean(own * weights) / _mean(weights * (weights @ matrix))).clamp(max=1)
    slopes = own - weights @ matrix
    # Multipliers that make the start feasible; from then on steps keep it so.
    spread = slopes.amax(dim=1, keepdim=True) - slopes.amin(dim=1, keepdim=True)
    multipliers = slopes - slopes.amin(dim=1, keepdim=True) + spread.mean(dim=2, keepdim=True)

    def unfinished(weights: Tensor, _matrix: Tensor, slack: Tensor, multipliers: Tensor) -> Tensor:
        return (_mean(slack * multipliers) > _SVM_TOLERANCE * _mean(own * weights)).flatten()

    def step(weights: Tensor, matrix: Tensor, slack: Tensor, multipliers: Tensor) -> list[Tensor]:
        gap = _mean(slack * multipliers)
        newton = _factor(matrix, multipliers / slack)
        predictor = newton(multipliers)
        change = multipliers * (predictor / slack - 1)
        length = _longest(slack, -predictor, multipliers, change)
        after = _mean((slack - length * predictor) * (multipliers + length * change))
        excess = (after / gap) ** 3 * gap + predictor * change
        direction = newton(multipliers - excess / slack)
        change = (excess + multipliers * direction) / slack - multipliers
        length = _TO_THE_EDGE * _longest(slack, -direction, multipliers, change)
        slack = slack - length * direction
        return [weights + length * direction, matrix, slack, multipliers + length * change]

    return _iterated("SVM", step, unfinished, weights, matrix, bound * own - weights, multipliers)


def solve_logistic(kernel: Tensor, own: Tensor) -> Tensor:
    """Minimises ``sum_w a_w' K a_w / 2`` plus the cross-entropy of ``K a_w`` by Newton's method."""

    def loss(weights: Tensor, logits: Tensor) -> Tensor:
        likelihood = (own * logits.log_softmax(dim=1)).sum(dim=(1, 2))
        return (weights * logits).sum(dim=(1, 2)) / 2 - likelihood

    def unfinished(weights: Tensor, kernel: Tensor, gain: Tensor) -> Tensor:
        return gain > _LOGISTIC_TOLERANCE * loss(weights, weights @ kernel)

    def step(weights: Tensor, kernel: Tensor, _gain: Tensor) -> list[Tensor]:
        logits = weights @ kernel
        excess = logits.softmax(dim=1) - own
        scale = 1 / (excess + own).clamp(min=_SMALLEST)
        direction = _factor(kernel, scale)(logits - scale * excess) - weights
        change = direction @ kernel
        gain = -((weights + excess) * change).sum(dim=(1, 2))
        before, length = loss(weights, logits), torch.ones_like(gain).view(-1, 1, 1)
        for _ in range(30):  # halves a step that lowers the loss too little
            after = loss(weights + length * direction, logits + length * change)
            short = after > before - _SUFFICIENT * length.flatten() * gain + 1e-12 * before
            if not short.any():
                break
            length = length.where(~short.view(-1, 1, 1), length / 2)
        return [weights + length * direction, kernel, gain]

    weights = torch.zeros(len(kernel), *own.shape, dtype=kernel.dtype, device=kernel.device)
    gain = torch.full((len(kernel),), torch.inf, dtype=kernel.dtype, device=kernel.device)
    return _iterated("regression", step, unfinished, weights, kernel, gain)


def _iterated(
    name: str, step: Callable[..., list[Tensor]], unfinished: Callable[..., Tensor], *state: Tensor
) -> Tensor:
    """Repeats a step for the episodes that are not finished; gives the weights, its first value."""
    values = list(state)
    solved = torch.empty_like(values[0])
    episodes = torch.arange(len(solved), device=solved.device)
    for _ in range(_MOST_STEPS):
        left = unfinished(*values)
        solved[episodes[~left]] = values[0][~left]
        if not left.any():
            return solved
        if not left.all():
            episodes, *values = (value[left] for value in (episodes, *values))
        values = step(*values)
    solved[episodes] = values[0]
    warnings.warn(
        f"the {name} of {len(episodes)} episodes has not converged in {_MOST_STEPS} steps",
        RuntimeWarning,
        stacklevel=3,
    )
    return solved


def _factor(kernel: Tensor, diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    """Prepares to solve ``(K + diag(d_w)) x_w + v = r_w`` for all ways w, with ``sum_w x_w = 0``.

    It is the system of a Newton step, for K ``[E, n, n]`` and d, r and x ``[E, W, n]``. The ways
    are tied by v alone, so that W + 1 systems of n unknowns stand for one of W·n (as in Rasmussen
    and Williams, Gaussian Processes for Machine Learning, 2006, algorithm 3.3).
    """
    matrices = kernel.unsqueeze(1) + torch.diag_embed(diagonal)
    identity = torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
    # Inverting the triangles takes half the time of inverting the matrices.
    roots = torch.linalg.solve_triangular(torch.linalg.cholesky(matrices), identity, upper=False)
    stacked = roots.flatten(1, 2)
    total = torch.linalg.cholesky(stacked.mT @ stacked)

    def inverse(right: Tensor) -> Tensor:
        return roots.mT @ (roots @ right)

    def solve(right: Tensor) -> Tensor:
        each = inverse(right.unsqueeze(3))
        common = torch.cholesky_solve(each.sum(dim=1), total)
        return (each - inverse(common.unsqueeze(1))).squeeze(3)

    return solve


def _mean(values: Tensor) -> Tensor:
    """Gives the mean of each episode, ``[E, 1, 1]``."""
    return values.mean(dim=(1, 2), keepdim=True)


def _longest(slack: Tensor, by: Tensor, multipliers: Tensor, change: Tensor) -> Tensor:
    """Gives the longest step, 1 at most, that leaves both positive, ``[E, 1, 1]``."""
    rates = torch.maximum(-by / slack, -change / multipliers).amax(dim=(1, 2), keepdim=True)
    return 1 / rates.clamp(min=1)
