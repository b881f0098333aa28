"""No mixing: the baseline, with the same soft-target loss as the others."""

from collections.abc import Callable

from timm.data.mixup import mixup_target
from torch import Tensor, nn

from harness.methods.base import MethodConfig, register


@register("none")
def build(
    config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Makes a function that leaves images alone and one-hot encodes the classes."""

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images, mixup_target(targets, classes, 1.0, config.label_smoothing)

    return mix
