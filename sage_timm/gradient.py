"""What SAGE takes from a model and gives back: the gradient at its input, the scale at its output.

Sec. 3.4 of the paper: the backward pass that gives the saliency also gives the clean loss's
parameter gradient, which a training step can share.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

Loss = Callable[[Tensor, Tensor], Tensor]

# Keeps float16 gradients from vanishing; the saliency does not depend on the loss's scale.
_HALF_LOSS_SCALE = 1024.0

_waiting: WeakIdKeyDictionary = WeakIdKeyDictionary()  # model -> the hook that waits for its step
_in_saliency_pass: ContextVar[bool] = ContextVar("_in_saliency_pass", default=False)


class LossGradient(NamedTuple):
    """The gradient of a loss at its images and, where asked for, at the model's parameters."""

    images: Tensor
    parameters: list[tuple[nn.Parameter, Tensor]]


def input_gradient(
    model: nn.Module, images: Tensor, targets: Tensor, loss_fn: Loss, *, parameters: bool = False
) -> LossGradient:
    """Computes the gradient of the loss at the images, leaving the model bit for bit as it was.

    Unless ``parameters`` is set, no weight gradient is computed at all.

    Args:
        model: A classifier that maps ``[B, C, H, W]`` to logits ``[B, num_classes]``.
        images: Floating-point batch ``[B, C, H, W]``.
        targets: What ``loss_fn`` takes beside the logits.
        loss_fn: ``loss_fn(logits, targets)``, a scalar.
        parameters: Whether to compute the parameter gradients in the same backward pass, too.

    Returns:
        The gradient at the images ``[B, C, H, W]``, up to a constant factor in float16, and the
        parameters that take part with their gradients.

    Raises:
        ValueError: If the model returns anything but a tensor ``[B, ...]`` that depends on the
            images, or ``loss_fn`` anything but a scalar, or they do not take each other's shapes.
    """
    with _alone(model), _buffers_restored(model), _saliency_pass(), torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logits = model(leaf)
        loss = _checked_loss(logits, targets, loss_fn)
        scale = _HALF_LOSS_SCALE if logits.dtype == torch.float16 else 1.0
        weights = [p for p in model.parameters() if p.requires_grad] if parameters else []
        gradients: tuple[Tensor | None, ...] = (None,)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss * scale, [leaf, *weights], allow_unused=True)
    if gradients[0] is None:
        raise ValueError(
            "the attached model passes no gradient from its output to its input, so there is no "
            "saliency; does it run under no_grad, or ignore its input?"
        )
    return LossGradient(
        gradients[0],
        [
            (weight, gradient / scale)
            for weight, gradient in zip(weights, gradients[1:], strict=True)
            if gradient is not None
        ],
    )


def share_gradient(
    model: nn.Module,
    clean: list[tuple[nn.Parameter, Tensor]],
    mixed_targets: Tensor,
    loss_fn: Loss,
    update_ratio: float,
) -> None:
    """Makes the model's next training step use both the clean and the mixed loss (Sec. 3.4).

    A forward hook waits for the model's next forward pass that records gradients, and removes
    itself then; a gradient that still waits from before is dropped. When the training loop
    calls ``backward()`` on its loss, the gradient at the logits is multiplied by ``update_ratio``,
    and ``1 - update_ratio`` times the clean gradient is added to the ``.grad`` of each parameter,
    before the mixed one is: ``DistributedDataParallel`` averages their sum. So the step's gradient
    is ``(1 - ratio) * clean + ratio * mixed``, the loss that the loop logs is not scaled, and it
    does not matter where the loop calls ``zero_grad()``.

    A factor that the loop puts on its loss (a ``GradScaler``'s, or one over the number of
    accumulated batches) is found by comparing the gradient that arrives with the one that
    ``loss_fn`` gives, and put on the clean gradient as well. A clean gradient that is not finite
    somewhere, as half precision may make it, is not shared: then the step is the mixed loss's.

    Args:
        model: The model that the training loop calls.
        clean: Parameters and their clean gradients, as from :func:`input_gradient`.
        mixed_targets: The targets of the mixed batch.
        loss_fn: The loss that the training loop uses.
        update_ratio: rho, the share of the mixed loss, in (0, 1).

    Source: Ma et al., SAGE, BMVC 2022, Sec. 3.4.
    """

    def at_output(called: nn.Module, _inputs: Any, logits: Tensor) -> None:
        # A copy of the model takes the hook along, and a saliency pass is no training step.
        if called is not model or _in_saliency_pass.get() or not logits.requires_grad:
            return
        drop_shared_gradient(model)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            (expected,) = torch.autograd.grad(loss_fn(leaf, mixed_targets), leaf)

        def at_backward(gradient: Tensor) -> Tensor:
            finite = torch.stack([value.isfinite().all() for _, value in clean]).all()
            factor = (1 - update_ratio) * _ratio(gradient, expected)
            for parameter, clean_gradient in clean:
                share = clean_gradient * factor.to(clean_gradient.dtype)
                share = torch.where(finite, share, 0)
                if parameter.grad is None:
                    parameter.grad = share
                else:
                    parameter.grad.add_(share)
            return torch.where(finite, gradient * update_ratio, gradient)

        logits.register_hook(at_backward)

    drop_shared_gradient(model)
    _waiting[model] = model.register_forward_hook(at_output)


