"""Mixup, timm's own (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018)."""

from timm.data import Mixup
from torch import nn

from harness.methods.base import MethodConfig, register


@register("mixup")
def build(config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> Mixup:
    """Makes timm's Mixup with one weight for the batch."""
    return Mixup(
        mixup_alpha=config.alpha_or(1.0),
        label_smoothing=config.label_smoothing,
        num_classes=classes,
    )
