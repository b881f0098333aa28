"""Batches of images: timm's loaders, images kept on the device, and a few images drawn to look at.

Training, validation and pictures start from the same square of an image.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import create_loader, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import normalize, to_dtype
from tqdm import tqdm

from harness.config import DataConfig
from harness.data import Subset
from harness.folders import as_mode, image_mode

_PADDING = 8  # a crop may reach an eighth of the side beyond the image
_DECODED_AT_ONCE = 256
_ERASED_BY = "pixel"  # normal noise, as in timm's train script


def make_loader(
    config: DataConfig,
    dataset: Any,
    model_config: dict[str, Any],
    device: torch.device,
    hflip: float | None,
    devices: int = 1,
):
    """Makes a loader of normalised images ``[B, C, H, W]`` and class indices ``[B]``.

    ``dataset`` holds pairs of a PIL image and a class index; its transform is set. ``hflip`` is the
    probability of a horizontal flip in training, or None for evaluation, which is for one device.
    In training each of the ``devices`` gets its part of the batch.
    """
    training = hflip is not None
    batch_size = config.batch_size // devices if training else 4 * config.batch_size
    padding = config.image_size // _PADDING
    convert = functools.partial(as_mode, mode=image_mode(config.in_chans))
    steps = [convert, *_square(config, model_config)]
    mean, std = model_config["mean"], model_config["std"]
    if training and config.on_device:
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"on_device=True cannot keep dataset={config.dataset!r}, which is a stream"
            )
        dataset.transform = v2.Compose([*steps, v2.PILToTensor()])
        decoded = DataLoader(dataset, _DECODED_AT_ONCE, num_workers=config.workers)
        parts = list(tqdm(decoded, desc="decoding", leave=False, disable=None))
        pixels, targets = (torch.cat(part).to(device) for part in zip(*parts, strict=True))
        erase = RandomErasing(config.reprob, mode=_ERASED_BY, device=device)
        kept = DeviceImages(pixels, targets, mean, std, padding, hflip)
        kept.erase = erase if config.reprob else None
        sampler = DistributedSampler(kept) if devices > 1 else RandomSampler(kept)
        return DataLoader(kept, batch_size, sampler=sampler, collate_fn=_as_it_is, drop_last=True)
    loader = create_loader(
        dataset,
        input_size=(config.in_chans, config.image_size, config.image_size),
        batch_size=batch_size,
        is_training=training,
        train_crop_mode=None if config.train_crop_mode == "pad" else config.train_crop_mode,
        scale=config.scale,
        ratio=config.ratio,
        hflip=hflip or 0.0,
        color_jitter=0.0,
        auto_augment=config.aa,
        re_prob=config.reprob,
        re_mode=_ERASED_BY,
        interpolation=model_config["interpolation"],
        mean=mean,
        std=std,
        num_workers=config.workers,
        distributed=training and devices > 1,
        persistent_workers=False,  # fresh workers take their seeds from the epoch's
        device=device,
    )
    if training and config.train_crop_mode != "pad":
        steps = [convert, loader.dataset.transform]
    elif training:
        steps.append(v2.RandomCrop(config.image_size, padding=padding))
        steps += [v2.RandomHorizontalFlip(hflip), *_augmentation(config, model_config)]
        steps.append(v2.PILToTensor())
    else:
        steps.append(v2.PILToTensor())
    loader.dataset.transform = v2.Compose(steps)
    return loader


def _square(config: DataConfig, model_config: dict[str, Any]) -> list[Any]:
    """Makes the steps of timm's evaluation that turn a PIL image of any size into a square one."""
    transform = create_transform(
        config.image_size,
        interpolation=model_config["interpolation"],
        mean=model_config["mean"],  # the colour of crop_mode="border"
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        use_prefetcher=True,  # ends with a byte tensor, and normalises nothing
    )
    return transform.transforms[:-1]


def check_augmentation(config: DataConfig) -> None:
    """Raises a ValueError if timm knows no augmentation of the name that is asked for."""
    try:
        _augmentation(config, {"interpolation": "bilinear", "mean": (0.5,) * config.in_chans})
    except Exception as error:  # timm asserts, or looks up a key
        raise ValueError(
            f"aa={config.aa!r} is not an augmentation of timm's, such as rand-m9-mstd0.5-inc1, "
            f"original, 3a or augmix-m3-w3: {error}"
        ) from error


def _augmentation(config: DataConfig, model_config: dict[str, Any]) -> list[Any]:
    """Makes the step of timm's training transform that is AutoAugment or its like, if asked for."""
    if config.aa is None:
        return []
    if not config.aa:
        raise ValueError("it has no name")
    _, augmentation, _ = create_transform(
        config.image_size,
        is_training=True,
        auto_augment=config.aa,
        color_jitter=None,
        interpolation=model_config["interpolation"],
        mean=model_config["mean"],
        separate=True,
    )
    return augmentation.transforms


class DeviceImages(Dataset):
    """Images on the device, in batches that are cropped, flipped and normalised there.

    Does for a whole batch what ``v2.RandomCrop(size, padding)`` and ``v2.RandomHorizontalFlip`` do
    for one image, drawn from torch's random state.

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
        self.erase: RandomErasing | None = None
        """Changes normalised images, if set."""

    def __len__(self) -> int:
        return len(self.padded)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns a batch: images ``[B, C, H, W]`` and class indices ``[B]``."""
        chosen = torch.tensor(indices)
        corners = torch.randint(2 * self.padding + 1, (len(chosen), 2))
        flips = torch.rand(len(chosen)) < self.hflip
        chosen, corners, flips = (t.to(self.padded.device) for t in (chosen, corners, flips))
        images = crop(self.padded[chosen], corners, flips, self.size)
        scaled = to_dtype(images, torch.float32, scale=True)
        images = normalize(scaled, self.mean, self.std, inplace=True)
        return images if self.erase is None else self.erase(images), self.targets[chosen]


def crop(images: Tensor, corners: Tensor, flips: Tensor, size: Sequence[int]) -> Tensor:
    """Crops each image ``[B, C, H, W]`` to a size, and mirrors some of the crops.

    ``corners`` are the crops' top rows and left columns ``[B, 2]``, ``flips`` is boolean ``[B]``.
    """
    height, width = size
    across = torch.arange(width, device=images.device)
    rows = corners[:, :1] + torch.arange(height, device=images.device)
    columns = corners[:, 1:] + torch.where(flips[:, None], across.flip(0), across)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _as_it_is(batch: Any) -> Any:
    return batch


def draw_indices(
    config: DataConfig, dataset: Any, count: int, argument: str, random: np.random.Generator
) -> list[int]:
    """Draws ``count`` images of a split, each at most once.

    The error names the ``argument`` that asked for too many, as ``name=value``.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"dataset={config.dataset!r} is a stream: no images can be picked")
    if count > len(dataset):
        raise ValueError(f"{argument} takes {count} images, the split has {len(dataset)}")
    return random.choice(len(dataset), count, replace=False).tolist()


def load_images(
    config: DataConfig,
    dataset: Any,
    indices: Sequence[int],
    data_config: dict[str, Any],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Loads images as evaluation does: normalised ``[N, C, H, W]``, and class indices ``[N]``."""
    loader = make_loader(config, Subset(dataset, indices), data_config, device, hflip=None)
    images, classes = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return images, classes
