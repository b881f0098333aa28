"""CutMix, timm's own (Yun et al., CutMix: Regularization Strategy, ICCV 2019)."""

from timm.data import Mixup
from torch import nn

from harness.methods.base import MethodConfig, register


@register("cutmix")
def build(config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> Mixup:
    """Makes timm's Mixup class with CutMix alone, one box for the batch."""
    return Mixup(
        mixup_alpha=0.0,
        cutmix_alpha=config.alpha_or(1.0),
        label_smoothing=config.label_smoothing,
        num_classes=classes,
    )
