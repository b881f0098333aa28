"""SAGE for a batch whose pairs and weights are already drawn: Eq. 1, Sec. 3.3, Eq. 2 in a row."""

import copy
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import get_worker_info

from sage_timm.blend import blend
from sage_timm.gradient import Clean, Forward, Loss
from sage_timm.model_state import is_sharded
from sage_timm.saliency import saliency_pass
from sage_timm.search import best_translation, random_translations
from sage_timm.settings import SageSettings, written
from sage_timm.shared_gradient import SharedGradient


class Mix(NamedTuple):
    """A mixed batch, and what it was mixed by."""

    images: Tensor
    """``[B, C, H, W]``, in the clean images' type and memory format."""
    label_weight: Tensor
    """``[B]`` in [0, 1]: each image's, beside its partner's; the mask's mean."""
    mask: Tensor
    """``[B, 1, H, W]`` in [0, 1]: each image's share of a pixel, beside its moved partner's."""
    translation: Tensor
    """``[B, 2]`` int64, each partner's: rows down, columns to the right, in pixels."""
    maps: Tensor
    """``[B, 1, H, W]``: the clean images' saliency, not weighted."""


class Sage:
    """Mixes batches whose pairs and weights are drawn, for timm's and torchvision's transforms.

    Args:
        settings: SAGE's settings.
        generator: Draws the translations; torch's own generator if None.
    """

    def __init__(self, settings: SageSettings, generator: torch.Generator | None = None) -> None:
        self.settings = settings
        self.generator = generator
        self.model: nn.Module | None = None
        self.loss_fn: Loss | None = None
        self.forward: Forward | None = None
        self._shared = SharedGradient(settings.update_ratio)
        self._clean: Clean = []

    def attach(self, model: nn.Module, loss_fn: Loss, forward: Forward | None = None) -> None:
        """Sets the model and the loss whose gradients give the saliency; raises if it cannot."""
        ratio = self.settings.update_ratio
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, torch.jit.ScriptModule) and ratio < 1:
            raise ValueError(
                f"update_ratio={ratio} needs a forward hook, which a TorchScript module does not "
                "take: use update_ratio=1, or do not script the model"
            )
        if forward is not None and ratio < 1:
            raise ValueError(
                f"update_ratio={ratio} needs a module that returns the logits alone, so it does "
                "not go with forward=: use update_ratio=1, or put what forward does into a module "
                "around the model, attach that one, and call it in the loop"
            )
        self.forget()
        self.model = _without_ddp(model)
        self.loss_fn = loss_fn
        self.forward = forward
        self._check_sharding()

    def forget(self) -> None:
        """Drops a shared gradient that no training step has used."""
        self._clean = []
        self._shared.drop()

    def check_draws(self) -> None:
        """Raises where processes that draw differently would wait for each other for ever."""
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if together and self.model is not None and is_sharded(self.model):
            raise ValueError(
                "the attached model is sharded by FSDP, whose processes run each pass together, "
                "but with prob below 1, or CutMix beside SAGE, each draws for itself whether there "
                "is a saliency pass: use prob=1 and cutmix_alpha=0"
            )

    def draw_translations(self, height: int, width: int) -> Tensor | None:
        """Draws the translations ``[N, 2]`` that the whole batch chooses from; None for all."""
        if self.settings.search == "all":
            return None
        if self.settings.search == "none":
            return torch.zeros(1, 2, dtype=torch.int64)
        return random_translations(height, width, self.settings.search_fraction, self.generator)

    def mix(
        self,
        images: Tensor,
        targets: Tensor,
        partner: Tensor,
        lam: Tensor,
        translations: Tensor | None,
    ) -> Mix:
        """Mixes each image with its partner.

        Pairs with a uniform map, which says nothing of where the object is, get plain mixup: both
        maps are taken as uniform, and the partner stays where it is.

        Args:
            images: ``[B, C, H, W]``, floating point.
            targets: ``[B, num_classes]``, the clean ones.
            partner: ``[B]`` int64, the index of the image that is mixed into each.
            lam: ``[B]`` in [0, 1], on any device, drawn from the Beta distribution; scaled by
                ``lambda_max`` here.
            translations: ``[N, 2]``, those to choose from; all if None.

        Raises:
            RuntimeError: If no model is attached.
            ValueError: If the model or the loss does not fit the batch.
        """
        maps = self.saliency(images, targets)
        lam = lam * self.settings.lambda_max
        # The type first: not every device has float64.
        lam = lam.to(maps.dtype).to(maps.device, non_blocking=True).view(-1, 1, 1, 1)
        uniform = maps.amax(dim=(1, 2, 3)) == maps.amin(dim=(1, 2, 3))
        plain = uniform | uniform[partner]
        mean = 1 / (maps.shape[2] * maps.shape[3])
        own, other = (torch.where(plain.view(-1, 1, 1, 1), mean, m) for m in (maps, maps[partner]))
        own, other = lam * own, (1 - lam) * other
        translation = best_translation(own, other, translations).masked_fill(plain[:, None], 0)
        mixed, mask, weight = blend(images, images[partner], own, other, translation)
        return Mix(mixed, weight, mask, translation, maps)

    def saliency(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the maps ``[B, 1, H, W]`` of a batch ``[B, C, H, W]``.

        This is the one place where the source of maps is chosen: any function of images and targets
        may be put in its place. With a ``saliency_fraction`` below 1, the maps at the two ends of
        the batch are computed, and the rest is uniform. timm mixes the first image with the last,
        and so on inwards; torchvision's pairs, an image and the one before it, lie in the ends as
        well, all but one.
        """
        if self.model is None or self.loss_fn is None:
            raise RuntimeError(
                "SAGE needs the gradients of the model in training: call attach(model, loss_fn) "
                "before the first batch, or pass model="
            )
        if get_worker_info() is not None:
            raise RuntimeError(
                "SAGE cannot mix in a worker of a data loader, whose copy of the model is not in "
                "training: mix in the training loop, not in collate_fn or the data set"
            )
        self._check_sharding()
        settings, count = self.settings, len(images)
        end = max(1, round(settings.saliency_fraction * count / 2))
        whole = 2 * end >= count
        maps, self._clean = saliency_pass(
            self.model,
            images if whole else torch.cat((images[:end], images[-end:])),
            targets if whole else torch.cat((targets[:end], targets[-end:])),
            self.loss_fn,
            forward=self.forward,
            size=settings.saliency_size,
            dtype=getattr(torch, settings.saliency_dtype) if settings.saliency_dtype else None,
            parameters=settings.update_ratio < 1,
        )
        if whole:
            return maps
        height, width = images.shape[2:]
        rest = maps.new_full((count - 2 * end, 1, height, width), 1 / (height * width))
        return torch.cat((maps[:end], rest, maps[end:]))

    def share(self, mixed: Tensor, mixed_targets: Tensor) -> None:
        """With an update ratio below 1, lets the next training step use the clean gradient too."""
        if self._clean and self.model is not None and self.loss_fn is not None:
            self._shared.offer(self.model, self._clean, mixed, mixed_targets, self.loss_fn)
            self._clean = []

    def _check_sharding(self) -> None:
        ratio = self.settings.update_ratio
        if ratio < 1 and self.model is not None and is_sharded(self.model):
            raise ValueError(
                f"update_ratio={ratio} does not work with FSDP, which shards the gradients that "
                "would be shared: use update_ratio=1"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the model out of pickles: who reads them has another one, if any."""
        shared = SharedGradient(self.settings.update_ratio)
        return {**vars(self), "model": None, "forward": None, "_shared": shared, "_clean": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sage":
        """Copies the settings; the copy is attached to the same model."""
        memo |= {id(part): part for part in (self.model, self.loss_fn)}
        copied = Sage.__new__(Sage)
        vars(copied).update(copy.deepcopy(self.__getstate__(), memo))
        copied.model, copied.forward = self.model, self.forward
        return copied

    def __repr__(self) -> str:
        """Names the settings."""
        model = None if self.model is None else type(self.model).__name__
        others: dict[str, Any] = {"generator": self.generator, "model": model}
        others |= {"loss_fn": self.loss_fn, "forward": self.forward}
        return written({**asdict(self.settings), **others})


def _without_ddp(model: nn.Module) -> nn.Module:
    """Unwraps DistributedDataParallel, whose reducer must not see the saliency pass."""
    while any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        compiled_from = model._modules.get("_orig_mod")
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif compiled_from is not None:
            model = compiled_from
        else:
            raise ValueError(
                f"the attached {type(model).__name__} wraps a DistributedDataParallel, whose "
                "processes would wait for each other in the saliency pass: attach the module that "
                "was given to DistributedDataParallel"
            )
    return model
