"""SAGE with one of its parts taken out (Ma et al., BMVC 2022, the components of Sec. 3)."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from harness.methods import sage
from harness.methods.base import MethodConfig, evaluation_mode, register
from sage_timm import SageMixup

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