def drop_shared_gradient(model: nn.Module) -> None:
    """Drops the gradient that waits for the model's next training step, if there is one."""
    handle: RemovableHandle | None = _waiting.pop(model, None)
    if handle is not None:
        handle.remove()


def _ratio(gradient: Tensor, reference: Tensor) -> Tensor:
    """The factor between two gradients that point the same way; 1 where the reference is zero."""
    gradient, reference = gradient.double(), reference.double()
    square = (reference * reference).sum()
    return torch.where(square > 0, (gradient * reference).sum() / square, 1.0)


@contextmanager
def _saliency_pass() -> Iterator[None]:
    token = _in_saliency_pass.set(True)
    try:
        yield
    finally:
        _in_saliency_pass.reset(token)


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Keeps synchronised batch norm from waiting for other processes, which may mix otherwise."""
    synchronised = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    try:
        for module in synchronised:
            module.forward = partial(_BatchNorm.forward, module)  # type: ignore[method-assign]
        yield
    finally:
        for module in synchronised:
            del module.forward


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undoes what a forward pass does to buffers, such as batch norm's running statistics.

    The pass gets them as ``.data``, the same memory, whose changes autograd does not count: a loop
    may mix between another forward pass, whose graph holds the buffers, and its backward pass.
    """
    before = [
        (module, {name: (b, _copy(b)) for name, b in module._buffers.items()})
        for module in model.modules()
        if module._buffers
    ]
    try:
        for module, buffers in before:
            for name, (buffer, _) in buffers.items():
                module._buffers[name] = None if buffer is None else buffer.data
        yield
    finally:
        for module, buffers in before:
            for name, (buffer, value) in buffers.items():
                if buffer is not None and value is not None:
                    buffer.data.copy_(value)
                module._buffers[name] = buffer


def _copy(buffer: Tensor | None) -> Tensor | None:
    """Copies a buffer, unless nothing can write to it: expanded memory refuses to be written."""
    if buffer is None:
        return None
    expanded = any(
        stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True)
    )
    return None if expanded else buffer.clone()


def _checked_loss(logits: Any, targets: Tensor, loss_fn: Loss) -> Tensor:
    if not isinstance(logits, Tensor):
        raise ValueError(
            "the attached model must return one tensor of logits [B, num_classes], got "
            f"{type(logits).__name__}; attach the part of it that does"
        )
    if targets.dim() == 2:
        fits, wanted = logits.shape == targets.shape, str(tuple(targets.shape))
    else:
        fits = logits.dim() == 2 and len(logits) == len(targets)
        wanted = f"({len(targets)}, num_classes)"
    if not fits:
        raise ValueError(
            f"the attached model must return logits {wanted}, got {tuple(logits.shape)}; check "
            "num_classes and the model's head"
        )
    loss = loss_fn(logits, targets)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return a scalar tensor, got {got}; use a mean reduction")
    return loss
