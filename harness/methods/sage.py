"""SAGE (Ma et al., Saliency-Guided Mixup with Optimal Rearrangements, BMVC 2022), and its controls.

The ablations take one of its components out (Sec. 3). Of the controls, one takes the saliency in
evaluation mode; the maps of the other three know nothing of the image that they stand for, so that
what SAGE has over them is what its saliency is worth.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.base import MethodConfig, Training, evaluation_mode, register
from harness.methods.guidedmixup import spectral_residual
from sage_timm import SageMixup, saliency_from_gradient
from sage_timm.sage import Sage
from sage_timm.settings import SageSettings

_ONE_TRANSLATION = 1e-12  # a share so small that one translation is drawn, and nothing is searched

Maps = Callable[[Tensor, Tensor], Tensor]
"""Images ``[B, C, H, W]`` and targets ``[B, K]`` to saliency maps ``[B, 1, H, W]``."""


def is_sage(method: str) -> bool:
    """Tells whether a method is SAGE, an ablation of it or a control."""
    return method.split("-")[0] == "sage"


def mixing_alone(config: MethodConfig, seed: int = 0) -> Sage:
    """Makes SAGE to measure its mixes with: the update ratio concerns the step after the mix."""
    return Sage(replace(config, update_ratio=1.0), torch.Generator().manual_seed(seed))


def _build(training: Training, **changed: Any) -> SageMixup:
    """Makes SageMixup with one weight for the batch, attached to the model."""
    config = training.config
    own = {setting.name: getattr(config, setting.name) for setting in fields(SageSettings)}
    return SageMixup(
        mixup_alpha=config.alpha_or(1.0),
        label_smoothing=config.label_smoothing,
        num_classes=training.classes,
        model=training.model,
        loss_fn=training.loss_fn,
        **own | changed,
    )


register("sage")(_build)
# Both images stay where they are (Sec. 3.2 without Sec. 3.3).
register("sage-no-rearrangement")(partial(_build, search="none"))
# The whole batch is translated alike, by chance.
register("sage-random-translation")(
    partial(_build, search="random", search_fraction=_ONE_TRANSLATION)
)


def _control(name: str) -> Callable[[Any], Any]:
    """Registers SAGE whose maps come from a function of SAGE's own maps, the model and a batch."""

    def put(maps: Callable[[Maps, nn.Module, Tensor, Tensor], Tensor]) -> Any:
        @register(name)
        def build(training: Training) -> SageMixup:
            mixup_fn = _build(training)
            own = mixup_fn.sage.saliency
            mixup_fn.sage.saliency = partial(maps, own, training.model)  # type: ignore[method-assign]
            return mixup_fn

        return maps

    return put


@_control("sage-eval-saliency")
def _eval_maps(own: Maps, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Makes the maps with the network in evaluation mode."""
    with evaluation_mode(model):
        return own(images, targets)


@_control("sage-other-maps")
def _other_maps(own: Maps, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Gives each image the map of another one of its batch."""
    shift = int(torch.randint(1, max(2, len(images)), ()))
    return own(images, targets).roll(shift, dims=0)


@_control("sage-noise-maps")
def _noise_maps(own: Maps, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Makes maps of white noise in the place of a gradient."""
    return saliency_from_gradient(torch.randn_like(images, dtype=torch.float32))


@_control("sage-spectral-maps")
def _spectral_maps(own: Maps, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Makes the maps without the network, by the spectral residual."""
    return spectral_residual(images)


@_control("sage-centre-map")
def _centre_maps(own: Maps, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Makes maps of one Gaussian in the middle, a quarter of a side wide."""
    rows, columns = (
        torch.exp(-2 * torch.linspace(1 / size - 1, 1 - 1 / size, size).square())
        for size in images.shape[2:]
    )
    one = rows[:, None] * columns
    return (one / one.sum()).to(images.device).expand(len(images), 1, *one.shape)
