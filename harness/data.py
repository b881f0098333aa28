"""Data sets by name: the embedded glyphs, or whatever timm's ``create_dataset`` reads."""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import create_dataset, create_loader, create_transform
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import v2

from harness.config import DataConfig
from harness.device_images import device_loader
from harness.glyphs import CLASSES, Glyphs

_GLYPHS_TRAIN, _GLYPHS_VALIDATION = 10_000, 2_000
_IMAGES_IN_FINGERPRINT = 16  # of a split
_PADDING = 8  # a crop may reach an eighth of the side beyond the image


class Source(NamedTuple):
    """Where a data set that timm does not know comes from."""

    open: Callable[[DataConfig, str], Any]
    """Opens a split: pairs of a PIL image and a class index, with ``targets`` and ``classes``."""
    hflip: float
    """Probability of a horizontal flip in training."""


DATASETS: dict[str, Source] = {}
"""Data sets beside timm's, by name; whoever reads this package may add to them."""


@dataclass(frozen=True)
class Splits:
    """The two data sets of a run."""

    train: Dataset
    validation: Dataset
    classes: list[str]
    hflip: float
    """Probability of a horizontal flip in training: characters are not the same in a mirror."""


class Subset(Dataset):
    """Some images of a data set, with a transform of its own."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        image, target = self.dataset[self.indices[index]]
        return image if self.transform is None else self.transform(image), target


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Opens a data set's two splits.

    Args:
        config: Which one.
        seed: Draws the training subset, and the glyphs.

    Raises:
        ValueError: If the data set cannot be opened, or has too few images for ``train_size``.
    """
    if config.dataset == "glyphs":
        classes = config.num_classes or len(CLASSES)
        size = config.image_size
        train = Glyphs("train", config.train_size or _GLYPHS_TRAIN, size, seed, classes)
        validation = Glyphs("validation", _GLYPHS_VALIDATION, size, 0, classes)
        if config.train_size:
            _per_class(config.train_size, len(train.classes))
        return Splits(train, validation, train.classes, hflip=0.0)
    train = _open(config, config.train_split, seed, training=True)
    validation = _open(config, config.val_split, seed, training=False)
    if isinstance(train, IterableDataset):
        if config.num_classes is None or config.train_size is not None:
            raise ValueError(
                f"dataset={config.dataset!r} is a stream: it needs num_classes, and takes no "
                "train_size, since its images cannot be picked"
            )
        classes = [str(index) for index in range(config.num_classes)]
        return Splits(train, validation, classes, hflip=0.5)
    targets = _targets(train)
    classes = _classes(train, targets)
    if config.train_size:
        train = Subset(train, balanced_indices(targets, config.train_size, seed))
    hflip = DATASETS[config.dataset].hflip if config.dataset in DATASETS else 0.5
    return Splits(train, validation, classes, hflip)


def count_images(config: DataConfig, seed: int) -> tuple[int | None, int]:
    """Counts the training images, if they can be, and the classes, without drawing glyphs.

    Raises:
        ValueError: As :func:`load_splits`.
    """
    if config.dataset != "glyphs":
        splits = load_splits(config, seed)
        stream = isinstance(splits.train, IterableDataset)
        return None if stream else len(splits.train), len(splits.classes)  # type: ignore[arg-type]
    classes = config.num_classes or len(CLASSES)
    if classes > len(CLASSES):
        raise ValueError(f"num_classes must be in [2, {len(CLASSES)}], got {classes}")
    if config.train_size:
        _per_class(config.train_size, classes)
    return config.train_size or _GLYPHS_TRAIN, classes


@functools.cache
def fingerprint(config: DataConfig) -> str:
    """A digest that tells one data set from another of the same name.

    It is made of both splits' classes, targets and some of their images. The glyphs are all in
    their settings, and of a stream nothing can be known beforehand: for both it is empty.

    Raises:
        ValueError: If the data set cannot be opened.
    """
    if config.dataset == "glyphs":
        return ""
    digest = hashlib.sha256()
    for split in (config.train_split, config.val_split):
        dataset = _open(config, split, seed=0, training=False)
        if isinstance(dataset, IterableDataset):
            return ""
        targets = _targets(dataset)
        digest.update(repr((_classes(dataset, targets), targets)).encode())
        for index in np.linspace(0, len(dataset) - 1, _IMAGES_IN_FINGERPRINT, dtype=int):
            digest.update(np.asarray(dataset[int(index)][0]).tobytes())
    return digest.hexdigest()[:16]


