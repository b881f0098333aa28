"""Mixup or CutMix, drawn for each batch: the switch of timm's own Mixup class."""

from timm.data import Mixup
from torch import nn

from harness.methods.base import MethodConfig, register


@register("mixup-cutmix")
def build(config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> Mixup:
    """Makes timm's Mixup class with both, each half of the time."""
    alpha = config.alpha_or(1.0)
    return Mixup(
        mixup_alpha=alpha,
        cutmix_alpha=alpha,
        label_smoothing=config.label_smoothing,
        num_classes=classes,
    )
