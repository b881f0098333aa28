"""SAGE as a drop-in for timm's Mixup."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from sage_timm.gradient import Forward, Loss
from sage_timm.sage import Sage
from sage_timm.settings import SageSettings, takes_settings, written


class SageMixup(Mixup):
    """``timm.data.Mixup`` with SAGE where plain mixup stood.

    CutMix stays what it is, and ``prob``, ``switch_prob`` and ``mode`` choose as in timm, from
    NumPy's global state. Each image is mixed with the one that timm mixes it with: the batch in
    reverse. An image that is its own partner (the middle one of an odd batch) stays as it is.

    A call runs the attached model forwards and backwards once. With ``update_ratio=1`` that leaves
    no trace in the model. Below 1, the gradient of the clean loss waits for the forward and
    backward pass of the mixed images, see ``sage_timm.shared_gradient.SharedGradient``.
    Pickles leave the model out; deep copies are attached to the same one.

    Args:
        mixup_alpha: The Beta distribution's parameter for SAGE, which is active if > 0. On 500
            images of CIFAR-10 with ``lambda_max=1``, 0.2 was less accurate and worse calibrated
            than 1.
        cutmix_alpha: As in timm, as are the others up to ``multi_label``.
        mode: ``"batch"``, ``"pair"`` or ``"elem"``: what shares one weight.
        model: The model in training; may also be given to ``attach``.
        loss_fn: The loss in training, ``loss_fn(logits, soft_targets)``, a scalar. By default
            timm's ``SoftTargetCrossEntropy``, or binary cross-entropy if ``multi_label``.
        generator: CPU generator that draws a random search's translations; torch's own if None.
        **settings: See ``sage_timm.SageSettings``.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Ma et al., SAGE: Saliency-Guided Mixup with Optimal Rearrangements, BMVC 2022.
    """

    @takes_settings
    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        model: nn.Module | None = None,
        loss_fn: Loss | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        timms = (mixup_alpha, cutmix_alpha, cutmix_minmax, prob, switch_prob, mode, correct_lam)
        super().__init__(*timms, label_smoothing, num_classes, multi_label)
        if mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mode must be 'batch', 'pair' or 'elem', got {mode!r}")
        self.sage = Sage(SageSettings(**settings), generator)
        self._given_loss = loss_fn
        # Of the batch, each pair or each image, as timm draws: see _note.
        self._noted: tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]
        if model is not None:
            self.attach(model)

    def attach(
        self, model: nn.Module, loss_fn: Loss | None = None, forward: Forward | None = None
    ) -> "SageMixup":
        """Binds the model in training, and its loss.

        Args:
            model: The module that the training loop calls, mapping ``[B, C, H, W]`` to logits
                ``[B, num_classes]``; of ``DistributedDataParallel``, what it wraps is taken.
            loss_fn: See the class; that of the constructor if None.
            forward: ``forward(model, images)`` returns the logits, of a model that returns more, or
                takes more: ``forward=lambda model, images: model(images).logits``. By default
                ``model(images)``.

        Returns:
            Itself.

        Raises:
            TypeError: If ``model`` is not a module.
            ValueError: If ``update_ratio`` is below 1 and ``forward`` is given, or ``model`` is a
                TorchScript module or sharded by FSDP, or if ``model`` wraps a
                ``DistributedDataParallel``.
        """
        loss_fn = loss_fn or self._given_loss
        if loss_fn is None:
            loss_fn = nn.BCEWithLogitsLoss() if self.multi_label else SoftTargetCrossEntropy()
        self.sage.attach(model, loss_fn, forward)
        return self

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            x: Images ``[B, C, H, W]``, floating point, as the model takes them. As in timm, CutMix
                changes them in place; SAGE does not.
            target: Class indices ``[B]``, or ``[B, num_classes]`` with ``multi_label``; a tensor,
                an array or a list.

        Returns:
            The mixed images, in the same type and memory format, and the soft targets
            ``[B, num_classes]``.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If shapes do not fit or a target is out of range.
            RuntimeError: If SAGE is drawn and no model is attached, or in a loader's worker.
        """
        self.sage.forget()
        target = self._checked(x, target)
        if self.mix_prob < 1 or (self.mixup_alpha > 0 and self.cutmix_alpha > 0):
            self.sage.check_draws()
        partner = torch.arange(len(x) - 1, -1, -1, device=x.device)
        # Element by element, timm's CutMix overwrites images that others are still mixed with.
        clean = x.clone() if self.cutmix_alpha > 0 and self.mode != "batch" else x
        lam, by_sage, sage_lam = self._mix_by_timm(x)
        mixed = x
        if by_sage.any():
            chosen = torch.from_numpy(by_sage).to(x.device, non_blocking=True)
            targets = self._targets(target, 1.0)
            translations = self.sage.draw_translations(x.shape[2], x.shape[3])
            mixed, weight, *_ = self.sage.mix(clean, targets, partner, sage_lam, translations)
            if not by_sage.all():
                mixed = torch.where(chosen.view(-1, 1, 1, 1), mixed, x)
            lam = torch.where(chosen[:, None], weight[:, None], lam)
        mixed_targets = self._targets(target, lam)
        self.sage.share(mixed, mixed_targets)
        return mixed, mixed_targets

    # timm draws a weight for the batch, each pair or each image, and mixes where it is not 1. Those
    # of its methods that draw are overridden here: they note the weights that are SAGE's, and hand
    # on a 1 in their place. So timm's code applies CutMix, and leaves all the rest as it is.

    def _mix_by_timm(self, x: Tensor) -> tuple[Tensor | float, NDArray[np.bool_], Tensor]:
        """Lets timm draw, and apply CutMix to ``x`` in place.

        Returns timm's weight, and of each image whether SAGE mixes it, and by what weight, ``[B]``.
        """
        half, odd = divmod(len(x), 2)
        lam: Tensor | float = 1.0
        if self.mode == "batch":
            lam = self._mix_batch(x)
            by_sage, sage_lam = (np.repeat(noted, len(x)) for noted in self._noted)
        elif self.cutmix_alpha == 0:  # timm would copy weights of 1 to the device, and wait for it
            self._params_per_elem(len(x) if self.mode == "elem" else half)
            by_sage, sage_lam = self._noted
        elif self.mode == "elem":
            lam = self._mix_elem(x)
            by_sage, sage_lam = self._noted
        else:
            pairs: Tensor = self._mix_pair(x)
            lam = torch.cat((pairs[:half], pairs.new_ones(odd, 1), pairs[half:]))
            by_sage, sage_lam = self._noted
        if self.mode == "pair":  # timm's leave out the middle image of an odd batch
            by_sage, sage_lam = (
                np.concatenate((noted, np.zeros(odd, noted.dtype), noted[::-1]))
                for noted in (by_sage, sage_lam)
            )
        by_sage[half : half + odd] = False  # the middle image is its own partner
        return lam, by_sage, torch.from_numpy(sage_lam)

    def _params_per_batch(self) -> tuple[float, bool]:
        lam, use_cutmix = self._note(super()._params_per_batch)
        return (lam if use_cutmix else 1.0), use_cutmix

    def _params_per_elem(self, batch_size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        lam, use_cutmix = self._note(super()._params_per_elem, batch_size)
        return np.where(use_cutmix, lam, np.float32(1)), use_cutmix

    def _note(self, draw: Callable[..., tuple[Any, Any]], *args: int) -> tuple[Any, Any]:
        """Lets timm draw, and notes the weights that are SAGE's: those that are not CutMix's.

        A weight of 1 may be Beta's, or mean that nothing is mixed: what was drawn against ``prob``
        tells.
        """
        given = self.mix_prob
        self.mix_prob = probability = _NotedProbability(given)
        try:
            lam, use_cutmix = draw(*args)
        finally:
            self.mix_prob = given
        by_sage = np.logical_and(probability.hit, np.logical_not(use_cutmix))
        self._noted = np.atleast_1d(by_sage), np.atleast_1d(lam)
        return lam, use_cutmix

    def _targets(self, target: Tensor, lam: Tensor | float) -> Tensor:
        soft: Tensor = mixup_target(
            target, self.num_classes, lam, self.label_smoothing, self.multi_label
        )
        return soft

    def _checked(self, x: Any, target: Any) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"x must be a floating-point tensor, got {got}; convert and normalise images "
                "before mixing, since the model's gradient is taken at them"
            )
        if x.dim() != 4:
            raise ValueError(f"x must be [B, C, H, W], got {tuple(x.shape)}")
        labels: Tensor = torch.as_tensor(target, device=x.device)
        wanted = (len(x), self.num_classes) if self.multi_label else (len(x),)
        if not self.multi_label and labels.shape == (len(x), 1):
            labels = labels.flatten()
        if labels.shape != wanted:
            raise ValueError(f"target must be {wanted}, got {tuple(labels.shape)}")
        if not self.multi_label:
            labels = labels.long()
            check_range("target", labels, self.num_classes)
        return labels

    def __repr__(self) -> str:
        """Names timm's arguments and SAGE's."""
        timms = {"prob": self.mix_prob}
        own = ("mix_prob", "sage")
        timms |= {n: v for n, v in vars(self).items() if n[0] != "_" and n not in own}
        return f"{type(self).__name__}({written(timms)}, {self.sage!r})"


class _NotedProbability(float):
    """A probability that notes which of the numbers that it is compared with are below it."""

    __array_ufunc__ = None  # makes NumPy leave ``array < probability`` to __gt__
    hit: Any = False

    def __gt__(self, drawn: Any) -> Any:
        self.hit = np.less(drawn, float(self))
        return self.hit


def check_range(name: str, targets: Tensor, num_classes: int) -> None:
    """Raises a ValueError if class indices ``[B]`` lie outside of ``[0, num_classes)``.

    Only on the CPU: elsewhere the host would have to wait for the device to tell, and there the
    scatter that makes soft targets of them asserts it as well.
    """
    if targets.device.type != "cpu" or not len(targets):
        return
    smallest, largest = (int(v) for v in torch.aminmax(targets))
    if smallest < 0 or largest >= num_classes:
        raise ValueError(
            f"{name} must be in [0, {num_classes}), got {smallest} to {largest}; check num_classes"
        )
