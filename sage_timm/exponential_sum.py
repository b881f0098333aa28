"""The reciprocal as a short sum of exponentials, by which a quotient of two maps comes apart."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_GRID = 400  # points at which the weights are fitted, geometrically spaced
_ENDS = 9  # places tried for either end of the exponents


class ExponentialSum(NamedTuple):
    """``1 / z`` as ``sum(weights * exp(-exponents * z))``, for z in ``[1 / span, 1]``."""

    exponents: Tensor
    weights: Tensor
    error: float
    """The largest relative error on the interval."""


def exponential_sum(terms: int, span: float) -> ExponentialSum:
    """Fits a sum of exponentials to ``1 / z`` on ``[1 / span, 1]``.

    Since ``1 / z`` is the integral of ``exp(-z u)`` over all u > 0, and so that of
    ``exp(s - z exp(s))`` over all s, exponents in a geometric sequence do well. The weights follow
    from least squares in the relative error; the sequence's ends are those, of some around
    ``[1, span]``, that leave the smallest largest error.

    Args:
        terms: The number of exponentials, at least 2.
        span: The interval's length as a factor, greater than 1.

    Returns:
        Exponents and weights, ``[terms]`` each in float64, all weights positive, and the error.
    """
    z = torch.logspace(-math.log10(span), 0, _GRID, dtype=torch.float64)
    best = ExponentialSum(z, z, math.inf)
    for low in torch.linspace(-1, 1, _ENDS).tolist():
        for high in torch.linspace(-1, 1.5, _ENDS).tolist():
            exponents = torch.linspace(low, math.log(span) + high, terms, dtype=torch.float64).exp()
            terms_at_z = z[:, None] * torch.exp(-z[:, None] * exponents)
            weights = torch.linalg.lstsq(terms_at_z, torch.ones_like(z)[:, None]).solution[:, 0]
            error = float((terms_at_z @ weights - 1).abs().max())
            if error < best.error and bool((weights > 0).all()):
                best = ExponentialSum(exponents, weights, error)
    return best
