"""Puzzle Mix (Kim, Choo and Song, Exploiting Saliency and Local Statistics, ICML 2020)."""

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from harness.methods.base import Training, needs, register

# The paper's values for CIFAR and Tiny-ImageNet.
_ALPHA = 1.0
_LABELS = 3  # a block takes 0, 1/2 or 1 of image 1
_PRIOR = 0.2  # eta
_LABEL_SMOOTHNESS = 1.2  # beta
_DATA_SMOOTHNESS = 0.5  # gamma
_TRANSPORT_COST = 0.8  # xi
_BLOCKS = (2, 4, 8, 16)  # along a side, drawn for each batch
_PATCHES = 8  # along a side, at most so many are moved
_INTEGER_SCALE = 1000  # the graph cut takes integers
_SWAPS_A_PATCH = 20  # far more than the transport needs to settle


@register("puzzlemix", requires="gco")
class PuzzleMix:
    """Cuts both images into blocks, picks by saliency, and moves the patches that were covered.

    The mask z (the share of image 1 in each block) minimises, by graph cut with alpha-beta swaps,
    the saliency that is lost, plus the smoothness of the labels and of the picture over the
    blocks' borders, minus the log-prior of z given lambda (Eq. 2 to 4 of the paper). Then each
    image's patches are moved to where its share is not zero by the masked transport (Algorithm 1).
    One lambda is drawn for the batch.

    Raises:
        ImportError: If gco-wrapper is not installed.

    Source: Kim et al., ICML 2020, Sec. 3 and 4.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.alpha = training.config.alpha_or(_ALPHA)
        self.gco = needs("gco", "puzzlemix")

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes each image of ``[B, C, H, W]`` with the one in its place in the reversed batch.

        Raises:
            ValueError: If the images cannot be cut into two by two equal blocks.
        """
        height, width = images.shape[-2:]
        fitting = [n for n in _BLOCKS if height % n == 0 and width % n == 0]
        if not fitting:
            raise ValueError(
                f"puzzlemix needs images of even height and width, got {height}x{width}"
            )
        blocks = int(np.random.choice(fitting))
        lam = float(np.random.beta(self.alpha, self.alpha))
        saliency = over_channels(self.training.gradient(images, targets))
        pixels = self.training.pixels(images)
        share = self.shares(saliency, pixels, blocks, lam)
        patches = max(n for n in fitting if n <= max(_PATCHES, blocks))
        moved = [
            move(image, _enlarged(kept, patches, patches), block_saliency(own, patches))
            for image, kept, own in (
                (images, 1 - share, saliency),
                (images.flip(0), share, saliency.flip(0)),
            )
        ]
        mask = _enlarged(share, height, width)[:, None].to(images.dtype)
        own = 1 - share.mean(dim=(1, 2))
        mixed = (1 - mask) * moved[0] + mask * moved[1]
        return mixed, self.training.soft_targets(targets, own)

    def shares(self, saliency: Tensor, pixels: Tensor, blocks: int, lam: float) -> Tensor:
        """Minimises the energy of each pair: image 1's shares ``[B, n, n]``, of 0, 1/2 and 1.

        ``saliency`` is ``[B, H, W]``, ``pixels`` are ``[B, C, H, W]`` in [0, 1].
        """
        energy = _energy(block_saliency(saliency, blocks), pixels)
        unary, down, right = (v.double().cpu().numpy() for v in energy)
        levels = np.linspace(0, 1, _LABELS)
        prior = -_PRIOR * binom.logpmf(np.arange(_LABELS), _LABELS - 1, 1 - lam) / blocks**2
        # A lambda next to 0 or 1 makes a label all but impossible; the integers must hold it.
        prior = np.minimum(prior, 20.0 / blocks**2)
        scale = _INTEGER_SCALE * blocks**2
        steps = (_LABELS - 1) ** 2  # makes the squared distances of labels integers
        distance = (levels[:, None] - levels) ** 2 * steps
        costs = scale * (unary[..., None] * levels + prior)
        borders = scale / steps * down, scale / steps * right
        cuts = [
            cut_grid(self.gco, cost, distance, *b) for cost, *b in zip(costs, *borders, strict=True)
        ]
        shares = levels.astype(np.float32)[np.stack(cuts).reshape(unary.shape)]
        return torch.from_numpy(shares).to(saliency.device)


def over_channels(gradient: Tensor) -> Tensor:
    """Takes the root mean square over channels: ``[B, C, H, W]`` to saliency ``[B, H, W]``."""
    return gradient.float().square().mean(dim=1).sqrt()


def block_saliency(saliency: Tensor, blocks: int) -> Tensor:
    """Pools saliency ``[B, H, W]`` to blocks ``[B, n, n]`` that sum to 1, or are all 0."""
    pooled = F.adaptive_avg_pool2d(saliency[:, None], blocks)[:, 0]
    return pooled / pooled.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(pooled.dtype).tiny)


