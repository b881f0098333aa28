"""Catch-up Mix (Kang, Kang and Kim, Catch-Up Class for Struggling Filters in CNN, AAAI 2024)."""

from functools import partial

import numpy as np
import torch
from timm.data.mixup import cutmix_bbox_and_lam
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from harness.methods.base import Training, change_output_once, register

_ALPHA = 1.0


@register("catchupmix", kind="hidden")
class CatchUpMix:
    """Hands on those activation maps that are weak in their own image, so that they must be used.

    A layer is drawn for each batch: the images, which are mixed by CutMix, or the output of a
    stage. There each mix takes a drawn share of its channels from the image in its own place, those
    whose norm is least beside the partner's, and the other channels from the partner. The label
    weight is that share.

    Raises:
        ValueError: If the model names no stages, or a stage's output is no ``[B, C, H, W]``.

    Source: Kang, Kang and Kim, AAAI 2024, Fig. 2 and Sec. 3. How a norm is set in relation to the
    partner's, ``n / (n + n')``, is this project's reading.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.stages = training.stages()
        self.alpha = training.config.alpha_or(_ALPHA)
        self._waiting: RemovableHandle | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Draws layer and weight, and mixes images ``[B, C, H, W]`` or has them mixed."""
        layer = np.random.randint(len(self.stages) + 1)
        lam = np.random.beta(self.alpha, self.alpha)
        if self._waiting is not None:  # its batch never reached the model
            self._waiting.remove()
        if layer == 0:
            (top, bottom, left, right), lam = cutmix_bbox_and_lam(images.shape, lam)
            mixed = images.clone()
            mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
            return mixed, self.training.soft_targets(targets, lam)
        stage = self.stages[layer - 1]
        own = round(lam * stage.channels)
        self._waiting = change_output_once(
            stage.module, partial(_hand_on, own=own, channels=stage.channels)
        )
        return images, self.training.soft_targets(targets, own / stage.channels)


def _hand_on(maps: Tensor, own: int, channels: int) -> Tensor:
    if maps.ndim != 4 or maps.shape[1] != channels:
        raise ValueError(
            f"catchupmix needs a network whose stages give maps [B, {channels}, H, W], got "
            f"{list(maps.shape)}"
        )
    return hand_on_weakest(maps, own)


def hand_on_weakest(maps: Tensor, own: int) -> Tensor:
    """Takes the channels that are weakest beside the partner's from the image itself.

    Args:
        maps: ``[B, C, H, W]``; the partner is the one in its place in the reversed batch.
        own: Number of channels that the image itself gives; the partner gives the others.
    """
    norms = torch.linalg.vector_norm(maps.detach().float(), dim=(2, 3))
    influence = torch.nan_to_num(norms / (norms + norms.flip(0)), nan=0.5)
    rank = influence.argsort(dim=1, stable=True).argsort(dim=1)
    return torch.where((rank < own)[:, :, None, None], maps, maps.flip(0))
