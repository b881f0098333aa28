"""SAGE (Ma et al., Saliency-Guided Mixup with Optimal Rearrangements, BMVC 2022)."""

import torch
from torch import nn

from harness.methods.base import MethodConfig, register
from sage_timm import SageMixup


@register("sage")
def build(config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> SageMixup:
    """Makes SageMixup with one weight for the batch, attached to the model."""
    dtype = config.saliency_dtype
    return SageMixup(
        mixup_alpha=config.alpha_or(1.0),
        label_smoothing=config.label_smoothing,
        num_classes=classes,
        model=model,
        loss_fn=loss_fn,
        lambda_max=config.lambda_max,
        update_ratio=config.update_ratio,
        saliency_size=config.saliency_size,
        saliency_dtype=None if dtype is None else getattr(torch, dtype),
        saliency_fraction=config.saliency_fraction,
        search=config.search,
        search_fraction=config.search_fraction,
    )
