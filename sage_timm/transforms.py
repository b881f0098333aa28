"""SAGE as a torchvision v2 transform."""

from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from sage_timm.gradient import Forward, Loss
from sage_timm.mixup import check_range
from sage_timm.sage import Sage
from sage_timm.settings import SageSettings, takes_settings, written


class SageMix(v2.MixUp):
    """``torchvision.transforms.v2.MixUp`` with SAGE in the place of the uniform blend.

    Like ``v2.MixUp`` it takes a batch of images and labels, mixes each image with the one before it
    in the batch, with one weight for the batch, and returns labels ``[B, num_classes]``. Apply it
    in the training loop, after the data loader: it needs the model in training.

    Args:
        alpha: The Beta distribution's parameter.
        num_classes: The number of classes; None if the labels are already ``[B, num_classes]``.
        labels_getter: As in ``v2.MixUp``.
        model: The model in training; may also be given to ``attach``.
        loss_fn: The loss in training, ``loss_fn(logits, soft_targets)``, a scalar. By default
            timm's ``SoftTargetCrossEntropy``.
        generator: CPU generator that draws a random search's translations; torch's own if None.
        **settings: See ``sage_timm.SageSettings``.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Ma et al., SAGE: Saliency-Guided Mixup with Optimal Rearrangements, BMVC 2022.
    """

    @takes_settings
    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: Any = "default",
        model: nn.Module | None = None,
        loss_fn: Loss | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(alpha=alpha, num_classes=num_classes, labels_getter=labels_getter)
        # Kept in a plain object: as a submodule, the model would be moved and saved with this.
        self.sage = Sage(SageSettings(**settings), generator)
        self._given_loss = loss_fn
        if model is not None:
            self.attach(model)

    def attach(
        self, model: nn.Module, loss_fn: Loss | None = None, forward: Forward | None = None
    ) -> "SageMix":
        """Binds the model in training, and its loss; see ``sage_timm.SageMixup.attach``."""
        loss_fn = loss_fn or self._given_loss or SoftTargetCrossEntropy()
        self.sage.attach(model, loss_fn, forward)
        return self

    def extra_repr(self) -> str:
        """Names the arguments."""
        own = {"alpha": self.alpha, "num_classes": self.num_classes}
        return f"{written(own)}, {self.sage!r}"

    def forward(self, *inputs: Any) -> Any:
        """Mixes the images and the labels of a batch, see ``v2.MixUp``."""
        flat, spec = tree_flatten(inputs)
        tensors = [i for i in flat if type(i) is Tensor]
        images = next((t for t in tensors if t.dim() == 4), None)
        if images is None or images is tensors[0] or any(map(_is_tv_tensor, flat)):
            return super().forward(*inputs)
        # torchvision takes the first tensor for the images, but a dictionary may begin otherwise.
        marked = [tv_tensors.Image(i) if i is images else i for i in flat]
        mixed = super().forward(*tree_unflatten(marked, spec))
        return tree_map(lambda i: i.as_subclass(Tensor) if _is_tv_tensor(i) else i, mixed)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the weight and the translations to choose from."""
        self.sage.forget()
        images = next(i for i in flat_inputs if isinstance(i, Tensor))
        if isinstance(images, tv_tensors.Video) or len(flat_inputs) > 1:
            raise ValueError("SageMix() mixes one batch of images, not videos or several batches.")
        if not images.is_floating_point():
            raise TypeError(
                f"SageMix() needs floating-point images, got {images.dtype}; put "
                "v2.ToDtype(torch.float32, scale=True) and v2.Normalize before it."
            )
        if images.dim() != 4:
            raise ValueError(f"images must be [B, C, H, W], got {tuple(images.shape)}")
        return {
            **super().make_params(flat_inputs),
            "images": images,
            "translations": self.sage.draw_translations(*images.shape[-2:]),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Returns the mixed images in the images' place, and the mixed labels in the labels'."""
        if "mixed" not in params:
            params["mixed"], params["mixed_labels"] = self._mix(params)
        if inpt is params["labels"]:
            return params["mixed_labels"]
        return tv_tensors.wrap(params["mixed"], like=inpt) if inpt is params["images"] else inpt

    def _mix(self, params: dict[str, Any]) -> tuple[Tensor, Tensor]:
        images, labels = params["images"].as_subclass(Tensor), params["labels"]
        self._check_image_or_video(images, batch_size=params["batch_size"])
        if labels.ndim == 1:
            if labels.is_floating_point():
                raise TypeError(
                    f"SageMix() needs class indices [B], or probabilities [B, num_classes], got "
                    f"{labels.dtype} of shape {tuple(labels.shape)}"
                )
            labels = labels.long()
            check_range("labels", labels, self.num_classes or 0)
        partner = torch.arange(-1, len(images) - 1, device=images.device) % len(images)
        clean: Tensor = self._mixup_label(labels, lam=1.0)
        if len(images) < 2:
            return images, clean
        lam = torch.full((len(images),), params["lam"], device=images.device)
        mixed, weight, *_ = self.sage.mix(images, clean, partner, lam, params["translations"])
        mixed_labels = clean * weight[:, None] + clean[partner] * (1 - weight[:, None])
        self.sage.share(mixed, mixed_labels)
        return mixed, mixed_labels


def _is_tv_tensor(value: Any) -> bool:
    return isinstance(value, tv_tensors.TVTensor)
