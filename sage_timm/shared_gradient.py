"""The clean and the mixed gradient in one step (SAGE, Sec. 3.4).

The backward pass that gives the saliency also gives the clean loss's parameter gradient. It waits
here for the forward pass that gets the mixed images, and joins that pass's backward.
"""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from sage_timm.gradient import Loss, for_saliency, in_saliency_pass
from sage_timm.model_state import as_before

Clean = list[tuple[nn.Parameter, Tensor]]

_COSINE = 0.9  # two gradients with a smaller one are not of one loss
_PROBES = 64  # pixels by which images are looked for
_CHECKED = 3  # shares whose direction the host waits to know on an accelerator

_sharing: WeakIdKeyDictionary = WeakIdKeyDictionary()  # model -> the share that waits at it


class SharedGradient:
    """The clean gradient of one batch, from its saliency pass to its training step.

    It is in one of four states, see ``docs/method.md``: ``"idle"``; ``"waiting"`` at the model for
    the mixed images; ``"bound"``, once a forward pass that records gradients has got some of them;
    ``"used"``, once the backward pass has come. An optimiser's step ends it if all images have been
    used by then, otherwise the next batch does. Until then each forward pass of these images is
    bound: in pieces, twice before one backward pass, or once more for another look at the loss, as
    in SAM and LBFGS.

    A forward pass is bound by an operation behind the logits. In the backward pass, that multiplies
    the gradient by rho, and sends ``1 - rho`` times the clean gradient to each parameter: so
    ``torch.autograd.grad`` gives the sum as well, ``DistributedDataParallel`` averages it once, it
    does not matter where the loop calls ``zero_grad()``, and the loss that is logged is not scaled.
    A factor that the loop puts on its loss (a ``GradScaler``'s, or one over the number of pieces)
    is found by comparing the gradient that arrives with the attached loss's. Where that points
    elsewhere, or the clean gradient is not finite, nothing is shared: the step is the mixed loss's.

    Args:
        update_ratio: rho, the share of the mixed loss, in (0, 1).

    Source: Ma et al., SAGE, BMVC 2022, Sec. 3.4.
    """

    def __init__(self, update_ratio: float) -> None:
        self.update_ratio = update_ratio
        self.state: Literal["idle", "waiting", "bound", "used"] = "idle"
        self._dropped = 0  # in a row
        self._checked = 0
        self._finite: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def offer(
        self, model: nn.Module, clean: Clean, images: Tensor, targets: Tensor, loss_fn: Loss
    ) -> None:
        """Waits at a model for the mixed images; what waits there from before is dropped.

        Args:
            model: The module whose forward pass gets the images.
            clean: Parameters and their clean gradients, as :func:`input_gradient` gives them.
            images: The mixed images ``[B, C, H, W]``.
            targets: Their targets ``[B, num_classes]``.
            loss_fn: The loss that the training loop uses.
        """
        self.drop()
        before = _sharing.get(model)
        if before is not None:
            before.drop()
        self.clean, self.images, self.targets, self.loss_fn = clean, images, targets, loss_fn
        self._seen = self._spent = 0
        self._why = (
            f"no forward pass of the attached {type(model).__name__} got the mixed images: attach "
            "the module that the loop calls, and call it with the images as they were mixed"
        )
        self._handles = [
            module.register_forward_hook(_Hook(self, module), with_kwargs=True)
            for module in _layers(model)
        ]
        self.state = "waiting"
        _sharing[model] = self

    def drop(self) -> None:
        """Ends the share; warns if the second one in a row ends without use."""
        if self.state == "idle":
            return
        self._dropped = 0 if self.state == "used" else self._dropped + 1
        if self._dropped == 2:
            warnings.warn(
                f"update_ratio={self.update_ratio} had no effect on the last two batches: "
                f"{self._why}",
                RuntimeWarning,
                stacklevel=4,
            )
        self._end()

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], logits: Any) -> Tensor | None:
        """Binds a forward pass, if it got mixed images, and records gradients.

        Returns:
            The logits to go on with; None to leave them.
        """
        if (
            not isinstance(logits, Tensor)
            or not logits.requires_grad
            or not torch.is_grad_enabled()
            or hasattr(logits.grad_fn, "piece")  # by the hook of what was compiled
        ):
            return None
        rows = next(filter(None, map(self._rows, (*args, *kwargs.values()))), None)
        if rows is None or len(rows) != len(logits):
            return None
        self.state = "bound" if self.state == "waiting" else self.state
        self._seen += len(rows)
        self._why = "no backward pass came through the logits of the mixed images"
        bound: Tensor = _Bound.apply(
            logits, _Piece(self, list(rows), logits), *(parameter for parameter, _ in self.clean)
        )
        return bound

    def use(self, clean: Clean, images: int, gradient: Tensor, expected: Tensor) -> list[Tensor]:
        """Makes both gradients of a bound pass: the one for the logits, and the parameters'."""
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        ours, theirs = expected.to(wide), gradient.to(wide)
        highs = [g.abs().amax().clamp_min(torch.finfo(wide).tiny) for g in (ours, theirs)]
        a, b = ours / highs[0], theirs / highs[1]
        along, square = (a * b).sum(), (a * a).sum()
        nothing = square == 0  # a loss that is zero says nothing of its factor
        agrees = nothing | (along > _COSINE * (square * (b * b).sum()).sqrt())
        if self._finite is None:
            self._finite = torch.stack([value.isfinite().all() for _, value in clean]).all()
        usable = agrees & self._finite
        factor = torch.where(nothing, 1.0, highs[1] / highs[0] * along / square)
        factor = factor * ((1 - self.update_ratio) * len(gradient) / images)
        self._check(agrees | ~theirs.isfinite().all(), len(gradient))
        return [
            torch.where(usable, gradient * self.update_ratio, gradient),
            *(torch.where(usable, value * factor.to(value), 0) for _, value in clean),
        ]

    def _check(self, agrees: Tensor, count: int) -> None:
        if self.state == "idle":  # another batch has come in between
            return
        if agrees.device.type == "cpu" or (
            agrees.device.type != "meta" and self._checked < _CHECKED
        ):
            self._checked += 1
            if not agrees:
                self._why = (
                    "the gradient at the logits is not that of the attached loss: attach the "
                    "loss_fn that the loop uses"
                )
                return
        self._spent += count
        if self.state != "used":
            self.state = "used"
            self._handles.append(register_optimizer_step_post_hook(self._after_step))

    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        first = self.clean[0][0]
        if self._spent >= len(self.images) and any(
            p is first for group in optimizer.param_groups for p in group["params"]
        ):
            self.drop()

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.state = "idle"
        self._finite = None
        del self.clean, self.images, self.targets, self.loss_fn

    def _rows(self, images: Any) -> range | list[int] | None:
        """Finds which of the mixed images a tensor holds: by their memory, or by their pixels."""
        mixed = self.images
        if not isinstance(images, Tensor) or images.shape[1:] != mixed.shape[1:]:
            return None
        if images is mixed:
            return range(len(mixed))
        if not len(images):
            return None
        rows = _rows_in_memory(mixed, images)
        return _rows_by_pixels(mixed, images.detach(), self._seen) if rows is None else rows