def cut_grid(
    gco: Any, costs: NDArray[Any], distance: NDArray[Any], down: NDArray[Any], right: NDArray[Any]
) -> NDArray[np.intp]:
    """Labels a grid by graph cut with alpha-beta swaps; all is rounded to integers.

    Takes the costs of labels ``[n, n, L]``, the labels' distances ``[L, L]``, and the weights of
    the borders to the block below ``[n - 1, n]`` and to the right ``[n, n - 1]``.
    """
    arrays = (costs, distance, down, right)
    whole = (np.ascontiguousarray(array.round().astype(np.int32)) for array in arrays)
    labels: NDArray[np.intp] = gco.cut_grid_graph(*whole, algorithm="swap")
    return labels


def _energy(saliency: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the energy as ``sum(u * z) + sum over neighbours of w * (z - z')^2``, plus a constant.

    The data term of two neighbouring blocks is bilinear in their shares, with d_ab the difference
    at their border when the first is image a and the second image b. Because z z' = (z + z' -
    (z - z')^2) / 2 for shares of 0 and 1, it is ``z (d10 - d00 - p) + z' (d01 - d00 - p) +
    p (z - z')^2`` with ``p = (d01 + d10 - d00 - d11) / 2``.

    Returns:
        u ``[B, n, n]``, and w for the neighbour below ``[B, n - 1, n]`` and to the right.
    """
    blocks = saliency.shape[1]
    smoothness = _LABEL_SMOOTHNESS / (16 * blocks)
    unary = saliency - saliency.flip(0)  # what is lost where image 1 stands, less what is won
    weights = []
    for dim in (1, 2):
        pictures = enumerate((pixels, pixels.flip(0)))
        d = {
            (a, b): smoothness * _DATA_SMOOTHNESS * _border(first, second, blocks, dim)
            for (a, first), (b, second) in itertools.product(pictures, repeat=2)
        }
        p = (d[0, 1] + d[1, 0] - d[0, 0] - d[1, 1]) / 2
        unary.narrow(dim, 0, blocks - 1).add_(d[1, 0] - d[0, 0] - p)
        unary.narrow(dim, 1, blocks - 1).add_(d[0, 1] - d[0, 0] - p)
        weights.append((smoothness + p).clamp_min(0))
    return unary, weights[0], weights[1]


def _border(first: Tensor, second: Tensor, blocks: int, dim: int) -> Tensor:
    """Averages the difference over each border of a block of one picture and the next of another.

    The pictures are ``[B, C, H, W]``; returns ``[B, n - 1, n]`` for dim 1, ``[B, n, n - 1]`` for 2.
    """
    if dim == 2:
        return _border(first.mT, second.mT, blocks, 1).mT
    step = first.shape[2] // blocks
    difference = (first[:, :, step - 1 : -1 : step] - second[:, :, step::step]).abs().mean(dim=1)
    return difference.unflatten(2, (blocks, -1)).mean(dim=3)


def _enlarged(share: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(share[:, None], size=(height, width))[:, 0]


def move(images: Tensor, share: Tensor, saliency: Tensor) -> Tensor:
    """Moves patches of ``[B, C, H, W]`` to where their image's share is not zero (Algorithm 1).

    ``share`` and ``saliency`` are ``[B, n, n]``. Each patch goes for the place where distance costs
    least and saliency is kept. A place that several want goes to the one that it costs least, and
    becomes dearer for the others; one that nobody gets keeps its own patch.
    """
    batch, channels, height, width = images.shape
    patches = share.shape[1]
    place = torch.arange(patches, device=images.device, dtype=torch.float32)
    place = torch.cartesian_prod(place, place)
    distance = torch.cdist(place, place).square() / max(1, patches - 1) ** 2
    kept = saliency.flatten(1)[:, :, None] * (share > 0).flatten(1)[:, None]
    cost = _TRANSPORT_COST * distance - kept  # of each patch at each place, [B, n * n, n * n]
    own = torch.arange(cost.shape[1], device=cost.device).expand(cost.shape[:2])
    nobody = torch.full_like(own, cost.shape[1])
    wanted = cost.argmin(dim=2)
    for _ in range(_SWAPS_A_PATCH * patches):
        offer = cost.gather(2, wanted[..., None])[..., 0]
        least = torch.full_like(offer, torch.inf).scatter_reduce(1, wanted, offer, "amin")
        cheapest = torch.where(offer == least.gather(1, wanted), own, nobody)
        winner = nobody.scatter_reduce(1, wanted, cheapest, "amin")
        lost = (winner.gather(1, wanted) != own).nonzero(as_tuple=True)
        if not len(lost[0]):
            break
        cost[(*lost, wanted[lost])] += 1
        wanted[lost] = cost[lost].argmin(dim=1)
    source = torch.where(winner < nobody, winner, own)
    shape = (batch, channels, patches, height // patches, patches, width // patches)
    pieces = images.reshape(shape).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = pieces.gather(1, source[:, :, None, None, None].expand_as(pieces))
    moved = moved.unflatten(1, (patches, patches)).permute(0, 3, 1, 4, 2, 5)
    return moved.reshape(images.shape)
