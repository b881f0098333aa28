"""The clean and the mixed gradient in one step (SAGE, Sec. 3.4).

The backward pass that gives the saliency also gives the clean loss's parameter gradient. It waits
here for the forward pass that gets the mixed images, and joins that pass's backward.
"""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from sage_timm.gradient import Clean, Loss, for_saliency, in_saliency_pass
from sage_timm.model_state import as_before

_COSINE = 0.9  # two gradients with a smaller one are not of one loss
_PROBES = 64  # pixels by which images are looked for
_CHECKED = 3  # shares whose direction the host waits to know on an accelerator

_sharing: WeakIdKeyDictionary = WeakIdKeyDictionary()  # model -> the share that waits at it


class SharedGradient:
    """The clean gradient of one batch, from its saliency pass to its training step.

    It is idle until ``offer`` is called, and waits at the model from then on, see
    ``docs/method.md`` for all states. A forward pass that gets mixed images and records gradients
    is bound: an operation is put behind its logits. Images may come in pieces, twice before one
    backward pass, or once more for another look at the loss, as in SAM and LBFGS. The share ends
    with an optimiser's step, if all images were used by then, or with the next batch.

    In the backward pass, the operation multiplies the gradient by rho, and sends ``1 - rho`` times
    the clean gradient to each parameter: so ``torch.autograd.grad`` gives the sum as well,
    ``DistributedDataParallel`` averages it once, it does not matter where the loop calls
    ``zero_grad()``, and the loss that is logged is not scaled. A factor that the loop puts on its
    loss (a ``GradScaler``'s, or one over the number of pieces) is found by comparing the gradient
    that arrives with the attached loss's. Where that points elsewhere, or the clean gradient is not
    finite, nothing is shared: the step is the mixed loss's.

    Args:
        update_ratio: rho, the share of the mixed loss, in (0, 1).

    Source: Ma et al., SAGE, BMVC 2022, Sec. 3.4.
    """

    def __init__(self, update_ratio: float) -> None:
        self.update_ratio = update_ratio
        self._batch: _Batch | None = None
        self._handles: list[RemovableHandle] = []
        self._dropped = 0  # batches in a row
        self._checked = 0

    def offer(
        self, model: nn.Module, clean: Clean, images: Tensor, targets: Tensor, loss_fn: Loss
    ) -> None:
        """Waits at a model for the mixed images ``[B, C, H, W]``, and drops what waits there.

        Args:
            model: The module whose forward pass gets the images.
            clean: Parameters and their clean gradients, as ``input_gradient`` gives them.
            images: The mixed ones.
            targets: Their targets ``[B, num_classes]``.
            loss_fn: The loss that the training loop uses.
        """
        self.drop()
        before = _sharing.get(model)
        if before is not None:
            before.drop()
        why = (
            f"no forward pass of the attached {type(model).__name__} got the mixed images: attach "
            "the module that the loop calls, and call it with the images as they were mixed"
        )
        self._batch = _Batch(clean, images, targets, loss_fn, why)
        self._handles = [
            module.register_forward_hook(_Hook(self, module), with_kwargs=True)
            for module in _layers(model)
        ]
        _sharing[model] = self

    def drop(self) -> None:
        """Ends the share; warns if the second one in a row ends without use."""
        batch, self._batch = self._batch, None
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if batch is None:
            return
        self._dropped = 0 if batch.state == "used" else self._dropped + 1
        if self._dropped == 2:
            warnings.warn(
                f"update_ratio={self.update_ratio} had no effect on the last two batches: "
                f"{batch.why}",
                RuntimeWarning,
                stacklevel=4,
            )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], logits: Any) -> Tensor | None:
        """Returns the logits bound, of a pass that got mixed images and records gradients."""
        batch = self._batch
        if (
            batch is None
            or not isinstance(logits, Tensor)
            or not logits.requires_grad
            or not torch.is_grad_enabled()
            or hasattr(logits.grad_fn, "expected")  # by the hook of what was compiled
        ):
            return None
        rows = next(filter(None, map(batch.rows_of, (*args, *kwargs.values()))), None)
        if rows is None or len(rows) != len(logits):
            return None
        expected = _gradient_at(logits, batch, list(rows))
        batch.state = "bound" if batch.state == "waiting" else batch.state
        batch.seen += len(rows)
        batch.why = "no backward pass came through the logits of the mixed images"
        parameters = (parameter for parameter, _ in batch.clean)
        bound: Tensor = _Bound.apply(logits, self, batch, expected, *parameters)
        return bound

    def note_backward(self, batch: "_Batch", agrees: Tensor, count: int) -> None:
        """Notes a backward pass of some images, if its gradient agrees with the attached loss's."""
        if batch is not self._batch:  # another one has come in between
            return
        kind = agrees.device.type
        if kind == "cpu" or (kind != "meta" and self._checked < _CHECKED):
            self._checked += 1
            if not agrees:
                batch.why = (
                    "the gradient at the logits is not that of the attached loss: attach the "
                    "loss_fn that the loop uses"
                )
                return
        batch.spent += count
        if batch.state != "used":
            batch.state = "used"
            self._handles.append(register_optimizer_step_post_hook(self._after_step))

    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        batch = self._batch
        if batch is not None and batch.spent >= len(batch.images):
            first = batch.clean[0][0]
            if any(p is first for group in optimizer.param_groups for p in group["params"]):
                self.drop()


