"""SAGE (Ma et al., Saliency-Guided Mixup with Optimal Rearrangements, BMVC 2022)."""

from typing import Any

import torch
from torch import nn

from harness.methods.base import MethodConfig, register
from sage_timm import SageMixup


@register("sage")
def build(config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> SageMixup:
    """Makes SageMixup with one weight for the batch, attached to the model."""
    return SageMixup(
        mixup_alpha=config.alpha_or(1.0),
        label_smoothing=config.label_smoothing,
        num_classes=classes,
        model=model,
        loss_fn=loss_fn,
        **own_settings(config),
    )


def own_settings(config: MethodConfig) -> dict[str, Any]:
    """What the settings say to SAGE alone, by the names that the library gives it."""
    dtype = config.saliency_dtype
    return {
        "lambda_max": config.lambda_max,
        "update_ratio": config.update_ratio,
        "saliency_size": config.saliency_size,
        "saliency_dtype": None if dtype is None else getattr(torch, dtype),
        "saliency_fraction": config.saliency_fraction,
        "search": config.search,
        "search_fraction": config.search_fraction,
    }
