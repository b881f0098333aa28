"""KeepAugment (Gong et al., A Simple Information-Preserving Data Augmentation, CVPR 2021)."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2.functional import resize

from harness.methods.base import Training, change_output_once, normalised, register
from harness.methods.cutout import squares
from sage_timm.gradient import Forward

_CUT_SIDE = 0.5  # of the shorter side, as Cutout's
_PASTE_SIDE = 0.25  # of the shorter side: 8 of 32 pixels, as in the paper's Fig. 3
_QUANTILE = 0.6  # tau
_OPERATIONS, _MAGNITUDE = 3, 15  # RandAugment's, as in the paper's Fig. 3
_EARLY_WEIGHT = 0.3  # of the early head's loss


class KeepAugment:
    """Alters images where that costs little, or gives back what it would cost.

    The importance of a square is the saliency inside of it, added up; the saliency is the largest
    absolute value over channels of the gradient of the label's logit. Squares have their centre on
    any pixel, as Cutout's. One is important above the 0.6 quantile of all squares of its image.
    Selective cut sets an unimportant square to the mean colour. Selective paste alters the image by
    RandAugment and pastes an important square of the original back.

    ``saliency_size`` computes the saliency at a lower resolution, the paper's first short cut.

    Source: Gong et al., CVPR 2021, Sec. 3. It leaves open which squares there are at the border,
    and the network's mode in the saliency pass (here evaluation).
    """

    def __init__(self, paste: bool, training: Training) -> None:
        self.paste, self.training = paste, training
        self.forward: Forward | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Alters each image of ``[B, C, H, W]``; labels stay."""
        height, width = images.shape[-2:]
        share = _PASTE_SIDE if self.paste else _CUT_SIDE
        side = max(1, int(share * min(height, width)))
        importance = square_sums(self._saliency(images, targets), side)
        square = squares(*draw(importance, important=self.paste), side, (height, width))
        if self.paste:
            altered = torch.where(square, images, self._randaugmented(images))
        else:
            altered = images.masked_fill(square, 0)
        return altered, self.training.soft_targets(targets)

    def _saliency(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes saliency maps ``[B, H, W]``."""
        size = self.training.config.saliency_size
        shrinks = size is not None and size < min(images.shape[-2:])
        gradient = self.training.gradient(
            resize(images, [size], antialias=True) if shrinks else images,
            targets,
            loss_fn=_label_logit,
            forward=self.forward,
        )
        maps = gradient.float().abs().amax(dim=1, keepdim=True)
        return F.interpolate(maps, size=images.shape[-2:], mode="bilinear")[:, 0]

    def _randaugmented(self, images: Tensor) -> Tensor:
        """Alters each image by RandAugment, with draws of its own."""
        augment = RandAugment(_OPERATIONS, _MAGNITUDE)
        pixels = (self.training.pixels(images).clamp(0, 1) * 255).round().byte()
        altered = torch.stack([augment(image) for image in pixels])
        return normalised(altered, *self.training.normalisation()).to(images.dtype)


class EarlyKeepAugment(KeepAugment):
    """Takes the saliency of an early head, the paper's second short cut.

    The head is a linear classifier of the first stage's mean output. It is trained along with the
    network, and its saliency needs that stage alone.

    Raises:
        ValueError: If the network names no stages, or cannot be run up to the first.

    Source: Gong et al., CVPR 2021, Sec. 3.3.
    """

    def __init__(self, paste: bool, training: Training) -> None:
        super().__init__(paste, training)
        self.module = _EarlyHead(training)
        self.forward = self.module.early_logits

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Alters each image of ``[B, C, H, W]``; labels stay."""
        altered, soft_targets = super().__call__(images, targets)
        self.module.watch()
        return altered, soft_targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss, plus 0.3 times the early head's."""
        loss: Tensor = self.training.loss_fn(logits, targets)
        early: Tensor = self.training.loss_fn(self.module.seen(), targets)
        return loss + _EARLY_WEIGHT * early


def square_sums(maps: Tensor, side: int) -> Tensor:
    """Adds maps ``[B, H, W]`` up over the square around each pixel, clipped at the border."""
    before, after = side // 2, side - 1 - side // 2
    padded = F.pad(maps[:, None], (before, after, before, after))
    return F.avg_pool2d(padded, side, stride=1)[:, 0] * side**2


def draw(importance: Tensor, important: bool) -> tuple[Tensor, Tensor]:
    """Draws a square of each image, of the important ones or of the others.

    Where none is strictly on that side, those at the quantile are drawn from.

    Args:
        importance: That of the square around each pixel ``[B, H, W]``.
        important: Whether the square is above the quantile, or below it.

    Returns:
        Rows and columns of the centres, ``[B]`` each.
    """
    flat = importance.flatten(1)
    threshold = flat.quantile(_QUANTILE, dim=1, keepdim=True)
    allowed = flat > threshold if important else flat < threshold
    allowed = allowed | ((flat == threshold) & ~allowed.any(dim=1, keepdim=True))
    chance = torch.rand(flat.shape).to(flat.device)
    chosen = torch.where(allowed, chance, -1.0).argmax(dim=1)
    width = importance.shape[2]
    return chosen // width, chosen % width


def _label_logit(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits * targets).sum()


class _EarlyHead(nn.Module):
    """A linear classifier of the mean output of the network's first stage."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._stage = training.stages()[:1]  # in a list, so that it is no part of the head
        if not hasattr(training.model, "forward_intermediates"):
            raise ValueError(
                "an early head needs a timm model with forward_intermediates, got "
                f"{type(training.model).__name__}"
            )
        device = next(training.model.parameters()).device
        self.linear = nn.Linear(self._stage[0].channels, training.classes, device=device)
        self._waiting: RemovableHandle | None = None
        self._features: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Maps the first stage's output ``[B, C, H, W]`` to logits."""
        if features.ndim != 4 or features.shape[1] != self.linear.in_features:
            raise ValueError(
                "an early head needs a network whose first stage gives maps "
                f"[B, {self.linear.in_features}, H, W], got {list(features.shape)}"
            )
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits

    def early_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Maps images to logits by the network's first stage alone."""
        passed: Any = model
        (features,) = passed.forward_intermediates(
            images, indices=[self._stage[0].index], stop_early=True, intermediates_only=True
        )
        return self(features)

    def watch(self) -> None:
        """Keeps the first stage's output in the network's next pass in training mode."""
        if self._waiting is not None:
            self._waiting.remove()
        self._waiting = change_output_once(self._stage[0].module, self._keep)

    def seen(self) -> Tensor:
        """Returns the logits of the output that was kept."""
        assert self._features is not None
        logits, self._features = self(self._features), None
        return logits

    def _keep(self, output: Tensor) -> Tensor:
        self._features = output
        return output


register("keep-cutout", kind="alone")(partial(KeepAugment, False))
register("keep-cutout-early", kind="hidden")(partial(EarlyKeepAugment, False))
register("keep-randaugment", kind="alone")(partial(KeepAugment, True))
register("keep-randaugment-early", kind="hidden")(partial(EarlyKeepAugment, True))
