"""SAGE with one of its parts taken out (Ma et al., BMVC 2022, the components of Sec. 3).

The last three are controls: their maps know nothing of the image that they stand for, so that what
SAGE has over them is what its saliency is worth.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from harness.methods import sage
from harness.methods.base import MethodConfig, evaluation_mode, register
from sage_timm import SageMixup, saliency_from_gradient

_ONE_TRANSLATION = 1e-12  # a share so small that one translation is drawn, and nothing is searched


@register("sage-no-rearrangement")
def build_no_rearrangement(
    config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int
) -> SageMixup:
    """Makes SAGE that leaves both images where they are (Sec. 3.2 without Sec. 3.3)."""
    return sage.build(replace(config, search="none"), model, loss_fn, classes)


@register("sage-random-translation")
def build_random_translation(
    config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int
) -> SageMixup:
    """Makes SAGE that translates by chance, the whole batch alike."""
    config = replace(config, search="random", search_fraction=_ONE_TRANSLATION)
    return sage.build(config, model, loss_fn, classes)


@register("sage-eval-saliency")
def build_eval_saliency(
    config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Makes SAGE whose saliency pass runs the network in evaluation mode."""
    mixup_fn = sage.build(config, model, loss_fn, classes)

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with evaluation_mode(model):
            return mixup_fn(images, targets)

    return mix


@register("sage-other-maps")
def build_other_maps(
    config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int
) -> SageMixup:
    """Makes SAGE that gives each image the saliency of another one of its batch."""
    mixup_fn = sage.build(config, model, loss_fn, classes)
    own_maps = mixup_fn.sage.saliency

    def other_maps(images: Tensor, targets: Tensor) -> Tensor:
        shift = int(torch.randint(1, max(2, len(images)), ()))
        return own_maps(images, targets).roll(shift, dims=0)

    mixup_fn.sage.saliency = other_maps  # type: ignore[method-assign]
    return mixup_fn


def noise_maps(images: Tensor) -> Tensor:
    """Makes maps ``[B, 1, H, W]`` of white noise in the place of a gradient."""
    return saliency_from_gradient(torch.randn_like(images, dtype=torch.float32))


def centre_maps(images: Tensor) -> Tensor:
    """Makes maps ``[B, 1, H, W]`` of one Gaussian in the middle, a quarter of a side wide."""
    height, width = images.shape[2:]
    rows, columns = (
        torch.exp(-2 * torch.linspace(1 / size - 1, 1 - 1 / size, size).square())
        for size in (height, width)
    )
    one = rows[:, None] * columns
    return (one / one.sum()).to(images.device).expand(len(images), 1, height, width)


def _build_with_maps(
    maps: Callable[[Tensor], Tensor],
    config: MethodConfig,
    model: nn.Module,
    loss_fn: nn.Module,
    classes: int,
) -> SageMixup:
    mixup_fn = sage.build(config, model, loss_fn, classes)
    mixup_fn.sage.saliency = lambda images, _targets: maps(images)  # type: ignore[method-assign]
    return mixup_fn


register("sage-noise-maps")(partial(_build_with_maps, noise_maps))
register("sage-centre-map")(partial(_build_with_maps, centre_maps))
