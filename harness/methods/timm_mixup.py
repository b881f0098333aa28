"""timm's own mixing: none, mixup, CutMix, or one of the two drawn for each batch.

mixup is by Zhang et al. (mixup: Beyond Empirical Risk Minimization, ICLR 2018), CutMix by Yun et
al. (CutMix: Regularization Strategy to Train Strong Classifiers, ICCV 2019).
"""

from functools import partial

from timm.data import Mixup
from torch import Tensor

from harness.methods.base import Mix, Training, register

_ALPHAS = {"mixup": (1.0, 0.0), "cutmix": (0.0, 1.0), "mixup-cutmix": (1.0, 1.0)}
"""mixup's and CutMix's alpha, in parts of the settings' own of each."""


@register("none")
def build_none(training: Training) -> Mix:
    """Makes the baseline: images stay as they are, with the same soft targets as the others'."""

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images, training.soft_targets(targets)

    return mix


def _build(mixup: float, cutmix: float, training: Training) -> Mixup:
    """Makes timm's Mixup with one weight or box for the batch."""
    config = training.config
    alpha = config.alpha_or(1.0)
    return Mixup(
        mixup_alpha=mixup * alpha,
        cutmix_alpha=cutmix * (config.cutmix_alpha or alpha),
        label_smoothing=config.label_smoothing,
        num_classes=training.classes,
    )


for _name, _alphas in _ALPHAS.items():
    register(_name)(partial(_build, *_alphas))
