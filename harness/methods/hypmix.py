"""HypMix (Sawhney et al., Hyperbolic Interpolative Data Augmentation, EMNLP 2021)."""

import math

import torch
from torch import Tensor

from harness.methods.base import Training, register
from harness.methods.manifold import ManifoldMixup

_LARGEST = 1 - 1e-5  # of a point's norm, short of the ball's border


@register("hypmix", kind="hidden")
class HypMix(ManifoldMixup):
    """Mixes as Manifold Mixup does, along the lines of hyperbolic space.

    Layer, weight and labels are those of Manifold Mixup. Each row of an image or feature map,
    ``[..., W]``, is a point of the Poincaré ball of curvature -1: the exponential map at the origin
    takes it there, it is scaled and added by Möbius operations, and the logarithm takes it back.

    Raises:
        ValueError: If the model names fewer than two stages.

    Source: Sawhney et al., EMNLP 2021, Sec. 3. The rows are those of the authors' implementation,
    whose training code mixes linearly once more before: here as in the paper, once.
    """

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.interpolate = hyperbolic_mix


def hyperbolic_mix(one: Tensor, other: Tensor, lam: float) -> Tensor:
    """Computes ``log(lam * exp(one) + (1 - lam) * exp(other))`` in the Poincaré ball, row by row.

    Since ``lam * exp(h)`` is ``exp(lam h)``, one multiplication is enough. Rows longer than 6.1 are
    shortened to that, as near to the ball's border as float32 goes.
    """
    with torch.autocast(one.device.type, enabled=False):
        first, second = (
            _exp(weight * _shortened(rows.float()))
            for weight, rows in ((lam, one), (1 - lam, other))
        )
        return _log(_add(first, second)).to(one.dtype)


def _shortened(rows: Tensor) -> Tensor:
    """Shortens rows so that their points stay inside the ball."""
    return rows * (math.atanh(_LARGEST) / _norm(rows)).clamp_max(1)


def _exp(tangents: Tensor) -> Tensor:
    """Maps tangents at the origin to points."""
    norm = _norm(tangents)
    return tangents * (norm.tanh() / norm)


def _log(points: Tensor) -> Tensor:
    """Maps points to tangents at the origin."""
    norm = _norm(points)
    return points * (norm.clamp_max(_LARGEST).atanh() / norm)


def _add(one: Tensor, other: Tensor) -> Tensor:
    """Adds points as Möbius does: ``one`` comes first."""
    product = (one * other).sum(dim=-1, keepdim=True)
    squares = [part.square().sum(dim=-1, keepdim=True) for part in (one, other)]
    numerator = (1 + 2 * product + squares[1]) * one + (1 - squares[0]) * other
    return numerator / (1 + 2 * product + squares[0] * squares[1])


def _norm(rows: Tensor) -> Tensor:
    return rows.norm(dim=-1, keepdim=True).clamp_min(1e-15)