def balanced_indices(targets: Sequence[int], size: int, seed: int) -> list[int]:
    """Draws ``size`` indices, the same number of each class.

    Raises:
        ValueError: If ``size`` is no multiple of the number of classes, or a class has too few.
    """
    by_class = defaultdict(list)
    for index, target in enumerate(targets):
        by_class[target].append(index)
    each = _per_class(size, len(by_class))
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for target, indices in sorted(by_class.items()):
        if len(indices) < each:
            raise ValueError(
                f"train_size={size} takes {each} images of each class, but class {target} has "
                f"{len(indices)}"
            )
        chosen += random.choice(indices, each, replace=False).tolist()
    return sorted(chosen)


def make_loader(
    config: DataConfig,
    dataset: Any,
    model_config: dict[str, Any],
    device: torch.device,
    hflip: float | None,
    devices: int = 1,
):
    """Makes timm's loader, which normalises on the device; ``hflip=None`` is for evaluation.

    In training each device gets its part of the batch; evaluation is for one device.
    """
    training = hflip is not None
    square = _square(config, model_config)
    if training and config.on_device:
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"on_device=True cannot keep dataset={config.dataset!r}, which is a stream"
            )
        return device_loader(
            dataset,
            square,
            padding=config.image_size // _PADDING,
            batch_size=config.batch_size // devices,
            mean=model_config["mean"],
            std=model_config["std"],
            hflip=hflip,
            workers=config.workers,
            device=device,
            distributed=devices > 1,
        )
    loader = create_loader(
        dataset,
        input_size=(3, config.image_size, config.image_size),
        batch_size=config.batch_size // devices if training else 4 * config.batch_size,
        is_training=training,
        train_crop_mode=None if config.train_crop_mode == "pad" else config.train_crop_mode,
        scale=config.scale,
        ratio=config.ratio,
        hflip=hflip or 0.0,
        color_jitter=0.0,
        interpolation=model_config["interpolation"],
        mean=model_config["mean"],
        std=model_config["std"],
        num_workers=config.workers,
        distributed=training and devices > 1,
        persistent_workers=False,  # fresh workers take their seeds from the epoch's
        device=device,
    )
    if not training:
        loader.dataset.transform = v2.Compose([square, v2.PILToTensor()])
    elif config.train_crop_mode == "pad":
        size = config.image_size
        loader.dataset.transform = v2.Compose(
            [
                square,
                v2.RandomCrop(size, padding=size // _PADDING),
                v2.RandomHorizontalFlip(hflip),
                v2.PILToTensor(),
            ]
        )
    return loader


def _square(config: DataConfig, model_config: dict[str, Any]) -> Any:
    """Makes timm's evaluation geometry: from a PIL image of any size to a square one."""
    transform = create_transform(
        config.image_size,
        interpolation=model_config["interpolation"],
        mean=model_config["mean"],  # the colour of crop_mode="border"
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
        use_prefetcher=True,  # ends with a byte tensor, and normalises nothing
    )
    *geometry, _to_tensor = transform.transforms
    return v2.Compose(geometry)


def _open(config: DataConfig, split: str, seed: int, training: bool) -> Any:
    if config.dataset in DATASETS:
        return DATASETS[config.dataset].open(config, split)
    try:
        return create_dataset(
            config.dataset,
            root=config.data_dir,
            split=split,
            is_training=training,
            download=config.dataset_download,
            batch_size=config.batch_size,
            seed=seed,
        )
    except Exception as error:
        raise ValueError(
            f"cannot open split {split!r} of dataset={config.dataset!r} in "
            f"data_dir={config.data_dir!r}: {error}"
        ) from error


def _targets(dataset: Any) -> list[int]:
    if hasattr(dataset, "targets"):
        return [int(target) for target in dataset.targets]
    if hasattr(getattr(dataset, "reader", None), "samples"):
        return [int(target) for _, target in dataset.reader.samples]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _classes(dataset: Any, targets: list[int]) -> list[str]:
    if hasattr(dataset, "classes"):
        return list(dataset.classes)
    by_name = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if by_name:
        return sorted(by_name, key=by_name.__getitem__)
    return [str(target) for target in range(max(targets) + 1)]


def _per_class(size: int, classes: int) -> int:
    each, rest = divmod(size, classes)
    if rest or not each:
        raise ValueError(f"train_size must be a multiple of the {classes} classes, got {size}")
    return each
