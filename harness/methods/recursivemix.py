"""RecursiveMix (Yang et al., Mixed Learning with History, NeurIPS 2022)."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import cutmix_bbox_and_lam
from timm.layers import SelectAdaptivePool2d
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.ops import roi_align

from harness.methods.base import Training, register

_LARGEST_AREA = 0.5  # alpha, the paper's
_CONSISTENCY = 0.1  # omega, the paper's for CIFAR


@register("recursivemix", kind="hidden")
class RecursiveMix:
    """Shrinks the mixes of the batch before into a box of this batch's images.

    The labels are mixed by the box's area, and the loss adds a term of consistency: what the
    network makes of the box, a linear classifier of the last features inside of it, is to agree
    with what it made of the mix that was pasted. Its weight is 0.1 times the box's share. The first
    batch is left as it is.

    Raises:
        ValueError: If the network has no pooling layer of timm's before its classifier, or pools no
            ``[B, C, H, W]``.

    Source: Yang et al., NeurIPS 2022, Sec. 3. The authors forget the history at each epoch's start,
    and their boxes have even sides; here they are CutMix's of timm.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.module = _History(training)
        self._box: _Box | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pastes onto each image of ``[B, C, H, W]`` the mix in its place in the batch before."""
        soft_targets = self.training.soft_targets(targets)
        area = np.random.uniform(0, _LARGEST_AREA)
        (top, bottom, left, right), own = cutmix_bbox_and_lam(images.shape, 1 - area)
        before, self._box = self.module.last, None
        if before is not None and before.images.shape == images.shape and own < 1:
            images = images.clone()
            size = (bottom - top, right - left)
            images[..., top:bottom, left:right] = F.interpolate(before.images, size=size)
            soft_targets = own * soft_targets + (1 - own) * before.targets
            self._box = _Box(top, bottom, left, right, *images.shape[2:], 1 - own, before.logits)
        self.module.last = _Batch(images, soft_targets, None)
        self.module.watch()
        return images, soft_targets

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Computes the loss, and adds the term of consistency where a box was pasted."""
        loss: Tensor = self.training.loss_fn(logits, targets)
        box, last, features = self._box, self.module.last, self.module.seen()
        assert last is not None
        self.module.last = last._replace(logits=logits.detach().float())
        if box is None or box.logits is None:
            return loss
        down, across = features.shape[2] / box.height, features.shape[3] / box.width
        corners = [box.left * across, box.top * down, box.right * across, box.bottom * down]
        inside = [torch.tensor([corners], dtype=torch.float32).to(features.device)] * len(features)
        pooled = roi_align(features.float(), inside, 1, aligned=True)
        asked = self.module.linear(pooled.flatten(1)).float()
        consistency = SoftTargetCrossEntropy()(asked, box.logits.softmax(dim=1))
        return loss + _CONSISTENCY * box.share * consistency


class _Box(NamedTuple):
    """Where the batch before was pasted, its share of the area, and what was made of it."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int
    share: float
    logits: Tensor | None


class _Batch(NamedTuple):
    """A batch's mixes, their targets, and the network's logits of them, once they are known."""

    images: Tensor
    targets: Tensor
    logits: Tensor | None


class _History(nn.Module):
    """The batch before, and the classifier of a box."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        model: Any = training.model
        pools = [part for part in model.modules() if isinstance(part, SelectAdaptivePool2d)]
        if len(pools) != 1:
            raise ValueError(
                "recursivemix needs a timm model with one pooling layer, whose input it classifies "
                f"by boxes, got {len(pools)} for {type(model).__name__}"
            )
        self._pool = pools  # in a list, so that it is no part of this
        device = next(model.parameters()).device
        self.linear = nn.Linear(model.num_features, training.classes, device=device)
        self.last: _Batch | None = None
        self._waiting: RemovableHandle | None = None
        self._features: Tensor | None = None

    def watch(self) -> None:
        """Keeps the features before pooling in the network's next pass in training mode."""

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not module.training:
                return
            handle.remove()
            (features,) = inputs
            if features.ndim != 4 or features.shape[1] != self.linear.in_features:
                raise ValueError(
                    "recursivemix needs a network that pools maps "
                    f"[B, {self.linear.in_features}, H, W], got {list(features.shape)}"
                )
            self._features = features

        if self._waiting is not None:  # its batch never reached the model
            self._waiting.remove()
        self._waiting = handle = self._pool[0].register_forward_pre_hook(keep)

    def seen(self) -> Tensor:
        """Returns the features that were kept, ``[B, C, h, w]``."""
        assert self._features is not None
        features, self._features = self._features, None
        return features

    def get_extra_state(self) -> list[Tensor | None] | None:
        """Gives the batch before, for a checkpoint."""
        return None if self.last is None else list(self.last)

    def set_extra_state(self, state: list[Tensor | None] | None) -> None:
        """Takes the batch before from a checkpoint."""
        values: Any = state
        self.last = None if values is None else _Batch(*values)
