"""SAGE for a batch whose pairs and weights are already drawn: Eq. 1, Sec. 3.3, Eq. 2 in a row."""

import copy
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import get_worker_info

from sage_timm.blend import blend
from sage_timm.gradient import Loss
from sage_timm.model_state import is_sharded
from sage_timm.rearrange import best_translation, random_translations
from sage_timm.saliency import saliency_pass
from sage_timm.shared_gradient import SharedGradient

Search = Literal["all", "random", "none"]


class Sage:
    """The part of SAGE that timm's and torchvision's transforms have in common.

    Args:
        lambda_max: The largest weight of image 0's saliency, in (0, 1] (Sec. 3.2).
        update_ratio: rho, the mixed loss's share of the step, in (0, 1] (Sec. 3.4).
        saliency_size: Pixels of the shorter side to which images are shrunk for their saliency.
        saliency_dtype: The type in which autocast computes the saliency.
        saliency_fraction: The share of the batch whose saliency is computed, in (0, 1].
        search: ``"all"`` for the best of all translations, ``"random"`` for that of a random share
            of them, ``"none"`` to leave image 1 where it is.
        search_fraction: That share, in (0, 1].
        generator: Draws the translations; torch's own generator if None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        *,
        lambda_max: float,
        update_ratio: float,
        search: Search,
        search_fraction: float,
        generator: torch.Generator | None,
        saliency_size: int | None = None,
        saliency_dtype: torch.dtype | None = None,
        saliency_fraction: float = 1.0,
    ) -> None:
        for name, value in (
            ("lambda_max", lambda_max),
            ("update_ratio", update_ratio),
            ("saliency_fraction", saliency_fraction),
            ("search_fraction", search_fraction),
        ):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        if saliency_size is not None and saliency_size < 1:
            raise ValueError(f"saliency_size must be at least 1, got {saliency_size}")
        if saliency_size is not None and update_ratio < 1:
            raise ValueError(
                f"saliency_size={saliency_size} needs update_ratio=1, got {update_ratio}: the "
                "gradient that is shared would be that of the shrunk images"
            )
        if saliency_dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(
                f"saliency_dtype must be torch.float16, torch.bfloat16 or None, got "
                f"{saliency_dtype}"
            )
        if search not in get_args(Search):
            raise ValueError(f"search must be one of {get_args(Search)}, got {search!r}")
        self.lambda_max = lambda_max
        self.update_ratio = update_ratio
        self.saliency_size = saliency_size
        self.saliency_dtype = saliency_dtype
        self.saliency_fraction = saliency_fraction
        self.search = search
        self.search_fraction = search_fraction
        self.generator = generator
        self.model: nn.Module | None = None
        self.loss_fn: Loss | None = None
        self._shared = SharedGradient(update_ratio)
        self._clean: list[tuple[nn.Parameter, Tensor]] = []

    def attach(self, model: nn.Module, loss_fn: Loss) -> None:
        """Sets the model and the loss whose gradients give the saliency."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, torch.jit.ScriptModule) and self.update_ratio < 1:
            raise ValueError(
                f"update_ratio={self.update_ratio} needs a forward hook, which a TorchScript "
                "module does not take: use update_ratio=1, or do not script the model"
            )
        self.forget()
        self.model = _without_ddp(model)
        self.loss_fn = loss_fn
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

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the model out of pickles: who reads them has another one, if any."""
        shared = SharedGradient(self.update_ratio)
        return {**vars(self), "model": None, "_shared": shared, "_clean": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sage":
        """Copies the settings; the copy is attached to the same model."""
        memo |= {id(part): part for part in (self.model, self.loss_fn)}
        copied = Sage.__new__(Sage)
        vars(copied).update(copy.deepcopy(self.__getstate__(), memo), model=self.model)
        return copied

    def __repr__(self) -> str:
        """Names the settings."""
        model = None if self.model is None else type(self.model).__name__
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return settings_repr({**own, "model": model})

    def _check_sharding(self) -> None:
        if self.update_ratio < 1 and self.model is not None and is_sharded(self.model):
            raise ValueError(
                f"update_ratio={self.update_ratio} does not work with FSDP, which shards the "
                "gradients that would be shared: use update_ratio=1"
            )

    def draw_translations(self, height: int, width: int) -> Tensor | None:
        """Draws the translations to choose from, the same for the whole batch: ``[N, 2]``, or all.

        Returns:
            None for all.
        """
        if self.search == "all":
            return None
        if self.search == "none":
            return torch.zeros(1, 2, dtype=torch.int64)
        return random_translations(height, width, self.search_fraction, self.generator)

    def mix(
        self,
        images: Tensor,
        targets: Tensor,
        partner: Tensor,
        lam: Tensor,
        translations: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Mixes each image with its partner.

        Args:
            images: ``[B, C, H, W]``, floating point.
            targets: ``[B, num_classes]``, the clean ones.
            partner: ``[B]`` int64, the index of the image that is mixed into each.
            lam: ``[B]`` in [0, 1], on any device, drawn from the Beta distribution; scaled by
                ``lambda_max`` here.
            translations: ``[N, 2]``, those to choose from; all if None.

        Returns:
            The mixed images ``[B, C, H, W]``, and the label weight of each image beside its
            partner's, ``[B]``.

        Raises:
            RuntimeError: If no model is attached.
            ValueError: If the model or the loss does not fit the batch.
        """
        maps = self.maps(images, targets)
        own, other, translation = arrange(maps, partner, lam * self.lambda_max, translations)
        mixed, _, label_weight = blend(images, images[partner], own, other, translation)
        return mixed, label_weight

    def maps(self, images: Tensor, targets: Tensor) -> Tensor:
        """Computes the maps of the images at the two ends of the batch; the rest is uniform.

        The ends, because timm mixes the first image with the last, and so on inwards; of an image
        and the one before it, as torchvision pairs them, all but one pair lie in them as well.
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
        count = len(images)
        end = max(1, round(self.saliency_fraction * count / 2))
        whole = 2 * end >= count
        maps, self._clean = saliency_pass(
            self.model,
            images if whole else torch.cat((images[:end], images[-end:])),
            targets if whole else torch.cat((targets[:end], targets[-end:])),
            self.loss_fn,
            size=self.saliency_size,
            dtype=self.saliency_dtype,
            parameters=self.update_ratio < 1,
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


def _without_ddp(model: nn.Module) -> nn.Module:
    """Unwraps DistributedDataParallel, whose reducer must not see the saliency pass."""
    while _has_ddp(model):
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


def _has_ddp(model: nn.Module) -> bool:
    return any(isinstance(module, DistributedDataParallel) for module in model.modules())


def settings_repr(settings: dict[str, Any]) -> str:
    """Writes settings as arguments are written."""
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def arrange(
    maps: Tensor, partner: Tensor, lam: Tensor, translations: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighs the maps of each image and its partner, and finds where to move the partner.

    Args:
        maps: ``[B, 1, H, W]``.
        partner: ``[B]`` int64.
        lam: The weight of each image's own map, ``[B]`` in [0, 1].
        translations: ``[N, 2]``, those to choose from; all if None.

    Returns:
        Both weighted maps ``[B, 1, H, W]`` and the partner's translation ``[B, 2]``. A uniform map
        says nothing of where the object is: pairs with one have two of them, and do not move, which
        is plain mixup.
    """
    # The type first: not every device has float64.
    lam = lam.to(maps.dtype).to(maps.device, non_blocking=True).view(-1, 1, 1, 1)
    uniform = maps.amax(dim=(1, 2, 3)) == maps.amin(dim=(1, 2, 3))
    plain = uniform | uniform[partner]
    mean = 1 / (maps.shape[2] * maps.shape[3])
    own, other = (torch.where(plain.view(-1, 1, 1, 1), mean, m) for m in (maps, maps[partner]))
    own, other = lam * own, (1 - lam) * other
    translation = best_translation(own, other, translations)
    return own, other, translation.masked_fill(plain[:, None], 0)
