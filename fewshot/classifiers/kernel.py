"""What the SVM and logistic regression share: both are linear in the support's embeddings."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_scores(
    support: Tensor,
    query: Tensor,
    solve: Callable[[Tensor, Tensor], Tensor],
    constant: float = 0.0,
) -> Tensor:
    """Scores the ways by vectors that are weighted sums of the support's embeddings.

    Regularised by their lengths, the best vectors are such sums (the representer theorem), so that
    there are n = W·S unknowns a way, whatever the embeddings' size.

    Args:
        support: ``[E, W, S, D]``.
        query: ``[E, W, Q, D]``.
        solve: Takes the inner products of the support's embeddings ``[E, n, n]``, float64, and a
            tensor ``[W, n]`` that is 1 where a way is an image's own, else 0; gives the weights
            ``[E, W, n]``.
        constant: The square of a constant that stands beside the embeddings, for an intercept.

    Returns:
        Scores ``[E, W, Q, W]``.
    """
    ways, shots = support.shape[1:3]
    images = support.flatten(1, 2).double()
    own = F.one_hot(torch.arange(ways, device=support.device).repeat_interleave(shots)).T
    weights = solve(images @ images.mT + constant, own.double())
    vectors = (weights @ images).to(query.dtype)
    intercepts = constant * weights.sum(dim=2)
    scores = query.flatten(1, 2) @ vectors.mT + intercepts.unsqueeze(1)
    return scores.view(*query.shape[:3], ways)


def factor(kernel: Tensor, diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    """Prepares to solve ``(K + diag(d_w)) x_w + v = r_w`` for all ways w, with ``sum_w x_w = 0``.

    It is the system of a Newton step. The ways are tied by v alone, so that W + 1 systems of n
    unknowns stand for one of W·n (as in Rasmussen and Williams, Gaussian Processes for Machine
    Learning, 2006, algorithm 3.3).

    Args:
        kernel: K, positive semi-definite, ``[E, n, n]``.
        diagonal: d, above 0, ``[E, W, n]``.

    Returns:
        A function of r ``[E, W, n]`` that returns x ``[E, W, n]``.
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
