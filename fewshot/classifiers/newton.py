"""The linear system of a Newton step, which the SVM and logistic regression share."""

from collections.abc import Callable

import torch
from torch import Tensor


def factor(kernel: Tensor, diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    """Prepares to solve ``(K + diag(d_w)) x_w + v = r_w`` for all ways w, with ``sum_w x_w = 0``.

    The ways are tied by v alone, so that W + 1 systems of n unknowns stand for one of W·n (as in
    Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, algorithm 3.3).

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
