"""Manifold Mixup (Verma et al., Better Representations by Interpolating Hidden States, 2019)."""

import numpy as np
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from harness.methods.base import Training, change_output_once, register

_ALPHA = 2.0  # the paper's
_HIDDEN_LAYERS = 2  # the paper mixes after one of the first two stages, or the images themselves


@register("manifold", kind="hidden")
class ManifoldMixup:
    """Mixes the batch with its reverse, at the images or at the output of an early stage.

    The layer and the weight are drawn for each batch. For a hidden layer a forward hook waits for
    the model's next pass in training mode, and mixes there what the images come to; the images stay
    as they are. The model is any of timm's whose ``feature_info`` names its stages.

    Raises:
        ValueError: If the model names fewer than two stages.

    Source: Verma et al., ICML 2019, Eq. 1 and Sec. 4.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        stages = training.stages(least=_HIDDEN_LAYERS)[:_HIDDEN_LAYERS]
        self.layers = [stage.module for stage in stages]
        self.alpha = training.config.alpha_or(_ALPHA)
        self.interpolate = linear_mix
        self._waiting: RemovableHandle | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Draws the layer and the weight, and mixes images ``[B, C, H, W]`` or has them mixed."""
        layer = np.random.randint(len(self.layers) + 1)
        lam = np.random.beta(self.alpha, self.alpha)
        if self._waiting is not None:  # its batch never reached the model
            self._waiting.remove()
        if layer == 0:
            images = self.interpolate(images, images.flip(0), lam)
        else:
            self._waiting = change_output_once(
                self.layers[layer - 1], lambda hidden: self.interpolate(hidden, hidden.flip(0), lam)
            )
        return images, self.training.soft_targets(targets, lam)


def linear_mix(one: Tensor, other: Tensor, lam: float) -> Tensor:
    """Mixes hidden states along a straight line."""
    return lam * one + (1 - lam) * other
