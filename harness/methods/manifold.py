"""Manifold Mixup (Verma et al., Better Representations by Interpolating Hidden States, 2019)."""

import re
from typing import Any

import numpy as np
from timm.data.mixup import mixup_target
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.methods.base import MethodConfig, register

_ALPHA = 2.0  # the paper's
_HIDDEN_LAYERS = 2  # the paper mixes after one of the first two stages, or the images themselves
_STAGE = re.compile(r"(features\.)?(stages|blocks|layers|layer|features|s)\.?\d+")


@register("manifold")
class ManifoldMixup:
    """Mixes the batch with its reverse, at the images or at the output of an early stage.

    The layer and the weight are drawn for each batch. For a hidden layer a forward hook waits for
    the model's next pass in training mode, and mixes there what the images come to; the images stay
    as they are. The model is any of timm's whose ``feature_info`` names its stages.

    Raises:
        ValueError: If the model names fewer than two stages.

    Source: Verma et al., ICML 2019, Eq. 1 and Sec. 4.
    """

    def __init__(
        self, config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int
    ) -> None:
        names = [info["module"] for info in getattr(model, "feature_info", [])]
        stages = [name for name in names if _STAGE.fullmatch(name)][:_HIDDEN_LAYERS]
        if len(stages) < _HIDDEN_LAYERS:
            raise ValueError(
                f"manifold needs a timm model whose feature_info names its stages, got {names} for "
                f"{type(model).__name__}"
            )
        self.layers = [model.get_submodule(name) for name in stages]
        self.classes = classes
        self.alpha = config.alpha_or(_ALPHA)
        self.label_smoothing = config.label_smoothing
        self._waiting: RemovableHandle | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Draws the layer and the weight, and mixes images ``[B, C, H, W]`` or has them mixed."""
        layer = np.random.randint(len(self.layers) + 1)
        lam = np.random.beta(self.alpha, self.alpha)
        if self._waiting is not None:  # its batch never reached the model
            self._waiting.remove()
        if layer == 0:
            images = _mix(images, lam)
        else:
            self._waiting = _mix_output_once(self.layers[layer - 1], lam)
        return images, mixup_target(targets, self.classes, lam, self.label_smoothing)


def _mix_output_once(layer: nn.Module, lam: float) -> RemovableHandle:
    def hook(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        handle.remove()
        return _mix(output, lam)

    handle = layer.register_forward_hook(hook)
    return handle


def _mix(hidden: Tensor, lam: float) -> Tensor:
    return lam * hidden + (1 - lam) * hidden.flip(0)