def _layers(model: nn.Module) -> list[nn.Module]:
    """A model and, if it is compiled, what it was compiled from: a loop may call either."""
    compiled_from = model._modules.get("_orig_mod")
    return [model] if compiled_from is None else [model, *_layers(compiled_from)]


class _Hook:
    """Lets a forward pass of the model, and not of a copy of it, meet the share."""

    def __init__(self, share: SharedGradient, model: nn.Module) -> None:
        self.share, self.model = share, model

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, called: nn.Module, args: Any, kwargs: Any, logits: Any) -> Tensor | None:
        if called is not self.model or in_saliency_pass():
            return None
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # for export
            return None
        return self.share.bind(args, kwargs, logits)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves nothing of the share in a copy of the model, or in a file."""
        return getattr, (nullcontext(), "__exit__")  # takes anything, does nothing


class _Piece:
    """A forward pass that got some of the mixed images."""

    def __init__(self, share: SharedGradient, rows: list[int], logits: Tensor) -> None:
        self.share, self.clean, self.images = share, share.clean, len(share.images)
        targets, count = share.targets, len(rows)
        if rows != list(range(self.images)):
            targets = targets[torch.tensor(rows).to(targets.device, non_blocking=True)]
        # Activation checkpointing counts the tensors that are saved in the forward pass.
        saved_as_they_are = saved_tensors_hooks(_itself, _itself)
        with as_before(share.loss_fn), for_saliency(), saved_as_they_are, torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            whole = leaf
            if count < self.images:
                # As large as the whole batch, whatever the loss divides by.
                again = torch.arange(count, self.images, device=leaf.device) % count
                whole = torch.cat((leaf, leaf.detach()[again]))
                targets = torch.cat((targets, targets[again.to(targets.device)]))
            (self.expected,) = torch.autograd.grad(share.loss_fn(whole, targets), leaf)

    def backward(self, gradient: Tensor) -> list[Tensor]:
        return self.share.use(self.clean, self.images, gradient, self.expected)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class _Bound(torch.autograd.Function):
    """The identity, whose backward pass shares."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, piece: _Piece, *_parameters: nn.Parameter) -> Tensor:
        ctx.piece = piece
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_logits, *of_parameters = ctx.piece.backward(gradient)
        return of_logits, None, *of_parameters


def _rows_in_memory(mixed: Tensor, images: Tensor) -> range | None:
    alike = (mixed.device, mixed.dtype, mixed.stride()[1:])
    if (images.device, images.dtype, images.stride()[1:]) != alike:
        return None
    if images.untyped_storage().data_ptr() != mixed.untyped_storage().data_ptr():
        return None
    step = mixed.stride(0)
    first, rest = divmod(int(images.storage_offset() - mixed.storage_offset()), step)
    by, left = divmod(images.stride(0), step) if len(images) > 1 else (1, 0)
    rows = range(first, first + len(images) * by, by) if by else range(0)
    inside = len(rows) == len(images) and rows[0] >= 0 and rows[-1] < len(mixed)
    return rows if inside and not rest and not left else None


def _rows_by_pixels(mixed: Tensor, images: Tensor, seen: int) -> list[int] | None:
    """Finds copies, as other memory formats, types and devices make them; the host has to wait."""
    if images.device.type == "meta" or not images.is_floating_point():
        return None
    count = len(mixed)
    ours, theirs = mixed.to(images).flatten(1), images.flatten(1)
    following = [(seen + i) % count for i in range(len(images))]
    if torch.equal(ours[following], theirs):
        return following
    pixels = torch.linspace(0, ours.shape[1] - 1, _PROBES).long().to(ours.device)
    same = (theirs[:, None, pixels] == ours[None, :, pixels]).all(dim=2)
    found: list[int] = same.int().argmax(dim=1).tolist()
    return found if torch.equal(ours[found], theirs) else None
