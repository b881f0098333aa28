"""The former name of :mod:`sage_timm.gradient`."""

from sage_timm.gradient import Loss, LossGradient, input_gradient

__all__ = ["Loss", "LossGradient", "input_gradient"]