@dataclass(eq=False)
class _Batch:
    """A mixed batch, whose clean gradient is to be shared."""

    clean: Clean
    images: Tensor
    targets: Tensor
    loss_fn: Loss
    why: str
    """The reason why nothing has been shared yet."""
    state: Literal["waiting", "bound", "used"] = "waiting"
    seen: int = 0
    """Images that forward passes got."""
    spent: int = 0
    """Images whose backward pass came."""

    @cached_property
    def finite(self) -> Tensor:
        """Tells whether the clean gradient is, on its device."""
        return torch.stack([value.isfinite().all() for _, value in self.clean]).all()

    def rows_of(self, images: Any) -> range | list[int] | None:
        """Finds which of the mixed images a tensor holds: by their memory, or by their pixels."""
        mixed = self.images
        if not isinstance(images, Tensor) or images.shape[1:] != mixed.shape[1:]:
            return None
        if images is mixed:
            return range(len(mixed))
        if not len(images):
            return None
        rows = _rows_in_memory(mixed, images)
        return _rows_by_pixels(mixed, images.detach(), self.seen) if rows is None else rows


def _layers(model: nn.Module) -> list[nn.Module]:
    """Lists a model and, if compiled, what it was compiled from: a loop may call either."""
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


def _gradient_at(logits: Tensor, batch: _Batch, rows: list[int]) -> Tensor:
    """Computes the attached loss's gradient at the logits of some of the mixed images."""
    targets, count, total = batch.targets, len(rows), len(batch.images)
    if rows != list(range(total)):
        targets = targets[torch.tensor(rows).to(targets.device, non_blocking=True)]
    # Activation checkpointing counts the tensors that are saved in the forward pass.
    saved_as_they_are = saved_tensors_hooks(_itself, _itself)
    with as_before(batch.loss_fn), for_saliency(), saved_as_they_are, torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        whole = leaf
        if count < total:
            # As large as the whole batch, whatever the loss divides by.
            again = torch.arange(count, total, device=leaf.device) % count
            whole = torch.cat((leaf, leaf.detach()[again]))
            targets = torch.cat((targets, targets[again.to(targets.device)]))
        return torch.autograd.grad(batch.loss_fn(whole, targets), leaf)[0]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class _Bound(torch.autograd.Function):
    """The identity, whose backward pass shares."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, share: SharedGradient, batch: _Batch, expected: Tensor, *_: Any
    ) -> Tensor:
        ctx.share, ctx.batch, ctx.expected = share, batch, expected
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        batch, rho = ctx.batch, ctx.share.update_ratio
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        ours, theirs = ctx.expected.to(wide), gradient.to(wide)
        highs = [g.abs().amax().clamp_min(torch.finfo(wide).tiny) for g in (ours, theirs)]
        a, b = ours / highs[0], theirs / highs[1]
        along, square = (a * b).sum(), (a * a).sum()
        nothing = square == 0  # a loss that is zero says nothing of its factor
        agrees = nothing | (along > _COSINE * (square * (b * b).sum()).sqrt())
        usable = agrees & batch.finite
        factor = torch.where(nothing, 1.0, highs[1] / highs[0] * along / square)
        factor = factor * ((1 - rho) * len(gradient) / len(batch.images))
        ctx.share.note_backward(batch, agrees | ~theirs.isfinite().all(), len(gradient))
        clean = (torch.where(usable, value * factor.to(value), 0) for _, value in batch.clean)
        return torch.where(usable, gradient * rho, gradient), None, None, None, *clean


def _rows_in_memory(mixed: Tensor, images: Tensor) -> range | None:
    """Finds views of the mixed images: the whole, or every n-th image from some one on."""
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
