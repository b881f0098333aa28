"""The gradient of the loss at the images, and the model left as it was (SAGE, Sec. 3.1)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from sage_timm.model_state import as_before

Loss = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[nn.Module, Tensor], Tensor]
"""How logits are had of a model and its images."""
Clean = list[tuple[nn.Parameter, Tensor]]
"""Parameters, and the gradients of the clean loss at them."""

# Keeps float16 gradients from vanishing. A power of two changes no bit of those in other types,
# and a network that works in float16 may return other logits, and have its autocast inside.
_LOSS_SCALE = 1024.0

_in_saliency_pass: ContextVar[bool] = ContextVar("_in_saliency_pass", default=False)


class LossGradient(NamedTuple):
    """The gradient of a loss at its images and, where asked for, at the model's parameters."""

    images: Tensor
    parameters: Clean


def input_gradient(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss_fn: Loss,
    *,
    forward: Forward | None = None,
    parameters: bool = False,
) -> LossGradient:
    """Computes the gradient of the loss at the images, leaving the model bit for bit as it was.

    Unless ``parameters`` is set, no weight gradient is computed at all.

    Args:
        model: A classifier that maps ``[B, C, H, W]`` to logits ``[B, num_classes]``.
        images: Floating-point batch ``[B, C, H, W]``.
        targets: What ``loss_fn`` takes beside the logits.
        loss_fn: ``loss_fn(logits, targets)``, a scalar.
        forward: ``forward(model, images)``, the logits; ``model(images)`` if None.
        parameters: Whether to compute the parameter gradients in the same backward pass, too.

    Returns:
        The gradient at the images ``[B, C, H, W]``, up to a constant factor in float16, and the
        parameters that take part with their gradients.

    Raises:
        ValueError: If the logits are anything but a tensor ``[B, ...]`` that depends on the
            images, or ``loss_fn`` anything but a scalar, or they do not take each other's shapes.
    """
    with as_before(model, loss_fn, forward), _apart(model), for_saliency(), torch.enable_grad():
        leaf = images.detach().requires_grad_()
        inputs = leaf.clone()  # which the model may change in place
        logits = model(inputs) if forward is None else forward(model, inputs)
        loss = _checked_loss(logits, targets, loss_fn)
        weights = [p for p in model.parameters() if p.requires_grad] if parameters else []
        gradients: tuple[Tensor | None, ...] = (None,)
        if loss.requires_grad:
            scaled = loss * _LOSS_SCALE
            gradients = torch.autograd.grad(scaled, [leaf, *weights], allow_unused=True)
    at_images = gradients[0]
    if at_images is None:
        raise ValueError(
            "the attached model passes no gradient from its output to its input, so there is no "
            "saliency; does it run under no_grad, or ignore its input?"
        )
    return LossGradient(
        at_images if at_images.dtype == torch.float16 else at_images / _LOSS_SCALE,
        [
            (weight, gradient / _LOSS_SCALE)
            for weight, gradient in zip(weights, gradients[1:], strict=True)
            if gradient is not None
        ],
    )


def in_saliency_pass() -> bool:
    """Tells whether a model is being called for a saliency, not for a training step."""
    return _in_saliency_pass.get()


@contextmanager
def for_saliency() -> Iterator[None]:
    """Marks what is called in the block as no training step."""
    token = _in_saliency_pass.set(True)
    try:
        yield
    finally:
        _in_saliency_pass.reset(token)


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Keeps a pass from what it must not share with the training step, or with other processes.

    torch's caches of weights, autocast's and that of ``torch.nn.utils.parametrize.cached``, may
    have another type or a graph; synchronised batch norm would wait for processes that may have
    drawn CutMix.
    """
    synchronised = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    cached = dict(parametrize._cache)
    parametrize._cache.clear()
    torch.clear_autocast_cache()
    try:
        for module in synchronised:
            module.forward = partial(_BatchNorm.forward, module)  # type: ignore[method-assign]
        yield
    finally:
        for module in synchronised:
            del module.forward
        torch.clear_autocast_cache()
        parametrize._cache.clear()
        parametrize._cache.update(cached)


def _checked_loss(logits: Any, targets: Tensor, loss_fn: Loss) -> Tensor:
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the logits must be one tensor [B, num_classes], got {type(logits).__name__}; say how "
            "the model gives them, as in forward=lambda model, images: model(images).logits"
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
