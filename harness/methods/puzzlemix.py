"""Puzzle Mix (Kim, Choo and Song, Exploiting Saliency and Local Statistics, ICML 2020)."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binom
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from torch import Tensor, nn

from harness.methods.base import MethodConfig, evaluation_mode, needs, register, unnormalised
from sage_timm.gradient import input_gradient

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


class PuzzleMix:
    """Cuts both images into blocks, picks by saliency, and moves the patches that were covered.

    The mask z (the share of image 1 in each block) minimises, by graph cut with alpha-beta swaps,
    the saliency that is lost, plus the smoothness of the labels and of the picture over the
    blocks' borders, minus the log-prior of z given lambda (Eq. 2 to 4 of the paper). Then each
    image's patches are moved to where its share is not zero by the masked transport (Algorithm 1).

    Args:
        model: The model in training.
        loss_fn: Its loss.
        classes: The number of classes.
        mean: The mean of each channel that the images were normalised with.
        std: Their standard deviation.
        alpha: The Beta distribution's parameter.
        label_smoothing: Label smoothing.

    Raises:
        ImportError: If gco-wrapper is not installed.

    Source: Kim et al., ICML 2020, Sec. 3 and 4.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        alpha: float,
        label_smoothing: float,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.classes = classes
        self.mean = mean
        self.std = std
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self.gco = needs("gco", "puzzlemix")

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes each image with the one in its place in the reversed batch; see the class.

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
        saliency = self._saliency(images, targets)
        pixels = unnormalised(images, self.mean, self.std)
        share = self._block_shares(saliency, pixels, blocks, lam)
        patches = max(n for n in fitting if n <= max(_PATCHES, blocks))
        moved0 = _move(images, _grid(1 - share, patches), _pool(saliency, patches))
        moved1 = _move(images.flip(0), _grid(share, patches), _pool(saliency.flip(0), patches))
        mask = F.interpolate(share[:, None], size=(height, width)).to(images.dtype)
        own = 1 - share.mean(dim=(1, 2))
        mixed = (1 - mask) * moved0 + mask * moved1
        return mixed, mixup_target(targets, self.classes, own[:, None], self.label_smoothing)

    def _saliency(self, images: Tensor, targets: Tensor) -> Tensor:
        """The gradient's root mean square over channels, the network in evaluation mode."""
        clean = mixup_target(targets, self.classes)
        with evaluation_mode(self.model):
            gradient = input_gradient(self.model, images, clean, self.loss_fn).images
        return gradient.float().square().mean(dim=1).sqrt()

    def _block_shares(self, saliency: Tensor, pixels: Tensor, blocks: int, lam: float) -> Tensor:
        """Minimises the energy over each pair's blocks: image 1's shares ``[B, n, n]``."""
        own = _pool(saliency, blocks)
        smoothness = _LABEL_SMOOTHNESS / (16 * blocks)
        unary, down, right = _energy(
            own, own.flip(0), pixels, pixels.flip(0), smoothness, _DATA_SMOOTHNESS
        )
        levels = np.linspace(0, 1, _LABELS)
        prior = -_PRIOR * binom.logpmf(np.arange(_LABELS), _LABELS - 1, 1 - lam) / blocks**2
        # A lambda next to 0 or 1 makes a label all but impossible; the integers must hold it.
        prior = np.minimum(prior, 20.0 / blocks**2)
        scale = _INTEGER_SCALE * blocks**2
        unary, down, right = (v.double().cpu().numpy() for v in (unary, down, right))
        pairwise = np.round((levels[:, None] - levels) ** 2 * (_LABELS - 1) ** 2).astype(np.int32)
        scale_pairwise = scale / (_LABELS - 1) ** 2
        shares = np.empty((len(unary), blocks, blocks), dtype=np.float32)
        for index in range(len(unary)):
            costs = scale * (unary[index][..., None] * levels + prior)
            labels = self.gco.cut_grid_graph(
                np.ascontiguousarray(costs.round().astype(np.int32)),
                pairwise,
                np.ascontiguousarray((scale_pairwise * down[index]).round().astype(np.int32)),
                np.ascontiguousarray((scale_pairwise * right[index]).round().astype(np.int32)),
                algorithm="swap",
            )
            shares[index] = levels[labels.reshape(blocks, blocks)]
        return torch.from_numpy(shares).to(saliency.device)


