"""Cutout (DeVries and Taylor, Improved Regularization of CNNs with Cutout, 2017)."""

import numpy as np
import torch
from torch import Tensor

from harness.methods.base import Training, register

_SIDE = 0.5  # of the shorter side: the paper's 16 of CIFAR-10's 32 pixels


@register("cutout", kind="alone")
class Cutout:
    """Sets a square of each image to the mean colour; the label stays.

    The square's side is half of the image's. Its centre is any pixel of the image, so that it is
    clipped at the border, where timm's ``RandomErasing`` would move it inside.

    Source: DeVries and Taylor, 2017, Sec. 3; the side is that of CIFAR-10 in Sec. 4.
    """

    def __init__(self, training: Training) -> None:
        self.training = training

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Draws a place for each image of ``[B, C, H, W]``, and cuts a square out there."""
        count, _, height, width = images.shape
        centres = np.random.randint(height, size=count), np.random.randint(width, size=count)
        rows, columns = (torch.from_numpy(values).to(images.device) for values in centres)
        cut = squares(rows, columns, int(_SIDE * min(height, width)), (height, width))
        return images.masked_fill(cut, 0), self.training.soft_targets(targets)


def squares(rows: Tensor, columns: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Marks a square around each centre, clipped at the border: ``[B, 1, H, W]`` of booleans.

    Args:
        rows: Rows of the centres ``[B]``.
        columns: Columns of the centres ``[B]``.
        side: The side in pixels; the pixel after the middle of an even one is its centre's.
        size: Height and width.
    """
    inside = []
    for centres, length in ((rows, size[0]), (columns, size[1])):
        first = centres[:, None] - side // 2
        place = torch.arange(length, device=centres.device)
        inside.append((place >= first) & (place < first + side))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
