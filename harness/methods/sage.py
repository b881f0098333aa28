"""SAGE (Ma et al., Saliency-Guided Mixup with Optimal Rearrangements, BMVC 2022)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.base import MethodConfig, register
from sage_timm import SageMixup, best_translation
from sage_timm.sage import Sage
from sage_timm.settings import SageSettings

OWN_SETTINGS = (
    "lambda_max",
    "update_ratio",
    "saliency_size",
    "saliency_dtype",
    "saliency_fraction",
    "search",
    "search_fraction",
)
"""The settings that no other method reads."""


def is_sage(method: str) -> bool:
    """Tells whether a method is SAGE, whole or with a part taken out."""
    return method.split("-")[0] == "sage"


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
    """What the settings say to SAGE alone, as the library's keyword arguments."""
    return {name: getattr(config, name) for name in OWN_SETTINGS}


def mixing_alone(config: MethodConfig, seed: int = 0) -> Sage:
    """Makes SAGE to measure its mixes with: the update ratio concerns the step after the mix."""
    own = own_settings(replace(config, update_ratio=1.0))
    return Sage(SageSettings(**own), torch.Generator().manual_seed(seed))


def decide(maps: Tensor, lam: Tensor, translations: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Decides, as SAGE does, how to mix each image with its reverse in the batch.

    Returns:
        Both images' weighted maps ``[B, 1, H, W]``, and the best ``[B, 2]`` of the translations
        ``[N, 2]``; of all, by FFT, if None.
    """
    partner = torch.arange(len(maps) - 1, -1, -1, device=maps.device)
    lam = lam.to(maps.dtype).to(maps.device, non_blocking=True).view(-1, 1, 1, 1)
    uniform = maps.amax(dim=(1, 2, 3)) == maps.amin(dim=(1, 2, 3))
    plain = uniform | uniform[partner]
    mean = 1 / (maps.shape[2] * maps.shape[3])
    own, other = (torch.where(plain.view(-1, 1, 1, 1), mean, m) for m in (maps, maps[partner]))
    own, other = lam * own, (1 - lam) * other
    translation = best_translation(own, other, translations)
    return own, other, translation.masked_fill(plain[:, None], 0)