@register("puzzlemix", requires="gco")
def build(config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> PuzzleMix:
    """Makes Puzzle Mix with the paper's values and one lambda for the batch."""
    data_config = resolve_data_config({}, model=model)
    alpha = config.alpha_or(_ALPHA)
    mean, std = data_config["mean"], data_config["std"]
    return PuzzleMix(model, loss_fn, classes, mean, std, alpha, config.label_smoothing)


def _energy(
    saliency0: Tensor,
    saliency1: Tensor,
    pixels0: Tensor,
    pixels1: Tensor,
    smoothness: float,
    data_smoothness: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The energy as ``sum(u * z) + sum over neighbours of w * (z - z')^2``, but for a constant.

    The data term of two neighbouring blocks is bilinear in their shares, with d_ab the difference
    at their border when the first is image a and the second image b. Because z z' = (z + z' -
    (z - z')^2) / 2 for shares of 0 and 1, it is ``z (d10 - d00 - p) + z' (d01 - d00 - p) +
    p (z - z')^2`` with ``p = (d01 + d10 - d00 - d11) / 2``.

    Returns:
        u ``[B, n, n]``, and w for the neighbour below ``[B, n - 1, n]`` and to the right.
    """
    unary = saliency0 - saliency1  # what is lost where image 1 stands, less what is won
    blocks = saliency0.shape[1]
    weights = []
    for dim in (1, 2):
        d = {
            (a, b): smoothness * data_smoothness * _border(first, second, blocks, dim)
            for (a, first), (b, second) in itertools.product(
                enumerate((pixels0, pixels1)), repeat=2
            )
        }
        p = (d[0, 1] + d[1, 0] - d[0, 0] - d[1, 1]) / 2
        before = [slice(None)] * 3
        after = [slice(None)] * 3
        before[dim], after[dim] = slice(None, -1), slice(1, None)
        unary = unary.clone()
        unary[tuple(before)] += d[1, 0] - d[0, 0] - p
        unary[tuple(after)] += d[0, 1] - d[0, 0] - p
        weights.append((smoothness + p).clamp_min(0))
    return unary, weights[0], weights[1]


def _border(first: Tensor, second: Tensor, blocks: int, dim: int) -> Tensor:
    """The mean difference over each border, of a block of one picture and the next of another."""
    if dim == 2:
        return _border(first.mT, second.mT, blocks, 1).mT
    step = first.shape[2] // blocks
    difference = (first[:, :, step - 1 : -1 : step] - second[:, :, step::step]).abs().mean(dim=1)
    return difference.unflatten(2, (blocks, -1)).mean(dim=3)


def _pool(saliency: Tensor, blocks: int) -> Tensor:
    pooled = F.adaptive_avg_pool2d(saliency[:, None], blocks)[:, 0]
    return pooled / pooled.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(pooled.dtype).tiny)


def _grid(share: Tensor, patches: int) -> Tensor:
    return F.interpolate(share[:, None], size=(patches, patches))[:, 0]


def _move(images: Tensor, share: Tensor, saliency: Tensor) -> Tensor:
    """Moves an image's patches to where its share is not zero (Algorithm 1).

    Each patch goes for the place where distance costs least and saliency is kept; a place that
    several want goes to the one that it costs least, and becomes dearer for the others.
    """
    batch, channels, height, width = images.shape
    patches = share.shape[1]
    place = torch.arange(patches, device=images.device, dtype=torch.float32)
    place = torch.cartesian_prod(place, place)
    distance = torch.cdist(place, place).square() / max(1, patches - 1) ** 2
    kept = saliency.flatten(1)[:, :, None] * (share > 0).flatten(1)[:, None]
    cost = _TRANSPORT_COST * distance - kept
    source = _sources(cost, _SWAPS_A_PATCH * patches)
    shape = (batch, channels, patches, height // patches, patches, width // patches)
    pieces = images.reshape(shape).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = pieces.gather(1, source[:, :, None, None, None].expand_as(pieces))
    moved = moved.unflatten(1, (patches, patches)).permute(0, 3, 1, 4, 2, 5)
    return moved.reshape(images.shape)


def _sources(cost: Tensor, rounds: int) -> Tensor:
    """For each place the patch that moves there ``[B, N]``; where none does, the place's own.

    Args:
        cost: Of each patch at each place ``[B, N, N]``; it is changed.
        rounds: The number of times that patches ask for places.
    """
    own = torch.arange(cost.shape[1], device=cost.device).expand(cost.shape[:2])
    nobody = torch.full_like(own, cost.shape[1])
    wanted = cost.argmin(dim=2)
    for _ in range(rounds):
        offer = cost.gather(2, wanted[..., None])[..., 0]
        least = torch.full_like(offer, torch.inf).scatter_reduce(1, wanted, offer, "amin")
        cheapest = torch.where(offer == least.gather(1, wanted), own, nobody)
        winner = nobody.scatter_reduce(1, wanted, cheapest, "amin")
        lost = (winner.gather(1, wanted) != own).nonzero(as_tuple=True)
        if not len(lost[0]):
            break
        cost[(*lost, wanted[lost])] += 1
        wanted[lost] = cost[lost].argmin(dim=1)
    return torch.where(winner < nobody, winner, own)
