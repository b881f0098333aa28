"""Co-Mixup (Kim et al., Saliency Guided Joint Mixup with Supermodular Diversity, ICLR 2021)."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.methods.base import Training, needs, register
from harness.methods.puzzlemix import block_saliency, cut_grid, over_channels
from sage_timm.gradient import input_gradient
from sage_timm.shared_gradient import SharedGradient

# The paper's values for CIFAR and Tiny-ImageNet.
_ALPHA = 2.0
_PARTITION = 20  # images that are mixed with each other
_BLOCKS = 4  # along a side
_SMOOTHNESS = 0.32  # beta
_DIVERSITY = 1.0  # gamma
_PRIOR = 0.05  # eta
_THRESHOLD = 0.83  # tau, of a whole image
_COMPATIBILITY = 0.001  # omega
_SWEEPS = 4
_CLEAN_SHARE = 0.5  # of the clean loss in the step
_INTEGER_SCALE = 100_000  # the graph cut takes integers
_HALVES = 3  # inputs of an output whose halves may share a block
_PREFER_HALF = 5e-4  # between equals, a block is shared

Array = NDArray[np.float64]


@register("comixup", requires="gco")
class CoMixup:
    """Makes each batch of mixes out of all its images jointly: salient, smooth, and unlike.

    The batch is cut into groups of 20. Within one, each block of each mix is given to an image, or
    in halves to two, such that the sum of four terms is small: the saliency that is not shown; the
    borders between blocks of different images; the negative logarithm of a weight that each image
    draws from a Dirichlet distribution; and, once more of an image is used by the other mixes than
    the threshold, the product of this mix's use of it and theirs, which keeps the mixes unlike. The
    last is supermodular. It is replaced by its linear part at the other mixes, and mix after mix is
    solved by graph cut with alpha-beta swaps, four times round (the paper's Algorithm 1).

    The saliency's backward pass also gives the clean loss's gradient; the step takes the mean of
    both losses (the authors' clean input regularisation, which adds them up).

    Raises:
        ImportError: If gco-wrapper is not installed.

    Source: Kim et al., ICLR 2021, Eq. 1 and Sec. 4.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.alpha = training.config.alpha_or(_ALPHA)
        self.shared = SharedGradient(1 - _CLEAN_SHARE)
        self.gco = needs("gco", "comixup")

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes the images ``[B, C, H, W]`` of each group.

        Raises:
            ValueError: If the images are smaller than the blocks are many.
        """
        height, width = images.shape[-2:]
        if min(height, width) < _BLOCKS:
            raise ValueError(
                f"comixup needs images of at least {_BLOCKS}x{_BLOCKS}, got {height}x{width}"
            )
        self.shared.drop()
        model, loss_fn = self.training.model, self.training.loss_fn
        clean = self.training.soft_targets(targets)
        gradient = input_gradient(model, images, clean, loss_fn, parameters=True)
        groups = (t.split(_PARTITION) for t in (images, clean, over_channels(gradient.images)))
        parts = [self.mix_group(*group) for group in zip(*groups, strict=True)]
        mixed, mixed_targets = (torch.cat(part) for part in zip(*parts, strict=True))
        self.shared.offer(model, gradient.parameters, mixed, mixed_targets, loss_fn)
        return mixed, mixed_targets

    def mix_group(self, images: Tensor, targets: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes images ``[N, C, H, W]`` and targets ``[N, K]`` by saliency ``[N, H, W]``."""
        count = len(images)
        blocks = block_saliency(saliency, _BLOCKS).flatten(1)
        prior = np.log(np.random.dirichlet(np.full(count, self.alpha)) + 1e-8)
        cost = -blocks.T.double().cpu().numpy() - _PRIOR / _BLOCKS**2 * prior
        weights = torch.from_numpy(self.assign(cost, _compatibility(saliency))).to(images)
        mask = weights.mT.reshape(count * count, 1, _BLOCKS, _BLOCKS)
        mask = F.interpolate(mask, size=images.shape[-2:]).view(count, count, *images.shape[-2:])
        mixed = torch.einsum("oihw,ichw->ochw", mask, images)
        return mixed, weights.mean(dim=1).to(targets) @ targets

    def assign(self, cost: Array, compatibility: Array) -> Array:
        """Gives the blocks of as many mixes as there are images to the images.

        Takes the cost of giving a block to an image ``[blocks, images]``, and how much an image's
        use counts against another ``[images, images]``; returns shares ``[mixes, blocks, images]``
        of 0, 1/2 and 1, whose sum over the images is 1.
        """
        blocks, count = cost.shape
        shares = np.eye(count)[np.random.randint(count, size=(count, blocks))]
        for sweep in range(_SWEEPS):
            alike = _same_images(shares) if sweep == _SWEEPS - 1 else np.zeros((count, count))
            for mix in range(count):
                others = compatibility @ (shares.sum(axis=(0, 1)) - shares[mix].sum(axis=0))
                crowded = np.where(others > _THRESHOLD * blocks, 2 * others, 0) + alike[mix]
                labels = np.eye(count) if sweep == 0 else _labels(shares[mix])
                shares[mix] = labels[self._cut(cost + _DIVERSITY / blocks * crowded, labels)]
        return shares

    def _cut(self, cost: Array, labels: Array) -> NDArray[np.intp]:
        """Labels each block; a border costs half the squared distance of its two labels."""
        unary = cost @ labels.T - _PREFER_HALF * (labels.max(axis=1) < 1)
        distance = ((labels[:, None] - labels) ** 2).sum(axis=2) / 2
        border = _INTEGER_SCALE * _SMOOTHNESS / len(cost) / 4  # distances are quarters
        return cut_grid(
            self.gco,
            _INTEGER_SCALE * unary.reshape(_BLOCKS, _BLOCKS, -1),
            4 * distance,
            np.full((_BLOCKS - 1, _BLOCKS), border),
            np.full((_BLOCKS, _BLOCKS - 1), border),
        )


def _compatibility(saliency: Tensor) -> Array:
    """Adds to the identity a little of the distance between the images' most salient places."""
    count, height, width = saliency.shape
    window = (height // _BLOCKS, width // _BLOCKS)
    places = F.avg_pool2d(saliency[:, None], window, stride=1)[:, 0]
    row, column = np.unravel_index(
        places.flatten(1).argmax(dim=1).cpu().numpy(), tuple(places.shape[1:])
    )
    distance = abs(row[:, None] - row) + abs(column[:, None] - column)
    distance = distance / max(1, distance.sum()) * count
    compatibility: Array = (1 - _COMPATIBILITY) * np.eye(count) + _COMPATIBILITY * distance
    return compatibility


def _labels(shares: Array) -> Array:
    """Lists every image, and halves of those that a mix uses most: ``[labels, images]``."""
    use = shares.sum(axis=0)
    used = [int(i) for i in np.argsort(-use, kind="stable")[:_HALVES] if use[i] > 0]
    images = np.eye(shares.shape[1])
    halves = [(images[a] + images[b]) / 2 for a, b in itertools.combinations(used, 2)]
    return np.array([*images, *halves])


def _same_images(shares: Array) -> Array:
    """Charges two mixes of the same images a use of one image each: ``[mixes, images]``."""
    cost = np.zeros((len(shares), shares.shape[2]))
    used = shares.sum(axis=1) > 0
    for one, other in itertools.combinations(range(len(shares)), 2):
        both = np.flatnonzero(used[one])
        if len(both) > 1 and np.array_equal(used[one], used[other]):
            cost[one, both[0]] = cost[other, both[1]] = 1
    return cost
