"""Saliency of images for a classifier (SAGE, Sec. 3.1, Eq. 1)."""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from sage_timm.gradient import Clean, Forward, Loss, LossGradient, input_gradient

_SIGMA_PER_PIXEL = 1 / 32  # the authors smooth 32-pixel images with sigma 1 ...
_RADIUS_IN_SIGMAS = 2  # ... and a 5 x 5 kernel


def saliency(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss_fn: Loss,
    *,
    forward: Forward | None = None,
    size: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes the saliency maps of a batch: the gradient magnitude of the full task loss (Eq. 1).

    The model is used as it is now, training mode and autocast included, and is left bit for bit
    as it was: parameters, ``.grad``, buffers and hooks.

    Args:
        model: A classifier that maps ``[B, C, H, W]`` to logits ``[B, num_classes]``.
        images: Floating-point batch ``[B, C, H, W]``, in the range that the model is trained on.
        targets: What ``loss_fn`` takes beside the logits, usually ``[B, num_classes]``.
        loss_fn: The task loss, ``loss_fn(logits, targets)``, a scalar.
        forward: ``forward(model, images)``, the logits; ``model(images)`` if None.
        size: Pixels of the shorter side to which the images are shrunk first; the maps are enlarged
            to the images' own size. The images as they are if None, or if they are no larger.
        dtype: ``torch.float16`` or ``torch.bfloat16`` to run the model under autocast; as the
            caller runs it if None.

    Returns:
        Maps ``[B, 1, H, W]``, see ``saliency_from_gradient``.

    Raises:
        ValueError: If the logits or the loss do not fit, or the model does not take the size.

    Source: Ma et al., SAGE, BMVC 2022, Eq. 1.
    """
    return saliency_pass(model, images, targets, loss_fn, forward=forward, size=size, dtype=dtype)[
        0
    ]


def saliency_pass(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss_fn: Loss,
    *,
    forward: Forward | None = None,
    size: int | None = None,
    dtype: torch.dtype | None = None,
    parameters: bool = False,
) -> tuple[Tensor, Clean]:
    """Does what ``saliency`` does, and gives the clean gradient, too, if ``parameters``."""

    def gradient_of(images: Tensor) -> LossGradient:
        with nullcontext() if dtype is None else torch.autocast(images.device.type, dtype):
            return input_gradient(
                model, images, targets, loss_fn, forward=forward, parameters=parameters
            )

    if size is None or size >= min(images.shape[2:]):
        gradient = gradient_of(images)
        return saliency_from_gradient(gradient.images), gradient.parameters
    small = resize(images, [size], antialias=True)
    try:
        gradient = gradient_of(small)
    except (AssertionError, RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise
        try:  # whether it is about the size
            gradient_of(images)
        except Exception:
            raise error from None
        raise ValueError(
            f"the attached model does not take images of {tuple(small.shape[2:])} pixels, which "
            f"the saliency's size={size} makes of {tuple(images.shape[2:])}: {error}"
        ) from error
    maps = saliency_from_gradient(gradient.images)
    height, width = images.shape[2:]
    enlarged = F.interpolate(maps, size=(height, width), mode="bilinear")
    enlarged = enlarged / enlarged.sum(dim=(2, 3), keepdim=True)
    # A uniform map stays exactly uniform, by which pairs without saliency are known.
    uniform = maps.amax(dim=(2, 3), keepdim=True) == maps.amin(dim=(2, 3), keepdim=True)
    enlarged = torch.where(uniform, 1 / (height * width), enlarged)
    return enlarged, gradient.parameters


def out_of_memory(error: Exception) -> bool:
    """Tells whether a device or the host has run out of memory, which a smaller batch may help."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def saliency_from_gradient(gradient: Tensor) -> Tensor:
    """Turns the loss's gradient at the images into normalised saliency maps.

    The l2 norm over channels (Eq. 1), Gaussian-smoothed (5 x 5 and sigma 1 at 32 pixels, in
    proportion at other sizes), scaled to sum to 1 over space. An image whose gradient is zero
    everywhere, or not finite somewhere, gets the uniform map.

    Args:
        gradient: ``[B, C, H, W]``, any floating-point type and scale.

    Returns:
        Non-negative maps ``[B, 1, H, W]``, each summing to 1; float64 for a float64 gradient, else
        float32.

    Source: Ma et al., SAGE, BMVC 2022, Eq. 1 and Sec. 3.2.
    """
    if gradient.dtype != torch.float64:
        gradient = gradient.float()
    with torch.autocast(gradient.device.type, enabled=False):
        # Scaled first: the squares of a confident network's gradients underflow in float32.
        scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        # Not vector_norm, which takes fifty times as long over the channels of a contiguous batch.
        norm = scaled.square().sum(dim=1, keepdim=True).sqrt()
        smoothed = _gaussian_smooth(norm)
        total = smoothed.sum(dim=(2, 3), keepdim=True)
        uniform = 1 / (gradient.shape[2] * gradient.shape[3])
        return torch.where(total.isfinite(), smoothed / total, uniform)


def _gaussian_smooth(maps: Tensor) -> Tensor:
    """Smooths along both sides, by matrices: they hold the reflection, and need no padded copy."""
    sigma = min(maps.shape[2:]) * _SIGMA_PER_PIXEL
    vertical, horizontal = (_smoothing_matrix(size, sigma, maps) for size in maps.shape[2:])
    return vertical @ maps @ horizontal.mT


def _smoothing_matrix(size: int, sigma: float, like: Tensor) -> Tensor:
    """Puts the Gaussian kernel at each pixel of a line, reflected at its ends: ``[size, size]``."""
    # Reflection needs the padding to be smaller than the image.
    radius = min(math.ceil(_RADIUS_IN_SIGMAS * sigma), size - 1)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    kernel = torch.exp(-0.5 * (offsets.to(like.dtype) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    place = torch.arange(size, device=like.device)
    source = (place[:, None] + offsets).abs()
    source = (size - 1) - ((size - 1) - source).abs()
    matrix = like.new_zeros(size, size)
    return matrix.scatter_add_(1, source, kernel.expand(size, -1))
