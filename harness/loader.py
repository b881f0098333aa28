"""Training images that stay on the device: decoded once, cropped and flipped there in batches."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import normalize, to_dtype
from tqdm import tqdm

_DECODED_AT_ONCE = 256


class DeviceImages(Dataset):
    """Images that are cropped at random from their padded selves, flipped, and normalised.

    The augmentation of ``v2.RandomCrop(size, padding)`` and ``v2.RandomHorizontalFlip``, an image
    at a time there, for a whole batch. It is drawn from torch's random state.

    Args:
        pixels: ``[N, C, H, W]``, bytes.
        targets: Class indices ``[N]``.
        mean: Of each channel, of pixels in [0, 1].
        std: Likewise.
        padding: Black pixels at each side that a crop may reach into.
        hflip: Probability of a horizontal flip.
    """

    def __init__(
        self,
        pixels: Tensor,
        targets: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int,
        hflip: float,
    ) -> None:
        self.padded = F.pad(pixels, [padding] * 4)
        self.targets = targets
        self.mean, self.std = mean, std
        self.size = pixels.shape[2:]
        self.padding = padding
        self.hflip = hflip

    def __len__(self) -> int:
        return len(self.padded)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Gives a batch: images ``[B, C, H, W]`` and class indices ``[B]``."""
        chosen = torch.tensor(indices)
        corners = torch.randint(2 * self.padding + 1, (len(chosen), 2))
        flips = torch.rand(len(chosen)) < self.hflip
        chosen, corners, flips = (t.to(self.padded.device) for t in (chosen, corners, flips))
        images = crop(self.padded[chosen], corners, flips, self.size)
        scaled = to_dtype(images, torch.float32, scale=True)
        return normalize(scaled, self.mean, self.std, inplace=True), self.targets[chosen]


def crop(images: Tensor, corners: Tensor, flips: Tensor, size: Sequence[int]) -> Tensor:
    """Crops each image at a corner of its own, and mirrors some of the crops.

    Args:
        images: ``[B, C, H, W]``.
        corners: Top row and left column of each crop ``[B, 2]``.
        flips: Which crops are mirrored ``[B]``, boolean.
        size: Height and width of the crops.
    """
    height, width = size
    across = torch.arange(width, device=images.device)
    rows = corners[:, :1] + torch.arange(height, device=images.device)
    columns = corners[:, 1:] + torch.where(flips[:, None], across.flip(0), across)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def device_loader(
    dataset: Any,
    square: Any,
    *,
    padding: int,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    hflip: float,
    workers: int,
    device: torch.device,
    distributed: bool,
) -> DataLoader:
    """Decodes a data set, and makes a loader of batches of it, shuffled anew in each epoch.

    Args:
        dataset: Pairs of a PIL image and a class index; its transform is set.
        square: Makes a PIL image of any size a square one.
        padding: See :class:`DeviceImages`.
        batch_size: Of this process; what is left over of an epoch is dropped.
        mean: See :class:`DeviceImages`.
        std: Likewise.
        hflip: Likewise.
        workers: Processes that decode.
        device: Where the images are kept.
        distributed: Whether each process takes a part of an epoch of its own.
    """
    dataset.transform = v2.Compose([square, v2.PILToTensor()])
    decoded = DataLoader(dataset, _DECODED_AT_ONCE, num_workers=workers)
    parts = list(tqdm(decoded, desc="decoding", leave=False, disable=None))
    pixels, targets = (torch.cat(part).to(device) for part in zip(*parts, strict=True))
    kept = DeviceImages(pixels, targets, mean, std, padding, hflip)
    return DataLoader(
        kept,
        batch_size,
        sampler=DistributedSampler(kept) if distributed else RandomSampler(kept),
        collate_fn=_as_it_is,
        drop_last=True,
    )


def _as_it_is(batch: Any) -> Any:
    return batch
